//! What will be done: every target with its properties and settings, nothing implicit left.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{config, conformance::Property, flaw::Flaw};

/// A whole run, resolved.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed of all random choices.
    pub seed: u64,
    /// How many properties run at the same time on one target, 1 or more.
    pub jobs: usize,
    /// What every topic's name begins with.
    pub prefix: String,
    /// Where the histories go; `None` keeps them in memory only.
    pub out: Option<PathBuf>,
    /// The targets, run one after the other.
    pub targets: Vec<TargetPlan>,
}

/// One target of a run.
#[derive(Debug, Clone)]
pub struct TargetPlan {
    /// The name in the results.
    pub name: String,
    /// How to reach the broker.
    pub backend: BackendPlan,
    /// The effective settings as they are shown in results, secrets masked.
    pub settings: serde_json::Value,
    /// The sizes and times of the scenarios.
    pub suite: Suite,
    /// The promise to break on purpose, to see the suite find it.
    pub flaw: Option<Flaw>,
    /// Whether it is one of all, so that a broker that is not on this machine is merely absent.
    pub optional: bool,
    /// The properties to check, in the order of the list.
    pub properties: Vec<&'static Property>,
}

/// How to reach a broker.
#[derive(Debug, Clone)]
pub enum BackendPlan {
    /// The embedded one.
    Memory(config::Memory),
    /// NATS JetStream: at a URL, or on a private server where there is none.
    Nats(Box<config::Nats>),
    /// Apache Pulsar, likewise.
    Pulsar(Box<config::Pulsar>),
    /// NSQ, likewise.
    Nsq(Box<config::Nsq>),
    /// A ring in etcd, likewise: the baseline of the scheduler.
    EtcdRing(Box<config::Etcd>),
}

/// The sizes and times of the scenarios.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suite {
    /// How long a delivery stays locked, 100 ms to 1 h.
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// How late a timed event may come before it is an anomaly.
    #[serde(with = "humantime_serde")]
    pub tolerance: Duration,
    /// The deduplication window that topics are created with.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// The delay of a delayed nack.
    #[serde(with = "humantime_serde")]
    pub nack_delay: Duration,
    /// Messages in a scenario that counts them.
    pub messages: u32,
    /// Consumers in a scenario that has many.
    pub consumers: u32,
    /// Publishers in a scenario that has many.
    pub publishers: u32,
    /// Payload size, bytes; at least the 48 or so that the identity needs.
    pub payload: u32,
    /// How long one property may take in all, the clock of the run.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

impl BackendPlan {
    /// The backend's name.
    pub fn name(&self) -> &'static str {
        match self {
            BackendPlan::Memory(_) => "memory",
            BackendPlan::Nats(_) => "nats",
            BackendPlan::Pulsar(_) => "pulsar",
            BackendPlan::Nsq(_) => "nsq",
            BackendPlan::EtcdRing(_) => "etcd-ring",
        }
    }

    /// Whether it is a broker that others may use too.
    pub fn is_remote(&self) -> bool {
        match self {
            BackendPlan::Memory(_) => false,
            BackendPlan::Nats(nats) => nats.url.is_some(),
            BackendPlan::Pulsar(pulsar) => pulsar.url.is_some(),
            BackendPlan::Nsq(nsq) => nsq.url.is_some(),
            BackendPlan::EtcdRing(etcd) => etcd.url.is_some(),
        }
    }
}

impl Suite {
    /// The sizes of the quick profile: some seconds against a real broker.
    pub fn quick() -> Self {
        Suite {
            ack_timeout: Duration::from_secs(1),
            tolerance: Duration::from_millis(500),
            dedup_window: Duration::from_secs(2),
            nack_delay: Duration::from_millis(500),
            messages: 200,
            consumers: 4,
            publishers: 4,
            payload: 128,
            deadline: Duration::from_secs(30),
        }
    }

    /// The sizes of the full profile: a minute against a real broker.
    pub fn full() -> Self {
        Suite {
            ack_timeout: Duration::from_secs(2),
            tolerance: Duration::from_millis(500),
            dedup_window: Duration::from_secs(3),
            nack_delay: Duration::from_secs(1),
            messages: 5000,
            consumers: 8,
            publishers: 8,
            payload: 256,
            deadline: Duration::from_secs(60),
        }
    }
}
