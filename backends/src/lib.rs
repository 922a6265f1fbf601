//! The contract between queueproof and a message broker.
//!
//! One [`Connector`] stands for one broker with its settings; it opens connections, each a
//! [`QueueBackend`]. Publishers and consumers belong to the connection that made them, so that a
//! test decides who shares one. With `default-features = false` this crate is the contract alone:
//! write a backend against it in a crate of your own.
//!
//! The bulleted *Behaviour* sections are the specification. The conformance suite checks them;
//! what a broker cannot do is declared in [`Capabilities`], never emulated in silence.
//!
//! How the contract maps to the brokers it was checked against:
//!
//! | contract | memory | NATS JetStream | Pulsar | NSQ |
//! |---|---|---|---|---|
//! | connection | a handle | a client | a client | its own sockets |
//! | topic | topic | stream with one subject | persistent topic | topic |
//! | subscription | subscription | durable pull consumer | subscription | channel |
//! | `DedupKey::Id` | window per topic | `Nats-Msg-Id` | unsupported | unsupported |
//! | `DedupKey::Sequence` | name + number, per topic | unsupported | producer name + sequence id | unsupported |
//! | publish confirmation | at once | `PubAck` | `CommandSendReceipt` | `OK`, by position |
//! | prefetch | leased to the consumer | pull batch | permits (`FLOW`) | `RDY` |
//! | ack timeout | the broker's | `AckWait` | the client's timer | `msg_timeout` |
//! | order by key | owner of a key | unsupported | `Key_Shared` | unsupported |
//! | delayed publish | the broker's clock | unsupported | `deliver_at_time` | `DPUB` |
//! | exclusive publisher | the broker's | unsupported | `ProducerAccessMode` | unsupported |

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

mod capabilities;
mod error;
pub mod link;
mod message;

#[cfg(feature = "flawed")]
pub mod flawed;
#[cfg(any(feature = "pulsar", feature = "nsq"))]
mod http;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "nsq")]
pub mod nsq;
#[cfg(feature = "pulsar")]
pub mod pulsar;
#[cfg(any(feature = "pulsar", feature = "nsq"))]
pub mod tls;

pub use capabilities::{Capabilities, Capability, DedupScope, Disconnect, Limits, Support};
pub use error::{BackendError, ErrorKind, PublishError, RejectKind, SettleError};
pub use link::{Direction, Link};
pub use message::{
    DedupKey, Delivery, Message, PublishReceipt, Settled, Settlement, Settler, Token, confirmed,
    settle_all,
};

/// A boxed future: the contract is object-safe, and a box costs some 20 ns a call (measured),
/// which batches make vanish.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The second half of a publish: resolves when the broker has confirmed, refused, or can no
/// longer be expected to answer. It owns what it needs and may be awaited from another task.
pub type Confirmation = BoxFuture<'static, Result<PublishReceipt, PublishError>>;

/// One broker with its settings: opens connections to it.
pub trait Connector: Send + Sync {
    /// The backend's name as a user types it: `memory`, `nats`, …
    fn backend(&self) -> &'static str;

    /// Opens a connection of its own.
    ///
    /// # Behaviour
    /// - Each call opens a new connection; two connections share nothing on the client's side.
    /// - With a `link`, all traffic of the connection passes through that link and no other way.
    /// - It ends within the connect timeout of the settings, whatever listens at the other end.
    /// - After a connection is lost the backend reconnects by itself (through the same link) with
    ///   bounded back-off, until it is closed.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Unauthorized`], [`ErrorKind::WrongServer`]
    /// (something else answers there), [`ErrorKind::Unsupported`] (the server lacks what the
    /// backend needs, as NATS without JetStream does) or [`ErrorKind::Timeout`].
    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>>;

    /// A new link to this broker, that [`connect`](Self::connect) accepts: a TCP proxy in this
    /// process for a networked broker ([`link::TcpLink`]), the like without sockets for an
    /// embedded one.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] where no local port can be had.
    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>>;

    /// Whether the broker lives in this process, on tokio's clock, so that a paused clock is its
    /// clock too.
    fn virtual_time(&self) -> bool {
        false
    }
}

/// A connection to a broker.
pub trait QueueBackend: Send + Sync {
    /// What this broker, with these settings and in this version, does natively, emulated in the
    /// client, or not at all.
    ///
    /// # Behaviour
    /// - The answer is the same for every connection of one connector.
    fn capabilities(&self) -> Capabilities;

    /// The broker's version in its own words, `2.15.2` for instance; empty if it does not tell.
    fn broker_version(&self) -> String;

