//! The scheduler's workload, as a user runs it: in simulated time, and on every real broker that is
//! there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path, process::Output};

use assert_cmd::Command;
use queueproof::{
    history::{Reader, What},
    results::{PropertyResult, Results, Verdict},
    scheduler::{Event, Request},
};

fn queueproof() -> Command {
    let mut command = Command::cargo_bin("queueproof").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUEUEPROOF_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    queueproof().args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Results, without what differs from run to run.
fn results(output: &Output) -> Results {
    let mut results: Results = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", words(output)));
    results.run.started_at.clear();
    results.run.duration_ms = 0;
    results
}

fn simulated(more: &[&str]) -> Results {
    let arguments = ["simulate", "--seed", "7", "--format", "json", "--duration", "60s"];
    results(&run(&[&arguments, more].concat()))
}

fn property<'r>(results: &'r Results, id: &str) -> &'r PropertyResult {
    results.properties().find(|p| p.id == format!("scheduling/{id}")).unwrap()
}

fn figure(results: &Results, id: &str, name: &str) -> f64 {
    let property = property(results, id);
    property.observed.get(name).and_then(serde_json::Value::as_f64).unwrap_or_else(|| {
        panic!("{id} observes no {name}: {property:#?}");
    })
}

#[test]
fn the_same_seed_gives_the_same_workload_figures_and_history() {
    let folder = tempfile::tempdir().unwrap();
    let history = |name: &str| {
        let out = folder.path().join(name);
        let out_text = out.to_str().unwrap();
        let churn = ["--set", "schedule.churn.every=5s", "--set", "schedule.churn.agents=2"];
        let found = simulated(&[&["--out", out_text][..], &churn].concat());
        (found, fs::read_to_string(out.join("memory/schedule.jsonl")).unwrap())
    };
    let (first, second) = (history("first"), history("second"));
    assert_eq!(first.0, second.0);
    let differ = first.1.lines().zip(second.1.lines()).find(|(one, other)| one != other);
    assert_eq!(differ, None);
    assert_eq!(first.1.len(), second.1.len());
}

#[test]
fn a_saved_workload_is_judged_again_with_the_same_results() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let events = ["--event", "20s kill 1 scheduler", "--event", "30s crash 3 agents"];
    let first = simulated(&[&["--out", out][..], &events].concat());
    let again = results(&run(&["judge", out, "--format", "json"]));
    assert_eq!(first.targets, again.targets);
    assert_eq!(property(&first, "agent-crash").verdict, Verdict::Pass);
    assert_eq!(property(&first, "failover").verdict, Verdict::Pass);
}

#[test]
fn a_history_that_breaks_off_decides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    simulated(&["--out", out.to_str().unwrap()]);
    let path = out.join("memory/schedule.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let output = run(&["judge", out.to_str().unwrap(), "--format", "json"]);
    assert_eq!(output.status.code(), Some(4));
    let again = results(&output);
    assert!(again.properties().all(|p| p.verdict != Verdict::Pass), "{again:#?}");
    assert!(again.properties().all(|p| p.verdict != Verdict::Fail), "{again:#?}");
}

#[test]
fn mistakes_of_schedulers_and_agents_are_found_in_a_workload_too() {
    for (flaw, id, kind) in [
        ("skip-tick", "every-tick-executed", "tick-missed"),
        ("ack-without-executing", "every-tick-executed", "tick-lost"),
        ("publish-twice", "once-per-tick", "scheduled-twice"),
        ("execute-twice", "once-per-tick", "executed-twice"),
        ("drift", "lateness", "late-tick"),
        ("idle-agent", "fair-coverage", "starved"),
        ("ignore-dedup", "once-per-tick", "scheduled-twice"),
    ] {
        let found = simulated(&["--flaw", flaw, "--agents", "5"]);
        let property = property(&found, id);
        assert_eq!(property.verdict, Verdict::Fail, "{flaw}: {property:#?}");
        assert!(property.anomalies.iter().any(|a| a.kind == kind), "{flaw}: {property:#?}");
        assert_eq!(found.exit_code(), 1);
    }
}

