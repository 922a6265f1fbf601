//! The client's side: a channel to the broker, and publishers and consumers on it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::{Broker, MemoryLink, Shared, broker::Bell, lock, publishers::Who};
use crate::{
    BackendError, BoxFuture, Confirmation, Consumer, ConsumerOptions, Delivery, ErrorKind, Message,
    PublishError, PublishReceipt, Publisher, SettleError, Settled, Settlement, Settler, Token,
    confirmed,
};

/// A topic and a subscription on it.
pub(super) type Place = (Arc<str>, Arc<str>);

/// A connection's way to the broker, through its link if it has one.
pub(super) struct Channel {
    pub(super) broker: Arc<Shared>,
    id: u64,
    link: Option<MemoryLink>,
    closed: AtomicBool,
    disconnects: AtomicU64,
    /// The consumers' bells, to wake them when the link changes.
    bells: Mutex<Bells>,
}

/// Bells in the order in which they came, by their numbers.
#[derive(Debug, Default)]
struct Bells {
    last: u64,
    by_number: BTreeMap<u64, Bell>,
}

/// An answer of the broker: here already, or on its way over a link.
pub(super) enum Answer<T> {
    Here(T),
    OnItsWay(oneshot::Receiver<T>),
}

impl<T> Answer<T> {
    /// Waits for it; `None` if it was lost, or did not come in time.
    pub(super) async fn wait(self, limit: Duration) -> Option<T> {
        match self {
            Answer::Here(answer) => Some(answer),
            Answer::OnItsWay(receiver) => timeout(limit, receiver).await.ok()?.ok(),
        }
    }
}

impl Channel {
    pub(super) fn new(broker: Arc<Shared>, id: u64, link: Option<MemoryLink>) -> Arc<Self> {
        let channel = Arc::new(Channel {
            broker,
            id,
            link,
            closed: AtomicBool::new(false),
            disconnects: AtomicU64::new(0),
            bells: Mutex::default(),
        });
        if let Some(link) = &channel.link {
            link.carries(&channel);
        }
        channel
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn is_down(&self) -> bool {
        self.link.as_ref().is_some_and(MemoryLink::is_cut)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn holds_deliveries(&self) -> bool {
        self.link.as_ref().is_some_and(MemoryLink::holds_deliveries)
    }

    pub(super) fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }

    /// Notes that the link was cut; whether that was a loss.
    pub(super) fn was_cut(&self) -> bool {
        let lost = !self.is_closed();
        self.disconnects.fetch_add(u64::from(lost), Ordering::Relaxed);
        self.ring();
        lost
    }

    fn bells(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a bell, and returns its number.
    fn hang(&self, bell: &Bell) -> u64 {
        let mut bells = self.bells();
        bells.last += 1;
        let number = bells.last;
        bells.by_number.insert(number, Arc::clone(bell));
        number
    }

    /// Wakes everybody who waits on this channel.
    pub(super) fn ring(&self) {
        for bell in self.bells().by_number.values() {
            bell.notify_one();
        }
    }

    pub(super) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            lock(&self.broker).disconnect(self.id, Instant::now());
            self.ring();
        }
    }

    /// Has the broker do something, through the link if there is one.
    ///
    /// # Errors
    /// When the channel is closed or its link is cut: then nothing is done.
    pub(super) fn call<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Broker) -> T + Send + 'static,
    ) -> Result<Answer<T>, BackendError> {
        if self.is_closed() {
            return Err(BackendError::new(ErrorKind::Closed, "the connection is closed"));
        }
        let Some(link) = &self.link else { return Ok(Answer::Here(act(&mut lock(&self.broker)))) };
        if link.is_cut() {
            return Err(BackendError::new(ErrorKind::Unreachable, "the link is cut"));
        }
        let (sender, receiver) = oneshot::channel();
        let (broker, back) = (Arc::clone(&self.broker), link.clone());
        let request = Box::new(move || {
            let answer = act(&mut lock(&broker));
            // The one who asked may have stopped waiting.
            let reply = Box::new(move || drop(sender.send(answer)));
            if let Some(reply) = back.hold_to_client(reply) {
                reply();
            }
        });
        if let Some(request) = link.hold_to_broker(request) {
            request();
        }
        Ok(Answer::OnItsWay(receiver))
    }
}

/// A publisher of the embedded broker.
pub(super) struct MemoryPublisher {
    pub(super) channel: Arc<Channel>,
    pub(super) topic: Arc<str>,
    pub(super) timeout: Duration,
    pub(super) who: Arc<Who>,
}

/// The only answer to a single message.
fn only(
    mut answers: Vec<Result<PublishReceipt, PublishError>>,
) -> Result<PublishReceipt, PublishError> {
    answers.pop().unwrap_or_else(|| Err(PublishError::Indeterminate("there was no answer".into())))
}