    /// Creates a topic.
    ///
    /// # Behaviour
    /// - When it returns, a publish and a subscription from any connection find the topic.
    /// - Creating a topic that exists with the same specification succeeds and changes nothing.
    /// - A name or a limit that the broker would refuse is refused before anything is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], [`ErrorKind::Conflict`], [`ErrorKind::LimitReached`],
    /// [`ErrorKind::Unsupported`], or one of the connection's.
    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Creates a subscription.
    ///
    /// # Behaviour
    /// - When it returns, every message published afterwards from any connection reaches it.
    /// - [`Start::Earliest`] also delivers every message still stored; [`Start::Latest`] none of
    ///   them.
    /// - It outlives the connection that made it, and keeps its position while nobody consumes.
    ///
    /// # Errors
    /// As for [`create_topic`](Self::create_topic); [`ErrorKind::NotFound`] without the topic.
    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Deletes a topic with its messages and subscriptions. A topic that does not exist is not an
    /// error.
    ///
    /// # Errors
    /// One of the connection's.
    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>>;

    /// The names of all topics that begin with `prefix`, for cleaning up.
    ///
    /// # Errors
    /// One of the connection's.
    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>>;

    /// Opens a publisher on a topic.
    ///
    /// # Behaviour
    /// - A named publisher ([`PublisherOptions::name`]) is the only one of its name on the topic
    ///   where the broker deduplicates by names: a second one is refused while the first is open.
    /// - With [`Access::Exclusive`] it is the only publisher of the topic, or is refused; with
    ///   [`Access::WaitForExclusive`] it waits (as long as the caller lets it) until it is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the topic, where the broker can tell;
    /// [`ErrorKind::Conflict`] for a name or an exclusive access that is taken;
    /// [`ErrorKind::Unsupported`] for an access that the broker does not have; or one of the
    /// connection's.
    fn publisher<'a>(
        &'a self,
        topic: &'a str,
        options: PublisherOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Publisher>, BackendError>>;

    /// Opens a consumer on a subscription.
    ///
    /// # Behaviour
    /// - It may be handed messages from the moment this returns.
    /// - At most `prefetch` messages are locked for it that [`Consumer::receive`] has not yet
    ///   handed out ([`Limits::prefetch_counts_unsettled`] says if those that it was handed and
    ///   has not settled count too).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the subscription, or one of the connection's.
    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
        options: ConsumerOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BackendError>>;

    /// How much a subscription still holds, as the broker counts it. It may lag behind by the
    /// broker's own bookkeeping, so ask until it settles.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Unsupported`], or one of the connection's.
    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>>;

    /// How often this connection was lost since it was opened, whoever's fault it was. The suite
    /// compares it with the cuts it made itself: evidence from a connection that was lost
    /// otherwise is worth little.
    fn disconnects(&self) -> u64;

    /// Closes the connection; what it still holds unsettled returns as after a disconnect.
    ///
    /// # Behaviour
    /// - When it resolves, no task, timer or socket of this connection is left.
    /// - Publishers and consumers of it fail from now on with `Closed`.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Publishes to one topic.
pub trait Publisher: Send {
    /// Publishes one message, in two steps: the outer future hands it over to the connection
    /// (waiting while too much is in flight), the inner one resolves at the broker's confirmation.
    ///
    /// # Behaviour
    /// - Messages are stored in the order in which the outer futures resolved.
    /// - A receipt means stored, or dropped as a duplicate of a stored message; where the broker
    ///   can tell the two apart it is told ([`PublishReceipt::duplicate`]).
    /// - A confirmation that can no longer come (connection lost, deadline passed) resolves to
    ///   [`PublishError::Indeterminate`] in bounded time. Nothing is retried: that is the
    ///   caller's decision.
    /// - While the connection is known to be down the answer is [`PublishError::NotSent`], and the
    ///   message is not sent later.
    /// - A message that the broker refuses is [`PublishError::Rejected`], and the connection
    ///   lives on.
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>>;

    /// Publishes many and waits for all confirmations: one result a message, in their order.
    ///
    /// # Behaviour
    /// - As [`publish`](Self::publish) for each, pipelined; a rejected message does not keep the
    ///   others from being stored.
    fn publish_batch(
        &mut self,
        messages: Vec<Message>,
    ) -> BoxFuture<'_, Vec<Result<PublishReceipt, PublishError>>> {
        Box::pin(async move {
            let mut pending = Vec::with_capacity(messages.len());
            for message in messages {
                pending.push(self.publish(message).await);
            }
            let mut results = Vec::with_capacity(pending.len());
            for handed_over in pending {
                results.push(match handed_over {
                    Ok(confirmation) => confirmation.await,
                    Err(error) => Err(error),
                });
            }
            results
        })
    }