#[test]
fn a_pause_longer_than_the_window_schedules_twice_and_is_warned_of() {
    let arguments = [
        "simulate",
        "--seed",
        "7",
        "--format",
        "json",
        "--duration",
        "60s",
        "--set",
        "schedule.dedup_window=2s",
        "--event",
        "10s pause 1 scheduler for 10s",
    ];
    let output = run(&arguments);
    assert!(words(&output).contains("warning: 10s pause 1 scheduler for 10s"), "{output:?}");
    let found = results(&output);
    assert_eq!(property(&found, "once-per-tick").verdict, Verdict::Fail);
    let skipping =
        run(&[&arguments[..], &["--set", "schedule.schedulers.catch_up=false"]].concat());
    let found = results(&skipping);
    assert_eq!(property(&found, "once-per-tick").verdict, Verdict::Pass, "{found:#?}");
    assert_eq!(property(&found, "every-tick-executed").verdict, Verdict::Pass);
}

#[test]
fn a_target_that_a_workload_is_not_for_does_not_cost_the_others_their_results() {
    let arguments =
        ["schedule", "--backend", "memory,etcd-ring", "--interval", "1500ms", "--format", "json"];
    let output = run(&arguments);
    let found = results(&output);
    assert_eq!(found.targets[0].properties.len(), 10, "{}", words(&output));
    let other = &found.targets[1];
    // Where etcd is not on this machine, that is why.
    assert!(
        other.absent.is_some() || other.properties.iter().all(|p| p.verdict == Verdict::Broken)
    );
}

#[test]
fn cron_lines_are_due_when_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cron.yaml");
    fs::write(&path, "schedule:\n  duration: 1h\n  checks:\n    - {cron: '*/10 * * * *'}\n")
        .unwrap();
    let arguments = ["simulate", "--seed", "7", "--format", "json", "--config"];
    let found = results(&run(&[&arguments[..], &[path.to_str().unwrap()]].concat()));
    // From midnight on, with ten checks: at 0, 10, 20, 30, 40 and 50 past.
    assert_eq!(figure(&found, "every-tick-executed", "ticks"), 60.0);
    assert_eq!(figure(&found, "every-tick-executed", "executed"), 60.0);
}

