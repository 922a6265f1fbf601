//! Saved results compared: all targets side by side, and each target over time.
//!
//! Pure: [`compare`] sees results that were read already ([`read`] does that), and says in what
//! they differ. What differs in the circumstances is said beside it, so that nobody takes another
//! machine, seed or profile for another broker.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::results::{Host, PropertyResult, Results, TargetResult, Tool, Verdict};

mod change;
mod circumstances;
mod figures;
pub mod read;
#[cfg(test)]
mod tests;

pub use change::{Change, Direction, FailOn, NotComparable, State};
pub use circumstances::{Difference, Shared};
pub use figures::{Figure, Moved};

/// The version of the comparison's schema. Fields are only ever added under one version.
pub const SCHEMA: &str = "queueproof/comparison/1";

/// A value with a longer name, bytes, is not taken apart: in a file that means harm each of many
/// entries would repeat it.
const LONGEST_NAME: usize = 200;

/// What some files of results have in common, and what not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program that compared.
    pub tool: Tool,
    /// By how much a figure may differ before it counts as moved.
    pub tolerance_percent: Tolerance,
    /// The files in the order in which they were named; others refer to them by their number,
    /// from 0.
    pub files: Vec<Source>,
    /// The targets side by side, the same target of several files together.
    pub columns: Vec<Column>,
    /// One a property, in the order of the suite.
    pub rows: Vec<Row>,
    /// Each target over time, in the order of the files.
    pub targets: Vec<Series>,
    /// In what the circumstances differ.
    pub circumstances: Vec<Difference>,
    /// What else makes the comparison say less than it seems to, a sentence each.
    pub warnings: Vec<String>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// As it was named.
    pub name: String,
    /// What tables call it: the name without its folder, where that is unique.
    pub label: String,
    /// The schema of its results.
    pub schema: String,
    /// The program that ran.
    pub tool: Tool,
    /// The seed of the run.
    pub seed: u64,
    /// When the run began: RFC 3339, UTC.
    pub started_at: String,
    /// The machine.
    pub host: Host,
}

/// A target of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// The file's number.
    pub file: usize,
    /// The target's name.
    pub target: String,
    /// Its backend.
    pub backend: String,
    /// The broker's version in its own words; empty if unknown.
    pub broker_version: String,
    /// Why the file names the target and has no verdict of it; `None` where it has.
    pub absent: Option<String>,
}

/// A property on all targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The property's id.
    pub property: String,
    /// How it changed on any target over time, the worst if it did in several ways.
    pub change: Option<Direction>,
    /// What was found, in the order of the columns; a column that lacks it has no cell.
    pub cells: Vec<Cell>,
}

/// A property on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The column's number, from 0.
    pub column: usize,
    /// What was found.
    #[serde(flatten)]
    pub found: Found,
}

/// What was found of a property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not a plain pass or fail; empty otherwise.
    pub reason: String,
    /// The breaches.
    pub anomalies: Vec<Kind>,
    /// The figure that the table shows; empty for none.
    pub key_figure: String,
}

/// A kind of breach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// Its name.
    pub kind: String,
    /// How often it was seen.
    pub count: u64,
}

/// The same target over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub target: String,
    /// Its backend; targets of one name and several backends are several targets.
    pub backend: String,
    /// The files that have verdicts of it.
    pub files: Vec<usize>,
    /// The files that name it and have no verdict of it.
    pub absent: Vec<usize>,
    /// How many properties have a verdict in more than one file.
    pub compared: usize,
    /// Each step from one verdict to another, and what vanished or appeared.
    pub changes: Vec<Change>,
    /// The properties of which a figure moved.
    pub moved: Vec<Moved>,
}

/// By how much a figure may differ before it counts as moved: percent of the earlier value, 0 to
/// 1000.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Tolerance(f64);

/// A target over time, as it is compared: one entry a file, `None` where it has no verdict.
struct Over<'r> {
    name: &'r str,
    backend: &'r str,
    at: Vec<Option<Seen<'r>>>,
}

/// A target of one file.
struct Seen<'r> {
    target: &'r TargetResult,
    properties: HashMap<&'r str, &'r PropertyResult>,
}

