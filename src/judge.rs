//! Judging a saved run again: the same functions over the same histories.

use std::{io, path::Path};

use crate::{
    conformance::{self, property},
    history::{self, HistoryError, RunRecord, TargetRecord},
    results::{PropertyResult, Results, SCHEMA, TargetResult, Verdict},
};

/// Judges the run in a folder.
///
/// # Errors
/// Where it cannot be read, with the file and the line.
pub fn judge(folder: &Path) -> Result<Results, HistoryError> {
    let record = history::read_run(folder)?;
    let mut targets = Vec::with_capacity(record.targets.len());
    for target in &record.targets {
        let mut properties = Vec::with_capacity(target.properties.len());
        for id in target.properties.iter().filter(|_| target.absent.is_none()) {
            properties.push(judge_one(folder, target, id)?);
        }
        targets.push(TargetResult {
            absent: target.absent.clone(),
            demonstrated: conformance::demonstrated(target.capabilities.as_ref(), &properties),
            name: target.name.clone(),
            backend: target.backend.clone(),
            broker_version: target.broker_version.clone(),
            settings: target.settings.clone(),
            capabilities: target.capabilities.clone(),
            cost: Default::default(),
            properties,
        });
    }
    Ok(Results { schema: SCHEMA.into(), tool: record.tool, run: record.run, targets })
}

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
            let reason = "there is no history: the run did not come so far";
            return Ok(PropertyResult {
                verdict: Verdict::Unknown,
                ..conformance::broken(property, reason.into())
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
