//! The same target of several runs as one.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Seen;
use crate::results::{PropertyResult, TargetResult, Verdict};

/// What all runs together know of a target.
#[derive(Debug)]
pub(super) struct Merged<'r> {
    pub(super) name: &'r str,
    pub(super) backend: &'r str,
    /// Each version of the broker that results name.
    pub(super) versions: Vec<&'r str>,
    pub(super) cost: BTreeMap<&'r str, &'r Value>,
    properties: BTreeMap<&'r str, (&'r PropertyResult, &'r TargetResult)>,
    flaws: Vec<&'r str>,
    /// What is not told by the result that counts, a sentence each.
    replaced: Vec<String>,
}

impl<'r> Merged<'r> {
    fn of(target: &'r TargetResult) -> Self {
        Merged {
            name: &target.name,
            backend: &target.backend,
            versions: Vec::new(),
            cost: BTreeMap::new(),
            properties: BTreeMap::new(),
            flaws: Vec::new(),
            replaced: Vec::new(),
        }
    }

    pub(super) fn property(&self, id: &str) -> Seen<'r> {
        self.properties.get(id).copied()
    }

    fn add(&mut self, target: &'r TargetResult) {
        let version = target.broker_version.as_str();
        if !version.is_empty() && !self.versions.contains(&version) {
            self.versions.push(version);
        }
        if let Some(flaw) = target.settings["flaw"].as_str() {
            self.flaws.push(flaw);
        }
        self.cost.extend(target.cost.iter().map(|(name, value)| (name.as_str(), value)));
        for property in &target.properties {
            let Some((earlier, of)) = self.properties.get(property.id.as_str()) else {
                self.properties.insert(&property.id, (property, target));
                continue;
            };
            if is_untested(property, target) {
                continue;
            }
            if earlier.verdict != property.verdict && !is_untested(earlier, of) {
                self.replaced.push(format!(
                    "{}: {} is {} in an earlier result and {} in the one that counts",
                    self.name, property.id, earlier.verdict, property.verdict
                ));
            }
            self.properties.insert(&property.id, (property, target));
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.versions.len() > 1 {
            let versions = self.versions.join(", ");
            warnings
                .push(format!("{}: the results are of several versions: {versions}", self.name));
        }
        if !self.flaws.is_empty() {
            let flaws = self.flaws.join(", ");
            warnings.push(format!("{}: a flaw was put in on purpose: {flaws}", self.name));
        }
        warnings.extend(self.replaced.iter().cloned());
        warnings
    }
}

/// Whether a run had nothing with which to test a property that the backend could have.
fn is_untested(property: &PropertyResult, target: &TargetResult) -> bool {
    property.verdict == Verdict::Skipped && !super::lacks(property, target)
}

/// The targets in the order in which they come, the names of those that were never there, and
/// what is to be known of both.
pub(super) fn merge(results: &[TargetResult]) -> (Vec<Merged<'_>>, Vec<String>, Vec<String>) {
    let mut merged: Vec<Merged<'_>> = Vec::new();
    for target in results.iter().filter(|target| target.absent.is_none()) {
        let known =
            |other: &Merged<'_>| (other.name, other.backend) == (&target.name, &target.backend);
        let at = merged.iter().position(known).unwrap_or_else(|| {
            merged.push(Merged::of(target));
            merged.len() - 1
        });
        merged[at].add(target);
    }
    let mut absent: Vec<String> = Vec::new();
    for target in results.iter().filter(|target| target.absent.is_some()) {
        let is_there =
            merged.iter().any(|m| (m.name, m.backend) == (&target.name, &target.backend));
        if !is_there && !absent.contains(&target.name) {
            absent.push(target.name.clone());
        }
    }
    let warnings = merged.iter().flat_map(Merged::warnings).collect();
    (merged, absent, warnings)
}