/// Compares results, each with the name of its file. Within one file, of targets of the same name
/// and backend the first counts; [`read::read`] refuses such files.
pub fn compare(inputs: &[(String, Results)], tolerance: Tolerance) -> Comparison {
    let labels = labels(inputs.iter().map(|(name, _)| name.as_str()));
    let over = over(inputs);
    let ids = ids(inputs);
    let several = over.iter().any(|target| target.named() > 1);
    let targets: Vec<_> = over.iter().map(|t| t.series(&ids, several, tolerance)).collect();
    let columns: Vec<_> = over.iter().flat_map(Over::columns).collect();
    let mut changes: HashMap<&str, Direction> = HashMap::new();
    for change in targets.iter().flat_map(|series| &series.changes) {
        if let Some(id) = &change.property {
            let worst = changes.entry(id).or_insert(change.direction);
            *worst = change.direction.min(*worst);
        }
    }
    let rows = ids.iter().map(|id| Row {
        property: (*id).into(),
        change: changes.get(id).copied(),
        cells: cells(&over, id),
    });
    Comparison {
        schema: SCHEMA.into(),
        tool: Tool::this(),
        tolerance_percent: tolerance,
        rows: rows.collect(),
        circumstances: circumstances::differences(inputs, &labels, &over),
        warnings: circumstances::warnings(inputs, &labels, &over),
        files: inputs.iter().zip(labels).map(|(input, label)| source(input, label)).collect(),
        columns,
        targets,
    }
}

fn source((name, results): &(String, Results), label: String) -> Source {
    Source {
        name: name.clone(),
        label,
        schema: results.schema.clone(),
        tool: results.tool.clone(),
        seed: results.run.seed,
        started_at: results.run.started_at.clone(),
        host: results.run.host.clone(),
    }
}

/// What tables call files: no two the same.
fn labels<'n>(names: impl Iterator<Item = &'n str> + Clone) -> Vec<String> {
    let short = |name: &'n str| {
        Path::new(name).file_name().map_or(name.into(), |last| last.to_string_lossy().into_owned())
    };
    let mut users: HashMap<String, HashSet<&str>> = HashMap::new();
    for name in names.clone() {
        users.entry(short(name)).or_default().insert(name);
    }
    let mut taken = HashSet::new();
    let unique = |name: &'n str| {
        let short = short(name);
        let label = if users[&short].len() == 1 { short } else { name.into() };
        let repeated = (2..).map(|nth| format!("{label} ({nth})"));
        let mut choices = std::iter::once(label.clone()).chain(repeated);
        choices.find(|choice| taken.insert(choice.clone())).unwrap_or(label)
    };
    names.map(unique).collect()
}

/// The targets in the order of their first file.
fn over(inputs: &[(String, Results)]) -> Vec<Over<'_>> {
    let mut over: Vec<Over<'_>> = Vec::new();
    let mut numbers: HashMap<(&str, &str), usize> = HashMap::new();
    for (file, (_, results)) in inputs.iter().enumerate() {
        for target in &results.targets {
            let (name, backend) = (target.name.as_str(), target.backend.as_str());
            let number = *numbers.entry((name, backend)).or_insert_with(|| {
                let at = inputs.iter().map(|_| None).collect();
                over.push(Over { name, backend, at });
                over.len() - 1
            });
            let properties = target.properties.iter().map(|p| (p.id.as_str(), p)).collect();
            over[number].at[file].get_or_insert(Seen { target, properties });
        }
    }
    over
}

/// The ids of all properties: groups together, otherwise in the order in which they appear.
fn ids(inputs: &[(String, Results)]) -> Vec<&str> {
    let mut seen = HashSet::new();
    let mut groups: HashMap<&str, usize> = HashMap::new();
    let mut ids = Vec::new();
    for property in inputs.iter().flat_map(|(_, results)| results.properties()) {
        if seen.insert(property.id.as_str()) {
            let next = groups.len();
            ids.push((*groups.entry(&property.group).or_insert(next), property.id.as_str()));
        }
    }
    ids.sort_by_key(|(group, _)| *group); // It is stable.
    ids.into_iter().map(|(_, id)| id).collect()
}

