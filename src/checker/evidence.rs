//! A history, indexed: who published what, who was given what, what became of it.

use std::collections::HashMap;

use crate::{
    history::{
        Header, History, How, Op, Publish, Published, Receive, SettleOutcome, Subscription, Topic,
        What, nanos,
    },
    message::{Identity, Seen},
};

/// A time of a history: nanoseconds since its beginning.
pub type Time = u64;

/// An index into [`Evidence::publishes`].
pub type PublishIndex = usize;

/// A history, indexed.
#[derive(Debug)]
pub struct Evidence<'h> {
    /// The circumstances.
    pub header: &'h Header,
    /// Everything, in the order of completion.
    pub ops: &'h [Op],
    /// The topics.
    pub topics: Vec<&'h Topic>,
    /// The subscriptions.
    pub subscriptions: Vec<Subscribed<'h>>,
    /// The consumers.
    pub consumers: Vec<Consumed>,
    /// The connections; the first is the director, which has none.
    pub connections: Vec<Connected>,
    /// The names under which the publishers were opened.
    pub publishers: Vec<Option<&'h str>>,
    /// The publishes.
    pub publishes: Vec<Sent<'h>>,
    /// The deliveries.
    pub deliveries: Vec<Delivered<'h>>,
    /// Spans in which this program did not run.
    pub stalls: Vec<(Time, Time)>,
    identities: HashMap<Identity, PublishIndex>,
}

/// A subscription, with what happened to it.
#[derive(Debug)]
pub struct Subscribed<'h> {
    /// Its specification.
    pub spec: &'h Subscription,
    /// When its creation was invoked and completed.
    pub created: (Time, Time),
    /// When it was last seen to be drained.
    pub drained: Option<Time>,
    /// Its deliveries by message, each in the order of the broker's making; `None` collects those
    /// that are nobody's.
    pub by_message: Vec<Vec<usize>>,
}

/// A consumer.
#[derive(Debug)]
pub struct Consumed {
    /// What it consumes.
    pub subscription: usize,
    /// Its connection.
    pub connection: usize,
    /// When opening it was invoked and completed.
    pub opened: (Time, Time),
    /// When leaving was invoked.
    pub left: Option<Time>,
    /// How many messages may be locked ahead for it.
    pub prefetch: u32,
}

/// A connection.
#[derive(Debug, Default, Clone)]
pub struct Connected {
    /// When its link was cut, or its closing invoked.
    pub ended: Vec<Time>,
    /// How often its link was cut on purpose.
    pub cuts: u64,
    /// Whether its link was ever cut or held.
    pub faulted: bool,
    /// How often it had been lost when it was closed.
    pub disconnects: u64,
}

/// A publish, with its times.
#[derive(Debug)]
pub struct Sent<'h> {
    /// What was sent, and what is known of it.
    pub op: &'h Publish,
    /// When it was invoked and when its outcome was known.
    pub at: (Time, Time),
    /// Its connection.
    pub connection: usize,
    /// The first delivery of it in any subscription, index into [`Evidence::deliveries`].
    pub delivered: Option<usize>,
}

/// A delivery, with what was done with it.
#[derive(Debug)]
pub struct Delivered<'h> {
    /// What the consumer was given.
    pub op: &'h Receive,
    /// When the consumer asked and when it got it.
    pub at: (Time, Time),
    /// The publish it repeats, if it is anybody's.
    pub publish: Option<PublishIndex>,
    /// How it was settled, in order.
    pub settles: Vec<Settled<'h>>,
    /// Its place in the history: on a simulated clock much has the same time.
    pub place: usize,
}

/// A settlement, with its times.
#[derive(Debug)]
pub struct Settled<'h> {
    /// How.
    pub how: How,
    /// What is known of it.
    pub outcome: &'h SettleOutcome,
    /// When it was invoked and when its outcome was known.
    pub at: (Time, Time),
    /// Its place in the history.
    pub place: usize,
}

impl<'h> Evidence<'h> {
    /// Indexes a history.
    ///
    /// # Errors
    /// What refers to something that the history does not hold, in words.
    pub fn new(history: &'h History) -> Result<Self, String> {
        let mut evidence = Evidence {
            header: &history.header,
            ops: &history.ops,
            topics: Vec::new(),
            subscriptions: Vec::new(),
            consumers: Vec::new(),
            connections: vec![Connected::default()],
            publishers: Vec::new(),
            publishes: Vec::new(),
            deliveries: Vec::new(),
            stalls: Vec::new(),
            identities: HashMap::with_capacity(history.ops.len() / 3),
        };
        for (index, op) in history.ops.iter().enumerate() {
            evidence.add(index, op).map_err(|missing| {
                format!("operation {}: there is no {missing} that it refers to", index + 1)
            })?;
        }
        evidence.match_deliveries();
        Ok(evidence)
    }

