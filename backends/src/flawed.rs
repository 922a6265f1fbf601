//! A wrapper that breaks one promise of any backend, to prove that a property can see it.
//!
//! [`FlawedConnector`] wraps a connector; everything opened through it behaves as its backend
//! does but for the one [`Flaw`]. What a flaw does to "one in some" it does to one in three.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    BackendError, BoxFuture, Capabilities, Connector, Consumer, ConsumerOptions, Delivery, Depth,
    Link, Publisher, PublisherOptions, QueueBackend, Start, SubscriptionSpec, TopicSpec,
};

mod consumer;
mod publisher;

/// Makes the enum, its list, names and docs from one table.
macro_rules! flaws {
    ($($variant:ident $name:literal $doc:literal,)*) => {
        /// A deliberate breach of one promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Flaw {
            $(#[doc = $doc] $variant,)*
        }

        impl Flaw {
            /// All of them, in the order of the tables.
            pub const ALL: &'static [Flaw] = &[$(Flaw::$variant,)*];

            /// Its name on the command line and in tables.
            pub fn name(self) -> &'static str {
                match self { $(Flaw::$variant => $name,)* }
            }

            /// What it does, in one sentence.
            pub fn doc(self) -> &'static str {
                match self { $(Flaw::$variant => $doc,)* }
            }
        }
    };
}

flaws! {
    LosePublish "lose-publish" "One publish in some is confirmed and never stored.",
    ConfirmBeforeStoring "confirm-before-storing" "Publishes are confirmed 50 ms before they are stored.",
    SendLater "send-later" "What was reported as not sent is sent later.",
    TakeTooLarge "take-too-large" "A payload over the limit is cut to the limit and confirmed.",
    DeliverRejected "deliver-rejected" "A publish that was refused is delivered all the same.",
    CloseOnReject "close-on-reject" "After a refusal the publisher's connection is gone.",
    IgnoreLimit "ignore-limit" "A topic's limit is not enforced.",
    WrongPosition "wrong-position" "One receipt in some gives another position than the message has.",
    IgnoreDedup "ignore-dedup" "Deduplication keys are ignored.",
    DedupPerPublisher "dedup-per-publisher" "Keys count only for the publisher that used them.",
    DedupRace "dedup-race" "Two publishers that use a key within a millisecond both store.",
    DedupCollide "dedup-collide" "One key in some is taken for another.",
    DedupShortWindow "dedup-short-window" "Keys are forgotten after a quarter of the window.",
    DedupLongWindow "dedup-long-window" "Keys are remembered for four times the window.",
    DedupForgetAcked "dedup-forget-acked" "A key is forgotten when its message is acknowledged.",
    MisreportDuplicate "misreport-duplicate" "The receipt of a dropped duplicate says that it was stored.",
    RetryStoredTwice "retry-stored-twice" "A key is forgotten when its confirmation was lost.",
    RejectBurnsKey "reject-burns-key" "A refused publish uses up its key.",
    DropGaps "drop-gaps" "A number that leaves a gap is dropped as a duplicate.",
    ExactNumbersOnly "exact-numbers-only" "Only the very numbers that were stored are remembered, not those below.",
    RestartNumbers "restart-numbers" "The numbers of a publisher that is opened again begin anew.",
    AdmitTakenName "admit-taken-name" "A second publisher of a name is let in.",
    AdmitTwoExclusive "admit-two-exclusive" "A publisher that wants the topic for itself is let in beside another.",
    NeverHandOver "never-hand-over" "Who waits for exclusive access waits for ever.",
    TakeIllegalName "take-illegal-name" "A topic's name that no broker takes is taken.",
    DropBacklog "drop-backlog" "What exceeds a hundred waiting messages is confirmed and dropped.",
    IgnoreKeyOrder "ignore-key-order" "A subscription ordered by key is not.",
    IgnoreDelay "ignore-delay" "The delay of a publish is ignored.",
    DelayLonger "delay-longer" "A delayed message comes 800 ms too late.",
    LoseDelivery "lose-delivery" "One message in some is deleted instead of delivered.",
    SplitFanOut "split-fan-out" "Each subscription gets only some of the messages.",
    LatestAsEarliest "latest-as-earliest" "A subscription from the next message begins with the oldest.",
    EarliestAsLatest "earliest-as-latest" "A subscription from the oldest message begins with the next.",
    SharedSettlement "shared-settlement" "What one subscription hands back comes to the others too.",
    Invent "invent" "Messages are delivered that nobody published.",
    Corrupt "corrupt" "One payload in some is delivered with a byte changed.",
    TruncateLarge "truncate-large" "Payloads over 60,000 bytes are cut in half.",
    DropHeaders "drop-headers" "Keys and headers are dropped.",
    Reorder "reorder" "Neighbouring messages change places.",
    DeliverTwice "deliver-twice" "One delivery in some is made twice to the same consumer.",
    DeliverToTwo "deliver-to-two" "One delivery in some is made to two consumers.",
    HeadOfLine "head-of-line" "While a delivery is held nobody gets another one.",
    HoardPrefetch "hoard-prefetch" "A consumer locks messages without regard to its prefetch.",
    Starve "starve" "The first consumer of a subscription is never given anything.",
    StarveNewcomer "starve-newcomer" "A consumer that joins a running flow is never given anything.",
    LeaveAcks "leave-acks" "When a consumer leaves, what it held is acknowledged.",
    AutoAck "auto-ack" "Deliveries are acknowledged as they are made.",
    ForgetAck "forget-ack" "One acknowledgement in some is confirmed and forgotten.",
    Resurrect "resurrect" "A new consumer is given a message that was acknowledged before.",
    DepthStuck "depth-stuck" "The count of messages never comes down to zero.",
    ForgetNack "forget-nack" "A message that is handed back is gone.",
    NackEarly "nack-early" "The delay of a delivery that is handed back is ignored.",
    NackLate "nack-late" "What is handed back comes again 800 ms too late.",
    StickyNack "sticky-nack" "What is handed back comes only to the consumer that did.",
    ExpireEarly "expire-early" "Locks last half of the ack timeout.",
    ExpireLate "expire-late" "Locks last 800 ms longer than the ack timeout.",
    NeverExpire "never-expire" "Locks last for ever.",
    IgnoreTouch "ignore-touch" "A touch is confirmed and has no effect.",
    LateAckLoses "late-ack-loses" "An acknowledgement that is refused as too late deletes the message.",
    AttemptStuck "attempt-stuck" "Every delivery says that it is the first.",
    AttemptSkips "attempt-skips" "The attempt counts every redelivery twice.",
    IgnoreDeliveryLimit "ignore-delivery-limit" "The limit of deliveries is not enforced.",
    LoseDeadLetters "lose-dead-letters" "What should go to the dead-letter topic goes nowhere.",
}

