//! The suite over every backend, and the proof that it sees: one named case for each property on
//! each backend, and for each flaw that a property must catch.

mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use queueproof::{
    config,
    conformance::{Property, properties},
    plan::BackendPlan,
    results::Verdict,
};
use queueproof_backends::flawed::Flaw;
use support::{nats, nats_at, play};

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
    let nats = nats("the suite over NATS");
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
