//! The program as a user meets it: what it prints, and the code with which it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use queueproof::results::{Results, Verdict};

/// The program without anything of this machine's environment that matters to it.
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Results, without what differs from run to run.
fn results(output: &Output) -> Results {
    let mut results: Results = serde_json::from_slice(&output.stdout).unwrap();
    results.run.started_at.clear();
    results.run.duration_ms = 0;
    results
}

macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            filters => vec![(r"· [0-9.]+ s", "· [time] s")],
            prepend_module_to_snapshot => false,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

#[test]
fn the_help_is_as_recorded() {
    snapshot!("help", text(&run(&["--help"]).stdout));
    snapshot!("help_conform", text(&run(&["conform", "--help"]).stdout));
}

#[test]
fn the_lists_are_as_recorded() {
    snapshot!("list_properties", text(&run(&["list", "properties"]).stdout));
    snapshot!("list_flaws", text(&run(&["list", "flaws"]).stdout));
    snapshot!("list_capabilities", text(&run(&["list", "capabilities"]).stdout));
    snapshot!("list_backends", text(&run(&["list", "backends"]).stdout));
}

#[test]
fn an_explanation_is_as_recorded() {
    snapshot!("explain_property", text(&run(&["explain", "dedup/retry-after-unknown"]).stdout));
    snapshot!("explain_flaw", text(&run(&["explain", "forget-ack"]).stdout));
}

#[test]
fn the_table_of_the_embedded_backend_is_as_recorded() {
    let output = run(&["conform", "--seed", "7", "--color", "never"]);
    snapshot!("conform_memory", text(&output.stdout));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_table_of_a_broken_promise_is_as_recorded() {
    let output =
        run(&["conform", "--seed", "7", "--flaw", "forget-ack", "--property", "work-queue"]);
    snapshot!("conform_flaw", text(&output.stdout));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    let output = run(&["config", "--profile", "full", "--set", "suite.messages=77"]);
    snapshot!("config", text(&output.stdout));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.yaml");
    fs::write(&path, &output.stdout).unwrap();
    let again = run(&["config", "--config", path.to_str().unwrap()]);
    assert_eq!(text(&again.stdout), text(&output.stdout));
}

#[test]
fn the_same_seed_gives_the_same_results() {
    let first = results(&run(&["conform", "--seed", "11", "--format", "json"]));
    let second = results(&run(&["conform", "--seed", "11", "--format", "json"]));
    assert_eq!(first, second);
    assert!(first.properties().all(|p| p.verdict == Verdict::Pass));
}

#[test]
fn a_saved_run_is_judged_the_same_again() {
    for flaw in [None, Some("lose-delivery"), Some("dedup-per-publisher")] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let out = out.to_str().unwrap();
        let mut arguments = vec!["conform", "--format", "json", "--out", out];
        arguments.extend(flaw.iter().flat_map(|flaw| ["--flaw", flaw]));
        let played = run(&arguments);
        let judged = run(&["judge", out, "--format", "json"]);
        assert_eq!(results(&judged), results(&played));
        assert_eq!(judged.status.code(), played.status.code());
    }
}

/// A saved run of one property, with its history changed.
fn judged_after(change: impl FnOnce(&Path)) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let id = "work-queue/once-each";
    run(&["conform", "--out", out.to_str().unwrap(), "--property", id]);
    change(&out.join("memory").join(format!("{id}.jsonl")));
    run(&["judge", out.to_str().unwrap()])
}

#[test]
fn a_history_that_breaks_off_decides_nothing() {
    for keep in [1.0, 0.99, 0.5, 0.01, 0.0] {
        let output = judged_after(|path| {
            let bytes = fs::read(path).unwrap();
            let end = bytes.len() - 8;
            fs::write(path, &bytes[..end.min((bytes.len() as f64 * keep) as usize)]).unwrap();
        });
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    }
    let output = judged_after(|path| fs::remove_file(path).unwrap());
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stdout).contains("there is no history"), "{}", text(&output.stdout));
}

#[test]
fn a_history_that_is_damaged_is_refused_with_its_line() {
    type Change = fn(&str) -> String;
    let changes: [(Change, &str); 3] = [
        (
            |text| text.replacen("queueproof/history/1", "queueproof/history/9", 1),
            ":1: the schema is",
        ),
        (
            |text| {
                text.lines()
                    .enumerate()
                    .map(
                        |(i, l)| {
                            if i == 4 { "{\"at\":[nonsense\n".into() } else { format!("{l}\n") }
                        },
                    )
                    .collect()
            },
            ":5: ",
        ),
        (
            |text| text.replace("\"subscription\":0", "\"subscription\":77"),
            "there is no subscription that it refers to",
        ),
    ];
    for (change, expected) in changes {
        let output = judged_after(|path| {
            fs::write(path, change(&fs::read_to_string(path).unwrap())).unwrap();
        });
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains(expected), "{words}");
    }
}

#[test]
fn a_folder_that_holds_another_run_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let arguments = ["conform", "--property", "pubsub/order", "--out", out];
    assert_eq!(run(&arguments).status.code(), Some(0));
    let again = run(&arguments);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("this folder holds another run"));
}

#[test]
fn mistakes_end_with_2_and_say_what_was_meant() {
    let cases: &[(&[&str], &str)] = &[
        (&["conform", "--property", "dedup/afterack"], "did you mean dedup/after-ack?"),
        (&["conform", "--backend", "natz"], "did you mean nats?"),
        (&["conform", "--backend", "memory", "--url", "nats://x"], "did you mean --backend nats?"),
        (&["conform", "--url", "localhost"], "begins with nats://, tls://, pulsar://"),
        (&["conform", "--flaw", "forgetack"], "did you mean forget-ack?"),
        (&["explain", "redelivery/tuch"], "did you mean redelivery/touch?"),
        (&["conform", "--jobs", "0"], "jobs: 0 is not between"),
        (&["judge", "/no/such/folder"], "/no/such/folder/run.json"),
        (&["brokers", "install", "kafka"], "kafka"),
        (&["clean"], "give --url"),
        (&["nonsense"], "nonsense"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {words}");
        assert!(words.contains(expected), "{arguments:?}: {words}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_broker_that_is_not_installed_or_not_there_ends_with_3_and_the_remedy() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = queueproof();
    command.env("PATH", "/nowhere").env("QUEUEPROOF_CACHE_DIR", cache.path());
    let output = command.args(["conform", "--backend", "nats"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let words = text(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("queueproof brokers install nats"), "{words}");
    let output = run(&["conform", "--url", "nats://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("nobody answers at 127.0.0.1:1"));
}

#[test]
fn colours_come_only_when_they_are_asked_for() {
    let colored = |arguments: &[&str]| text(&run(arguments).stdout).contains("\u{1b}[");
    assert!(!colored(&["conform", "--property", "pubsub/order"]));
    assert!(colored(&["conform", "--property", "pubsub/order", "--color", "always"]));
    let mut command = queueproof();
    command.env("NO_COLOR", "1").args(["conform", "--property", "pubsub/order"]);
    assert!(!text(&command.output().unwrap().stdout).contains("\u{1b}["));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(text(&run(&["completions", shell]).stdout).contains("queueproof"), "{shell}");
    }
}
