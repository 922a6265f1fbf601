//! What a workload asks of its broker, written down as data, and whether targets give it.
//!
//! Pure: [`evaluate`] sees results that were read already, of one run or of several, and answers
//! each requirement with what is in them. What they do not show is undecided, never met.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    conformance,
    results::{PropertyResult, TargetResult, Tool, Verdict},
};

mod conclusion;
pub mod file;
mod merge;
#[cfg(test)]
mod tests;

use merge::Merged;

/// The version of a score's schema. Fields are only ever added under one version.
pub const SCHEMA: &str = "queueproof/score/1";

/// The requirements of a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorecard {
    /// Its name.
    pub name: String,
    /// What it is about; empty for nothing.
    pub about: String,
    /// One or more, each with a name of its own; one or more of them musts.
    pub requirements: Vec<Requirement>,
}

/// Something that a workload asks of its broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// A short name, for tables.
    pub name: String,
    /// The requirement in words.
    pub words: String,
    /// How much it matters.
    pub level: Level,
    /// What shows whether it is met.
    pub test: Test,
}

/// How much a requirement matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Without it a broker will not do.
    Must,
    /// Of two brokers that will do, the one with it is better.
    Should,
}

/// What shows whether a requirement is met.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// All of these properties pass, one or more. One that a backend lacks a capability for fails.
    Properties(Vec<String>),
    /// A number that a property observed is within a bound, and the property passes.
    Figure {
        /// The property.
        property: String,
        /// The figure's name; its unit is part of it.
        name: String,
        /// The bound.
        bound: Bound,
    },
    /// What the broker's process cost its machine is within a bound.
    Cost {
        /// The figure's name; its unit is part of it.
        name: String,
        /// The bound.
        bound: Bound,
    },
    /// One of these is enough, one or more.
    Any(Vec<Test>),
    /// What no run can show, by backend.
    Fact(BTreeMap<String, Fact>),
}

/// A finite bound, itself included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// Something known of a backend's broker that no run can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Whether it meets the requirement.
    pub meets: bool,
    /// What is known.
    pub words: String,
    /// Where it says so: an address of the web.
    pub source: String,
}

/// How targets answer the requirements of a scorecard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program that evaluated.
    pub tool: Tool,
    /// The scorecard's name.
    pub scorecard: String,
    /// What it is about; empty for nothing.
    pub about: String,
    /// What was asked, in the order of the scorecard.
    pub requirements: Vec<Asked>,
    /// The answers of each target that was there, in the order of the results.
    pub targets: Vec<TargetScore>,
    /// The names of the targets that were not there, so that nothing was judged of them.
    pub absent: Vec<String>,
    /// What makes the answers say less than they seem to, a sentence each.
    pub warnings: Vec<String>,
    /// Which targets meet all musts, and the best of them, in one line.
    pub conclusion: String,
}

/// A requirement, without its test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// In words.
    pub words: String,
    /// How much it matters.
    pub level: Level,
}

/// How a target answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetScore {
    /// Its name.
    pub name: String,
    /// Its backend.
    pub backend: String,
    /// The broker's version in its own words, or several; empty if unknown.
    pub broker_version: String,
    /// One answer a requirement, in the same order.
    pub answers: Vec<Answer>,
    /// What follows from the answers, in one line.
    pub conclusion: String,
}

/// The answer to a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The requirement's name.
    pub requirement: String,
    /// Whether it is met.
    pub status: Status,
    /// What decides it, or leaves it undecided; one or more.
    pub evidence: Vec<Evidence>,
}

/// Whether a requirement is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The evidence shows that it is.
    Meets,
    /// The evidence shows that it is not.
    Fails,
    /// The evidence does not decide, or there is none.
    Undecided,
}

/// What decides a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What it is of: a property, a figure of one, a cost; empty for a fact.
    pub of: String,
    /// What was found.
    pub words: String,
}

