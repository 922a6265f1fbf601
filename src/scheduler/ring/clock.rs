//! Which ticks the firings of a ring stand for.
//!
//! A ring knows no ticks: its clock is the expiry of a lease, and the next lease begins when the
//! last one was seen to have expired. To be judged as any other scheduler is, each firing is taken
//! for the tick that was due last when the first backend saw it. As each firing comes at least an
//! interval after the one before, and usually some more, a ring falls behind its ticks; where a
//! whole interval has been lost, one tick has had no firing: it was missed. A firing never makes up
//! for a tick before the last one due, which would hide the miss, and never stands for a later one,
//! which would hide how late it is.

use std::collections::VecDeque;

use crate::scheduler::Ticks;

/// The firings of one check.
#[derive(Debug, Default)]
pub(super) struct Firings {
    /// The last tick that fired, and how often.
    last: Option<(u64, u16)>,
    /// The latest firings by etcd's revision, and what they stand for: all backends see the same
    /// deletion, one that was paused much later.
    recent: VecDeque<(i64, Option<Firing>)>,
}

/// What a firing stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Firing {
    pub(super) tick: u64,
    /// 0, or how often the tick had fired before.
    pub(super) copy: u16,
}

impl Firings {
    /// What the deletion of a trigger at this revision stands for, seen at this time since the
    /// epoch, where ticks are due before `end`. `None` if there was no tick yet, or is none any
    /// more.
    pub(super) fn see(
        &mut self,
        ticks: &Ticks,
        revision: i64,
        (now, end): (u64, u64),
        keep: usize,
    ) -> Option<Firing> {
        if let Some((_, firing)) = self.recent.iter().find(|(seen, _)| *seen == revision) {
            return *firing;
        }
        let firing = due_last(ticks, now)
            .filter(|tick| ticks.due(*tick).is_some_and(|due| due < end))
            .map(|tick| match self.last {
                Some((last, copy)) if last == tick => Firing { tick, copy: copy + 1 },
                _ => Firing { tick, copy: 0 },
            });
        if let Some(Firing { tick, copy }) = firing {
            self.last = Some((tick, copy));
        }
        self.recent.push_back((revision, firing));
        if self.recent.len() > keep {
            self.recent.pop_front();
        }
        firing
    }
}

/// The last tick that was due at a time, at an interval.
fn due_last(ticks: &Ticks, now: u64) -> Option<u64> {
    let next = ticks.from(now.saturating_add(1))?;
    next.number.checked_sub(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scheduler::testing;

    const SECOND: u64 = 1_000_000_000;

    /// What firings at these times stand for, where a tick is due each second of five.
    fn stand_for(times: &[u64]) -> Vec<Option<(u64, u16)>> {
        let workload = testing::workload();
        let ticks = Ticks::of(&workload, workload.check(0).unwrap()).unwrap();
        let mut firings = Firings::default();
        let mut see = |(revision, now): (i64, &u64)| {
            let firing = firings.see(&ticks, revision, (*now, 5 * SECOND), 8);
            firing.map(|firing| (firing.tick, firing.copy))
        };
        (1..).zip(times).map(&mut see).collect()
    }

    #[test]
    fn a_firing_stands_for_the_tick_that_was_due_last() {
        let late = SECOND / 4;
        let times = [late, SECOND + 2 * late, 2 * SECOND + 3 * late];
        assert_eq!(stand_for(&times), [Some((0, 0)), Some((1, 0)), Some((2, 0))]);
    }

    #[test]
    fn a_ring_that_lost_an_interval_has_missed_a_tick() {
        let times = [SECOND * 9 / 10, SECOND * 21 / 10, SECOND * 33 / 10];
        assert_eq!(stand_for(&times), [Some((0, 0)), Some((2, 0)), Some((3, 0))]);
    }

    #[test]
    fn a_second_firing_between_two_ticks_is_a_repetition() {
        assert_eq!(stand_for(&[SECOND, SECOND + 1]), [Some((1, 0)), Some((1, 1))]);
    }

    #[test]
    fn a_late_firing_counts_for_a_tick_of_the_workload_and_one_after_the_last_interval_does_not() {
        assert_eq!(stand_for(&[5 * SECOND - 1, 5 * SECOND]), [Some((4, 0)), None]);
    }

    #[test]
    fn backends_that_see_a_firing_at_different_times_take_it_for_the_same_tick() {
        let workload = testing::workload();
        let ticks = Ticks::of(&workload, workload.check(0).unwrap()).unwrap();
        let mut firings = Firings::default();
        let first = firings.see(&ticks, 7, (SECOND, 60 * SECOND), 8);
        let other = firings.see(&ticks, 8, (2 * SECOND, 60 * SECOND), 8);
        assert_ne!(first, other);
        assert_eq!(firings.see(&ticks, 7, (9 * SECOND, 60 * SECOND), 8), first);
    }
}
