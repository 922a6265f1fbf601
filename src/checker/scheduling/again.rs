//! Requests that were delivered again: each time needs a cause.
//!
//! Causes are looked for when the tick is closed, since what an agent did to a delivery is written
//! down when the broker has answered, and by then somebody else may have been given the request.

use super::{Aspect, Handed, Key, Open, Time, Watch};
use crate::{
    checker::{AnomalyKind, words},
    history::nanos,
};

/// Why a request was delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    HandedOn,
    Crash,
    Parted,
    LockPassed,
    Restart,
    AckUncertain,
}

impl Cause {
    /// All of them.
    pub(super) const ALL: [Cause; 6] = [
        Cause::HandedOn,
        Cause::Crash,
        Cause::Parted,
        Cause::LockPassed,
        Cause::Restart,
        Cause::AckUncertain,
    ];

    /// Its name in the figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::HandedOn => "handed_on",
            Cause::Crash => "agent_crashed",
            Cause::Parted => "agent_left_or_cut",
            Cause::LockPassed => "lock_passed",
            Cause::Restart => "broker_restarted",
            Cause::AckUncertain => "ack_uncertain",
        }
    }
}

impl Watch {
    /// Judges what was delivered of a tick more than once: `of_one` are the places of one request's
    /// deliveries, in their order, to one agent where each has its own.
    pub(super) fn close_redelivered(&mut self, key: Key, open: &Open, of_one: &[usize]) {
        for nth in 1..of_one.len() {
            let of = |nth: usize| &open.deliveries[of_one[nth]];
            let (last, again) = (of(nth - 1), of(nth));
            let cause = self.cause_of(open, last, again).or_else(|| {
                // One that lost its lock may hand the request back all the same, and be taken at its
                // word: then it is the present holder's that is handed on.
                (0..nth - 1)
                    .any(|former| {
                        let (former, next) = (of(former), of(former + 1));
                        let late = |nack: (Time, Time)| {
                            nack.1 >= next.at.1 || former.lapsed.is_some_and(|at| at <= nack.1)
                        };
                        handed_back(former, again).is_some_and(late)
                    })
                    .then_some(Cause::HandedOn)
            });
            match cause {
                Some(cause) => self.figures.redelivered(cause),
                None => {
                    let example = format!(
                        "{} was given to agent {} at {}, and again to agent {} at {}",
                        self.name(key),
                        last.agent,
                        words(last.at.1),
                        again.agent,
                        words(again.at.1)
                    );
                    self.figures.redelivered_without_cause += 1;
                    self.of(Aspect::OncePerTick).anomaly(AnomalyKind::DeliveredTwice, || example);
                }
            }
        }
    }

    /// What explains that a delivery was followed by another one of the same request.
    fn cause_of(&self, open: &Open, handed: &Handed, again: &Handed) -> Option<Cause> {
        if handed_back(handed, again).is_some() {
            return Some(Cause::HandedOn);
        }
        let to = again.at.1;
        // That it crashed is written down after it did.
        let soon = nanos(self.workload.tolerance);
        if handed.crashed.is_some_and(|crashed| crashed <= to.saturating_add(soon)) {
            return Some(Cause::Crash);
        }
        let from = self.stored_from(open, handed);
        if self
            .restarts
            .iter()
            .any(|(stopped, started)| *stopped <= to && started.is_none_or(|at| at >= from))
        {
            return Some(Cause::Restart);
        }
        let locked_until = self.locked_from(open, handed).saturating_add(self.lock());
        let in_time = handed.settled.filter(|settled| settled.at.0 <= to);
        let unsettled = in_time.is_none_or(|settled| !settled.accepted);
        if handed.lapsed.is_some_and(|lapsed| lapsed <= to)
            || in_time.is_some_and(|settled| settled.too_late)
            || (unsettled && locked_until <= to)
        {
            return Some(Cause::LockPassed);
        }
        // What is confirmed stands; anything else may have been lost on its way.
        if in_time.is_some_and(|settled| settled.confirmed) {
            return None;
        }
        let agent = self.agents.get(handed.agent);
        if agent.is_some_and(|agent| agent.parted_within(handed.at.1, to.saturating_add(soon))) {
            return Some(Cause::Parted);
        }
        unsettled.then_some(in_time).flatten().map(|_| Cause::AckUncertain)
    }

    /// When a request can have been stored at the earliest.
    fn stored_from(&self, open: &Open, handed: &Handed) -> Time {
        let published = open.published(&handed.request).map(|published| published.0);
        published
            .unwrap_or_else(|| open.due.saturating_sub(nanos(self.workload.clock_error())))
            .min(handed.at.1)
    }

    /// Since when a delivery can have been locked at the earliest: it may have waited for the agent
    /// to ask, however long ago that was.
    pub(super) fn locked_from(&self, open: &Open, handed: &Handed) -> Time {
        handed.touched.unwrap_or_else(|| self.stored_from(open, handed))
    }

    pub(super) fn lock(&self) -> Time {
        nanos(self.workload.ack_timeout)
    }
}

/// When a delivery was handed back, if before the request was delivered again.
fn handed_back(handed: &Handed, again: &Handed) -> Option<(Time, Time)> {
    handed.nacked.filter(|nack| nack.0 <= again.at.1)
}