impl Publisher for MemoryPublisher {
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>> {
        let (topic, who) = (Arc::clone(&self.topic), Arc::clone(&self.who));
        let called = self
            .channel
            .call(move |broker| broker.publish(&topic, &who, vec![message], Instant::now()));
        let limit = self.timeout;
        let confirmation = match called {
            Ok(Answer::Here(answers)) => Ok(confirmed(only(answers))),
            Ok(on_its_way) => Ok(Box::pin(async move {
                match on_its_way.wait(limit).await {
                    Some(answers) => only(answers),
                    None => Err(PublishError::Indeterminate("no confirmation came".into())),
                }
            }) as Confirmation),
            Err(error) => Err(match error.kind {
                ErrorKind::Closed => PublishError::Closed,
                _ => PublishError::NotSent(error.context),
            }),
        };
        Box::pin(std::future::ready(confirmation))
    }

    fn publish_batch(
        &mut self,
        messages: Vec<Message>,
    ) -> BoxFuture<'_, Vec<Result<PublishReceipt, PublishError>>> {
        Box::pin(async move {
            let (count, topic) = (messages.len(), Arc::clone(&self.topic));
            let who = Arc::clone(&self.who);
            let called = self
                .channel
                .call(move |broker| broker.publish(&topic, &who, messages, Instant::now()));
            let failed = match called {
                Ok(answer) => match answer.wait(self.timeout).await {
                    Some(answers) => return answers,
                    None => PublishError::Indeterminate("no confirmation came".into()),
                },
                Err(error) if error.kind == ErrorKind::Closed => PublishError::Closed,
                Err(error) => PublishError::NotSent(error.context),
            };
            vec![Err(failed); count]
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        // Dropping it does.
        Box::pin(std::future::ready(()))
    }
}

impl Drop for MemoryPublisher {
    /// A publisher that is gone leaves its place; a link that is down or held keeps that from the
    /// broker, as a network would.
    fn drop(&mut self) {
        if !self.channel.is_closed() && !self.channel.is_down() {
            let (topic, number) = (Arc::clone(&self.topic), self.who.number);
            let _ = self.channel.call(move |broker| broker.close_publisher(&topic, number));
        }
    }
}

/// A consumer of the embedded broker.
pub(super) struct MemoryConsumer {
    channel: Arc<Channel>,
    place: Place,
    prefetch: usize,
    bell: Bell,
    /// The bell's number in the channel.
    hangs: u64,
    settler: Arc<dyn Settler>,
    limit: Duration,
    /// Its number at the broker; a cut ends it, and another follows.
    number: u64,
}

impl MemoryConsumer {
    pub(super) fn new(
        channel: Arc<Channel>,
        place: Place,
        options: ConsumerOptions,
        limit: Duration,
    ) -> Result<Self, BackendError> {
        if options.prefetch == 0 {
            let problem = "a prefetch must be 1 or more";
            return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
        }
        let bell = Arc::new(Notify::new());
        let hangs = channel.hang(&bell);
        let settler =
            Arc::new(MemorySettler { channel: Arc::clone(&channel), place: place.clone(), limit });
        let prefetch = options.prefetch as usize;
        Ok(MemoryConsumer { channel, place, prefetch, bell, hangs, settler, limit, number: 0 })
    }

    /// Becomes known to the broker.
    pub(super) async fn attach(&mut self) -> Result<(), BackendError> {
        let (place, bell) = (self.place.clone(), Arc::clone(&self.bell));
        let (connection, prefetch) = (self.channel.id, self.prefetch);
        let attached = self.channel.call(move |broker| {
            let number = broker.next_number();
            broker.with_subscription(&place.0, &place.1, Instant::now(), |subscription| {
                subscription.attach(number, connection, prefetch, bell);
                number
            })
        })?;
        self.number = attached.wait(self.limit).await.ok_or_else(|| {
            BackendError::new(ErrorKind::Timeout, "no answer came over the link")
        })??;
        Ok(())
    }
}

/// A consumer in a receive, which may end at any moment: its future is dropped.
struct Receiving<'a> {
    consumer: &'a mut MemoryConsumer,
    /// Whether the subscription counts on it as one that waits.
    waits: bool,
}

/// What a look at the broker brings.
enum Look {
    /// What there is; nothing only when the time is over.
    Received(Vec<Delivery>),
    /// Nothing yet: it waits for its bell, and at most so long.
    Wait(Option<Instant>),
    /// The broker does not know the consumer.
    Detached,
}