/// What was found of a property in all columns.
fn cells(over: &[Over<'_>], id: &str) -> Vec<Cell> {
    let seen = over.iter().flat_map(|target| target.at.iter().flatten());
    let found = seen.enumerate().filter_map(|(column, seen)| {
        Some(Cell { column, found: Found::of(seen.properties.get(id)?) })
    });
    found.collect()
}

impl<'r> Over<'r> {
    /// How many files name it.
    fn named(&self) -> usize {
        self.at.iter().flatten().count()
    }

    /// The files that have verdicts of it, with those.
    fn present(&self) -> impl Iterator<Item = (usize, &Seen<'r>)> {
        let seen =
            self.at.iter().enumerate().filter_map(|(file, seen)| Some((file, seen.as_ref()?)));
        seen.filter(|(_, seen)| seen.is_present())
    }

    fn columns(&self) -> impl Iterator<Item = Column> {
        let seen =
            self.at.iter().enumerate().filter_map(|(file, seen)| Some((file, seen.as_ref()?)));
        seen.map(|(file, seen)| Column {
            file,
            target: self.name.into(),
            backend: self.backend.into(),
            broker_version: seen.target.broker_version.clone(),
            absent: seen.absent(),
        })
    }

    /// What became of it, where `several` says that some target is in more than one file: else
    /// the files are meant to hold different ones, and none of them vanished.
    fn series(&self, ids: &[&str], several: bool, tolerance: Tolerance) -> Series {
        let present: Vec<_> = self.present().collect();
        let mut changes = if several { change::of_target(self) } else { Vec::new() };
        let mut moved = Vec::new();
        let mut compared = 0;
        for id in ids {
            let found: Vec<_> = present
                .iter()
                .map(|(file, seen)| (*file, seen.properties.get(id).copied()))
                .collect();
            compared += usize::from(found.iter().filter(|(_, p)| p.is_some()).count() > 1);
            changes.extend(change::of_property(id, &found));
            moved.extend(figures::moved(id, &found, tolerance));
        }
        let absent = |(file, seen): (usize, &Option<Seen<'_>>)| {
            seen.as_ref().is_some_and(|seen| !seen.is_present()).then_some(file)
        };
        Series {
            target: self.name.into(),
            backend: self.backend.into(),
            files: present.iter().map(|(file, _)| *file).collect(),
            absent: self.at.iter().enumerate().filter_map(absent).collect(),
            compared,
            changes,
            moved,
        }
    }
}

impl Seen<'_> {
    /// Whether anything was judged: a target that was not there has no properties.
    fn is_present(&self) -> bool {
        !self.target.properties.is_empty()
    }

    /// Why nothing was judged, if so.
    fn absent(&self) -> Option<String> {
        let why = self.target.absent.clone();
        (!self.is_present()).then(|| why.unwrap_or_else(|| "no property was checked".into()))
    }
}

impl Found {
    fn of(property: &PropertyResult) -> Self {
        let kind = |a: &crate::results::Anomaly| Kind { kind: a.kind.clone(), count: a.count };
        Found {
            verdict: property.verdict,
            reason: property.reason.clone(),
            anomalies: property.anomalies.iter().map(kind).collect(),
            key_figure: property.key_figure.clone(),
        }
    }
}

impl Tolerance {
    /// Percent.
    pub fn percent(self) -> f64 {
        self.0
    }
}

impl Default for Tolerance {
    /// 10 %: what timings differ by from run to run on a quiet machine is mostly less.
    fn default() -> Self {
        Tolerance(10.0)
    }
}

impl TryFrom<f64> for Tolerance {
    type Error = String;

    fn try_from(percent: f64) -> Result<Self, String> {
        match percent {
            0.0..=1000.0 => Ok(Tolerance(percent)),
            _ => Err(format!("{percent} is not between 0 and 1000 percent")),
        }
    }
}

impl From<Tolerance> for f64 {
    fn from(tolerance: Tolerance) -> f64 {
        tolerance.0
    }
}

impl FromStr for Tolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        let percent: f64 =
            number.parse().map_err(|_| format!("{text:?} is not a number of percent, as 10"))?;
        Tolerance::try_from(percent)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}
