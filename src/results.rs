//! What a run found, as it is printed and saved: the schema `queueproof/results/1`.

use std::{collections::BTreeMap, fmt};

use queueproof_backends::{Capabilities, Capability};
use serde::{Deserialize, Serialize};

/// The version of the results' schema. Fields are only ever added under one version.
pub const SCHEMA: &str = "queueproof/results/1";

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program that ran.
    pub tool: Tool,
    /// The circumstances.
    pub run: Run,
    /// One entry a target, in the order in which they were asked for.
    pub targets: Vec<TargetResult>,
}

/// The program that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// `queueproof`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The circumstances of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The seed; the same seed gives the same traffic.
    pub seed: u64,
    /// When it began: RFC 3339, UTC.
    pub started_at: String,
    /// How long it took, milliseconds of real time.
    pub duration_ms: u64,
    /// The machine.
    pub host: Host,
}

/// The machine a run was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Processors available to the program.
    pub cpus: usize,
}

/// What was found on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetResult {
    /// The name the user gave it, or its backend's.
    pub name: String,
    /// The backend.
    pub backend: String,
    /// The broker's version in its own words; empty if unknown.
    pub broker_version: String,
    /// Its effective settings, secrets masked.
    pub settings: serde_json::Value,
    /// What its backend declares; `None` where it could not be asked.
    pub capabilities: Option<Capabilities>,
    /// Why it was not there, where one of all backends has no broker on this machine; then there are
    /// no properties, and it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// What became of each capability that the backend declares to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub demonstrated: BTreeMap<Capability, Demonstration>,
    /// What the broker's process cost its machine, where a workload was scheduled on one that was
    /// started for it: figures with their units in the names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cost: BTreeMap<String, serde_json::Value>,
    /// One entry a property.
    pub properties: Vec<PropertyResult>,
}

/// What a run shows of a capability that a backend declares to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Demonstration {
    /// A property that needs it passed, and none failed.
    Demonstrated,
    /// A property that needs it failed.
    Refuted,
    /// No property that needs it came to a verdict.
    NotExercised,
}

/// What was found of one property.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PropertyResult {
    /// `dedup/across-publishers`, for example.
    pub id: String,
    /// The part of the id before the slash.
    pub group: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not a plain pass or fail; empty otherwise.
    pub reason: String,
    /// The breaches.
    pub anomalies: Vec<Anomaly>,
    /// What was seen, also when it passes: figures with their units in the name.
    pub observed: BTreeMap<String, serde_json::Value>,
    /// The figure that the table shows; empty for none.
    pub key_figure: String,
    /// How long it took on the clock of the run (virtual for an embedded backend), milliseconds.
    pub duration_ms: u64,
}

/// A counted, exemplified breach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Its kind: `lost`, `duplicate`, …
    pub kind: String,
    /// How often it was seen, 1 or more.
    pub count: u64,
    /// The first few, each in words that name messages, workers and times of the history.
    pub examples: Vec<String>,
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The evidence shows that the promise was kept.
    Pass,
    /// The evidence shows that it was broken.
    Fail,
    /// The evidence does not decide.
    Unknown,
    /// The backend declares that the broker lacks a capability.
    Skipped,
    /// The environment failed: no broker, no connection.
    Broken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unknown => "unknown",
            Verdict::Skipped => "skipped",
            Verdict::Broken => "broken",
        })
    }
}

impl Tool {
    /// This program.
    pub fn this() -> Self {
        Tool { name: "queueproof".into(), version: env!("CARGO_PKG_VERSION").into() }
    }
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Host {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Results {
    /// Every property result of every target.
    pub fn properties(&self) -> impl Iterator<Item = &PropertyResult> {
        self.targets.iter().flat_map(|t| &t.properties)
    }

    /// The exit code: 1 a property failed, else 3 the environment is broken, else 4 undecided (or
    /// nothing was judged at all), else 0.
    pub fn exit_code(&self) -> u8 {
        let any = |verdict| self.properties().any(|p| p.verdict == verdict);
        if any(Verdict::Fail) {
            1
        } else if any(Verdict::Broken) {
            3
        } else if any(Verdict::Unknown) || self.properties().next().is_none() {
            4
        } else {
            0
        }
    }
}
