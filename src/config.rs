//! What the user wrote: file, environment and flags, one over the other.
//!
//! Every layer is read as the same strict structure, so that a mistake is told where it was made:
//! file, line and column, variable, or flag. Then the layers are merged key by key: flags over
//! environment over file over defaults.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::plan::Suite;

mod etcd;
mod feasible;
mod layers;
mod list;
mod nats;
mod nsq;
mod pulsar;
mod resolve;
mod schedule;
#[cfg(any(feature = "nats", feature = "pulsar", feature = "nsq"))]
mod secrets;

pub use etcd::{Etcd, EtcdServer};
pub use layers::{ConfigError, FILE_VARIABLE, Layers, VARIABLES};
pub(crate) use layers::{parse_as, text};
pub use list::List;
pub use nats::{Nats, NatsAuth, NatsServer, NatsTls, Storage};
pub use nsq::{Nsq, NsqAuth, NsqServer};
pub use pulsar::{Pulsar, PulsarAuth, PulsarOAuth2, PulsarServer};
pub use resolve::{BACKENDS, BASELINES, Selection, nearest};
pub use schedule::{AgentSettings, CheckSettings, Execution, Schedule};
#[cfg(feature = "nats")]
pub(crate) use secrets::read_secret;
#[cfg(any(feature = "nats", feature = "pulsar", feature = "nsq"))]
pub(crate) use secrets::secret;

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which backends: names, or `all`.
    pub backend: List,
    /// Where the sizes and times of the suite come from.
    pub profile: Profile,
    /// The seed of all random choices; chosen at random without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How many properties run at the same time on one target.
    pub jobs: usize,
    /// Which properties: ids, groups or patterns; all without.
    pub property: List,
    /// How results are printed.
    pub format: Format,
    /// Where histories are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// When to use colours.
    pub color: Color,
    /// What the name of every topic begins with.
    pub prefix: String,
    /// What differs from the profile.
    pub suite: SuiteChanges,
    /// The embedded backend.
    pub memory: Memory,
    /// NATS.
    pub nats: Nats,
    /// Apache Pulsar.
    pub pulsar: Pulsar,
    /// NSQ.
    pub nsq: Nsq,
    /// etcd, for the ring that is the baseline of `schedule`.
    pub etcd: Etcd,
    /// The workload of `schedule` and `simulate`.
    pub schedule: Schedule,
    /// Targets with names and settings of their own; instead of `backend`.
    pub targets: BTreeMap<String, TargetSettings>,
}

/// Where the sizes and times of the suite come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Some seconds against a real broker.
    #[default]
    Quick,
    /// A minute against a real broker.
    Full,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Sizes and times that differ from the profile's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuiteChanges {
    /// How long a delivery stays locked.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub ack_timeout: Option<Duration>,
    /// How late a timed event may come.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Duration>,
    /// The deduplication window of topics.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub dedup_window: Option<Duration>,
    /// The delay of a delayed nack.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub nack_delay: Option<Duration>,
    /// Messages in a scenario that counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,
    /// Consumers in a scenario that has many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u32>,
    /// Publishers in a scenario that has many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishers: Option<u32>,
    /// Payload size, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<u32>,
    /// How long one property may take.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
}

/// The embedded backend's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// The largest payload, bytes.
    pub max_payload: u64,
}

/// The settings of a named target: one backend's, which replace the general ones key by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetSettings {
    /// The embedded backend, with what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<serde_yaml::Value>,
    /// NATS, with what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<serde_yaml::Value>,
    /// Apache Pulsar, with what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar: Option<serde_yaml::Value>,
    /// NSQ, with what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsq: Option<serde_yaml::Value>,
}

/// Whom to trust, and who to be, on connections that TLS protects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Certificates to trust beside the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// How many properties run at the same time: they wait most of the time.
const JOBS: usize = 12;

impl Default for Config {
    fn default() -> Self {
        Config {
            backend: List::one("memory"),
            profile: Profile::Quick,
            seed: None,
            jobs: JOBS,
            property: List::default(),
            format: Format::Table,
            out: None,
            color: Color::Auto,
            prefix: "qp".into(),
            suite: SuiteChanges::default(),
            memory: Memory::default(),
            nats: Nats::default(),
            pulsar: Pulsar::default(),
            nsq: Nsq::default(),
            etcd: Etcd::default(),
            schedule: Schedule::default(),
            targets: BTreeMap::new(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { max_payload: 1 << 20 }
    }
}

impl SuiteChanges {
    /// The profile's sizes and times with these changes.
    pub fn apply(&self, profile: Profile) -> Suite {
        let base = match profile {
            Profile::Quick => Suite::quick(),
            Profile::Full => Suite::full(),
        };
        Suite {
            ack_timeout: self.ack_timeout.unwrap_or(base.ack_timeout),
            tolerance: self.tolerance.unwrap_or(base.tolerance),
            dedup_window: self.dedup_window.unwrap_or(base.dedup_window),
            nack_delay: self.nack_delay.unwrap_or(base.nack_delay),
            messages: self.messages.unwrap_or(base.messages),
            consumers: self.consumers.unwrap_or(base.consumers),
            publishers: self.publishers.unwrap_or(base.publishers),
            payload: self.payload.unwrap_or(base.payload),
            deadline: self.deadline.unwrap_or(base.deadline),
        }
    }
}
