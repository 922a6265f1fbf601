//! Topics and what is stored in them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    MemorySettings,
    publishers::{Opened, Publishers, Who},
    subscription::{Queued, Subscription},
};
use crate::{
    BackendError, DedupKey, Depth, ErrorKind, Message, PublishError, PublishReceipt, RejectKind,
    Retention, Start, SubscriptionSpec, TopicSpec, check_name,
};

/// The whole broker.
#[derive(Debug)]
pub(super) struct Broker {
    /// In an order that does not change from run to run, as those of a topic's subscriptions.
    topics: BTreeMap<String, Topic>,
    default_window: Duration,
    max_payload: u64,
    connections: u64,
    numbers: u64,
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    spec: TopicSpec,
    window: Duration,
    last_position: u64,
    /// What a later subscription can still get: everything where it is kept, else what came
    /// before the only subscription.
    log: VecDeque<Queued>,
    publishers: Publishers,
    ids: HashMap<Arc<str>, u64>,
    /// When ids are forgotten, in order: the window is the same for all.
    forget: VecDeque<(Instant, Arc<str>)>,
    subscriptions: BTreeMap<String, Subscription>,
}

impl Broker {
    pub(super) fn new(settings: &MemorySettings) -> Self {
        Broker {
            topics: BTreeMap::new(),
            default_window: settings.dedup_window,
            max_payload: settings.max_payload,
            connections: 0,
            numbers: 0,
        }
    }

    /// The number of a new connection.
    pub(super) fn connect(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// The number of a new publisher or consumer, higher than all before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn create_topic(&mut self, spec: TopicSpec) -> Result<(), BackendError> {
        check_name("topic", &spec.name, RULE)?;
        if let Some(existing) = self.topics.get(&spec.name) {
            return same("topic", &spec.name, existing.spec == spec);
        }
        let topic = Topic {
            window: spec.dedup_window.unwrap_or(self.default_window),
            last_position: 0,
            log: VecDeque::new(),
            publishers: Publishers::default(),
            ids: HashMap::new(),
            forget: VecDeque::new(),
            subscriptions: BTreeMap::new(),
            spec: spec.clone(),
        };
        self.topics.insert(spec.name, topic);
        Ok(())
    }

    pub(super) fn create_subscription(
        &mut self,
        spec: SubscriptionSpec,
    ) -> Result<(), BackendError> {
        check_name("subscription", &spec.name, RULE)?;
        if let Some(dead_letter) = &spec.dead_letter {
            self.topic(&dead_letter.topic)?;
            if dead_letter.max_deliveries == 0 {
                let problem = "a limit of deliveries must be 1 or more";
                return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
            }
        }
        let topic = self.topic_mut(&spec.topic)?;
        if let Some(existing) = topic.subscriptions.get(&spec.name) {
            return same("subscription", &spec.name, *existing.spec() == spec);
        }
        let until_acked = topic.spec.retention == Retention::UntilAcked;
        if until_acked && !topic.subscriptions.is_empty() {
            return Err(BackendError::new(
                ErrorKind::Conflict,
                format!(
                    "topic {} deletes what was acknowledged and has a subscription",
                    spec.topic
                ),
            ));
        }
        let mut subscription = Subscription::new(spec.clone());
        if spec.start == Start::Earliest {
            for queued in &topic.log {
                subscription.push(queued.clone());
            }
        }
        if until_acked {
            topic.log.clear();
        }
        topic.subscriptions.insert(spec.name, subscription);
        Ok(())
    }

    pub(super) fn delete_topic(&mut self, name: &str) {
        if let Some(mut topic) = self.topics.remove(name) {
            for subscription in topic.subscriptions.values_mut() {
                subscription.wake_all();
            }
        }
    }

    pub(super) fn topics(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<_> =
            self.topics.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.sort();
        names
    }

    pub(super) fn topic(&self, name: &str) -> Result<&Topic, BackendError> {
        self.topics.get(name).ok_or_else(|| not_found("topic", name))
    }

