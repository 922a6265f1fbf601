//! The suite over every backend, and the proof that it sees: one named case for each property on
//! each backend, and for each flaw that a property must catch.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use queueproof::{
    config,
    conformance::{Property, properties},
    plan::{BackendPlan, Plan, Suite, TargetPlan},
    results::{PropertyResult, Verdict},
    runner,
};
use queueproof_backends::flawed::Flaw;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for property in properties() {
        let name = format!("memory passes {}", property.id);
        trials.push(Trial::test(name, move || honest(property)));
        for &(flaw, anomaly) in property.catches {
            let name = format!("{} catches {} as {anomaly}", property.id, flaw.name());
            trials.push(Trial::test(name, move || caught(property, flaw, anomaly.name())));
        }
    }
    for &flaw in Flaw::ALL {
        let name = format!("{} is caught by a property", flaw.name());
        trials.push(Trial::test(name, move || {
            let caught = properties().any(|p| p.catches.iter().any(|(f, _)| *f == flaw));
            caught.then_some(()).ok_or_else(|| "no property names it".into())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Plays one property on the embedded backend.
fn play(property: &'static Property, flaw: Option<Flaw>) -> Result<PropertyResult, Failed> {
    let plan = Plan {
        seed: 7,
        jobs: 1,
        prefix: "qp".into(),
        out: None,
        targets: vec![TargetPlan {
            name: "memory".into(),
            backend: BackendPlan::Memory(config::Memory::default()),
            settings: serde_json::Value::Null,
            suite: Suite::quick(),
            flaw,
            properties: vec![property],
        }],
    };
    let mut results = runner::run(&plan, &CancellationToken::new(), &|_| ())
        .map_err(|e| Failed::from(e.to_string()))?;
    results.targets.pop().and_then(|mut t| t.properties.pop()).ok_or_else(|| "no result".into())
}

fn honest(property: &'static Property) -> Result<(), Failed> {
    let result = play(property, None)?;
    match result.verdict {
        Verdict::Pass => Ok(()),
        _ => Err(format!("{result:#?}").into()),
    }
}

fn caught(property: &'static Property, flaw: Flaw, anomaly: &str) -> Result<(), Failed> {
    let result = play(property, Some(flaw))?;
    let reported = result.anomalies.iter().any(|a| a.kind == anomaly);
    match result.verdict {
        Verdict::Fail if reported => Ok(()),
        _ => Err(format!("{result:#?}").into()),
    }
}
