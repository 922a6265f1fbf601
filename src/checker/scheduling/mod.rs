//! Judges of a scheduler's workload. They see its events one by one, in the order of their
//! completion, and keep only what is still open: a day of events needs no more memory than an hour.

use queueproof_backends::Capabilities;

use super::Findings;
use crate::{
    history::{Op, What},
    scheduler::{Event, Workload},
};

/// What is judged of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// Every tick is executed at least once.
    EveryTick,
    /// Every tick is scheduled once.
    OncePerTick,
    /// A scheduler that dies or pauses costs no tick.
    Failover,
    /// Schedulers whose clocks disagree schedule once all the same.
    Skew,
    /// The pool is covered equally.
    Coverage,
    /// Requests reach agents, and are executed, when they are due.
    Lateness,
    /// What has expired is dropped, and only that.
    Expired,
    /// What a crashed agent was executing is executed by another one.
    AgentCrash,
    /// A broadcast reaches every agent.
    Broadcast,
    /// Slow agents hold nobody else up.
    SlowMinority,
}

/// Watches a workload's events.
#[derive(Debug)]
pub struct Watch {
    #[expect(dead_code)]
    workload: Workload,
}

impl Watch {
    /// For a workload on a backend.
    ///
    /// # Errors
    /// What the workload says that cannot be.
    pub fn new(
        workload: &Workload,
        capabilities: &Capabilities,
        virtual_time: bool,
    ) -> Result<Self, String> {
        let _ = (capabilities, virtual_time);
        Ok(Watch { workload: workload.clone() })
    }

    /// Takes in an event, with the times at which it was invoked and completed.
    ///
    /// # Errors
    /// What it refers to that is not there.
    pub fn see(&mut self, at: (u64, u64), event: &Event) -> Result<(), String> {
        let _ = (at, event);
        Ok(())
    }

    /// Takes in an operation of a history: what is not of the workload is none of it.
    ///
    /// # Errors
    /// What it refers to that is not there.
    pub fn see_op(&mut self, op: &Op) -> Result<(), String> {
        match &op.what {
            What::Schedule(event) => self.see(op.at, event),
            What::Stall => {
                self.stalled(op.at);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// How long the workload took, milliseconds.
    pub fn duration_ms(&self) -> u64 {
        0
    }

    /// Takes in that this program itself was not running for this span.
    pub fn stalled(&mut self, at: (u64, u64)) {
        let _ = at;
    }

    /// What is found of one aspect, after the last event.
    pub fn judge(&mut self, aspect: Aspect, findings: &mut Findings) {
        let _ = (aspect, findings);
    }
}

/// Whether a workload has anything of an aspect.
///
/// # Errors
/// Why not.
pub fn exercised(aspect: Aspect, workload: &Workload) -> Result<(), &'static str> {
    let _ = (aspect, workload);
    Ok(())
}
