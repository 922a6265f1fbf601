//! Runs a plan: scenarios in, histories and verdicts out.

use crate::{
    plan::Plan,
    results::{PropertyResult, Results},
};
use tokio_util::sync::CancellationToken;

/// What happens during a run, for whoever shows it.
#[derive(Debug, Clone)]
pub enum Event {
    /// A target was reached, or could not be (then its properties follow as `broken`).
    TargetStarted {
        /// Its place in the plan.
        target: usize,
        /// The broker's version in its own words; empty if unknown.
        broker_version: String,
    },
    /// A property began.
    PropertyStarted {
        /// The target's place in the plan.
        target: usize,
        /// The property.
        id: &'static str,
    },
    /// A property ended.
    PropertyFinished {
        /// The target's place in the plan.
        target: usize,
        /// What was found.
        result: PropertyResult,
    },
}

/// Runs a plan to its end, or to its cancellation (what had not ended is `broken` then).
pub fn run(_plan: &Plan, _cancel: &CancellationToken, _show: &(dyn Fn(Event) + Sync)) -> Results {
    unimplemented!("lands with the suite")
}
