//! What a backend declares that its broker does.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Something a broker may or may not do. Properties name those they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Several consumers compete for the messages of one subscription.
    WorkQueue,
    /// Every subscription of a topic gets every message.
    Broadcast,
    /// A new subscription can begin with the oldest stored message.
    StartEarliest,
    /// A new subscription can begin with the next message.
    StartLatest,
    /// One publisher's messages reach one consumer in their order.
    Order,
    /// Equal ids from any publisher are stored once within a window.
    DedupId,
    /// Numbers of a named producer are stored once.
    DedupSequence,
    /// The length of the deduplication window can be set per topic.
    DedupWindow,
    /// The receipt of a dropped duplicate says so.
    DuplicateReported,
    /// A delivery can be handed back.
    Nack,
    /// A delivery can be handed back with a delay.
    NackDelay,
    /// An unsettled delivery returns after a time.
    AckTimeout,
    /// A delivery's lock can be extended.
    Touch,
    /// The broker confirms acknowledgements.
    ConfirmedAck,
    /// A delivery says how often its message was delivered.
    AttemptCount,
    /// After a number of deliveries a message is moved to a dead-letter topic.
    DeadLetter,
    /// Names and values travel with a message.
    Headers,
    /// A key travels with a message.
    Keys,
    /// Messages of one key reach competing consumers in their order, one consumer at a time.
    KeyOrder,
    /// A publish can be delayed: its message is delivered no earlier.
    DelayedPublish,
    /// The broker lets one publisher in at a time, and the next one when that is gone.
    ExclusivePublisher,
    /// A backlog larger than the broker's memory queue is kept.
    Backlog,
    /// The broker says how much a subscription holds.
    Depth,
    /// A topic can be limited in messages, with a definite rejection beyond.
    TopicLimit,
}

/// How a capability is provided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// By the broker.
    Native,
    /// By the backend in the client, in the way described.
    Emulated {
        /// How, and what that costs or cannot promise.
        how: String,
    },
    /// Not at all, for the reason given.
    Unsupported {
        /// Why, in words that help a user choose.
        why: String,
    },
}

/// Everything a backend declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Support of each capability; one that is missing here is unsupported.
    pub support: BTreeMap<Capability, Support>,
    /// The numbers.
    pub limits: Limits,
}

/// The numbers and manners that a backend declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The smallest payload it takes, bytes.
    pub min_payload: u64,
    /// The largest payload it takes, bytes, for a message without key, headers and dedup key;
    /// `None` where there is no limit below memory.
    pub max_payload: Option<u64>,
    /// Who shares a deduplication id.
    pub dedup_scope: Option<DedupScope>,
    /// How a delivery returns whose connection was cut.
    pub disconnect: Disconnect,
    /// How exact the ack timeout is: it may come late by this much without breaking the promise.
    pub ack_timeout_resolution: Duration,
    /// How exact a delayed nack is, likewise.
    pub nack_delay_resolution: Duration,
    /// How late an id may be forgotten after its window, without breaking the promise.
    pub dedup_window_resolution: Duration,
    /// How exact a delayed publish is, likewise.
    #[serde(default)]
    pub publish_delay_resolution: Duration,
    /// By how much a delayed message may come early, as the broker documents it.
    #[serde(default)]
    pub publish_delay_early: Duration,
    /// Whether the attempt leaves out the deliveries whose consumer was gone before it settled them.
    #[serde(default)]
    pub attempts_forget_disconnects: bool,
    /// Whether deliveries handed out and unsettled count towards a consumer's prefetch.
    pub prefetch_counts_unsettled: bool,
    /// How many messages a topic or subscription holds in memory before it turns to the disk;
    /// `None` where the broker draws no such line.
    #[serde(default)]
    pub memory_queue: Option<u64>,
}

/// Who shares a deduplication id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DedupScope {
    /// All publishers of a topic.
    Topic,
    /// The publishers of one name.
    Producer,
}

/// How a delivery returns whose connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disconnect {
    /// As soon as the broker notices.
    Immediately,
    /// When its ack timeout passes.
    AfterAckTimeout,
}

impl Capabilities {
    /// Whether a capability is there, natively or emulated.
    pub fn has(&self, capability: Capability) -> bool {
        matches!(self.support.get(&capability), Some(Support::Native | Support::Emulated { .. }))
    }

