//! Who waits for a delivery, and who of them watches the time for all.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::broker::Bell;

/// The consumers of a subscription that wait in a receive.
///
/// The broker has no task, so one of those who wait must look when something falls due, and one is
/// enough: whom that concerns is rung. While anybody waits there is such a timekeeper. Whoever
/// stops waiting, for whatever reason, must [`Watch::leave`]; its watch goes on to another.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Their bells, by their numbers.
    waiting: BTreeMap<u64, Bell>,
    keeper: Option<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    number: u64,
    /// When it looks again.
    looks: Instant,
}

/// How late a timekeeper may be before another takes over: its future may exist and not be polled.
const GRACE: Duration = Duration::from_millis(10);

impl Watch {
    /// A consumer waits. The answer is when it has to look again if it is the timekeeper, which
    /// it becomes if there is none.
    pub(super) fn wait(&mut self, number: u64, bell: &Bell, due: Instant) -> Option<Instant> {
        self.waiting.entry(number).or_insert_with(|| Bell::clone(bell));
        let keeper = self.keeper.get_or_insert(Keeper { number, looks: due });
        if keeper.number != number {
            return None;
        }
        keeper.looks = due;
        Some(due)
    }

    /// A consumer stops waiting, if it did.
    pub(super) fn leave(&mut self, number: u64, now: Instant) {
        self.waiting.remove(&number);
        if self.keeper.as_ref().is_some_and(|keeper| keeper.number == number) {
            self.pass_on(number, now);
        }
    }

    /// Sees to it that the timekeeper looks when something is due.
    pub(super) fn tend(&mut self, due: Option<Instant>, now: Instant) {
        let Some(keeper) = &mut self.keeper else { return };
        if now > keeper.looks + GRACE {
            let number = keeper.number;
            self.pass_on(number, now);
        } else if due.is_some_and(|due| due < keeper.looks)
            && let Some(bell) = self.waiting.get(&keeper.number)
        {
            keeper.looks = now;
            bell.notify_one();
        }
    }

    /// Gives the watch to the one before, round and round: so everybody gets it before anybody
    /// has it twice, and when the one that is served in turn leaves, it goes to the one whose turn
    /// is the farthest.
    fn pass_on(&mut self, from: u64, now: Instant) {
        let before = self.waiting.range(..from).next_back().or(self.waiting.last_key_value());
        self.keeper = before.map(|(&number, bell)| {
            bell.notify_one();
            Keeper { number, looks: now }
        });
    }
}