/// Answers a scorecard for the targets of results: of one run, or of several in their order. The
/// same target of several runs is one; of a property that it has several times the last counts,
/// but for one that the last run did not put to the test.
pub fn evaluate(scorecard: &Scorecard, results: &[TargetResult]) -> Score {
    let (merged, absent, warnings) = merge::merge(results);
    let targets: Vec<_> = merged.iter().map(|target| score(scorecard, target)).collect();
    let asked = scorecard.requirements.iter().map(|requirement| Asked {
        name: requirement.name.clone(),
        words: requirement.words.clone(),
        level: requirement.level,
    });
    Score {
        schema: SCHEMA.into(),
        tool: Tool::this(),
        scorecard: scorecard.name.clone(),
        about: scorecard.about.clone(),
        requirements: asked.collect(),
        conclusion: conclusion::of_all(scorecard, &targets),
        targets,
        absent,
        warnings,
    }
}

fn score(scorecard: &Scorecard, target: &Merged<'_>) -> TargetScore {
    let answers: Vec<_> = scorecard
        .requirements
        .iter()
        .map(|requirement| {
            let (status, evidence) = requirement.test.answer(target);
            Answer { requirement: requirement.name.clone(), status, evidence }
        })
        .collect();
    TargetScore {
        name: target.name.into(),
        backend: target.backend.into(),
        broker_version: target.versions.join(", "),
        conclusion: conclusion::of_target(scorecard, &answers),
        answers,
    }
}

/// A status and what it rests on.
type Found = (Status, Vec<Evidence>);

impl Test {
    fn answer(&self, target: &Merged<'_>) -> Found {
        match self {
            Test::Properties(ids) => {
                let found = ids.iter().map(|id| property(id, target.property(id)));
                combine(found.collect(), [Status::Fails, Status::Undecided, Status::Meets])
            }
            Test::Any(tests) => {
                let found = tests.iter().map(|test| test.answer(target));
                combine(found.collect(), [Status::Meets, Status::Undecided, Status::Fails])
            }
            Test::Figure { property, name, bound } => {
                let of = format!("{property} {name}");
                let (status, words) = figure(target.property(property), name, *bound);
                one(status, of, words)
            }
            Test::Cost { name, bound } => match target.cost.get(name.as_str()) {
                Some(value) => {
                    let (status, words) = bound.answer(value);
                    one(status, name.clone(), words)
                }
                None => one(Status::Undecided, name.clone(), NOT_IN.into()),
            },
            Test::Fact(facts) => match facts.get(target.backend) {
                Some(fact) => {
                    let status = if fact.meets { Status::Meets } else { Status::Fails };
                    one(status, String::new(), format!("{} ({})", fact.words, fact.source))
                }
                None => {
                    let words = format!("the scorecard has no fact of {}", target.backend);
                    one(Status::Undecided, String::new(), words)
                }
            },
        }
    }
}

const NOT_IN: &str = "not in the results";

fn one(status: Status, of: String, words: String) -> Found {
    (status, vec![Evidence { of, words }])
}

/// Several answers as one: the first status of this order that is among them, on the evidence of
/// those that have it. None at all decide nothing.
fn combine(found: Vec<Found>, order: [Status; 3]) -> Found {
    let is_there = |status: &Status| found.iter().any(|(other, _)| other == status);
    let status = order.into_iter().find(is_there).unwrap_or(Status::Undecided);
    let of_it = found.into_iter().filter(|(other, _)| *other == status);
    (status, of_it.flat_map(|(_, evidence)| evidence).collect())
}

/// A property and what its backend declares, where it is in the results.
type Seen<'r> = Option<(&'r PropertyResult, &'r TargetResult)>;

fn property(id: &str, seen: Seen<'_>) -> Found {
    let (status, words) = match seen {
        Some((found, target)) => (verdict(found, target), in_words(found)),
        None => (Status::Undecided, NOT_IN.into()),
    };
    one(status, id.into(), words)
}

