//! What changed from file to file: verdicts, and what vanished or appeared.

use std::{collections::HashSet, fmt};

use serde::{Deserialize, Serialize};

use super::{Comparison, Found, Over};
use crate::results::{PropertyResult, Verdict};

/// A step from one file to a later one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The property; `None` where the whole target vanished or appeared.
    pub property: Option<String>,
    /// Whether for the worse.
    pub direction: Direction,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}

/// One end of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The number of the file.
    pub file: usize,
    /// What it has of the property; `None` where that, or the target, is not in it.
    pub found: Option<Found>,
}

/// Whether a change is for the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The verdict came down in the order pass, skipped, unknown, broken, fail; or a property
    /// that failed fails in another way too; or a property or target vanished.
    Worse,
    /// The verdict is another one and not worse, and not a pass: that a broken environment shows
    /// no breach does not mend it. Or a property or target appeared.
    Other,
    /// The verdict became a pass.
    Better,
}

/// What makes a comparison fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// Any change: of a verdict, or a property or target that vanished or appeared
    Change,
    /// A change for the worse: of a verdict, or a property or target that vanished
    Regression,
}

/// Why files cannot be compared over time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotComparable {
    /// There is no pair of files.
    #[error("nothing to compare: no target is in more than one file (targets: {0})")]
    NoTarget(String),
    /// There is no pair of verdicts.
    #[error("nothing to compare: no property of a target has a verdict in more than one file")]
    NoProperty,
}

impl Comparison {
    /// The changes that make the comparison fail, each with its target's name. Each step from one
    /// file to the next counts, also one that a later file takes back.
    ///
    /// # Errors
    /// Where nothing was compared: no target is in more than one file, or none of their
    /// properties.
    pub fn breaches(&self, fail_on: FailOn) -> Result<Vec<(&str, &Change)>, NotComparable> {
        if self.targets.iter().all(|series| series.files.len() + series.absent.len() < 2) {
            let names: Vec<_> = self.targets.iter().map(|s| s.target.as_str()).collect();
            return Err(NotComparable::NoTarget(names.join(", ")));
        }
        let counts = |change: &Change| match fail_on {
            FailOn::Change => true,
            FailOn::Regression => change.direction == Direction::Worse,
        };
        let changes = self.targets.iter().flat_map(|series| {
            series.changes.iter().map(|change| (series.target.as_str(), change))
        });
        let found: Vec<_> = changes.filter(|(_, change)| counts(change)).collect();
        if found.is_empty() && self.targets.iter().all(|series| series.compared == 0) {
            return Err(NotComparable::NoProperty);
        }
        Ok(found)
    }
}

/// The files in which a target vanished or appeared.
pub(super) fn of_target(over: &Over<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    let present = |file: usize| over.at[file].as_ref().is_some_and(|seen| seen.is_present());
    for file in 1..over.at.len() {
        let direction = match (present(file - 1), present(file)) {
            (true, false) => Direction::Worse,
            (false, true) => Direction::Other,
            _ => continue,
        };
        changes.push(Change {
            property: None,
            direction,
            from: State { file: file - 1, found: None },
            to: State { file, found: None },
        });
    }
    changes
}

/// The steps of a property through the files that have verdicts of its target. A verdict is
/// compared with the last one before it, so that what was away for a while is not taken for new.
pub(super) fn of_property(id: &str, files: &[(usize, Option<&PropertyResult>)]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |direction, from, to| {
        let state = |(file, found): (usize, Option<&PropertyResult>)| State {
            file,
            found: found.map(Found::of),
        };
        let (from, to) = (state(from), state(to));
        changes.push(Change { property: Some(id.into()), direction, from, to });
    };
    let mut last: Option<(usize, &PropertyResult)> = None;
    for pair in files.windows(2) {
        let (before, now) = (pair[0], pair[1]);
        last = before.1.map(|property| (before.0, property)).or(last);
        let known = last.map(|(file, property)| (file, Some(property)));
        match (before.1, now.1, known) {
            (Some(_), None, _) => add(Direction::Worse, before, now),
            (None, Some(_), None) => add(Direction::Other, before, now),
            (was, Some(property), Some((file, Some(known)))) => {
                // Back with the verdict it had: it appeared, and that is all.
                let back = was.is_none().then_some(Direction::Other);
                if let Some(direction) = direction(known, property).or(back) {
                    add(direction, (file, Some(known)), now);
                }
            }
            _ => {}
        }
    }
    changes
}

/// How a result differs from an earlier one; `None` where the verdict is the same.
fn direction(from: &PropertyResult, to: &PropertyResult) -> Option<Direction> {
    if from.verdict == to.verdict {
        return (to.verdict == Verdict::Fail).then(|| breaches(from, to)).flatten();
    }
    Some(match to.verdict {
        Verdict::Pass => Direction::Better,
        verdict if rank(verdict) < rank(from.verdict) => Direction::Worse,
        _ => Direction::Other,
    })
}

/// How the breaches of a property that fails again differ: one of another kind is news, and hides
/// behind a verdict that stays.
fn breaches(from: &PropertyResult, to: &PropertyResult) -> Option<Direction> {
    let kinds = |p: &PropertyResult| -> HashSet<String> {
        p.anomalies.iter().map(|anomaly| anomaly.kind.clone()).collect()
    };
    let (from, to) = (kinds(from), kinds(to));
    match (to.is_subset(&from), from.is_subset(&to)) {
        (false, _) => Some(Direction::Worse),
        (true, false) => Some(Direction::Other),
        (true, true) => None,
    }
}

/// How good a verdict is.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass => 4,
        Verdict::Skipped => 3,
        Verdict::Unknown => 2,
        Verdict::Broken => 1,
        Verdict::Fail => 0,
    }
}

impl fmt::Display for FailOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailOn::Change => "change",
            FailOn::Regression => "regression",
        })
    }
}
