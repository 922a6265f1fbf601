//! What happens while a workload runs, as its history tells it.
//!
//! Each event is an operation of the history ([`crate::history::Op`]) with the times at which it
//! was invoked and completed. Schedulers, agents and deliveries are numbered from 0, each in the
//! order of their making, checks and pools as in the [`Workload`](super::Workload).

use serde::{Deserialize, Serialize};

use crate::history::{How, Published, SettleOutcome};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The epoch: the times at which ticks are due count from the completion of this.
    Begin,
    /// The workload's duration is over: no tick is due any more.
    End,
    /// After the end nothing came to any agent for a time that outlasts the ack timeout, and the
    /// broker still answered. `at` spans the quiet time.
    Drained,
    /// A scheduler changed its state.
    Scheduler {
        /// Which one.
        scheduler: u16,
        /// What it is now.
        is: SchedulerState,
    },
    /// A scheduler published the request of a tick; completed when its fate was known.
    Publish {
        /// Who published, and which try of this scheduler's for this tick.
        request: Request,
        /// What is known about it.
        outcome: Published,
    },
    /// A scheduler left ticks of a check out on purpose: they fell due while it was paused (or
    /// waited for its election), and it does not catch up.
    Skip {
        /// Which scheduler.
        scheduler: u16,
        /// Which check.
        check: u32,
        /// The first tick that was left out, and the last.
        ticks: (u64, u64),
        /// Whether it would have published it, but its time to be executed had passed.
        expired: bool,
    },
    /// An agent changed its state.
    Agent {
        /// Which one.
        agent: u32,
        /// What it is now.
        is: AgentState,
    },
    /// A request was handed to an agent; invoked when the agent asked.
    Receive {
        /// Which agent.
        agent: u32,
        /// The delivery's number.
        delivery: u64,
        /// Which request its payload says it is.
        request: Request,
        /// The broker's count of deliveries.
        attempt: Option<u32>,
    },
    /// An agent was handed something that is no request of this run, or a damaged one.
    Unreadable {
        /// Which agent.
        agent: u32,
        /// The delivery's number.
        delivery: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// An agent dropped a request, since its time to be executed had passed.
    Expire {
        /// Which agent.
        agent: u32,
        /// The delivery.
        delivery: u64,
    },
    /// An agent executed a check to its end; `at` spans the execution. An execution that is not
    /// here was broken off by a crash.
    Execute {
        /// Which agent.
        agent: u32,
        /// The delivery.
        delivery: u64,
        /// Whether the check could be executed; if not, the agent hands it on.
        ok: bool,
    },
    /// An agent settled a delivery.
    Settle {
        /// Which agent.
        agent: u32,
        /// The delivery.
        delivery: u64,
        /// How.
        how: How,
        /// What is known about it.
        outcome: SettleOutcome,
    },
    /// The broker was stopped or started again; `at` spans it.
    Broker(BrokerState),
    /// A connection was lost though nobody cut it.
    Lost {
        /// How often, since the last such event of this connection.
        times: u64,
    },
    /// What the broker's process had used by then.
    Load(Load),
    /// Something went wrong that has no event of its own: in words.
    Trouble(String),
}

/// A request, as its payload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Which check.
    pub check: u32,
    /// Which tick of it.
    pub tick: u64,
    /// Which scheduler published it.
    pub scheduler: u16,
    /// Which try of that scheduler for this tick, from 0. Retries share their deduplication key.
    pub copy: u16,
}

/// What a scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulerState {
    /// It runs; where the broker elects one publisher it waits for its election.
    Started,
    /// The broker elected it.
    Elected,
    /// Another one has taken its place, though it runs.
    Deposed,
    /// It was stopped gracefully.
    Stopped,
    /// It was killed: its connection is gone, and what it had in flight is unknown.
    Killed,
    /// It does nothing, and its connection lives.
    Paused,
    /// It goes on after a pause.
    Resumed,
}

/// What an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// It consumes.
    Joined,
    /// It left gracefully: after what it was executing.
    Left,
    /// It crashed: what it was executing is broken off, nothing is settled.
    Crashed,
    /// Its connection was cut.
    Cut,
    /// Its connection may be made again.
    Healed,
    /// It hangs: it holds what it has, settles nothing, and takes nothing.
    Stalled,
    /// It goes on after it hung.
    Resumed,
}

/// What became of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerState {
    /// It was stopped, gracefully.
    Stopped,
    /// It was started again, on the same store.
    Started,
}

/// What the broker's process has used since it began, and holds now; `None` where it cannot be
/// told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Processor time, nanoseconds.
    pub cpu: Option<u64>,
    /// Resident memory, bytes.
    pub resident: Option<u64>,
    /// Bytes that it caused to be written to the disk; to a file system in memory it writes none.
    pub written: Option<u64>,
    /// Connections of clients; Pulsar is one of its own.
    pub connections: Option<u64>,
    /// Messages that it took in, as it counts them itself: for NATS whatever clients send, for
    /// Pulsar and NSQ what is published to topics, for etcd puts and deletions.
    pub messages_in: Option<u64>,
    /// Messages that it delivered, likewise; for etcd events to watchers.
    pub messages_out: Option<u64>,
    /// Leases that live (etcd).
    pub leases: Option<u64>,
    /// Watchers (etcd).
    pub watchers: Option<u64>,
}
