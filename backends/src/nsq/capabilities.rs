//! What NSQ does, and does not.

use std::{collections::BTreeMap, time::Duration};

use super::{NsqSettings, connect::Terms};
use crate::{Capabilities, Capability, Disconnect, Limits, Support};

/// What nsqd does with these settings.
pub(super) fn capabilities(settings: &NsqSettings, terms: &Terms) -> Capabilities {
    let support = |capability| support(capability, settings.ephemeral);
    let takes = &terms.takes;
    Capabilities {
        support: Capability::ALL.into_iter().map(|c| (c, support(c))).collect(),
        limits: Limits {
            min_payload: 1,
            max_payload: Some(takes.message),
            dedup_scope: None,
            disconnect: Disconnect::AfterAckTimeout,
            ack_timeout_resolution: terms.resolution,
            nack_delay_resolution: terms.resolution,
            dedup_window_resolution: Duration::ZERO,
            publish_delay_resolution: terms.resolution,
            publish_delay_early: Duration::ZERO,
            attempts_forget_disconnects: false,
            prefetch_counts_unsettled: true,
            memory_queue: Some(takes.memory_queue),
        },
    }
}

/// What is declared where nothing is `#ephemeral`.
pub(super) fn usual() -> BTreeMap<Capability, Support> {
    Capability::ALL.into_iter().map(|c| (c, support(c, false))).collect()
}

fn support(capability: Capability, ephemeral: bool) -> Support {
    match missing(capability, ephemeral) {
        Some(why) => Support::Unsupported { why: why.into() },
        None if capability == Capability::ConfirmedAck => Support::Emulated {
            how: "nsqd answers only an acknowledgement that fails; the client follows each batch \
                  with a TOUCH of a message that does not exist, whose failure shows that nsqd has \
                  carried out what came before (and is one line in its log)"
                .into(),
        },
        None => Support::Native,
    }
}

/// Why NSQ lacks a capability; `None` if it has it.
fn missing(capability: Capability, ephemeral: bool) -> Option<&'static str> {
    match capability {
        Capability::StartEarliest => Some(
            "nsqd keeps a message until the channels that there are have finished it: only a \
             topic's first channel finds what was published before it",
        ),
        Capability::Order => Some(
            "nsqd keeps no order: a channel is a queue in memory and one on disk that are read \
             side by side, and what is handed back goes to the end",
        ),
        Capability::DedupId | Capability::DedupSequence => {
            Some("nsqd stores what it is sent, however often")
        }
        Capability::DedupWindow | Capability::DuplicateReported => {
            Some("nsqd does not deduplicate")
        }
        Capability::DeadLetter => Some(
            "nsqd counts attempts and has no limit of them, and no dead-letter topic: that is left \
             to the consumer",
        ),
        Capability::Headers => Some("an NSQ message is a body: it has no headers"),
        Capability::Keys | Capability::KeyOrder => Some("an NSQ message is a body: it has no key"),
        Capability::ExclusivePublisher => Some("nsqd lets everybody publish at the same time"),
        Capability::TopicLimit => Some("nsqd has no limit of the messages in a topic"),
        Capability::Backlog if ephemeral => Some(
            "nsqd drops what exceeds the memory queue (-mem-queue-size) of an #ephemeral topic or \
             channel",
        ),
        _ => None,
    }
}
