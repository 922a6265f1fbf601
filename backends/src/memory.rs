//! The embedded broker: the exact reference of the contract.
//!
//! Everything happens inside the calls, on tokio's clock; there is no task of its own. So it runs
//! under paused time, and is deterministic on a single-threaded runtime. Its promises:
//!
//! - A topic remembers a deduplication id for its window, fixed from the publish that was stored,
//!   for all publishers, and also when the message is gone.
//! - A subscription leases messages to its consumers in turn, each at most its prefetch ahead. What
//!   comes back goes before what is newer. A lease that passes in a prefetch buffer was never a
//!   delivery: it does not count as an attempt.
//! - What a consumer holds returns at once when it leaves or its connection is cut.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    BackendError, BoxFuture, Capabilities, Capability, Connector, Consumer, ConsumerOptions,
    DedupScope, Depth, Disconnect, ErrorKind, Limits, Link, Publisher, PublisherOptions,
    QueueBackend, SubscriptionSpec, Support, TopicSpec,
};

mod broker;
mod client;
mod leases;
mod link;
mod publishers;
mod subscription;
mod watch;

use broker::Broker;
use client::{Channel, MemoryConsumer, MemoryPublisher};
pub use link::MemoryLink;
use publishers::{Opened, Who};

/// The embedded broker's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemorySettings {
    /// How long an id is remembered on a topic that does not say.
    pub dedup_window: Duration,
    /// The largest payload, bytes.
    pub max_payload: u64,
    /// How long a call waits for an answer that a link holds back.
    pub request_timeout: Duration,
}

impl Default for MemorySettings {
    fn default() -> Self {
        MemorySettings {
            dedup_window: Duration::from_secs(120),
            max_payload: 1 << 20,
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// An embedded broker; all connections of one connector share it.
#[derive(Debug, Clone)]
pub struct MemoryConnector {
    settings: MemorySettings,
    broker: Arc<Shared>,
}

/// The broker behind its lock.
type Shared = Mutex<Broker>;

fn lock(broker: &Shared) -> MutexGuard<'_, Broker> {
    // Every change is complete before anything can panic.
    broker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the backend declares, as [`Capabilities::support`]: all of it.
pub fn declares() -> BTreeMap<Capability, Support> {
    Capability::ALL.into_iter().map(|c| (c, Support::Native)).collect()
}

impl MemoryConnector {
    /// A new, empty broker.
    pub fn new(settings: MemorySettings) -> Self {
        let broker = Arc::new(Mutex::new(Broker::new(&settings)));
        MemoryConnector { settings, broker }
    }
}

impl Connector for MemoryConnector {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>> {
        let link = match link {
            None => Ok(None),
            Some(link) => {
                link.as_any().downcast_ref::<MemoryLink>().cloned().map(Some).ok_or_else(|| {
                    BackendError::new(ErrorKind::InvalidArgument, "the link is another backend's")
                })
            }
        };
        let connection = link.and_then(|link| {
            let id = lock(&self.broker).connect();
            let channel = Channel::new(Arc::clone(&self.broker), id, link);
            if channel.is_down() {
                return Err(BackendError::new(ErrorKind::Unreachable, "the link is cut"));
            }
            let settings = self.settings.clone();
            Ok(Arc::new(MemoryBackend { settings, channel }) as Arc<dyn QueueBackend>)
        });
        Box::pin(std::future::ready(connection))
    }

    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>> {
        let link = MemoryLink::new(Arc::clone(&self.broker));
        Box::pin(std::future::ready(Ok(Arc::new(link) as Arc<dyn Link>)))
    }

    fn virtual_time(&self) -> bool {
        true
    }
}

/// A connection to the embedded broker.
struct MemoryBackend {
    settings: MemorySettings,
    channel: Arc<Channel>,
}

impl MemoryBackend {
    /// Asks the broker, through the link if there is one.
    fn ask<'a, T: Send + 'static>(
        &'a self,
        question: impl FnOnce(&mut Broker) -> Result<T, BackendError> + Send + 'static,
    ) -> BoxFuture<'a, Result<T, BackendError>> {
        let answer = self.channel.call(question);
        Box::pin(async move {
            match answer?.wait(self.settings.request_timeout).await {
                Some(answer) => answer,
                None => Err(BackendError::new(ErrorKind::Timeout, "no answer came over the link")),
            }
        })
    }
}

impl QueueBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            support: declares(),
            limits: Limits {
                min_payload: 0,
                max_payload: Some(self.settings.max_payload),
                dedup_scope: Some(DedupScope::Topic),
                disconnect: Disconnect::Immediately,
                ack_timeout_resolution: Duration::ZERO,
                nack_delay_resolution: Duration::ZERO,
                dedup_window_resolution: Duration::ZERO,
                publish_delay_resolution: Duration::ZERO,
                publish_delay_early: Duration::ZERO,
                attempts_forget_disconnects: false,
                prefetch_counts_unsettled: false,
                memory_queue: None,
            },
        }
    }

    fn broker_version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>> {
        let spec = spec.clone();
        self.ask(move |broker| broker.create_topic(spec))
    }

    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        let spec = spec.clone();
        self.ask(move |broker| broker.create_subscription(spec))
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        let topic = topic.to_string();
        self.ask(move |broker| {
            broker.delete_topic(&topic);
            Ok(())
        })
    }

    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>> {
        let prefix = prefix.to_string();
        self.ask(move |broker| Ok(broker.topics(&prefix)))
    }

    fn publisher<'a>(
        &'a self,
        topic: &'a str,
        options: PublisherOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Publisher>, BackendError>> {
        Box::pin(async move {
            let timeout = options.confirm_timeout.unwrap_or(self.settings.request_timeout);
            let channel = Arc::clone(&self.channel);
            let who = Arc::new(Who {
                number: lock(&channel.broker).next_number(),
                connection: channel.id(),
                name: options.name,
                access: options.access,
            });
            let publisher = MemoryPublisher { channel, topic: topic.into(), timeout, who };
            loop {
                let (topic, who) = (Arc::clone(&publisher.topic), Arc::clone(&publisher.who));
                match self.ask(move |broker| broker.open_publisher(&topic, &who)).await? {
                    Opened::In => return Ok(Box::new(publisher) as Box<dyn Publisher>),
                    Opened::Wait(door) => door.notified().await,
                }
            }
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
        options: ConsumerOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BackendError>> {
        let place: client::Place = (topic.into(), subscription.into());
        let consumer = MemoryConsumer::new(
            Arc::clone(&self.channel),
            place,
            options,
            self.settings.request_timeout,
        );
        Box::pin(async move {
            let mut consumer = consumer?;
            consumer.attach().await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        self.ask(move |broker| broker.depth(&topic, &subscription, Instant::now()))
    }

    fn disconnects(&self) -> u64 {
        self.channel.disconnects()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.channel.close();
        Box::pin(std::future::ready(()))
    }
}

impl std::fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryBackend")
    }
}

/// A link's own type, for [`Link::as_any`].
fn any<T: Any>(value: &T) -> &dyn Any {
    value
}
