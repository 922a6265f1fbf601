//! The ledger: every operation of one property's run, with its times and what became of it.
//!
//! A history is all that a judge sees, so that a verdict can be reproduced from a saved one. On
//! disk it is JSON Lines: a [`Header`], then [`Op`]s in the order in which they completed, then
//! an [`End`]. It is written as it goes: without its end it is the readable prefix of a run that
//! was killed.

use std::time::Duration;

use queueproof_backends::{
    Capabilities, Direction, PublishError, PublishReceipt, RejectKind, SettleError, Settled,
    Settlement, Start,
};
use serde::{Deserialize, Serialize};

use crate::{
    message::Seen,
    plan::Suite,
    scheduler::{Event, Workload},
};

mod file;
mod ledger;
mod writer;

pub use file::{
    HistoryError, Reader, RunRecord, SCHEDULE, TargetRecord, begin_run, read, read_run, write_run,
};
pub use ledger::Ledger;
pub use writer::Writer;

/// The version of the history's schema. Fields are only ever added under one version.
pub const SCHEMA: &str = "queueproof/history/1";

/// One property's run.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// The circumstances.
    pub header: Header,
    /// What was done, in the order of completion.
    pub ops: Vec<Op>,
    /// How it ended; `None` if the record breaks off.
    pub end: Option<End>,
}

/// The circumstances under which a history was made: all a judge needs besides the operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: String,
    /// The target's name.
    pub target: String,
    /// The property's id.
    pub property: String,
    /// The seed of the run.
    pub seed: u64,
    /// The sizes and times that the scenario was given.
    pub suite: Suite,
    /// What the backend declared.
    pub capabilities: Capabilities,
    /// Whether time was simulated: then the clock has no noise.
    pub virtual_time: bool,
    /// The flaw that was put in on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaw: Option<String>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// When it was invoked and when it completed, nanoseconds since the run of the property began.
    pub at: (u64, u64),
    /// The connection that did it; 0 is the director of the scenario.
    pub by: u16,
    /// What it was.
    pub what: What,
}

/// What an operation was. Topics, subscriptions, connections, publishers, consumers and
/// deliveries are numbered in the order of their making, each from 0 (connections from 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A topic was created.
    Topic(Topic),
    /// A subscription was created.
    Subscription(Subscription),
    /// A connection was opened.
    Connect {
        /// Whether through a link.
        link: bool,
    },
    /// A connection was closed on purpose.
    Close {
        /// How often it had been lost by then, cuts on purpose included.
        disconnects: u64,
    },
    /// A publisher was opened.
    Publisher {
        /// Its number.
        publisher: u16,
        /// The topic.
        topic: u16,
        /// The name it was opened under, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A message was published.
    Publish(Box<Publish>),
    /// A consumer was opened.
    Consumer {
        /// Its number.
        consumer: u16,
        /// The subscription.
        subscription: u16,
        /// How many messages may be locked ahead for it.
        prefetch: u32,
    },
    /// A consumer left gracefully.
    Leave {
        /// Which one.
        consumer: u16,
    },
    /// A message was handed to a consumer. The operation was invoked when the consumer asked.
    Receive(Box<Receive>),
    /// A delivery was settled.
    Settle(Box<Settle>),
    /// This connection's link was cut.
    Cut,
    /// This connection's link holds back what flows this way.
    Hold(Way),
    /// This connection's link flows again.
    Heal,
    /// The broker was asked what a subscription holds.
    Depth {
        /// The subscription.
        subscription: u16,
        /// Waiting messages.
        waiting: u64,
        /// Deliveries out and unsettled.
        unsettled: u64,
        /// Messages stored.
        stored: Option<u64>,
    },
    /// A subscription was drained: consumers waited throughout a quiet period that outlasts the
    /// ack timeout, nothing came any more, and the broker still answered at its end. `at` spans
    /// the quiet period.
    Drained {
        /// The subscription.
        subscription: u16,
    },
    /// A workload of the scheduler begins; what happens in it follows.
    Workload(Box<Workload>),
    /// Something happened in the workload.
    Schedule(Box<Event>),
    /// The scenario marks a moment or a figure for its judge.
    Mark {
        /// What is marked.
        name: String,
        /// The figure; 0 for a moment.
        value: i64,
    },
    /// This program itself was not running (`at` spans the time): what came late then proves
    /// nothing against the broker.
    Stall,
}

/// A topic of the scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topic {
    /// Its number.
    pub topic: u16,
    /// Its name at the broker.
    pub name: String,
    /// The deduplication window it was created with, nanoseconds.
    pub dedup_window: Option<u64>,
    /// Its limit in messages.
    pub max_messages: Option<u64>,
}

/// A subscription of the scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its number.
    pub subscription: u16,
    /// The topic.
    pub topic: u16,
    /// Whether it begins with the oldest stored message.
    pub earliest: bool,
    /// How long a delivery is locked, nanoseconds.
    pub ack_timeout: u64,
    /// Where messages go that nobody acknowledges, and after how many deliveries.
    pub dead_letter: Option<(u32, u16)>,
}