    fn topic_mut(&mut self, name: &str) -> Result<&mut Topic, BackendError> {
        self.topics.get_mut(name).ok_or_else(|| not_found("topic", name))
    }

    /// Lets a publisher in, or says what to wait for.
    pub(super) fn open_publisher(
        &mut self,
        topic: &str,
        who: &Who,
    ) -> Result<Opened, BackendError> {
        let topic = self.topic_mut(topic)?;
        topic.publishers.open(who).map_err(|why| BackendError::new(ErrorKind::Conflict, why))
    }

    pub(super) fn close_publisher(&mut self, topic: &str, publisher: u64) {
        // A topic that is gone has no publishers.
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.publishers.close(|p| p.number == publisher);
        }
    }

    /// Stores messages, or says why not; one answer each.
    pub(super) fn publish(
        &mut self,
        topic: &str,
        who: &Who,
        messages: Vec<Message>,
        now: Instant,
    ) -> Vec<Result<PublishReceipt, PublishError>> {
        let max_payload = self.max_payload;
        let Some(topic) = self.topics.get_mut(topic) else {
            let error = rejected(RejectKind::NoTopic, format!("there is no topic {topic}"));
            return vec![Err(error); messages.len()];
        };
        // After a cut it comes back, if nobody else took its place.
        if let Ok(Opened::Wait(_)) | Err(_) = topic.publishers.open(who) {
            let why = format!("topic {} has another publisher in its place", topic.spec.name);
            return vec![Err(rejected(RejectKind::NotAllowed, why)); messages.len()];
        }
        topic.forget(now);
        let results = messages
            .into_iter()
            .map(|message| topic.publish(who, message, max_payload, now))
            .collect();
        let moved: Vec<_> = topic.subscriptions.values_mut().flat_map(|s| s.advance(now)).collect();
        self.bury(moved, now);
        results
    }

    /// Does something with a subscription after what is due by now has happened to it.
    pub(super) fn with_subscription<T>(
        &mut self,
        topic: &str,
        name: &str,
        now: Instant,
        act: impl FnOnce(&mut Subscription) -> T,
    ) -> Result<T, BackendError> {
        let found = self
            .topic_mut(topic)?
            .subscriptions
            .get_mut(name)
            .ok_or_else(|| not_found("subscription", name))?;
        let mut moved = found.advance(now);
        let result = act(found);
        moved.extend(found.advance(now));
        self.bury(moved, now);
        Ok(result)
    }

    /// A consumer stops waiting for deliveries of a subscription, if that is still there.
    pub(super) fn leave(&mut self, topic: &str, name: &str, consumer: u64, now: Instant) {
        let topic = self.topics.get_mut(topic);
        if let Some(found) = topic.and_then(|topic| topic.subscriptions.get_mut(name)) {
            found.leave(consumer, now);
        }
    }

    /// Moves messages to their dead-letter topics.
    pub(super) fn bury(&mut self, moved: Vec<(String, Message)>, now: Instant) {
        for (name, message) in moved {
            // Its deduplication is over, and a full graveyard must not lose it.
            if let Some(topic) = self.topics.get_mut(&name) {
                topic.store(message, now);
                let further: Vec<_> =
                    topic.subscriptions.values_mut().flat_map(|s| s.advance(now)).collect();
                self.bury(further, now);
            }
        }
    }

    pub(super) fn depth(
        &mut self,
        topic: &str,
        name: &str,
        now: Instant,
    ) -> Result<Depth, BackendError> {
        let (waiting, unsettled) =
            self.with_subscription(topic, name, now, |s| (s.waiting(), s.leased()))?;
        let topic = self.topic(topic)?;
        Ok(Depth { waiting, unsettled, stored: Some(topic.stored()) })
    }

    /// Takes everything back that the consumers of a connection hold.
    pub(super) fn disconnect(&mut self, connection: u64, now: Instant) {
        let mut moved = Vec::new();
        for topic in self.topics.values_mut() {
            topic.publishers.close(|p| p.connection == connection);
            for subscription in topic.subscriptions.values_mut() {
                moved.extend(subscription.advance(now));
                moved.extend(subscription.disconnect(connection, now));
            }
        }
        self.bury(moved, now);
    }
}