#[test]
fn what_cannot_be_scheduled_is_refused_before_the_run_in_words_that_help() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let unknown = file(
        "unknown.yaml",
        "schedule:\n  checks: [{subscription: linux}]\n  agents: [{subscriptions: windows}]\n",
    );
    let typo = file("typo.yaml", "schedule:\n  checks:\n    - {intervall: 1s}\n");
    let cron = file("cron.yaml", "schedule:\n  checks: [{cron: 'every monday'}]\n");
    let both = file("both.yaml", "schedule:\n  checks: [{cron: '* * * * *', interval: 1s}]\n");
    let moment = file("moment.yaml", "schedule:\n  timeline: [30s explode]\n");
    let several = file("several.yaml", "schedule:\n  agents: [{count: 1}, {count: 2}]\n");
    for (arguments, expected) in [
        (&["--interval", "0s"][..], "schedule.checks[0].interval"),
        (&["--config", &unknown], "no check runs on the subscription \"windows\""),
        (&["--config", &typo], "did you mean interval?"),
        (&["--config", &cron], "no cron line"),
        (&["--config", &both], "an interval or a cron line, not both"),
        (&["--config", &moment], "kill 1 scheduler"),
        (&["--config", &several, "--agents", "5"], "several groups of agents"),
        (&["--event", "2m kill 1 scheduler"], "the workload is over after 1m"),
        (&["--event", "5s kill 4 schedulers"], "there are 3 schedulers then"),
        (&["--event", "5s crash 21 agents"], "there are 20 agents then"),
        (&["--event", "5s restart broker"], "the embedded broker has no process"),
        (&["--event", "crash some agents"], "TIME join|leave|crash N agents"),
        (&["--schedulers", "0"], "schedule.schedulers.count"),
        (&["--agents", "0"], "schedule.agents[0].count"),
        (&["--interval", "2h", "--set", "schedule.duration=1s"], "no check is due within 1s"),
        (&["--backend", "nats"], "no simulated clock"),
        (&["--flaw", "skip-tock"], "did you mean skip-tick?"),
    ] {
        let output = run(&[&["simulate"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", words(&output));
        assert!(words(&output).contains(expected), "{arguments:?}: {}", words(&output));
        assert!(output.stdout.is_empty());
    }
    let warned = run(&["simulate", "--skew", "90s", "--duration", "5s"]);
    assert!(words(&warned).contains("will be scheduled twice"), "{}", words(&warned));
    let baseline = run(&["conform", "--backend", "etcd-ring"]);
    assert_eq!(baseline.status.code(), Some(2));
    assert!(words(&baseline).contains("schedule --backend etcd-ring"), "{}", words(&baseline));
}

/// A workload on a real broker: a scheduler is killed and agents crash in its middle. `None`,
/// loudly, where the broker is not there.
fn real(backend: &str, more: &[&str], folder: &Path) -> Option<Results> {
    let out = folder.join("run");
    let arguments = [
        "schedule",
        "--backend",
        backend,
        "--seed",
        "7",
        "--format",
        "json",
        "--agents",
        "30",
        "--checks",
        "20",
        "--set",
        "schedule.ack_timeout=2s",
        "--event",
        "4s kill 1 scheduler",
        "--event",
        "6s crash 3 agents",
        "--out",
        out.to_str().unwrap(),
    ];
    let output = run(&[&arguments[..], more].concat());
    let missing = words(&output).contains("broker was found")
        || String::from_utf8_lossy(&output.stdout).contains("broker was found");
    if output.status.code() == Some(3) && missing {
        let required = std::env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
        let name = backend.split('-').next().unwrap();
        assert!(!required.split(',').any(|b| b == name), "{name} is required: {}", words(&output));
        eprintln!("\nNOT RUN: a workload on {backend}. It is not there.\n");
        return None;
    }
    let found = results(&output);
    let again = results(&run(&["judge", out.to_str().unwrap(), "--format", "json"]));
    assert_eq!(found.targets[0].properties, again.targets[0].properties);
    Some(found)
}

/// A real broker may be slow or break a promise once in a while, on a busy machine: what fails twice
/// is queueproof's own.
fn played_again_if_it_fails(test: fn()) {
    if std::panic::catch_unwind(test).is_err() {
        eprintln!("\nPLAYED AGAIN, for it failed\n");
        test();
    }
}

/// How often each tick was executed to its end, by the saved history alone.
fn executions(folder: &Path, target: &str) -> BTreeMap<(u32, u64), usize> {
    let path = folder.join("run").join(target).join("schedule.jsonl");
    let mut reader = Reader::open(&path).unwrap();
    let mut given: BTreeMap<u64, Request> = BTreeMap::new();
    let mut executed = BTreeMap::new();
    while let Some(op) = reader.next_op().unwrap() {
        let What::Schedule(event) = op.what else { continue };
        match *event {
            Event::Receive { delivery, request, .. } => drop(given.insert(delivery, request)),
            Event::Execute { delivery, ok: true, .. } => {
                let request = given[&delivery];
                *executed.entry((request.check, request.tick)).or_default() += 1;
            }
            _ => {}
        }
    }
    executed
}

#[test]
fn on_nats_nothing_is_missed_and_only_what_crashed_agents_held_is_given_out_again() {
    played_again_if_it_fails(workload_on_nats);
}

fn workload_on_nats() {
    let folder = tempfile::tempdir().unwrap();
    let Some(found) = real("nats", &["--duration", "10s"], folder.path()) else { return };
    for id in ["every-tick-executed", "once-per-tick", "failover", "agent-crash"] {
        let property = property(&found, id);
        assert_eq!(property.verdict, Verdict::Pass, "{property:#?}");
    }
    assert_eq!(figure(&found, "once-per-tick", "extra_copies"), 0.0);
    let executed = executions(folder.path(), "nats");
    assert_eq!(executed.len(), 200);
    assert!(executed.values().all(|&times| times == 1), "{executed:?}");
    let cost = &found.targets[0].cost;
    let told = |name: &str| cost.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
    assert!(
        told("resident_mb") > 1.0 && told("messages_in_per_1000_executions") > 1000.0,
        "{cost:?}"
    );
}

#[test]
fn on_nsq_each_further_scheduler_schedules_once_more() {
    played_again_if_it_fails(workload_on_nsq);
}

fn workload_on_nsq() {
    let folder = tempfile::tempdir().unwrap();
    let Some(found) = real("nsq", &["--duration", "10s"], folder.path()) else { return };
    assert_eq!(property(&found, "every-tick-executed").verdict, Verdict::Pass);
    let property = property(&found, "once-per-tick");
    assert_eq!(property.verdict, Verdict::Fail);
    // Three schedulers for four seconds, two for six.
    let extra = figure(&found, "once-per-tick", "extra_per_tick");
    assert!((1.2..1.6).contains(&extra), "{extra}");
    let executed = executions(folder.path(), "nsq");
    let times: usize = executed.values().sum();
    assert_eq!(times as f64 / executed.len() as f64 - 1.0, (times - executed.len()) as f64 / 200.0);
}

#[test]
fn on_pulsar_a_hand_over_misses_what_falls_due_meanwhile_and_numbers_make_that_good() {
    played_again_if_it_fails(workload_on_pulsar);
}

fn workload_on_pulsar() {
    let folder = tempfile::tempdir().unwrap();
    let Some(found) = real("pulsar", &["--duration", "10s"], folder.path()) else { return };
    let failover = property(&found, "failover");
    assert_eq!(failover.verdict, Verdict::Pass, "{failover:#?}");
    let after = figure(&found, "failover", "replaced_after_ms");
    assert!(after > 0.0 && after < 5000.0, "{after}");
    assert_eq!(figure(&found, "once-per-tick", "extra_copies"), 0.0);
    let missed = figure(&found, "every-tick-executed", "missed");
    assert_eq!(missed, figure(&found, "failover", "missed_in_gap"));
    assert_eq!(executions(folder.path(), "pulsar").len() as f64, 200.0 - missed);

    let folder = tempfile::tempdir().unwrap();
    let more = ["--duration", "10s", "--strategy", "sequence"];
    let found = real("pulsar", &more, folder.path()).unwrap();
    let once = property(&found, "once-per-tick");
    assert_eq!(once.verdict, Verdict::Pass, "{once:#?}");
    assert_eq!(figure(&found, "every-tick-executed", "missed"), 0.0);
    assert_eq!(executions(folder.path(), "pulsar").len(), 200);
}

#[test]
fn on_the_ring_in_etcd_checks_are_late_and_what_an_agent_held_when_it_crashed_is_lost() {
    played_again_if_it_fails(workload_on_ring);
}

fn workload_on_ring() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--duration", "12s", "--interval", "3s", "--event", "9s crash 3 agents"];
    let Some(found) = real("etcd-ring", &more, folder.path()) else { return };
    assert_eq!(property(&found, "every-tick-executed").verdict, Verdict::Fail);
    let executed = executions(folder.path(), "etcd-ring").len() as f64;
    let ticks = figure(&found, "every-tick-executed", "ticks");
    assert_eq!(executed, figure(&found, "every-tick-executed", "executed"));
    assert!(executed > 0.0 && executed < ticks, "{executed} of {ticks}");
    assert!(figure(&found, "lateness", "received_p50_ms") > 100.0);
    let cost = &found.targets[0].cost;
    assert!(
        cost["leases"].as_f64().unwrap() >= 30.0 && cost["watchers"].as_f64().unwrap() >= 120.0
    );
}

#[test]
fn a_workload_that_is_broken_off_ends_soon_and_leaves_its_history() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_queueproof"));
    command.args(["simulate", "--duration", "8000h", "--seed", "7", "--out"]).arg(&out);
    let mut child = command
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !out.join("memory/schedule.jsonl").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let again = run(&["judge", out.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(3));
}