    /// Why a capability is missing; `None` if it is there.
    pub fn missing(&self, capability: Capability) -> Option<&str> {
        match self.support.get(&capability) {
            Some(Support::Native | Support::Emulated { .. }) => None,
            Some(Support::Unsupported { why }) => Some(why),
            None => Some("the backend does not declare it"),
        }
    }
}

impl Capability {
    /// All of them, in the order of the tables.
    pub const ALL: [Capability; 24] = [
        Capability::WorkQueue,
        Capability::Broadcast,
        Capability::StartEarliest,
        Capability::StartLatest,
        Capability::Order,
        Capability::DedupId,
        Capability::DedupSequence,
        Capability::DedupWindow,
        Capability::DuplicateReported,
        Capability::Nack,
        Capability::NackDelay,
        Capability::AckTimeout,
        Capability::Touch,
        Capability::ConfirmedAck,
        Capability::AttemptCount,
        Capability::DeadLetter,
        Capability::Headers,
        Capability::Keys,
        Capability::KeyOrder,
        Capability::DelayedPublish,
        Capability::ExclusivePublisher,
        Capability::Backlog,
        Capability::Depth,
        Capability::TopicLimit,
    ];

    /// Its name in tables, JSON and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Capability::WorkQueue => "work-queue",
            Capability::Broadcast => "broadcast",
            Capability::StartEarliest => "start-earliest",
            Capability::StartLatest => "start-latest",
            Capability::Order => "order",
            Capability::DedupId => "dedup-id",
            Capability::DedupSequence => "dedup-sequence",
            Capability::DedupWindow => "dedup-window",
            Capability::DuplicateReported => "duplicate-reported",
            Capability::Nack => "nack",
            Capability::NackDelay => "nack-delay",
            Capability::AckTimeout => "ack-timeout",
            Capability::Touch => "touch",
            Capability::ConfirmedAck => "confirmed-ack",
            Capability::AttemptCount => "attempt-count",
            Capability::DeadLetter => "dead-letter",
            Capability::Headers => "headers",
            Capability::Keys => "keys",
            Capability::KeyOrder => "key-order",
            Capability::DelayedPublish => "delayed-publish",
            Capability::ExclusivePublisher => "exclusive-publisher",
            Capability::Backlog => "backlog",
            Capability::Depth => "depth",
            Capability::TopicLimit => "topic-limit",
        }
    }
}

impl Capability {
    /// What it is, in one sentence.
    pub fn doc(self) -> &'static str {
        match self {
            Capability::WorkQueue => {
                "Several consumers compete for the messages of one subscription."
            }
            Capability::Broadcast => "Every subscription of a topic gets every message.",
            Capability::StartEarliest => {
                "A new subscription can begin with the oldest stored message."
            }
            Capability::StartLatest => "A new subscription can begin with the next message.",
            Capability::Order => "One publisher's messages reach one consumer in their order.",
            Capability::DedupId => "Equal ids from any publisher are stored once within a window.",
            Capability::DedupSequence => "Numbers of a named producer are stored once.",
            Capability::DedupWindow => {
                "The length of the deduplication window can be set per topic."
            }
            Capability::DuplicateReported => "The receipt of a dropped duplicate says so.",
            Capability::Nack => "A delivery can be handed back.",
            Capability::NackDelay => "A delivery can be handed back with a delay.",
            Capability::AckTimeout => "An unsettled delivery returns after a time.",
            Capability::Touch => "A delivery's lock can be extended.",
            Capability::ConfirmedAck => "The broker confirms acknowledgements.",
            Capability::AttemptCount => "A delivery says how often its message was delivered.",
            Capability::DeadLetter => {
                "After a number of deliveries a message is moved to a dead-letter topic."
            }
            Capability::Headers => "Names and values travel with a message.",
            Capability::Keys => "A key travels with a message.",
            Capability::KeyOrder => {
                "Messages of one key reach competing consumers in their order, one consumer at a time."
            }
            Capability::DelayedPublish => {
                "A publish can be delayed: its message is delivered no earlier."
            }
            Capability::ExclusivePublisher => {
                "The broker lets one publisher in at a time, and the next one when that is gone."
            }
            Capability::Backlog => "A backlog larger than the broker's memory queue is kept.",
            Capability::Depth => "The broker says how much a subscription holds.",
            Capability::TopicLimit => {
                "A topic can be limited in messages, with a definite rejection beyond."
            }
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
