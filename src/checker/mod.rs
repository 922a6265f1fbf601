//! Pure judges: a history in, anomalies and figures out.
//!
//! [`Evidence`] is the history, indexed. The general judges ([`delivery`], [`dedup`], [`outcome`])
//! hold for every property, whatever it is about: a broker that breaks another promise than the
//! one a scenario provokes is caught all the same. What a property adds of its own it takes from
//! [`timing`] and from the evidence.
//!
//! Every bound is taken the safe way round: an operation has two times, and what could have
//! happened between them counts for the broker.

use std::collections::BTreeMap;

use crate::{
    history::Halt,
    results::{Anomaly, Verdict},
};

pub mod anomaly;
pub mod dedup;
pub mod delivery;
pub mod evidence;
pub mod outcome;
pub mod scheduling;
pub mod timing;

pub use anomaly::AnomalyKind;
pub use evidence::Evidence;

/// How many examples of a kind of anomaly are kept.
const EXAMPLES: usize = 3;

/// What a judge found.
#[derive(Debug, Default)]
pub struct Findings {
    anomalies: BTreeMap<AnomalyKind, (u64, Vec<String>)>,
    undecided: Vec<String>,
    disturbed: Option<String>,
    /// What was seen, with units in the names.
    pub observed: BTreeMap<String, serde_json::Value>,
    /// The figure for the table.
    pub key_figure: String,
}

impl Findings {
    /// Notes a breach; the example is only made if it is kept.
    pub fn anomaly(&mut self, kind: AnomalyKind, example: impl FnOnce() -> String) {
        let (count, examples) = self.anomalies.entry(kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    /// Takes in what was found elsewhere.
    pub fn absorb(&mut self, other: &Findings) {
        for (kind, (count, examples)) in &other.anomalies {
            let found = self.anomalies.entry(*kind).or_default();
            found.0 += count;
            found.1.extend(examples.iter().cloned());
            found.1.truncate(EXAMPLES);
        }
        other.undecided.iter().for_each(|reason| self.undecided(reason.clone()));
        if let Some(reason) = &other.disturbed {
            self.disturbed(reason.clone());
        }
    }

    /// Notes why the evidence does not suffice for a pass.
    pub fn undecided(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        if !self.undecided.contains(&reason) {
            self.undecided.push(reason);
        }
    }

    /// Notes that the environment failed, so that only breaches that no failure of the
    /// environment explains still count.
    pub fn disturbed(&mut self, reason: impl Into<String>) {
        self.disturbed.get_or_insert(reason.into());
    }

    /// Notes what kept a run from its end, if anything did.
    pub fn halted(&mut self, halt: Option<&Halt>) {
        match halt {
            None => {}
            Some(Halt::Broken(reason)) => self.disturbed(reason.clone()),
            Some(Halt::Undecided(reason)) => self.undecided(reason.clone()),
        }
    }

    /// Demands that traffic of the kind that is judged was seen: a check of nothing is no check.
    pub fn require(&mut self, seen: bool, what: &str) {
        if !seen {
            self.undecided(format!("nothing to judge: {what}"));
        }
    }

    /// Notes a figure.
    pub fn observe(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.observed.insert(name.into(), value.into());
    }

    /// Whether no breach was noted.
    pub fn clean(&self) -> bool {
        self.anomalies.is_empty()
    }

    /// Whether a breach of this kind was noted.
    pub fn has(&self, kind: AnomalyKind) -> bool {
        self.anomalies.contains_key(&kind)
    }

    /// The verdict that follows, and why it is not a plain pass or fail.
    pub fn verdict(&self) -> (Verdict, String) {
        if let Some(reason) = &self.disturbed {
            return if self.anomalies.keys().any(|kind| kind.stands_when_disturbed()) {
                (Verdict::Fail, format!("the environment failed too: {reason}"))
            } else {
                (Verdict::Broken, reason.clone())
            };
        }
        if !self.anomalies.is_empty() {
            return (Verdict::Fail, self.undecided.join("; "));
        }
        match self.undecided.is_empty() {
            true => (Verdict::Pass, String::new()),
            false => (Verdict::Unknown, self.undecided.join("; ")),
        }
    }

    /// The breaches, for the results.
    pub fn anomalies(&self) -> Vec<Anomaly> {
        let anomaly = |(kind, (count, examples)): (&AnomalyKind, &(u64, Vec<String>))| Anomaly {
            kind: kind.name().into(),
            count: *count,
            examples: examples.clone(),
        };
        self.anomalies.iter().map(anomaly).collect()
    }
}

/// A time or duration of a history in words: `1.003 s`, `2.5 ms`.
pub fn words(nanos: u64) -> String {
    let (unit, size) = match nanos {
        0..1_000_000 => ("µs", 1e3),
        1_000_000..1_000_000_000 => ("ms", 1e6),
        _ => ("s", 1e9),
    };
    let value = nanos as f64 / size;
    // A clock's seconds are worth milliseconds, nothing else is worth more than three digits.
    let digits = match value {
        _ if unit == "s" => 3,
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.'),
        None => &text,
    };
    format!("{text} {unit}")
}

/// Nanoseconds as milliseconds, for figures: three digits after the point.
pub fn millis(nanos: u64) -> f64 {
    (nanos as f64 / 1e3).round() / 1e3
}
