//! What a scenario plays on: connections, publishers and consumers that write down everything
//! they do.
//!
//! A scenario runs in one task on one thread; what happens at the same time is joined, not
//! spawned. So the order of a ledger is the order of completion, and simulated time is exact.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use futures::future::join_all;
use queueproof_backends::{
    BackendError, Capabilities, Capability, Connector, DeadLetter, ErrorKind, QueueBackend,
    Retention, Start, SubscriptionSpec, TopicSpec,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    history::{Halt, Ledger, Subscription as Subscribed, Topic as TopicRecord, What, nanos},
    plan::Suite,
    scheduler::{self, Recorder, Workload},
};

mod connection;
mod consumer;
mod publisher;
mod scene;

pub use connection::Connection;
pub use consumer::{Consumer, Delivery};
pub use publisher::{Draft, Extra, Publisher};
pub use scene::Scene;

/// Where one property is played.
pub struct Stage {
    /// The sizes and times.
    pub suite: Suite,
    /// What the backend declares.
    pub capabilities: Capabilities,
    connector: Arc<dyn Connector>,
    flaw: Option<scheduler::Flaw>,
    seed: u64,
    ledger: RefCell<Ledger>,
    /// Tells this run's payloads from any other's; not derived from the seed, which repeats.
    run: u64,
    filler: Vec<u8>,
    buffer: RefCell<BytesMut>,
    topic_prefix: String,
    counts: Counts,
    opened: RefCell<Vec<(u16, Arc<dyn QueueBackend>)>>,
    topics: RefCell<Vec<String>>,
    stalls: Cell<u64>,
    longest_timeout: Cell<Duration>,
}

/// The next numbers.
#[derive(Default)]
struct Counts {
    topics: Cell<u16>,
    subscriptions: Cell<u16>,
    connections: Cell<u16>,
    publishers: Cell<u16>,
    consumers: Cell<u16>,
    deliveries: Cell<u32>,
}

/// A topic of the scenario.
#[derive(Debug, Clone)]
pub struct Topic {
    pub(super) id: u16,
    pub(super) name: String,
}

/// A subscription of the scenario.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) topic: Topic,
}

/// How a scenario wants a subscription.
#[derive(Debug, Clone)]
pub struct Subscribe<'t> {
    /// Where it begins.
    pub start: Start,
    /// After how many deliveries a message goes where.
    pub dead_letter: Option<(u32, &'t Topic)>,
    /// Whether the messages of one key go in order to one consumer at a time.
    pub ordered_by_key: bool,
    /// How many times the suite's ack timeout a delivery stays locked.
    pub timeouts: u32,
}

impl Default for Subscribe<'_> {
    fn default() -> Self {
        Subscribe { start: Start::Earliest, dead_letter: None, ordered_by_key: false, timeouts: 1 }
    }
}

/// How often the stage looks whether this program is running.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// How long it must not have run for that to count as a stall.
const STALL: Duration = Duration::from_millis(120);

impl Stage {
    /// A stage for one property.
    pub fn new(
        connector: Arc<dyn Connector>,
        suite: Suite,
        capabilities: Capabilities,
        ledger: Ledger,
        seed: u64,
        topic_prefix: String,
        flaw: Option<scheduler::Flaw>,
    ) -> Self {
        let ack_timeout = suite.ack_timeout;
        let mut filler = vec![0; 4096];
        StdRng::seed_from_u64(seed).fill_bytes(&mut filler);
        Stage {
            suite,
            capabilities,
            connector,
            flaw,
            seed,
            ledger: RefCell::new(ledger),
            run: rand::random(),
            filler,
            buffer: RefCell::default(),
            topic_prefix,
            counts: Counts::default(),
            opened: RefCell::default(),
            topics: RefCell::default(),
            stalls: Cell::new(0),
            longest_timeout: Cell::new(ack_timeout),
        }
    }