    /// Adds an operation, or says what it refers to that is not there.
    fn add(&mut self, place: usize, op: &'h Op) -> Result<(), &'static str> {
        let by = usize::from(op.by);
        match &op.what {
            What::Topic(topic) => self.topics.push(topic),
            What::Subscription(spec) => {
                self.topics.get(usize::from(spec.topic)).ok_or("topic")?;
                self.subscriptions.push(Subscribed {
                    spec,
                    created: op.at,
                    drained: None,
                    by_message: Vec::new(),
                });
            }
            What::Connect { .. } => self.connections.push(Connected::default()),
            What::Close { disconnects } => {
                let connection = self.connections.get_mut(by).ok_or("connection")?;
                connection.ended.push(op.at.0);
                connection.disconnects = *disconnects;
            }
            What::Cut => {
                let connection = self.connections.get_mut(by).ok_or("connection")?;
                connection.ended.push(op.at.0);
                connection.cuts += 1;
                connection.faulted = true;
            }
            What::Hold(_) => {
                self.connections.get_mut(by).ok_or("connection")?.faulted = true;
            }
            What::Publish(publish) => {
                self.topics.get(usize::from(publish.topic)).ok_or("topic")?;
                self.connections.get(by).ok_or("connection")?;
                let identity = Identity {
                    topic: publish.topic,
                    publisher: publish.publisher,
                    number: publish.number,
                    copy: publish.copy,
                };
                self.identities.insert(identity, self.publishes.len());
                self.publishes.push(Sent {
                    op: publish,
                    at: op.at,
                    connection: by,
                    delivered: None,
                });
            }
            What::Consumer { subscription, prefetch, .. } => {
                let subscription = usize::from(*subscription);
                self.subscriptions.get(subscription).ok_or("subscription")?;
                self.connections.get(by).ok_or("connection")?;
                self.consumers.push(Consumed {
                    subscription,
                    connection: by,
                    opened: op.at,
                    left: None,
                    prefetch: *prefetch,
                });
            }
            What::Leave { consumer } => {
                let consumer = self.consumers.get_mut(usize::from(*consumer)).ok_or("consumer")?;
                consumer.left = Some(op.at.0);
            }
            What::Receive(receive) => {
                self.subscriptions.get(usize::from(receive.subscription)).ok_or("subscription")?;
                self.consumers.get(usize::from(receive.consumer)).ok_or("consumer")?;
                self.deliveries.push(Delivered {
                    op: receive,
                    at: op.at,
                    publish: None,
                    settles: Vec::new(),
                    place,
                });
            }
            What::Settle(settle) => {
                let delivery =
                    self.deliveries.get_mut(settle.delivery as usize).ok_or("delivery")?;
                delivery.settles.push(Settled {
                    how: settle.how,
                    outcome: &settle.outcome,
                    at: op.at,
                    place,
                });
            }
            What::Drained { subscription } => {
                let subscription = usize::from(*subscription);
                self.subscriptions.get_mut(subscription).ok_or("subscription")?.drained =
                    Some(op.at.1);
            }
            What::Stall => self.stalls.push(op.at),
            What::Publisher { name, .. } => self.publishers.push(name.as_deref()),
            What::Heal
            | What::Depth { .. }
            | What::Mark { .. }
            | What::Workload(_)
            | What::Schedule(_) => {}
        }
        Ok(())
    }

    /// Finds whose message each delivery is. Done last: a delivery may be recorded before the
    /// confirmation of its publish.
    fn match_deliveries(&mut self) {
        // A message without identity is known by its topic, where it is the only such one.
        let mut anonymous: HashMap<(u16, u32, u32), PublishIndex> = HashMap::new();
        for (index, sent) in self.publishes.iter().enumerate() {
            if (sent.op.len as usize) < crate::message::HEADER {
                anonymous.insert((sent.op.topic, sent.op.len, sent.op.body), index);
            }
        }
        for subscription in &mut self.subscriptions {
            subscription.by_message.resize_with(self.publishes.len(), Vec::new);
        }
        for (index, delivery) in self.deliveries.iter_mut().enumerate() {
            let subscription = &mut self.subscriptions[usize::from(delivery.op.subscription)];
            let publish = match delivery.op.seen {
                Seen::Known(identity) => self.identities.get(&identity).copied(),
                Seen::Foreign | Seen::Damaged => None,
                Seen::Nameless => anonymous
                    .get(&(subscription.spec.topic, delivery.op.len, delivery.op.body))
                    .copied(),
            };
            delivery.publish = publish;
            if let Some(publish) = publish {
                subscription.by_message[publish].push(index);
                self.publishes[publish].delivered.get_or_insert(index);
            }
        }
        // The broker's count tells the order of its making: a prefetch may hand out an older
        // delivery after a newer one.
        for subscription in &mut self.subscriptions {
            for deliveries in subscription.by_message.iter_mut().filter(|d| d.len() > 1) {
                deliveries.sort_by_key(|&d| self.deliveries[d].op.attempt);
            }
        }
    }

    /// The subscription of a delivery.
    pub fn subscription(&self, delivery: &Delivered<'_>) -> &Subscribed<'h> {
        &self.subscriptions[usize::from(delivery.op.subscription)]
    }

    /// The name and the number that deduplicate a publish, where it has them.
    pub fn numbered(&self, publish: PublishIndex) -> Option<(&'h str, u64)> {
        let op = self.publishes[publish].op;
        let name = self.publishers.get(usize::from(op.publisher)).copied().flatten()?;
        Some((name, op.sequence?))
    }

    /// The subscriptions on a topic, with their indices.
    pub fn on_topic(&self, topic: u16) -> impl Iterator<Item = (usize, &Subscribed<'h>)> {
        self.subscriptions.iter().enumerate().filter(move |(_, s)| s.spec.topic == topic)
    }

    /// A copy of a message was stored, dropped as a duplicate, …: its name in examples.
    pub fn name(&self, publish: PublishIndex) -> String {
        let op = self.publishes[publish].op;
        let copy = if op.copy > 0 { format!(" copy {}", op.copy) } else { String::new() };
        format!("message {}/{}{copy}", op.publisher, op.number)
    }

    /// The figure of the scenario's last mark of that name.
    pub fn mark(&self, name: &str) -> Option<(Time, i64)> {
        self.marks(name).last()
    }

    /// Where in the history the scenario's last mark of that name is.
    pub fn mark_place(&self, name: &str) -> Option<usize> {
        self.ops.iter().rposition(|op| matches!(&op.what, What::Mark { name: n, .. } if n == name))
    }

    /// The figures of all marks of that name, with their times.
    pub fn marks<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (Time, i64)> + 'a {
        self.ops.iter().filter_map(move |op| match &op.what {
            What::Mark { name: marked, value } if marked == name => Some((op.at.1, *value)),
            _ => None,
        })
    }

    /// How long this program was not running within a span.
    pub fn stalled(&self, from: Time, to: Time) -> Time {
        let overlap = |&(begin, end): &(Time, Time)| end.min(to).saturating_sub(begin.max(from));
        self.stalls.iter().map(overlap).sum()
    }

    /// The longest that the broker took to confirm a publish on a connection that nobody disturbed.
    pub fn slowest_answer(&self) -> Time {
        let confirmed = |sent: &&Sent<'_>| {
            sent.confirmed() && !self.connections.get(sent.connection).is_none_or(|c| c.faulted)
        };
        let took = self.publishes.iter().filter(confirmed).map(|p| p.at.1 - p.at.0.min(p.at.1));
        took.max().unwrap_or(0)
    }

