//! When a check is due: a pure function of its name and the clock, so that every scheduler computes
//! the same ticks without having heard of any other.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use croner::Cron;
use serde::{Deserialize, Serialize};

use super::workload::{Check, Workload};
use crate::history::nanos;

/// When a check is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cadence {
    /// At an interval, 1 ms or more.
    Interval {
        /// The interval.
        #[serde(with = "humantime_serde")]
        every: Duration,
        /// Whether the checks are spread over the interval, each at a place that its name gives,
        /// and not all due at once.
        splay: bool,
    },
    /// By a cron line of five fields, or six with seconds first, in UTC.
    Cron(String),
}

/// A time at which a check is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick {
    /// When, nanoseconds since the epoch.
    pub due: u64,
    /// Its number, which is the same for every scheduler: for an interval how many were before it,
    /// for a cron line its time in seconds since 1970.
    pub number: u64,
}

/// The ticks of one check, in their order, without end.
#[derive(Debug, Clone)]
pub struct Ticks(Rule);

#[derive(Debug, Clone)]
enum Rule {
    Interval { every: u64, offset: u64 },
    Cron { cron: Box<Cron>, epoch: DateTime<Utc> },
}

impl Cadence {
    /// Checks a cron line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Cadence::Interval { every, .. } if *every < Duration::from_millis(1) => {
                Err(format!("an interval of {every:?}: expected 1 ms or more"))
            }
            Cadence::Interval { .. } => Ok(()),
            Cadence::Cron(line) => Cron::from_str(line)
                .map(drop)
                .map_err(|error| format!("{line:?} is no cron line (five fields, UTC): {error}")),
        }
    }
}

impl Ticks {
    /// Those of a check.
    ///
    /// # Errors
    /// What is wrong with its cron line.
    pub fn of(workload: &Workload, check: Check<'_>) -> Result<Self, String> {
        check.group.cadence.check()?;
        Ok(Ticks(match &check.group.cadence {
            Cadence::Interval { every, splay } => {
                let every = nanos(*every);
                let name = format!("{}/{}", check.group.namespace, check.name());
                let place = u64::from(crc32fast::hash(name.as_bytes()));
                // A thirty-second bit part of the interval, whole microseconds.
                let offset = (u128::from(every) * u128::from(place)) >> 32;
                let offset = u64::try_from(offset).unwrap_or(0) / 1000 * 1000;
                Rule::Interval { every, offset: if *splay { offset } else { 0 } }
            }
            Cadence::Cron(line) => {
                let cron = Cron::from_str(line).map_err(|error| error.to_string())?;
                let millis = i64::try_from(workload.epoch_unix_ms).unwrap_or(i64::MAX);
                let epoch = DateTime::from_timestamp_millis(millis)
                    .ok_or_else(|| format!("{millis} ms since 1970 is no time"))?;
                Rule::Cron { cron: Box::new(cron), epoch }
            }
        }))
    }

    /// The first tick due at a time since the epoch or later; `None` if there is none any more.
    pub fn from(&self, time: u64) -> Option<Tick> {
        match &self.0 {
            Rule::Interval { every, offset } => {
                let number = time.saturating_sub(*offset).div_ceil(*every);
                Some(Tick { due: number.checked_mul(*every)?.checked_add(*offset)?, number })
            }
            Rule::Cron { cron, epoch } => {
                let since = TimeDelta::nanoseconds(i64::try_from(time).ok()?);
                let next = cron.find_next_occurrence(&(*epoch + since), true).ok()?;
                let due = u64::try_from((next - *epoch).num_nanoseconds()?).ok()?;
                // A cron line has whole seconds: what is before the time was asked for already.
                match due < time {
                    true => self.from(due + 1_000_000_000),
                    false => Some(Tick { due, number: u64::try_from(next.timestamp()).ok()? }),
                }
            }
        }
    }

    /// The tick after one.
    pub fn after(&self, tick: Tick) -> Option<Tick> {
        self.from(tick.due + 1)
    }

    /// When the tick of this number is due, nanoseconds since the epoch; `None` if the check has no
    /// such tick.
    pub fn due(&self, number: u64) -> Option<u64> {
        match &self.0 {
            Rule::Interval { every, offset } => number.checked_mul(*every)?.checked_add(*offset),
            Rule::Cron { cron, epoch } => {
                let at = DateTime::from_timestamp(i64::try_from(number).ok()?, 0)?;
                cron.is_time_matching(&at).ok()?.then_some(())?;
                u64::try_from((at - *epoch).num_nanoseconds()?).ok()
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scheduler::testing;

    fn ticks(cadence: Cadence) -> Ticks {
        let mut workload = testing::workload();
        workload.checks[0].cadence = cadence;
        Ticks::of(&workload, workload.check(0).unwrap()).unwrap()
    }

    #[test]
    fn an_interval_has_a_tick_at_each_multiple_of_it() {
        let every = Duration::from_secs(2);
        let ticks = ticks(Cadence::Interval { every, splay: false });
        assert_eq!(ticks.from(0), Some(Tick { due: 0, number: 0 }));
        assert_eq!(ticks.from(1), Some(Tick { due: 2_000_000_000, number: 1 }));
        let second = ticks.from(2_000_000_000).unwrap();
        assert_eq!(second, Tick { due: 2_000_000_000, number: 1 });
        assert_eq!(ticks.after(second), Some(Tick { due: 4_000_000_000, number: 2 }));
        assert_eq!(ticks.due(2), Some(4_000_000_000));
    }

    #[test]
    fn splayed_checks_are_due_at_places_of_their_own_within_the_interval() {
        let mut workload = testing::workload();
        workload.checks[0].count = 100;
        workload.checks[0].cadence =
            Cadence::Interval { every: Duration::from_secs(10), splay: true };
        let firsts: std::collections::BTreeSet<_> = workload
            .all_checks()
            .map(|check| Ticks::of(&workload, check).unwrap().from(0).unwrap().due)
            .collect();
        assert!(firsts.len() > 95, "{firsts:?}");
        assert!(firsts.iter().all(|&due| due < 10_000_000_000));
        assert!(firsts.first().is_some_and(|&due| due < 1_000_000_000));
        assert!(firsts.last().is_some_and(|&due| due > 9_000_000_000));
    }

    #[test]
    fn a_cron_line_has_the_ticks_that_it_says() {
        let ticks = ticks(Cadence::Cron("*/5 * * * *".into()));
        let first = ticks.from(0).unwrap();
        // The test's epoch is 2026-01-01T00:00:30Z.
        assert_eq!(first.due, 270_000_000_000);
        let second = ticks.after(first).unwrap();
        assert_eq!(second.due - first.due, 300_000_000_000);
        assert_eq!(second.number - first.number, 300);
        assert_eq!(ticks.due(second.number), Some(second.due));
        assert_eq!(ticks.due(second.number + 1), None);
        assert_eq!(ticks.from(first.due), Some(first));
        assert_eq!(ticks.from(first.due + 1), Some(second));
    }

    #[test]
    fn what_is_no_cron_line_is_refused_in_words() {
        let error = Cadence::Cron("every monday".into()).check().unwrap_err();
        assert!(error.contains("every monday"), "{error}");
        assert!(Cadence::Interval { every: Duration::ZERO, splay: false }.check().is_err());
    }
}