/// Wraps a connector so that one promise is broken.
pub struct FlawedConnector {
    inner: Arc<dyn Connector>,
    shared: Arc<Shared>,
}

impl FlawedConnector {
    /// Breaks this promise of that backend.
    pub fn new(inner: Arc<dyn Connector>, flaw: Flaw) -> Self {
        FlawedConnector { inner, shared: Arc::new(Shared { flaw, state: Mutex::default() }) }
    }
}

/// What the flaw remembers, over all connections.
struct Shared {
    flaw: Flaw,
    state: Mutex<State>,
}

/// A topic and a subscription on it.
type Place = (String, String);

#[derive(Default)]
struct State {
    counted: u64,
    publishers: u64,
    consumers: HashMap<Place, u64>,
    delivered: HashMap<Place, u64>,
    subscriptions: HashMap<String, Vec<String>>,
    /// Deliveries to be made besides those of the broker, each not to the consumer of that number.
    extra: HashMap<Place, VecDeque<(u64, Delivery)>>,
    /// Deliveries that are out and unsettled.
    held: HashMap<Place, u64>,
    /// A message that was acknowledged.
    acked: HashMap<Place, Delivery>,
    /// Which key a payload was published with, and how often that key was forgotten.
    keys: HashMap<Bytes, String>,
    forgotten: HashMap<String, u32>,
    /// Who used a key last, and when.
    used: HashMap<String, (u64, Instant)>,
    burnt: HashSet<String>,
    deleted: HashSet<Bytes>,
    unsent: Vec<crate::Message>,
    /// How many messages of a topic were stored since anything was delivered.
    piled_up: HashMap<String, u64>,
    /// The last number that was published under a name.
    last_number: HashMap<String, u64>,
    /// The numbers that were published to a topic under a name.
    numbers: HashSet<(String, String, u64)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// Whether it is the turn of one in some.
    fn turn(&self) -> bool {
        let mut state = self.state();
        state.counted += 1;
        state.counted.is_multiple_of(3)
    }
}

impl Connector for FlawedConnector {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>> {
        Box::pin(async move {
            let inner = self.inner.connect(link).await?;
            let shared = Arc::clone(&self.shared);
            Ok(Arc::new(FlawedBackend { inner, shared }) as Arc<dyn QueueBackend>)
        })
    }

    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>> {
        self.inner.link()
    }

    fn virtual_time(&self) -> bool {
        self.inner.virtual_time()
    }
}

/// A connection on which one promise is broken.
struct FlawedBackend {
    inner: Arc<dyn QueueBackend>,
    shared: Arc<Shared>,
}

