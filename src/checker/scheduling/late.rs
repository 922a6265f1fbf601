//! Whether a tick came late, and whose doing that was.

use std::time::Duration;

use super::{Aspect, EXACT, Handed, Key, Open, Time, Watch};
use crate::{
    checker::{AnomalyKind, words},
    history::nanos,
};

/// How long after it was started again a broker's clients may take to be back: their back-off, and
/// the life of a request that the broker forgot.
const RECOVERY: Duration = Duration::from_secs(15);

/// How soon an agent takes what was waiting in its hands.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Why lateness decides nothing where all that the broker does is slow.
pub(super) const SLOW_BROKER: &str =
    "something came later than tolerated from a broker that was as slow to confirm a publish";

/// Why a tick came late.
enum Late {
    /// It did not.
    No,
    /// The broker was restarted, or no scheduler was there to publish it.
    Disturbed,
    /// An agent that went, was cut or hung may have had it in its hands, unseen.
    Unseen,
    /// It waited for the very agent that took it, which was at something else.
    BehindOwnWork,
    /// All agents were at something, or this program did not run.
    Undecided(&'static str),
    /// It was published late, without a cause.
    Published,
    /// It was published in time, and delivered late, without a cause.
    Delivered,
}

impl Watch {
    /// Until when a tick is in time.
    pub(super) fn in_time(&self, due: Time) -> Time {
        due.saturating_add(nanos(self.workload.tolerance))
            .saturating_add(nanos(self.workload.clock_error() + EXACT))
    }

    /// Judges when a tick that one agent is to execute was received for the first time.
    pub(super) fn close_lateness(&mut self, key: Key, pool: u16, open: &Open) {
        let Some(first) = open.deliveries.first() else { return };
        let late = self.lateness(open, first);
        let both = [Aspect::Lateness, Aspect::SlowMinority];
        match late {
            Late::No => {}
            Late::Disturbed => self.figures.late_excused += 1,
            Late::Unseen => {
                self.figures.late_excused += 1;
                if let Some(unseen) = self.figures.late_unseen.get_mut(usize::from(pool)) {
                    *unseen += 1;
                }
            }
            Late::BehindOwnWork => self.figures.behind_own_work += 1,
            Late::Undecided(why) => {
                self.figures.late_excused += 1;
                both.into_iter().for_each(|aspect| self.of(aspect).undecided(why));
            }
            Late::Published | Late::Delivered => {
                self.figures.late += 1;
                let published = open.first_publish().map(|at| at.0.saturating_sub(open.due));
                let example = format!(
                    "{} was received by agent {} {} after it was due ({})",
                    self.name(key),
                    first.agent,
                    words(first.at.1.saturating_sub(open.due)),
                    match published {
                        Some(after) => format!("published {} after that", words(after)),
                        None => "nobody wrote down who published it".into(),
                    }
                );
                self.of(Aspect::Lateness).anomaly(AnomalyKind::LateTick, || example.clone());
                if matches!(late, Late::Delivered) {
                    self.of(Aspect::SlowMinority).anomaly(AnomalyKind::Blocked, || example);
                }
            }
        }
    }

    fn lateness(&self, open: &Open, first: &Handed) -> Late {
        let (due, came) = (open.due, first.at.1);
        let allowed = self.in_time(due);
        if came <= allowed {
            return Late::No;
        }
        if self.restarted_within(due, came) {
            return Late::Disturbed;
        }
        // Without a record of it, its scheduler was killed before it could write one.
        let published = open.first_publish().map_or(due, |at| at.0);
        let published_late = published > allowed;
        if published_late && self.nobody_published(due, published) {
            return Late::Disturbed;
        }
        let allowed_if_stalled = allowed.saturating_add(self.stalled(due, came));
        if came <= allowed_if_stalled {
            return Late::Undecided("this program was held up by the machine while it waited");
        }
        if came <= allowed_if_stalled.saturating_add(self.figures.slowest_answer) {
            return Late::Undecided(SLOW_BROKER);
        }
        if published_late {
            return Late::Published;
        }
        let own = self.agents.get(first.agent).is_some_and(|a| a.disturbed_within(due, came));
        // One request may have waited in its hands for as long as it was at another one.
        let worked = first.behind.is_some_and(|(from, to)| {
            came <= to.saturating_add(nanos(AT_ONCE))
                && came <= allowed.saturating_add(to.saturating_sub(from.max(due)))
        });
        if own || worked {
            return Late::BehindOwnWork;
        }
        if first.full.is_some_and(|full| full >= due) {
            return Late::Undecided("all agents were busy, so that requests had to wait");
        }
        if first.disturbed.is_some_and(|disturbed| disturbed >= due) {
            return Late::Unseen;
        }
        Late::Delivered
    }

    /// Whether the broker was restarted, or its clients still recovered from that, within this time.
    pub(super) fn restarted_within(&self, from: Time, to: Time) -> bool {
        self.restarts.iter().any(|(stopped, started)| {
            let over = started.map_or(Time::MAX, |at| at.saturating_add(nanos(RECOVERY)));
            *stopped <= to && over >= from
        })
    }

    /// Whether a tick that was due then was published only then since there was nobody to publish
    /// it: the broker elected another scheduler, or all were gone or paused.
    fn nobody_published(&self, due: Time, published: Time) -> bool {
        let margin = nanos(self.workload.clock_error() + self.workload.tolerance);
        self.handovers.iter().filter(|handover| handover.excuses).any(|handover| {
            let until = self.until(handover);
            let by = until.saturating_add(margin).saturating_add(self.stalled(due, published));
            (handover.at.saturating_sub(margin)..=until).contains(&due) && published <= by
        })
    }

    /// How long this program did not run between these times.
    pub(super) fn stalled(&self, from: Time, to: Time) -> Time {
        let within = |&(begun, ended): &(Time, Time)| ended.min(to).saturating_sub(begun.max(from));
        self.stalls.iter().rev().take(1000).map(within).sum()
    }
}
