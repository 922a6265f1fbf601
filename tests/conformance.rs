//! The suite over every backend, and the proof that it sees: one named case for each property on
//! each backend, and for each flaw that a property must catch.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use queueproof::{
    brokers::{self, Places, PrivateBroker, StartSettings, Wanted},
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
        trials.push(Trial::test(name, move || honest_on(memory(), property)));
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
    let nats = nats();
    if let Some(server) = &nats {
        for property in properties() {
            let name = format!("nats passes {}", property.id);
            let url = server.url().to_string();
            trials.push(Trial::test(name, move || honest_on(nats_at(url), property)));
        }
    }
    let mut arguments = Arguments::from_args();
    // They wait most of the time.
    arguments.test_threads.get_or_insert(8);
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    drop(nats); // the server stops here, whatever was found
    code
}

/// A NATS server for all cases; `None`, loudly, where none is installed.
fn nats() -> Option<PrivateBroker> {
    let start = || {
        let kind = brokers::kind("nats")?;
        let found = brokers::find(&Places::from_env()?, kind, &Wanted::default())?;
        let mut settings = StartSettings::new(found.path);
        settings.guard = Some(env!("CARGO_BIN_EXE_queueproof").into());
        PrivateBroker::start(kind, settings)
    };
    match start() {
        Ok(server) => Some(server),
        Err(error) => {
            let required = std::env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|b| b == "nats"), "nats is required, and: {error}");
            eprintln!("\nNOT RUN: the suite over NATS. {error}\n");
            None
        }
    }
}

fn nats_at(url: String) -> BackendPlan {
    BackendPlan::Nats(Box::new(config::Nats { url: Some(url), ..config::Nats::default() }))
}

/// Plays one property.
fn play(
    backend: BackendPlan,
    property: &'static Property,
    flaw: Option<Flaw>,
) -> Result<PropertyResult, Failed> {
    let plan = Plan {
        seed: 7,
        jobs: 1,
        prefix: "qp".into(),
        out: None,
        targets: vec![TargetPlan {
            name: backend.name().into(),
            backend,
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

fn memory() -> BackendPlan {
    BackendPlan::Memory(config::Memory::default())
}

fn honest_on(backend: BackendPlan, property: &'static Property) -> Result<(), Failed> {
    let result = play(backend, property, None)?;
    match result.verdict {
        Verdict::Pass => Ok(()),
        _ => Err(format!("{result:#?}").into()),
    }
}

fn caught(property: &'static Property, flaw: Flaw, anomaly: &str) -> Result<(), Failed> {
    let result = play(memory(), property, Some(flaw))?;
    let reported = result.anomalies.iter().any(|a| a.kind == anomaly);
    match result.verdict {
        Verdict::Fail if reported => Ok(()),
        _ => Err(format!("{result:#?}").into()),
    }
}