impl QueueBackend for FlawedBackend {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn broker_version(&self) -> String {
        self.inner.broker_version()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let mut spec = spec.clone();
            match self.shared.flaw {
                Flaw::IgnoreLimit => spec.max_messages = None,
                Flaw::DedupShortWindow => spec.dedup_window = spec.dedup_window.map(|w| w / 4),
                Flaw::DedupLongWindow => spec.dedup_window = spec.dedup_window.map(|w| w * 4),
                _ => {}
            }
            match self.inner.create_topic(&spec).await {
                Err(error)
                    if self.shared.is(Flaw::TakeIllegalName)
                        && error.kind == crate::ErrorKind::InvalidArgument =>
                {
                    Ok(())
                }
                answer => answer,
            }
        })
    }

    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let mut spec = spec.clone();
            match self.shared.flaw {
                Flaw::LatestAsEarliest => spec.start = Start::Earliest,
                Flaw::EarliestAsLatest => spec.start = Start::Latest,
                Flaw::ExpireEarly => spec.ack_timeout /= 2,
                Flaw::ExpireLate => {
                    let limits = self.inner.capabilities().limits;
                    spec.ack_timeout += LATE + limits.ack_timeout_resolution;
                }
                // Longer than any run, and no longer than nsqd takes.
                Flaw::NeverExpire => spec.ack_timeout = Duration::from_secs(900),
                Flaw::IgnoreDeliveryLimit => spec.dead_letter = None,
                Flaw::IgnoreKeyOrder => spec.ordered_by_key = false,
                Flaw::LoseDeadLetters => {
                    if let Some(dead_letter) = &mut spec.dead_letter {
                        dead_letter.topic.push_str("-void");
                        let void = TopicSpec {
                            name: dead_letter.topic.clone(),
                            retention: crate::Retention::UntilAcked,
                            dedup_window: None,
                            max_messages: None,
                        };
                        self.inner.create_topic(&void).await?;
                    }
                }
                _ => {}
            }
            self.shared
                .state()
                .subscriptions
                .entry(spec.topic.clone())
                .or_default()
                .push(spec.name.clone());
            self.inner.create_subscription(&spec).await
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if self.shared.is(Flaw::LoseDeadLetters) {
                self.inner.delete_topic(&format!("{topic}-void")).await?;
            }
            self.inner.delete_topic(topic).await
        })
    }

    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>> {
        self.inner.topics(prefix)
    }

    fn publisher<'a>(
        &'a self,
        topic: &'a str,
        options: PublisherOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Publisher>, BackendError>> {
        Box::pin(async move {
            let mut options = options;
            let name = options.name.clone();
            match self.shared.flaw {
                Flaw::AdmitTakenName => options.name = None,
                // Each under a name of its own.
                Flaw::DedupPerPublisher => {
                    let number = self.shared.state().publishers;
                    options.name = name.as_ref().map(|name| format!("{name}-{number}"));
                }
                Flaw::AdmitTwoExclusive => options.access = crate::Access::Shared,
                Flaw::NeverHandOver if options.access == crate::Access::WaitForExclusive => {
                    std::future::pending().await
                }
                _ => {}
            }
            let inner = self.inner.publisher(topic, options).await?;
            let limits = self.inner.capabilities().limits;
            let shared = Arc::clone(&self.shared);
            Ok(Box::new(publisher::FlawedPublisher::new(inner, shared, topic, name, limits))
                as Box<dyn Publisher>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
        mut options: ConsumerOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BackendError>> {
        Box::pin(async move {
            if self.shared.is(Flaw::HoardPrefetch) {
                options.prefetch = 10_000;
            }
            let place = (topic.to_string(), subscription.to_string());
            let (number, running) = {
                let mut state = self.shared.state();
                let opened = state.consumers.entry(place.clone()).or_default();
                *opened += 1;
                let number = *opened;
                (number, state.delivered.contains_key(&place))
            };
            let starved = match self.shared.flaw {
                Flaw::Starve => number == 1,
                Flaw::StarveNewcomer => running,
                _ => false,
            };
            // One that is to get nothing must not lock anything either.
            let inner = match starved {
                true => None,
                false => Some(self.inner.consumer(topic, subscription, options).await?),
            };
            let shared = Arc::clone(&self.shared);
            let late = LATE + self.inner.capabilities().limits.nack_delay_resolution;
            Ok(Box::new(consumer::FlawedConsumer::new(inner, shared, place, number, late))
                as Box<dyn Consumer>)
        })
    }

    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>> {
        Box::pin(async move {
            let mut depth = self.inner.depth(topic, subscription).await?;
            depth.waiting += u64::from(self.shared.is(Flaw::DepthStuck));
            Ok(depth)
        })
    }

    fn disconnects(&self) -> u64 {
        self.inner.disconnects()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// How late what is late comes: more than any tolerance, less than a quiet period. The broker's own
/// resolution comes on top of it: within that it breaks no promise.
const LATE: Duration = Duration::from_millis(800);
