//! The client's side: a channel to the broker, and publishers and consumers on it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
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
    bells: Mutex<Vec<Bell>>,
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

    /// Wakes everybody who waits on this channel.
    pub(super) fn ring(&self) {
        for bell in self.bells.lock().unwrap_or_else(PoisonError::into_inner).iter() {
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
        channel.bells.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&bell));
        let settler =
            Arc::new(MemorySettler { channel: Arc::clone(&channel), place: place.clone(), limit });
        let prefetch = options.prefetch as usize;
        Ok(MemoryConsumer { channel, place, prefetch, bell, settler, limit, number: 0 })
    }

    /// Becomes known to the broker.
    pub(super) async fn attach(&mut self) -> Result<(), BackendError> {
        let (place, bell) = (self.place.clone(), Arc::clone(&self.bell));
        let (connection, prefetch) = (self.channel.id, self.prefetch);
        let attached = self.channel.call(move |broker| {
            broker.with_subscription(&place.0, &place.1, Instant::now(), |subscription| {
                subscription.attach(connection, prefetch, bell)
            })
        })?;
        self.number = attached.wait(self.limit).await.ok_or_else(|| {
            BackendError::new(ErrorKind::Timeout, "no answer came over the link")
        })??;
        Ok(())
    }

    /// What is there, and when something is due next.
    fn look(&self, max: usize) -> Result<(Vec<Delivery>, Option<Instant>, bool), BackendError> {
        let now = Instant::now();
        lock(&self.channel.broker).with_subscription(&self.place.0, &self.place.1, now, |s| {
            (
                s.hand_out(self.number, max, now, &self.settler),
                s.next_due(),
                s.is_attached(self.number),
            )
        })
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
            loop {
                if self.channel.is_closed() {
                    return Err(BackendError::new(ErrorKind::Closed, "the connection is closed"));
                }
                let mut due = None;
                if !self.channel.holds_deliveries() {
                    let (deliveries, next, attached) = self.look(max)?;
                    if !deliveries.is_empty() {
                        return Ok(deliveries);
                    }
                    if !attached {
                        self.attach().await?;
                        continue;
                    }
                    due = next;
                }
                let now = Instant::now();
                if now >= deadline {
                    return Ok(Vec::new());
                }
                let until = due.map_or(deadline, |due| due.min(deadline));
                // Either is a reason to look again.
                let _ = tokio::time::timeout_at(until, self.bell.notified()).await;
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
        let mut bells = self.channel.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
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
