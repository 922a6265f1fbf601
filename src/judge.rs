//! Judging a saved run again: the same functions over the same histories.

use std::{collections::BTreeMap, io, path::Path};

use crate::{
    checker::scheduling::Watch,
    conformance::{self, property, scheduling},
    history::{self, Halt, HistoryError, Op, Reader, RunRecord, TargetRecord, What},
    results::{PropertyResult, Results, SCHEMA, TargetResult, Verdict},
    scheduler::Costs,
};

/// Judges the run in a folder.
///
/// # Errors
/// Where it cannot be read, with the file and the line.
pub fn judge(folder: &Path) -> Result<Results, HistoryError> {
    let record = history::read_run(folder)?;
    let mut targets = Vec::with_capacity(record.targets.len());
    for target in &record.targets {
        let (properties, cost) = match target.schedule && target.absent.is_none() {
            true => judge_schedule(folder, target)?,
            false => (judge_each(folder, target)?, BTreeMap::new()),
        };
        targets.push(TargetResult {
            absent: target.absent.clone(),
            demonstrated: match target.schedule {
                true => BTreeMap::new(),
                false => conformance::demonstrated(target.capabilities.as_ref(), &properties),
            },
            name: target.name.clone(),
            backend: target.backend.clone(),
            broker_version: target.broker_version.clone(),
            settings: target.settings.clone(),
            capabilities: target.capabilities.clone(),
            cost,
            properties,
        });
    }
    Ok(Results { schema: SCHEMA.into(), tool: record.tool, run: record.run, targets })
}

/// Judges the histories of a target, one of each property.
fn judge_each(folder: &Path, target: &TargetRecord) -> Result<Vec<PropertyResult>, HistoryError> {
    let ids = target.properties.iter().filter(|_| target.absent.is_none());
    ids.map(|id| judge_one(folder, target, id)).collect()
}

/// Judges the history of a target's workload: all properties from one, as it is read.
fn judge_schedule(
    folder: &Path,
    target: &TargetRecord,
) -> Result<(Vec<PropertyResult>, BTreeMap<String, serde_json::Value>), HistoryError> {
    let of_all = |verdict: Verdict, reason: &str| {
        let result = |(property, _)| PropertyResult {
            verdict,
            ..conformance::broken(property, reason.into())
        };
        (scheduling::of_workload().map(result).collect(), BTreeMap::new())
    };
    if let Some(reason) = &target.broken {
        return Ok(of_all(Verdict::Broken, reason));
    }
    let path = RunRecord::schedule_path(folder, &target.name);
    let mut reader = match Reader::open(&path) {
        Err(HistoryError::Io { error, .. })
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) =>
        {
            return Ok(of_all(Verdict::Unknown, NO_HISTORY));
        }
        reader => reader?,
    };
    let header = &reader.header;
    if header.property != history::SCHEDULE || header.target != target.name {
        let problem = format!("this is the history of {} on {}", header.property, header.target);
        return Err(reader.malformed(problem));
    }
    let capabilities = header.capabilities.clone();
    let Some(Op { what: What::Workload(workload), .. }) = reader.next_op()? else {
        return Ok(of_all(Verdict::Unknown, "no workload was begun"));
    };
    let mut watch =
        Watch::new(&workload, &capabilities).map_err(|problem| reader.malformed(problem))?;
    let mut costs = Costs::default();
    while let Some(op) = reader.next_op()? {
        if let What::Schedule(event) = &op.what {
            costs.see(op.at.1, event);
        }
        watch.see_op(&op).map_err(|problem| {
            reader.malformed(format!("it refers to {problem}: the history contradicts itself"))
        })?;
    }
    let breaks_off = Halt::Undecided(conformance::BREAKS_OFF.into());
    let halt = match &reader.end {
        Some(end) => end.halt.as_ref(),
        None => Some(&breaks_off),
    };
    Ok((scheduling::results(&mut watch, &workload, halt), costs.figures()))
}

/// Why there is nothing to judge.
const NO_HISTORY: &str = "there is no history: the run did not come so far";

fn judge_one(
    folder: &Path,
    target: &TargetRecord,
    id: &str,
) -> Result<PropertyResult, HistoryError> {
    let path = RunRecord::history_path(folder, &target.name, id);
    let Some(property) = property(id) else {
        let problem = format!("this version of queueproof has no property {id}");
        return Err(HistoryError::Malformed { path, line: 1, problem });
    };
    let (Some(capabilities), None) = (&target.capabilities, &target.broken) else {
        let reason = target.broken.clone().unwrap_or_else(|| "the target was not reached".into());
        return Ok(conformance::broken(property, reason));
    };
    if let Some(skipped) = conformance::skipped(property, capabilities) {
        return Ok(skipped);
    }
    let history = match history::read(&path) {
        Err(HistoryError::Io { error, .. })
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) =>
        {
            return Ok(PropertyResult {
                verdict: Verdict::Unknown,
                ..conformance::broken(property, NO_HISTORY.into())
            });
        }
        history => history?,
    };
    if history.header.property != id || history.header.target != target.name {
        let problem = format!(
            "this is the history of {} on {}",
            history.header.property, history.header.target
        );
        return Err(HistoryError::Malformed { path, line: 1, problem });
    }
    conformance::judge(property, &history).map_err(|problem| HistoryError::Malformed {
        path,
        line: 1,
        problem,
    })
}
