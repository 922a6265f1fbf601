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
    /// The schedulers that left it out on purpose.
    pub(super) skipped_by: Vec<u16>,
    /// Whether a scheduler came to it when its time had passed.
    pub(super) came_too_late: bool,
    /// When something of it happened last.
    pub(super) last: Time,
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
    /// Since when it is locked at the earliest, as far as it was extended.
    pub(super) touched: Option<Time>,
    /// When its lock had passed at the earliest before it was extended or settled, if it may have.
    pub(super) lapsed: Option<Time>,
    /// When it was handed back: invoked and completed.
    pub(super) nacked: Option<(Time, Time)>,
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
    /// Whether the agent is done with it, so that it has room for another one.
    pub(super) done: bool,
    /// The agent's last execution before it.
    pub(super) behind: Option<(Time, Time)>,
    /// When, by its receipt, all agents of the pool were at something last.
    pub(super) full: Option<Time>,
    /// When, by its receipt, an agent of the pool went, was cut or hung last.
    pub(super) disturbed: Option<Time>,
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
    /// Whether it was refused, since the lock had passed.
    pub(super) too_late: bool,
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
        let too_late = *outcome == SettleOutcome::LeaseLost;
        Settled { how, at, confirmed, accepted, too_late }
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

    /// When a copy was published, as far as that was written down.
    pub(super) fn published(&self, copy: &Request) -> Option<(Time, Time)> {
        self.publishes.iter().find(|sent| sent.request == *copy).map(|sent| sent.at)
    }

    /// Whether the broker deleted it before it was executed, since it was told so.
    pub(super) fn is_given_up(&self) -> bool {
        let given_up = |handed: &Handed| {
            handed.expired
                || handed
                    .settled
                    .is_some_and(|s| s.accepted && matches!(s.how, How::Ack | How::Reject))
        };
        self.deliveries.iter().any(given_up)
    }
}

impl Handed {
    pub(super) fn new(delivery: u64, agent: u32, request: Request, at: (Time, Time)) -> Self {
        Handed {
            delivery,
            agent,
            request,
            at,
            touched: None,
            lapsed: None,
            nacked: None,
            executed: 0,
            executed_at: None,
            failed: false,
            expired: false,
            settled: None,
            crashed: None,
            done: false,
            behind: None,
            full: None,
            disturbed: None,
        }
    }
}
