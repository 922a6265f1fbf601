//! From a history to a verdict.

use queueproof_backends::Capabilities;

use super::{Property, scheduling};
use crate::{
    checker::{Evidence, Findings, dedup, delivery, outcome},
    history::History,
    results::{PropertyResult, Verdict},
};

/// Judges a history: pure, so that a saved one is judged the same again.
///
/// # Errors
/// Why the history cannot be read: it refers to something that it does not hold.
pub fn judge(property: &Property, history: &History) -> Result<PropertyResult, String> {
    let evidence = Evidence::new(history)?;
    let mut findings = Findings::default();
    match &history.end {
        Some(end) => findings.halted(end.halt.as_ref()),
        None => findings.undecided(BREAKS_OFF),
    }
    outcome::judge(&evidence, &mut findings);
    delivery::judge(&evidence, &mut findings);
    dedup::judge(&evidence, &mut findings);
    (property.judge)(&evidence, &mut findings);
    Ok(found(property, findings, history.duration_ms()))
}

/// Why a history without an end decides little.
pub const BREAKS_OFF: &str = "the history breaks off: the run did not end";

/// The result of what was found.
pub(super) fn found(property: &Property, findings: Findings, duration_ms: u64) -> PropertyResult {
    let (verdict, reason) = findings.verdict();
    PropertyResult {
        anomalies: findings.anomalies(),
        observed: findings.observed,
        key_figure: findings.key_figure,
        duration_ms,
        ..result(property, verdict, reason)
    }
}

/// The result of a property for which a capability is missing, in the backend's own words; `None`
/// if it has all.
pub fn skipped(property: &Property, capabilities: &Capabilities) -> Option<PropertyResult> {
    let missing = property.needs.iter().find_map(|&need| Some((need, capabilities.missing(need)?)));
    let missing = missing.map(|(need, why)| format!("{need}: {why}"));
    let missing = missing.or_else(|| scheduling::lacks(property, capabilities));
    missing.map(|why| result(property, Verdict::Skipped, why))
}

/// The result of a property that could not be played.
pub fn broken(property: &Property, reason: String) -> PropertyResult {
    result(property, Verdict::Broken, reason)
}

/// A result without evidence.
fn result(property: &Property, verdict: Verdict, reason: String) -> PropertyResult {
    PropertyResult {
        id: property.id.into(),
        group: property.group().into(),
        verdict,
        reason,
        anomalies: Vec::new(),
        observed: std::collections::BTreeMap::new(),
        key_figure: String::new(),
        duration_ms: 0,
    }
}