    /// Whether the backend has a capability.
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.has(capability)
    }

    /// The time, nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.ledger.borrow().now()
    }

    /// Waits.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Waits until so long after a time of the ledger.
    pub async fn sleep_until(&self, time: u64) {
        self.sleep(Duration::from_nanos(time.saturating_sub(self.now()))).await;
    }

    /// Marks a moment or a figure for the judge.
    pub fn mark(&self, name: &str, value: i64) {
        self.record(0, self.now(), What::Mark { name: name.into(), value });
    }

    /// How long nothing must come for a subscription to count as quiet: longer than anything that
    /// is due may take.
    pub fn quiet(&self) -> Duration {
        let limits = &self.capabilities.limits;
        let timed_out = self.longest_timeout.get() + limits.ack_timeout_resolution;
        let resolution = limits.nack_delay_resolution.max(limits.publish_delay_resolution);
        let delayed = self.suite.nack_delay + resolution;
        timed_out.max(delayed) + self.suite.tolerance
    }

    fn record(&self, by: u16, invoked: u64, what: What) {
        self.ledger.borrow_mut().record(by, invoked, what);
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection<'_>, Halt> {
        Connection::open(self, None).await
    }

    /// Opens a connection that can be cut and held.
    pub async fn connect_by_link(&self) -> Result<Connection<'_>, Halt> {
        let link = self.connector.link().await.map_err(|e| broken("opening a link", &e))?;
        Connection::open(self, Some(link)).await
    }

    /// Creates a topic that deletes what was acknowledged, with one subscription.
    pub async fn work_queue(
        &self,
        connection: &Connection<'_>,
    ) -> Result<(Topic, Subscription), Halt> {
        let topic = self.topic(connection, Retention::UntilAcked, None).await?;
        let subscription = self.subscribe(connection, &topic, Subscribe::default()).await?;
        Ok((topic, subscription))
    }

    /// Creates a topic.
    pub async fn topic(
        &self,
        connection: &Connection<'_>,
        retention: Retention,
        max_messages: Option<u64>,
    ) -> Result<Topic, Halt> {
        let id = next(&self.counts.topics);
        let name = format!("{}-{id}", self.topic_prefix);
        let window = self.has(Capability::DedupWindow).then_some(self.suite.dedup_window);
        let spec = TopicSpec { name: name.clone(), retention, dedup_window: window, max_messages };
        self.topics.borrow_mut().push(name.clone());
        let invoked = self.now();
        connection.backend.create_topic(&spec).await.map_err(|e| broken("creating a topic", &e))?;
        let record = TopicRecord {
            topic: id,
            name: name.clone(),
            dedup_window: window.map(nanos),
            max_messages,
        };
        self.record(connection.id, invoked, What::Topic(record));
        Ok(Topic { id, name })
    }

    /// Creates a subscription.
    pub async fn subscribe(
        &self,
        connection: &Connection<'_>,
        topic: &Topic,
        how: Subscribe<'_>,
    ) -> Result<Subscription, Halt> {
        let id = next(&self.counts.subscriptions);
        let name = format!("s{id}");
        let ack_timeout = self.suite.ack_timeout * how.timeouts;
        self.longest_timeout.set(self.longest_timeout.get().max(ack_timeout));
        let spec = SubscriptionSpec {
            topic: topic.name.clone(),
            name: name.clone(),
            start: how.start,
            ack_timeout,
            dead_letter: how
                .dead_letter
                .map(|(max_deliveries, to)| DeadLetter { max_deliveries, topic: to.name.clone() }),
            ordered_by_key: how.ordered_by_key,
        };
        let invoked = self.now();
        connection
            .backend
            .create_subscription(&spec)
            .await
            .map_err(|e| broken("creating a subscription", &e))?;
        let dead_letter = how.dead_letter.map(|(limit, to)| (limit, to.id));
        let record = Subscribed::new(id, topic.id, how.start, ack_timeout, dead_letter);
        self.record(connection.id, invoked, What::Subscription(record));
        Ok(Subscription { id, name, topic: topic.clone() })
    }

    /// Runs a workload of the scheduler, and writes down what happens in it.
    pub async fn schedule(&self, workload: Workload) -> Result<(), Halt> {
        self.topics.borrow_mut().extend(scheduler::topics(&self.topic_prefix, &workload));
        let now = self.now();
        self.record(0, now, What::Workload(Box::new(workload.clone())));
        let (sender, mut events) = mpsc::unbounded_channel();
        let start = self.ledger.borrow().start();
        let recorder = Recorder::new(start, move |at, event| {
            // Nobody listens when the scenario's time is over.
            let _ = sender.send((at, event));
        });
        let write = |(at, event)| {
            self.ledger.borrow_mut().record_at(0, at, What::Schedule(Box::new(event)));
        };
        let run = scheduler::run(scheduler::Setup {
            workload,
            connector: Arc::clone(&self.connector),
            capabilities: self.capabilities.clone(),
            recorder,
            prefix: self.topic_prefix.clone(),
            seed: self.seed,
            flaw: self.flaw,
            broker: None,
            cancel: CancellationToken::new(),
        });
        tokio::pin!(run);
        let ended = loop {
            tokio::select! {
                Some(event) = events.recv() => write(event),
                ended = &mut run => break ended,
            }
        };
        while let Ok(event) = events.try_recv() {
            write(event);
        }
        ended
    }

    /// Receives and acknowledges with these consumers until nothing has come for a quiet period,
    /// then makes sure that each one's connection still answers.
    pub async fn drain(&self, consumers: &mut [Consumer<'_>]) -> Result<(), Halt> {
        let quiet = self.quiet();
        let last = Cell::new(Instant::now());
        let stalls = Cell::new(self.stalls.get());
        let loops = consumers.iter_mut().map(async |consumer| {
            loop {
                // Silence that this program slept through is no silence.
                if stalls.replace(self.stalls.get()) != self.stalls.get() {
                    last.set(Instant::now());
                }
                let left = (last.get() + quiet).saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                let received = consumer.receive(256, left).await?;
                if !received.is_empty() {
                    last.set(Instant::now());
                    self.ack_all(&received).await;
                }
            }
        });
        for outcome in join_all(loops).await {
            outcome?;
        }
        let began = self.now().saturating_sub(nanos(quiet));
        for consumer in consumers.iter() {
            consumer.probe().await?;
        }
        let mut drained: Vec<_> = consumers.iter().map(|c| c.subscription.id).collect();
        drained.sort_unstable();
        drained.dedup();
        for subscription in drained {
            self.record(0, began, What::Drained { subscription });
        }
        Ok(())
    }

    /// Watches whether this program runs, and writes down when it did not. Never ends.
    pub async fn watch(&self) {
        // On a simulated clock nothing can stall, and ticking would only cost.
        if self.connector.virtual_time() {
            return std::future::pending().await;
        }
        let start = self.ledger.borrow().start();
        stalls(start, |(asleep, _)| {
            self.stalls.set(self.stalls.get() + 1);
            self.record(0, asleep, What::Stall);
        })
        .await;
    }

    /// Closes what is open, deletes the topics, and returns the ledger.
    pub async fn strike(self) -> Ledger {
        let opened = std::mem::take(&mut *self.opened.borrow_mut());
        let topics = std::mem::take(&mut *self.topics.borrow_mut());
        let tidy = async {
            for (id, backend) in &opened {
                let invoked = self.now();
                let disconnects = backend.disconnects();
                self.record(*id, invoked, What::Close { disconnects });
                backend.close().await;
            }
            if let Ok(backend) = self.connector.connect(None).await {
                for topic in &topics {
                    // What cannot be deleted now is found by `queueproof clean` later.
                    if let Err(error) = backend.delete_topic(topic).await {
                        tracing::warn!("{topic} was not deleted: {error}");
                    }
                }
                backend.close().await;
            }
        };
        if tokio::time::timeout(TIDY, tidy).await.is_err() {
            tracing::warn!("tidying up did not end within {TIDY:?}");
        }
        self.ledger.into_inner()
    }
}

/// Tells when this program was not running: from when to when, nanoseconds since the start. Never
/// ends.
pub async fn stalls(start: Instant, mut tell: impl FnMut((u64, u64))) {
    loop {
        let asleep = nanos(start.elapsed());
        tokio::time::sleep(HEARTBEAT).await;
        let awake = nanos(start.elapsed());
        if awake - asleep > nanos(STALL) {
            tell((asleep, awake));
        }
    }
}

/// How long tidying up may take.
const TIDY: Duration = Duration::from_secs(10);

/// Counts on.
fn next<N: Copy + std::ops::Add<Output = N> + From<u8>>(counter: &Cell<N>) -> N {
    counter.replace(counter.get() + N::from(1))
}

/// What an error of the backend means for a scenario.
fn broken(doing: &str, error: &BackendError) -> Halt {
    match error.kind {
        ErrorKind::Unsupported => Halt::Undecided(format!("{doing}: unsupported: {error}")),
        _ => Halt::Broken(format!("{doing}: {error}")),
    }
}