    /// How late a timed event may come.
    pub fn tolerance(&self) -> Time {
        nanos(self.header.suite.tolerance)
    }

    /// How early an event may come by a clock that counts milliseconds.
    pub fn slack(&self) -> Time {
        if self.header.virtual_time { 0 } else { 1_000_000 }
    }
}

impl Sent<'_> {
    /// Whether the broker confirmed it.
    pub fn confirmed(&self) -> bool {
        matches!(self.op.outcome, Published::Confirmed { .. })
    }

    /// Whether the broker said that it stored it, not that it dropped it.
    pub fn stored(&self) -> bool {
        matches!(self.op.outcome, Published::Confirmed { duplicate: Some(false) | None, .. })
    }

    /// Whether the broker said that it dropped it as a duplicate.
    pub fn dropped(&self) -> bool {
        matches!(self.op.outcome, Published::Confirmed { duplicate: Some(true), .. })
    }

    /// Whether it may be in the store.
    pub fn possible(&self) -> bool {
        self.confirmed() || matches!(self.op.outcome, Published::Indeterminate(_))
    }

    /// The position of its receipt.
    pub fn position(&self) -> Option<u64> {
        match self.op.outcome {
            Published::Confirmed { position, .. } => position,
            _ => None,
        }
    }
}

impl Settled<'_> {
    /// Whether the settlement took effect as far as the broker says.
    pub fn accepted(&self) -> bool {
        matches!(self.outcome, SettleOutcome::Confirmed | SettleOutcome::Sent)
    }

    /// Whether it may have taken effect.
    pub fn possible(&self) -> bool {
        self.accepted() || matches!(self.outcome, SettleOutcome::Indeterminate(_))
    }
}

impl Delivered<'_> {
    /// Whether an acknowledgement of it was accepted.
    pub fn acked(&self) -> bool {
        self.settles.iter().any(|s| s.how == How::Ack && s.accepted())
    }
}