impl Topic {
    fn publish(
        &mut self,
        who: &Who,
        mut message: Message,
        max_payload: u64,
        now: Instant,
    ) -> Result<PublishReceipt, PublishError> {
        if message.payload.len() as u64 > max_payload {
            let size = message.payload.len();
            return Err(rejected(
                RejectKind::TooLarge,
                format!("the payload has {size} bytes, and the limit is {max_payload}"),
            ));
        }
        let position = match (&message.dedup, &who.name) {
            (None, _) => None,
            (Some(DedupKey::Id(id)), _) => {
                self.ids.get(id.as_str()).map(|&position| Some(position))
            }
            (Some(DedupKey::Sequence(number)), Some(name)) => {
                self.publishers.is_repeated(name, *number).then_some(None)
            }
            (Some(DedupKey::Sequence(_)), None) => {
                let why = "a publisher without a name has no numbers";
                return Err(PublishError::Unsupported(why.into()));
            }
        };
        if let Some(position) = position {
            return Ok(PublishReceipt { duplicate: Some(true), position });
        }
        if let Some(limit) = self.spec.max_messages
            && self.stored() >= limit
        {
            return Err(rejected(
                RejectKind::LimitReached,
                format!("the topic holds {limit} messages, its limit"),
            ));
        }
        let dedup = message.dedup.take();
        let position = self.store(message, now);
        match (dedup, &who.name) {
            (Some(DedupKey::Id(id)), _) => {
                let id: Arc<str> = id.into();
                self.ids.insert(Arc::clone(&id), position);
                self.forget.push_back((now + self.window, id));
            }
            (Some(DedupKey::Sequence(number)), Some(name)) => self.publishers.stored(name, number),
            _ => {}
        }
        Ok(PublishReceipt { duplicate: Some(false), position: Some(position) })
    }

    fn store(&mut self, message: Message, now: Instant) -> u64 {
        self.last_position += 1;
        let position = self.last_position;
        let queued = Queued::new(position, message, now);
        if self.spec.retention == Retention::Keep || self.subscriptions.is_empty() {
            self.log.push_back(queued.clone());
        }
        let mut subscriptions = self.subscriptions.values_mut();
        if let Some(first) = subscriptions.next() {
            for other in subscriptions {
                other.push(queued.clone());
            }
            first.push(queued);
        }
        position
    }

    /// Forgets the ids whose window has passed.
    fn forget(&mut self, now: Instant) {
        while self.forget.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, id)) = self.forget.pop_front() {
                self.ids.remove(&id);
            }
        }
    }

    fn stored(&self) -> u64 {
        let held = match self.spec.retention {
            Retention::Keep => 0,
            Retention::UntilAcked => {
                self.subscriptions.values().map(|s| s.waiting() + s.leased()).sum()
            }
        };
        self.log.len() as u64 + held
    }
}

/// The embedded broker's rule for names.
const RULE: &str = "the embedded broker takes what every broker takes";

/// Who is woken when something is leased to a consumer.
pub(super) type Bell = Arc<Notify>;

fn rejected(kind: RejectKind, reason: String) -> PublishError {
    PublishError::Rejected { kind, reason }
}

fn not_found(what: &str, name: &str) -> BackendError {
    BackendError::new(ErrorKind::NotFound, format!("there is no {what} {name}"))
}

fn same(what: &str, name: &str, same: bool) -> Result<(), BackendError> {
    match same {
        true => Ok(()),
        false => Err(BackendError::new(
            ErrorKind::Conflict,
            format!("{what} {name} exists with another specification"),
        )),
    }
}