fn verdict(found: &PropertyResult, of: &TargetResult) -> Status {
    match found.verdict {
        Verdict::Pass => Status::Meets,
        Verdict::Fail => Status::Fails,
        Verdict::Skipped if lacks(found, of) => Status::Fails,
        Verdict::Skipped | Verdict::Unknown | Verdict::Broken => Status::Undecided,
    }
}

/// Whether a property was skipped because the backend lacks a capability. It is skipped too where a
/// workload has nothing of the kind, which says nothing of the broker.
fn lacks(found: &PropertyResult, of: &TargetResult) -> bool {
    let property = conformance::property(&found.id);
    let lacking = property.zip(of.capabilities.as_ref());
    lacking.is_some_and(|(property, has)| conformance::skipped(property, has).is_some())
}

fn in_words(found: &PropertyResult) -> String {
    let detail = match found.verdict {
        Verdict::Pass => found.key_figure.clone(),
        Verdict::Fail => breaches(found),
        Verdict::Unknown | Verdict::Skipped | Verdict::Broken => found.reason.clone(),
    };
    match detail.as_str() {
        "" => found.verdict.to_string(),
        detail => format!("{}: {detail}", found.verdict),
    }
}

/// The kinds of breaches, with an example.
fn breaches(found: &PropertyResult) -> String {
    let kinds: Vec<_> = found
        .anomalies
        .iter()
        .map(|anomaly| format!("{} ×{}", anomaly.kind, anomaly.count))
        .collect();
    let kinds = kinds.join(", ");
    match found.anomalies.iter().find_map(|anomaly| anomaly.examples.first()) {
        Some(example) => format!("{kinds}, as: {example}"),
        None => kinds,
    }
}

/// A figure counts only where its property passes: of what a broken promise let through, a good
/// figure says nothing; of a bad one the property may be the cause.
fn figure(seen: Seen<'_>, name: &str, bound: Bound) -> (Status, String) {
    let Some((found, _)) = seen else { return (Status::Undecided, NOT_IN.into()) };
    match (found.observed.get(name), found.verdict) {
        (Some(value), Verdict::Pass) => bound.answer(value),
        (None, Verdict::Pass) => (Status::Undecided, NOT_IN.into()),
        (Some(value), _) => {
            let words = format!("{value}, which says nothing while it is {}", in_words(found));
            (Status::Undecided, words)
        }
        (None, _) => (Status::Undecided, in_words(found)),
    }
}

impl Bound {
    /// Whether a value is within.
    fn answer(self, value: &Value) -> (Status, String) {
        let Some(number) = value.as_f64() else {
            return (Status::Undecided, format!("{value}, which is not a number"));
        };
        let (within, words, bound) = match self {
            Bound::AtMost(most) => (number <= most, "at most", most),
            Bound::AtLeast(least) => (number >= least, "at least", least),
        };
        let status = if within { Status::Meets } else { Status::Fails };
        (status, format!("{value}, asked for: {words} {bound}"))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Must => "must",
            Level::Should => "should",
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Meets => "meets",
            Status::Fails => "fails",
            Status::Undecided => "undecided",
        })
    }
}

impl Score {
    /// The exit code: 0 a target meets all musts, else 4 one fails no must or nothing was judged,
    /// else 1.
    pub fn exit_code(&self) -> u8 {
        let musts = |target: &TargetScore, test: fn(Status) -> bool| {
            let pairs = self.requirements.iter().zip(&target.answers);
            let mut musts = pairs.filter(|(asked, _)| asked.level == Level::Must);
            musts.all(|(_, answer)| test(answer.status))
        };
        if self.targets.iter().any(|target| musts(target, |status| status == Status::Meets)) {
            0
        } else if self.targets.is_empty()
            || self.targets.iter().any(|target| musts(target, |status| status != Status::Fails))
        {
            4
        } else {
            1
        }
    }
}