    /// Closes the publisher after what it was handed has been confirmed or has failed.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Consumes one subscription, competing with the other consumers of it.
pub trait Consumer: Send {
    /// Waits until at least one delivery is there or `linger` has passed, then returns what is
    /// there, at most `max`: an empty list when nothing came in time.
    ///
    /// # Behaviour
    /// - A delivery is locked for this consumer from the moment the broker assigned it (which a
    ///   prefetch moves before its receipt) until it is settled, its ack timeout passes or its
    ///   consumer is gone.
    /// - Cancelling the future loses nothing.
    /// - While the connection is down it waits, up to `linger`; reconnecting is the backend's
    ///   business.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::NotFound`] (the subscription is gone), or one of the
    /// connection's once reconnecting was given up.
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>>;

    /// Leaves gracefully.
    ///
    /// # Behaviour
    /// - Settlements already sent are flushed, for at most `grace`.
    /// - Messages locked for it and never handed out return at once.
    /// - Deliveries handed out and unsettled return as [`Limits::disconnect`] declares.
    fn close(self: Box<Self>, grace: Duration) -> BoxFuture<'static, Result<(), BackendError>>;
}

/// What to create a topic with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name: `[a-zA-Z0-9_-]`, 1 to 60 characters, which every broker takes.
    pub name: String,
    /// When a message is deleted from the store.
    pub retention: Retention,
    /// How long an id is remembered for deduplication, where the broker lets one choose; `None`
    /// leaves the broker's default.
    pub dedup_window: Option<Duration>,
    /// The most messages it may hold; a publish beyond is rejected. `None` for no limit.
    pub max_messages: Option<u64>,
}

/// When a topic deletes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Once its only subscription has settled it: a work queue.
    UntilAcked,
    /// Not before the topic is deleted, so that any number of subscriptions may come, also later.
    Keep,
}

/// What to create a subscription with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionSpec {
    /// The topic it is on.
    pub topic: String,
    /// Its name, with the same rules as a topic's.
    pub name: String,
    /// Where it begins.
    pub start: Start,
    /// How long a delivery stays locked without a settlement.
    pub ack_timeout: Duration,
    /// After how many deliveries a message is moved away; `None` for never.
    pub dead_letter: Option<DeadLetter>,
    /// Whether the messages of one key go in their order to one consumer, as long as that holds
    /// some of them unsettled ([`Capability::KeyOrder`]).
    pub ordered_by_key: bool,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message still stored.
    Earliest,
    /// With the first message published after its creation.
    Latest,
}

/// What becomes of a message that nobody acknowledges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// How many deliveries it gets, 1 or more.
    pub max_deliveries: u32,
    /// The topic (it exists already) to which payload, key and headers are moved after the last
    /// of them was nacked or timed out, or at once on a reject.
    pub topic: String,
}

/// How to open a publisher.
#[derive(Debug, Clone, Default)]
pub struct PublisherOptions {
    /// The producer's name, for brokers that deduplicate by it ([`DedupKey::Sequence`]).
    pub name: Option<String>,
    /// How long to wait for a confirmation; `None` for the settings' default.
    pub confirm_timeout: Option<Duration>,
    /// Who else may publish to the topic meanwhile ([`Capability::ExclusivePublisher`]).
    pub access: Access,
}

/// Who else may publish to a topic while a publisher is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Anybody.
    #[default]
    Shared,
    /// Nobody; if somebody else has it exclusively, opening is refused.
    Exclusive,
    /// Nobody; opening waits until whoever has it exclusively is gone. The broker elects.
    WaitForExclusive,
}

/// How to open a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The most messages locked for it ahead of its asking, 1 or more.
    pub prefetch: u32,
    /// Whether acknowledgements wait for the broker's confirmation, where it has one
    /// ([`Capability::ConfirmedAck`]).
    pub confirm_acks: bool,
}

/// How much a subscription holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages waiting for delivery.
    pub waiting: u64,
    /// Deliveries out and unsettled.
    pub unsettled: u64,
    /// Messages in the topic's store, where the broker counts them.
    pub stored: Option<u64>,
}

/// Checks the name of a topic or subscription: what every broker takes, and nothing that means
/// something to one, as the dots and stars of NATS do.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which names `what` it should be, and the broker's own `rule`.
pub fn check_name(what: &str, name: &str, rule: &str) -> Result<(), BackendError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=60).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(BackendError::new(
        ErrorKind::InvalidArgument,
        format!(
            "{name:?} is not a {what}'s name: 1 to 60 characters of a-z, A-Z, 0-9, - and _ ({rule})"
        ),
    ))
}