/// A publish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// Who published: with number and copy, the message's identity.
    pub publisher: u16,
    /// Which message of the publisher.
    pub number: u32,
    /// Which attempt to publish it: copies share a deduplication key.
    pub copy: u16,
    /// The topic.
    pub topic: u16,
    /// The deduplication key, if any, as a number of the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    /// The number under the publisher's name that deduplicates it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// How long its delivery was to be delayed, nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<u64>,
    /// The routing key, as a number of the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<u32>,
    /// Payload length, bytes.
    pub len: u32,
    /// Checksum of the payload.
    pub body: u32,
    /// Checksum of key and headers; 0 without any.
    pub extra: u32,
    /// Whether the scenario means it to be refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub illegal: bool,
    /// What is known about it.
    pub outcome: Published,
}

/// What is known about a publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Published {
    /// The broker confirmed it.
    Confirmed {
        /// Whether it said that it was a duplicate and dropped.
        duplicate: Option<bool>,
        /// The position it gave.
        position: Option<u64>,
    },
    /// It certainly was not sent.
    NotSent(String),
    /// It may have been stored.
    Indeterminate(String),
    /// It was refused.
    Rejected(RejectKind, String),
    /// The backend cannot do it, or was closed.
    Failed(String),
}

/// A delivery, as a consumer saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receive {
    /// The subscription.
    pub subscription: u16,
    /// The consumer.
    pub consumer: u16,
    /// The delivery's number.
    pub delivery: u32,
    /// Who the payload says it is.
    pub seen: Seen,
    /// The broker's count of deliveries.
    pub attempt: Option<u32>,
    /// The position in the topic.
    pub position: Option<u64>,
    /// Payload length, bytes.
    pub len: u32,
    /// Checksum of the payload.
    pub body: u32,
    /// Checksum of key and headers; 0 without any.
    pub extra: u32,
}

/// A settlement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settle {
    /// The delivery.
    pub delivery: u32,
    /// How.
    pub how: How,
    /// What is known about it.
    pub outcome: SettleOutcome,
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Acknowledged.
    Ack,
    /// Handed back, with this delay in nanoseconds.
    Nack(u64),
    /// Given up.
    Reject,
    /// Extended.
    Touch,
}

/// What is known about a settlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SettleOutcome {
    /// The broker confirmed it.
    Confirmed,
    /// It was sent to a broker that does not confirm.
    Sent,
    /// The broker said that the lock had passed.
    LeaseLost,
    /// It may have taken effect.
    Indeterminate(String),
    /// It certainly had no effect.
    NotSent(String),
}

/// A way of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From the client to the broker.
    ToBroker,
    /// From the broker to the client.
    ToClient,
}

/// How a run of a property ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// When, nanoseconds since it began.
    pub at: u64,
    /// What kept the scenario from its end, if anything did.
    pub halt: Option<Halt>,
}

/// What kept a scenario from its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Halt {
    /// The environment failed.
    #[error("{0}")]
    Broken(String),
    /// It could not be carried out so far that a verdict were possible.
    #[error("{0}")]
    Undecided(String),
}

impl From<Direction> for Way {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::ToBroker => Way::ToBroker,
            Direction::ToClient => Way::ToClient,
        }
    }
}

impl From<Result<PublishReceipt, PublishError>> for Published {
    fn from(result: Result<PublishReceipt, PublishError>) -> Self {
        match result {
            Ok(receipt) => {
                Published::Confirmed { duplicate: receipt.duplicate, position: receipt.position }
            }
            Err(PublishError::NotSent(why)) => Published::NotSent(why),
            Err(PublishError::Indeterminate(why)) => Published::Indeterminate(why),
            Err(PublishError::Rejected { kind, reason }) => Published::Rejected(kind, reason),
            Err(error @ (PublishError::Unsupported(_) | PublishError::Closed)) => {
                Published::Failed(error.to_string())
            }
        }
    }
}

impl From<&Settlement> for How {
    fn from(how: &Settlement) -> Self {
        match how {
            Settlement::Ack => How::Ack,
            Settlement::Nack { delay } => How::Nack(delay.map_or(0, nanos)),
            Settlement::Reject => How::Reject,
            Settlement::Touch => How::Touch,
        }
    }
}

impl From<Result<Settled, SettleError>> for SettleOutcome {
    fn from(result: Result<Settled, SettleError>) -> Self {
        match result {
            Ok(Settled::Confirmed) => SettleOutcome::Confirmed,
            Ok(Settled::Sent) => SettleOutcome::Sent,
            Err(SettleError::LeaseLost(_)) => SettleOutcome::LeaseLost,
            Err(SettleError::Indeterminate(why)) => SettleOutcome::Indeterminate(why),
            Err(error) => SettleOutcome::NotSent(error.to_string()),
        }
    }
}

impl Subscription {
    /// The record of a subscription's specification.
    pub fn new(
        subscription: u16,
        topic: u16,
        start: Start,
        ack_timeout: Duration,
        dead_letter: Option<(u32, u16)>,
    ) -> Self {
        Subscription {
            subscription,
            topic,
            earliest: start == Start::Earliest,
            ack_timeout: nanos(ack_timeout),
            dead_letter,
        }
    }
}

impl History {
    /// How long the run took, milliseconds on its clock.
    pub fn duration_ms(&self) -> u64 {
        let end = self.end.as_ref().map(|end| end.at);
        end.or_else(|| self.ops.last().map(|op| op.at.1)).unwrap_or(0) / 1_000_000
    }
}

/// A duration in the unit of histories; saturates after 584 years.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
