//! Reaching etcd, for the ring that is the baseline of the scheduler.

use std::collections::BTreeMap;

use queueproof_backends::{Capabilities, Capability, Disconnect, Limits, Support};
use std::time::Duration;

use super::{Introduction, Unreached, Waiting, private::private};
use crate::{
    brokers::{PrivateBroker, Wanted},
    config,
};

/// An etcd that can be connected to.
pub struct ReachedEtcd {
    /// Where it is.
    pub endpoint: String,
    /// What is known about it.
    pub introduction: Introduction,
    /// The one that was started for this run; it stops when this is dropped.
    pub broker: Option<PrivateBroker>,
}

/// Reaches the etcd at a URL, or one that is started for it.
///
/// # Errors
/// Why there is none.
pub fn reach_etcd(etcd: &config::Etcd, waiting: Waiting<'_>) -> Result<ReachedEtcd, Unreached> {
    let (endpoint, version, broker) = match &etcd.url {
        Some(url) => (url.clone(), String::new(), None),
        None => {
            let wanted =
                Wanted { binary: etcd.server.binary.clone(), version: etcd.server.version.clone() };
            let broker = private("etcd", &wanted, waiting, |_| {})?;
            (broker.url().to_string(), broker.version().to_string(), Some(broker))
        }
    };
    let introduction = Introduction { broker_version: version, capabilities: capabilities() };
    Ok(ReachedEtcd { endpoint, introduction, broker })
}

/// What the ring has of a queue: an order of turns, and nothing else.
fn capabilities() -> Capabilities {
    let why = "a ring in etcd is no queue: it names the agent whose turn it is, at most once";
    let unsupported = |capability| (capability, Support::Unsupported { why: why.into() });
    let support: BTreeMap<_, _> = Capability::ALL.into_iter().map(unsupported).collect();
    Capabilities {
        support,
        limits: Limits {
            min_payload: 0,
            max_payload: None,
            dedup_scope: None,
            disconnect: Disconnect::AfterAckTimeout,
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
