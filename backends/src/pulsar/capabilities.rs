//! What Pulsar does, as this backend uses it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    admin::{DelayRule, Found},
    publisher::NO_IDS,
    settle::{NO_DELAY, NO_TOUCH},
};
use crate::{Capabilities, Capability, DedupScope, Disconnect, Limits, Support};

/// Why topics have no limit.
pub(super) const NO_LIMIT: &str = "Pulsar limits the bytes and the age of what is not acknowledged \
                                   (backlog quotas), not the number of messages of a topic";

/// What is declared for a broker and namespace as they usually are.
pub(super) fn usual() -> BTreeMap<Capability, Support> {
    let found = Found { version: String::new(), dedup: Ok(()), delay: None };
    Capability::ALL.into_iter().map(|c| (c, support(c, &found, false))).collect()
}

/// Declares it for a broker and namespace.
pub(super) fn declare(found: &Found, max_message: usize, batching: bool) -> Capabilities {
    let support = |capability| support(capability, found, batching);
    Capabilities {
        support: Capability::ALL.into_iter().map(|c| (c, support(c))).collect(),
        limits: Limits {
            min_payload: 0,
            max_payload: Some(max_message as u64),
            dedup_scope: Some(DedupScope::Producer),
            disconnect: Disconnect::Immediately,
            ack_timeout_resolution: Duration::from_millis(20),
            nack_delay_resolution: Duration::ZERO,
            dedup_window_resolution: Duration::ZERO,
            publish_delay_resolution: found.delay.map_or(TICK, |rule| rule.tick),
            // Its documentation of isDelayedDeliveryDeliverAtTimeStrict; measured.
            publish_delay_early: found.delay.map_or(TICK, |rule| rule.early()),
            // Measured with 4.0.8.
            attempts_forget_disconnects: true,
            prefetch_counts_unsettled: false,
            memory_queue: None,
        },
    }
}

/// How often a broker looks for delayed messages that are due, unless it is told otherwise.
const TICK: Duration = Duration::from_secs(1);

fn support(capability: Capability, found: &Found, batching: bool) -> Support {
    let unsupported = |why: &str| Support::Unsupported { why: why.into() };
    let emulated = |how: &str| Support::Emulated { how: how.into() };
    match capability {
        Capability::DedupId => unsupported(NO_IDS),
        Capability::DedupSequence | Capability::DuplicateReported => match &found.dedup {
            Ok(()) => Support::Native,
            Err(why) => unsupported(why),
        },
        Capability::DedupWindow => unsupported(
            "Pulsar keeps a producer's highest number for as long as it remembers the name \
             (brokerDeduplicationProducerInactivityTimeoutMinutes, 6 hours by default, for all \
             topics of a broker)",
        ),
        Capability::NackDelay => unsupported(NO_DELAY),
        Capability::Touch => unsupported(NO_TOUCH),
        Capability::TopicLimit => unsupported(NO_LIMIT),
        Capability::AckTimeout => emulated(
            "Pulsar's brokers have none: as in Pulsar's own clients a timer of the consumer's \
             hands the delivery back, so it does not fire while the consumer's program is stopped \
             or gone (then its connection is lost, and all it holds returns at once)",
        ),
        Capability::DeadLetter => emulated(
            "as in Pulsar's own clients the consumer publishes to the dead-letter topic and \
             acknowledges here; it goes by the broker's redelivery counts, which leave out what a \
             lost or leaving consumer held, and begin anew when the last consumer is gone",
        ),
        Capability::DelayedPublish => match found.delay {
            Some(DelayRule { enabled: false, .. }) => {
                unsupported("the broker delays nothing (delayedDeliveryEnabled=false)")
            }
            _ => Support::Native,
        },
        Capability::ConfirmedAck if batching => unsupported(
            "with batching the broker is told of an acknowledgement only when all messages of the \
             entry are acknowledged",
        ),
        _ => Support::Native,
    }
}
