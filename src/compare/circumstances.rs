//! In what the circumstances of the files differ: what must be known before a difference is laid
//! at a broker's door.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use queueproof_backends::{Capabilities, Capability, Support};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LONGEST_NAME, Over};
use crate::results::{Results, TargetResult, Verdict};

/// The key of the settings that holds the sizes and times of the scenarios.
const SUITE: &str = "suite";

/// Beyond this many, the values within a target's settings are no longer taken apart.
const MOST_FACTS: usize = 200;

/// A circumstance that is not the same everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The target whose circumstance it is; `None` for one of the whole run.
    pub target: Option<String>,
    /// Which one: `seed`, `host.cpus`, `settings.storage`, …
    pub what: String,
    /// Its values, each with where it holds.
    pub values: Vec<Shared>,
}

/// A value and where it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// The value; `None` where there is none.
    pub value: Option<Value>,
    /// The labels of the files, or of targets in files.
    pub of: Vec<String>,
}

/// Values by the name of what they are of.
type Facts = BTreeMap<String, Value>;

/// All differences: of the runs, of the sizes and times of the scenarios, of each target over
/// time.
pub(super) fn differences(
    inputs: &[(String, Results)],
    labels: &[String],
    over: &[Over<'_>],
) -> Vec<Difference> {
    let runs = inputs.iter().zip(labels).map(|((_, results), label)| (label.clone(), run(results)));
    let mut differences = differing(None, runs.collect());
    differences.extend(suites(labels, over));
    for target in over {
        let at = target.present().map(|(file, seen)| (labels[file].clone(), facts(seen.target)));
        differences.extend(differing(Some(target.name), at.collect()));
    }
    differences
}

/// What belongs to a run, whatever its targets.
fn run(results: &Results) -> Facts {
    let host = &results.run.host;
    let facts: [(&str, Value); 6] = [
        ("schema", results.schema.as_str().into()),
        ("tool.version", results.tool.version.as_str().into()),
        ("host.os", host.os.as_str().into()),
        ("host.arch", host.arch.as_str().into()),
        ("host.cpus", host.cpus.into()),
        ("seed", results.run.seed.into()),
    ];
    facts.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

/// The sizes and times of the scenarios: they matter between all targets, not only of one over
/// time. Where those of each file agree, files are named, else targets.
fn suites(labels: &[String], over: &[Over<'_>]) -> Vec<Difference> {
    let mut by_file: BTreeMap<usize, Vec<(String, Facts)>> = BTreeMap::new();
    for target in over {
        for (file, seen) in target.present() {
            let mut facts = Facts::new();
            if let Some(suite) = seen.target.settings.get(SUITE) {
                leaves(format!("settings.{SUITE}"), suite, &mut facts);
            }
            by_file.entry(file).or_default().push((target.name.into(), facts));
        }
    }
    let uniform = by_file.values().all(|of| of.iter().all(|(_, facts)| *facts == of[0].1));
    let single = by_file.len() == 1;
    let places = by_file.into_iter().flat_map(|(file, of)| {
        let label = labels[file].as_str();
        let take = if uniform { 1 } else { of.len() };
        of.into_iter().take(take).map(move |(name, facts)| match (uniform, single) {
            (true, _) => (label.to_string(), facts),
            (false, true) => (name, facts),
            (false, false) => (format!("{name} of {label}"), facts),
        })
    });
    differing(None, places.collect())
}

/// What belongs to a target, except for the sizes and times of the scenarios.
fn facts(target: &TargetResult) -> Facts {
    let mut facts = Facts::new();
    facts.insert("broker_version".into(), target.broker_version.as_str().into());
    match &target.settings {
        Value::Object(settings) => {
            let mut settings = settings.clone();
            settings.remove(SUITE);
            leaves("settings".into(), &Value::Object(settings), &mut facts);
        }
        Value::Null => {}
        other => leaves("settings".into(), other, &mut facts),
    }
    if let Some(capabilities) = &target.capabilities {
        declared(capabilities, &mut facts);
    }
    facts
}

/// What a backend declares, in words.
fn declared(capabilities: &Capabilities, facts: &mut Facts) {
    for capability in Capability::ALL {
        let words = match capabilities.support.get(&capability) {
            // What is not declared is as unsupported as what is declared to be.
            None => "unsupported: not declared".into(),
            Some(Support::Native) => "native".into(),
            Some(Support::Emulated { how }) => format!("emulated: {how}"),
            Some(Support::Unsupported { why }) => format!("unsupported: {why}"),
        };
        facts.insert(format!("capabilities.{capability}"), words.into());
    }
    let Ok(Value::Object(limits)) = serde_json::to_value(&capabilities.limits) else { return };
    for (name, value) in limits {
        let value = duration(&value).map_or(value, Value::from);
        facts.insert(format!("capabilities.limits.{name}"), value);
    }
}

/// A duration in words, if that is what a value is.
fn duration(value: &Value) -> Option<String> {
    let fields = value.as_object().filter(|fields| fields.len() == 2)?;
    let seconds = fields.get("secs")?.as_u64()?;
    let nanos = u32::try_from(fields.get("nanos")?.as_u64()?).ok()?;
    // Whole seconds do not overflow here: these were a duration.
    let duration = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))?;
    Some(humantime::format_duration(duration).to_string())
}

/// The values within a value, each with the path to it.
fn leaves(path: String, value: &Value, facts: &mut Facts) {
    match value {
        Value::Object(fields)
            if path.len() <= LONGEST_NAME && facts.len() + fields.len() <= MOST_FACTS =>
        {
            for (key, value) in fields {
                leaves(format!("{path}.{key}"), value, facts);
            }
        }
        value => drop(facts.insert(path, value.clone())),
    }
}

/// The facts that are not the same everywhere.
fn differing(target: Option<&str>, places: Vec<(String, Facts)>) -> Vec<Difference> {
    let names: BTreeSet<&String> = places.iter().flat_map(|(_, facts)| facts.keys()).collect();
    let differences = names.into_iter().filter_map(|name| {
        let mut values: Vec<Shared> = Vec::new();
        for (place, facts) in &places {
            let value = facts.get(name);
            match values.iter_mut().find(|shared| shared.value.as_ref() == value) {
                Some(shared) => shared.of.push(place.clone()),
                None => values.push(Shared { value: value.cloned(), of: vec![place.clone()] }),
            }
        }
        let target = target.map(String::from);
        (values.len() > 1).then(|| Difference { target, what: name.clone(), values })
    });
    differences.collect()
}

/// What makes a comparison say less than it seems to.
pub(super) fn warnings(
    inputs: &[(String, Results)],
    labels: &[String],
    over: &[Over<'_>],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (number, (_, results)) in inputs.iter().enumerate() {
        if let Some(same) = inputs[..number].iter().position(|(_, earlier)| earlier == results) {
            let (first, second) = (&labels[same], &labels[number]);
            warnings.push(format!("{second} holds the same run as {first}: nothing can differ"));
        }
    }
    let began = |file: usize| humantime::parse_rfc3339(&inputs[file].1.run.started_at).ok();
    for file in 1..inputs.len() {
        if began(file).zip(began(file - 1)).is_some_and(|(now, before)| now < before) {
            let (now, before) = (&labels[file], &labels[file - 1]);
            warnings.push(format!(
                "{now} began before {before}: what is called before and after is the order of \
                 the files, not that of time"
            ));
        }
    }
    let mut backends: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for target in over {
        backends.entry(target.name).or_default().push(target.backend);
    }
    for (name, backends) in backends.iter().filter(|(_, backends)| backends.len() > 1) {
        let backends = backends.join(" and ");
        warnings.push(format!("{name} is on {backends}: these count as different targets"));
    }
    for target in over {
        let present: Vec<_> = target.present().collect();
        if let [(file, first), _, ..] = present.as_slice()
            && !is_decided(first.target)
        {
            let (name, label) = (target.name, &labels[*file]);
            warnings.push(format!(
                "{name} has neither a pass nor a fail in {label}: little can be worse than that"
            ));
        }
    }
    warnings
}

/// Whether anything was proved or refuted.
fn is_decided(target: &TargetResult) -> bool {
    target.properties.iter().any(|p| matches!(p.verdict, Verdict::Pass | Verdict::Fail))
}
