//! The suite over every backend, and the proof that it sees: one named case for each property on
//! each backend, and for each flaw that a property must catch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../backends/tests/nsq/standin/mod.rs"]
mod standin;
mod support;

use std::{process::ExitCode, time::Duration};

use libtest_mimic::{Arguments, Failed, Trial};
use queueproof::{
    config,
    conformance::{Property, properties},
    flaw::Flaw,
    plan::BackendPlan,
    results::Verdict,
};
use standin::{Options, StandIn};
use support::{broker, nats_at, play};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for property in properties() {
        let name = format!("memory passes {}", property.id);
        trials.push(Trial::test(name, move || passes(memory(), property)));
        for &(flaw, anomaly) in property.catches {
            let name = format!("{} catches {} as {anomaly}", property.id, flaw.name());
            trials.push(Trial::test(name, move || caught(property, flaw, anomaly.name())));
        }
    }
    for flaw in Flaw::all() {
        let name = format!("{} is caught by a property", flaw.name());
        trials.push(Trial::test(name, move || {
            let caught = properties().any(|p| p.catches.iter().any(|(f, _)| *f == flaw));
            caught.then_some(()).ok_or_else(|| "no property names it".into())
        }));
    }
    let mut brokers = Vec::new();
    for (name, at) in [("nats", nats as fn(_, _) -> _), ("pulsar", pulsar), ("nsq", nsq)] {
        let Some(broker) = broker(name, &format!("the suite over {name}")) else { continue };
        let backend = at(broker.url().to_string(), broker.admin_url().map(String::from));
        honest(&mut trials, name, &backend);
        brokers.push(broker);
    }
    // NSQ's client path is tried also where there is no nsqd: by a stand-in, which no table shows.
    let standin = StandIn::start(Options::default());
    honest(&mut trials, "the stand-in of nsqd", &nsq_standing_in(&standin));

    let mut arguments = Arguments::from_args();
    // They wait most of the time.
    arguments.test_threads.get_or_insert(8);
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    drop((brokers, standin)); // they stop here, whatever was found
    code
}

/// One case a property, for a broker that keeps what it promises.
fn honest(trials: &mut Vec<Trial>, name: &str, backend: &BackendPlan) {
    for property in properties() {
        let backend = backend.clone();
        let name = format!("{name} passes {}", property.id);
        trials.push(Trial::test(name, move || keeps(backend, property)));
    }
}

fn memory() -> BackendPlan {
    BackendPlan::Memory(config::Memory::default())
}

fn nats(url: String, _: Option<String>) -> BackendPlan {
    nats_at(url)
}

fn pulsar(url: String, admin_url: Option<String>) -> BackendPlan {
    let settings = config::Pulsar { url: Some(url), admin_url, ..config::Pulsar::default() };
    BackendPlan::Pulsar(Box::new(settings))
}

fn nsq(url: String, http_url: Option<String>) -> BackendPlan {
    let settings = config::Nsq { url: Some(url), http_url, ..config::Nsq::default() };
    BackendPlan::Nsq(Box::new(settings))
}

/// It looks after new channels at once.
fn nsq_standing_in(standin: &StandIn) -> BackendPlan {
    BackendPlan::Nsq(Box::new(config::Nsq {
        url: Some(format!("nsq://{}", standin.tcp)),
        http_url: Some(format!("http://{}", standin.http)),
        new_channel_wait: Duration::ZERO,
        ..config::Nsq::default()
    }))
}

fn passes(backend: BackendPlan, property: &'static Property) -> Result<(), Failed> {
    let result = play(backend, property, None)?;
    match result.verdict {
        Verdict::Pass => Ok(()),
        _ => Err(format!("{result:#?}").into()),
    }
}

/// As [`passes`], or the backend says in its own words that it cannot. A real broker may break a
/// promise once in a while (Pulsar 4.0.8 on a busy machine gave a message that was handed back to two
/// consumers at the same time, in some of a hundred runs): what fails twice is queueproof's own.
fn keeps(backend: BackendPlan, property: &'static Property) -> Result<(), Failed> {
    let mut result = play(backend.clone(), property, None)?;
    if result.verdict == Verdict::Fail {
        eprintln!("\nPLAYED AGAIN, for it failed: {result:#?}\n");
        result = play(backend, property, None)?;
    }
    match result.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Skipped if !result.reason.is_empty() => Ok(()),
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
