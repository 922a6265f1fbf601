//! One tick while it is open: who published it, who was given it, what became of that.

use crate::{
    checker::evidence::Time,
    history::{How, Published, SettleOutcome},
    scheduler::Request,
};

/// A tick that is not judged yet.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// When it was due, on the history's clock.
    pub(super) due: Time,
    /// What was published for it.
    pub(super) publishes: Vec<Sent>,
    /// What was handed to agents of it, in that order.
    pub(super) deliveries: Vec<Handed>,
    /// Whether a scheduler left it out on purpose.
    pub(super) skipped: bool,
    /// Whether a scheduler came to it when its time had passed.
    pub(super) came_too_late: bool,
}

/// A publish of a tick.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) request: Request,
    pub(super) at: (Time, Time),
    pub(super) fate: Fate,
}

/// What is known of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is stored.
    Stored,
    /// It was dropped as a duplicate of one that is.
    Dropped,
    /// It may be stored.
    Unknown,
    /// It is not.
    NotStored,
}

/// A delivery.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) delivery: u64,
    pub(super) agent: u32,
    pub(super) request: Request,
    /// When the agent asked, and when it got it.
    pub(super) at: (Time, Time),
    /// When its lock was extended last.
    pub(super) touched: Option<Time>,
    /// How often it was executed to its end.
    pub(super) executed: u32,
    /// When it was first.
    pub(super) executed_at: Option<(Time, Time)>,
    /// Whether an execution failed.
    pub(super) failed: bool,
    /// Whether the agent dropped it since its time had passed.
    pub(super) expired: bool,
    /// How it was settled last, touching apart.
    pub(super) settled: Option<Settled>,
    /// When its agent crashed, if it did before the delivery was executed and settled.
    pub(super) crashed: Option<Time>,
}

/// A settlement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    pub(super) how: How,
    pub(super) at: (Time, Time),
    /// Whether the broker confirmed it.
    pub(super) confirmed: bool,
    /// Whether it was at least sent.
    pub(super) accepted: bool,
}

/// Why a request was delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    HandedOn,
    Crash,
    Disturbed,
    LockPassed,
    Restart,
    AckUncertain,
}

impl Cause {
    /// Its name in the figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::HandedOn => "handed_on",
            Cause::Crash => "agent_crashed",
            Cause::Disturbed => "agent_disturbed",
            Cause::LockPassed => "lock_passed",
            Cause::Restart => "broker_restarted",
            Cause::AckUncertain => "ack_uncertain",
        }
    }
}

impl From<&Published> for Fate {
    fn from(outcome: &Published) -> Self {
        match outcome {
            Published::Confirmed { duplicate: Some(true), .. } => Fate::Dropped,
            Published::Confirmed { .. } => Fate::Stored,
            Published::Indeterminate(_) => Fate::Unknown,
            Published::NotSent(_) | Published::Rejected(..) | Published::Failed(_) => {
                Fate::NotStored
            }
        }
    }
}

impl Settled {
    pub(super) fn new(how: How, at: (Time, Time), outcome: &SettleOutcome) -> Self {
        let confirmed = *outcome == SettleOutcome::Confirmed;
        let accepted = confirmed || *outcome == SettleOutcome::Sent;
        Settled { how, at, confirmed, accepted }
    }
}

impl Open {
    pub(super) fn new(due: Time) -> Self {
        Open { due, ..Open::default() }
    }

    /// When it was first published so that it may have been stored: invoked and completed.
    pub(super) fn first_publish(&self) -> Option<(Time, Time)> {
        let may_be = self.publishes.iter().filter(|sent| sent.fate != Fate::NotStored);
        may_be.map(|sent| sent.at).min()
    }

    /// Whether it is stored for certain.
    pub(super) fn is_stored(&self) -> bool {
        self.publishes.iter().any(|sent| matches!(sent.fate, Fate::Stored | Fate::Dropped))
    }

    /// How often it was executed to its end.
    pub(super) fn executions(&self) -> u32 {
        self.deliveries.iter().map(|handed| handed.executed).sum()
    }

    /// The copies that were delivered, to this agent only if there is one: each once.
    pub(super) fn copies(&self, agent: Option<u32>) -> Vec<Request> {
        let mut copies: Vec<Request> = Vec::new();
        for handed in self.deliveries.iter().filter(|h| agent.is_none_or(|a| a == h.agent)) {
            if !copies.contains(&handed.request) {
                copies.push(handed.request);
            }
        }
        copies
    }

    /// When a copy was published, as far as that was written down.
    pub(super) fn published(&self, copy: &Request) -> Option<(Time, Time)> {
        self.publishes.iter().find(|sent| sent.request == *copy).map(|sent| sent.at)
    }

    pub(super) fn handed(&mut self, delivery: u64) -> Option<&mut Handed> {
        self.deliveries.iter_mut().find(|handed| handed.delivery == delivery)
    }
}