impl Receiving<'_> {
    fn look(&mut self, max: usize, deadline: Instant) -> Result<Look, BackendError> {
        let MemoryConsumer { channel, place, settler, number, .. } = &*self.consumer;
        let now = Instant::now();
        let looked =
            lock(&channel.broker).with_subscription(&place.0, &place.1, now, |subscription| {
                if !subscription.is_attached(*number) {
                    return Look::Detached;
                }
                let deliveries = subscription.hand_out(*number, max, now, settler);
                if deliveries.is_empty() && now < deadline {
                    return Look::Wait(subscription.wait(*number, now));
                }
                if self.waits {
                    subscription.leave(*number, now);
                }
                Look::Received(deliveries)
            })?;
        self.waits = matches!(looked, Look::Wait(_));
        Ok(looked)
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.waits) {
            let MemoryConsumer { channel, place, number, .. } = &*self.consumer;
            lock(&channel.broker).leave(&place.0, &place.1, *number, Instant::now());
        }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Consumer for MemoryConsumer {
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>> {
        Box::pin(async move {
            let deadline = Instant::now() + linger;
            let mut receiving = Receiving { consumer: self, waits: false };
            loop {
                if receiving.consumer.channel.is_closed() {
                    return Err(BackendError::new(ErrorKind::Closed, "the connection is closed"));
                }
                let mut until = deadline;
                if receiving.consumer.channel.holds_deliveries() {
                    if Instant::now() >= deadline {
                        return Ok(Vec::new());
                    }
                    // It would not see what it watches for.
                    receiving.leave();
                } else {
                    match receiving.look(max, deadline)? {
                        Look::Received(deliveries) => return Ok(deliveries),
                        Look::Wait(watched) => until = watched.unwrap_or(deadline).min(deadline),
                        Look::Detached => {
                            receiving.consumer.attach().await?;
                            continue;
                        }
                    }
                }
                // Either is a reason to look again.
                let _ = tokio::time::timeout_at(until, receiving.consumer.bell.notified()).await;
            }
        })
    }

    fn close(self: Box<Self>, _grace: Duration) -> BoxFuture<'static, Result<(), BackendError>> {
        let (place, number) = (self.place.clone(), self.number);
        let called = self.channel.call(move |broker| {
            let now = Instant::now();
            broker.with_subscription(&place.0, &place.1, now, |s| s.detach(number, now)).map(
                |moved| {
                    broker.bury(moved, now);
                },
            )
        });
        let limit = self.limit;
        Box::pin(async move {
            match called {
                Ok(answer) => answer.wait(limit).await.unwrap_or(Ok(())),
                // What it held has returned with the connection.
                Err(_) => Ok(()),
            }
        })
    }
}

impl Drop for MemoryConsumer {
    /// A consumer that is gone holds nothing; a link that is down or held keeps that from the
    /// broker, as a network would.
    fn drop(&mut self) {
        if !self.channel.is_closed() && !self.channel.is_down() {
            let (place, number, now) = (self.place.clone(), self.number, Instant::now());
            // A topic that is gone has no consumers.
            let _ = self.channel.call(move |broker| {
                let found =
                    broker.with_subscription(&place.0, &place.1, now, |s| s.detach(number, now));
                if let Ok(moved) = found {
                    broker.bury(moved, now);
                }
            });
        }
        self.channel.bells().by_number.remove(&self.hangs);
    }
}

/// Settles the deliveries of a consumer of the embedded broker.
struct MemorySettler {
    channel: Arc<Channel>,
    place: Place,
    limit: Duration,
}

impl fmt::Debug for MemorySettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemorySettler")
    }
}

impl Settler for MemorySettler {
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        let (count, place, limit) = (tokens.len(), self.place.clone(), self.limit);
        let called = self.channel.call(move |broker| broker.settle(&place, &tokens, &how));
        Box::pin(async move {
            let failed = match called {
                Ok(answer) => match answer.wait(limit).await {
                    Some(answers) => return answers,
                    None => SettleError::Indeterminate("no answer came over the link".into()),
                },
                Err(error) if error.kind == ErrorKind::Closed => SettleError::Closed,
                Err(error) => SettleError::NotSent(error.context),
            };
            vec![Err(failed); count]
        })
    }
}

impl Broker {
    fn settle(
        &mut self,
        place: &Place,
        tokens: &[Token],
        how: &Settlement,
    ) -> Vec<Result<Settled, SettleError>> {
        let now = Instant::now();
        let mut buried = Vec::new();
        let settled = self.with_subscription(&place.0, &place.1, now, |subscription| {
            let settle = |token: &Token| match token {
                Token::Number(token) => {
                    let (answer, moved) = subscription.settle(*token, how, now);
                    buried.extend(moved);
                    answer
                }
                Token::Object(_) => {
                    Err(SettleError::Unsupported("a delivery of another backend".into()))
                }
            };
            tokens.iter().map(settle).collect()
        });
        self.bury(buried, now);
        settled
            .unwrap_or_else(|error| vec![Err(SettleError::LeaseLost(error.context)); tokens.len()])
    }
}
