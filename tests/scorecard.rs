//! Scorecards, as a user has them answered: with files of results.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use proptest::prelude::*;
use queueproof::{
    config::Format,
    report::{self, Style},
    scorecard::{self, Score, Status, Test, file},
};
use serde_json::{Value, json};

const SENSU: &str = "configs/sensu.yaml";

/// A small scorecard with each kind of test.
const CARD: &str = "\
schema: queueproof/scorecard/1
name: small
about: one of each kind
requirements:
  - name: locked
    words: A message is locked to one consumer, and handed on if that does not acknowledge it.
    level: must
    properties: [work-queue/lock, redelivery/ack-timeout]
  - name: once
    words: A message is stored once, though several publish it.
    level: must
    any:
      - property: dedup/across-publishers
      - property: pubsub/exclusive-publisher
  - name: soon
    words: Of 100 messages 99 come within a second.
    level: should
    figure: {property: scheduling/lateness, name: received_p99_ms, at_most: 1000}
  - name: small
    words: The broker is small.
    level: should
    cost: {name: resident_mb, at_most: 100}
  - name: open
    words: The broker is open source.
    level: should
    fact:
      nats: {meets: true, words: Apache-2.0, source: 'https://example.org/nats'}
      nsq: {meets: true, words: MIT, source: 'https://example.org/nsq'}
";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("card.yaml", CARD);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().into()
    }

    /// The answers to this folder's scorecard.
    fn scored(&self, files: &[&str], flags: &[&str]) -> Output {
        let paths = files.iter().map(|name| self.path(name));
        let card = self.path("card.yaml");
        queueproof().arg("scorecard").arg(card).args(paths).args(flags).output().unwrap()
    }
}

/// The program without anything of this machine's environment that matters to it.
fn queueproof() -> Command {
    let mut command = Command::cargo_bin("queueproof").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUEUEPROOF_")) {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn property(id: &str, verdict: &str, detail: &str, observed: Value) -> Value {
    let (reason, figure) = if verdict == "pass" { ("", detail) } else { (detail, "") };
    let anomalies = match verdict {
        "fail" => json!([{ "kind": "late-redelivery", "count": 2, "examples": [detail] }]),
        _ => json!([]),
    };
    json!({ "id": id, "group": "g", "verdict": verdict, "reason": reason, "anomalies": anomalies,
        "observed": observed, "key_figure": figure, "duration_ms": 1 })
}

fn target(name: &str, version: &str, properties: &[Value]) -> Value {
    // What a backend declares, as the program itself writes it.
    let support: serde_json::Map<_, _> = queueproof_backends::Capability::ALL
        .iter()
        .map(|capability| {
            let lacks =
                name == "nsq" && matches!(capability.name(), "dedup-id" | "exclusive-publisher");
            let why = "nsqd stores what it is sent".to_string();
            let support = match lacks {
                true => queueproof_backends::Support::Unsupported { why },
                false => queueproof_backends::Support::Native,
            };
            (capability.name().into(), serde_json::to_value(support).unwrap())
        })
        .collect();
    let zero = json!({ "secs": 0, "nanos": 0 });
    json!({ "name": name, "backend": name, "broker_version": version, "settings": null,
        "capabilities": { "support": support, "limits": {
            "min_payload": 0, "max_payload": null, "dedup_scope": null,
            "disconnect": "immediately", "ack_timeout_resolution": zero,
            "nack_delay_resolution": zero, "dedup_window_resolution": zero,
            "publish_delay_resolution": zero, "publish_delay_early": zero,
            "attempts_forget_disconnects": false, "prefetch_counts_unsettled": false,
            "memory_queue": null } },
        "properties": properties })
}

fn results(targets: &[Value]) -> String {
    json!({ "schema": "queueproof/results/1", "tool": { "name": "queueproof", "version": "0.1.0" },
        "run": { "seed": 7, "started_at": "2026-05-01T12:00:00Z", "duration_ms": 1,
            "host": { "os": "linux", "arch": "x86_64", "cpus": 2 } },
        "targets": targets })
    .to_string()
}

/// Three brokers in a run of the suite, and two of them in one of the scheduler.
fn brokers() -> Folder {
    let folder = Folder::new();
    let lock = || property("work-queue/lock", "pass", "10 for 701 ms", json!({}));
    let timeout = |verdict, detail| property("redelivery/ack-timeout", verdict, detail, json!({}));
    let dedup = |verdict, detail| property("dedup/across-publishers", verdict, detail, json!({}));
    let exclusive =
        |verdict, detail| property("pubsub/exclusive-publisher", verdict, detail, json!({}));
    let lacks = "dedup-id: nsqd stores what it is sent";
    let conform = [
        target(
            "nats",
            "2.15.2",
            &[lock(), timeout("pass", "after 1 s"), dedup("pass", "75 dropped")],
        ),
        target(
            "pulsar",
            "4.0.8",
            &[
                lock(),
                timeout("fail", "message 7 came back after 9 s"),
                exclusive("unknown", "the drain did not end"),
            ],
        ),
        target(
            "nsq",
            "1.3.0",
            &[
                lock(),
                timeout("pass", "after 1 s"),
                dedup("skipped", lacks),
                exclusive("skipped", "exclusive-publisher: nsqd stores what it is sent"),
            ],
        ),
    ];
    folder.write("conform.json", &results(&conform));
    let lateness = |p99: f64| {
        property("scheduling/lateness", "pass", "p99", json!({ "received_p99_ms": p99 }))
    };
    let mut nats = target("nats", "2.15.2", &[lateness(12.5)]);
    nats["cost"] = json!({ "resident_mb": 130 });
    folder.write("schedule.json", &results(&[nats, target("nsq", "1.3.0", &[lateness(1500.0)])]));
    folder
}

macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text)
        })
    };
}

#[test]
fn the_help_is_as_recorded() {
    snapshot!(
        "help_scorecard",
        text(&queueproof().args(["scorecard", "--help"]).output().unwrap().stdout)
    );
}

#[test]
fn the_table_is_as_recorded_and_one_target_that_meets_all_musts_is_enough() {
    let output = brokers().scored(&["conform.json", "schedule.json"], &[]);
    snapshot!("scorecard", text(&output.stdout));
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
}

#[test]
fn without_a_run_of_the_scheduler_its_figures_are_undecided() {
    let output = brokers().scored(&["conform.json"], &["--format", "json"]);
    let score: Score = serde_json::from_slice(&output.stdout).unwrap();
    let statuses: Vec<_> = score.targets[0].answers.iter().map(|answer| answer.status).collect();
    use Status::{Meets, Undecided};
    assert_eq!(statuses, [Meets, Meets, Undecided, Undecided, Meets]);
}

#[test]
fn the_json_says_what_the_table_says() {
    let output = brokers().scored(&["conform.json", "schedule.json"], &["--format", "json"]);
    assert_eq!(code(&output), Some(0));
    let score: Score = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((score.schema.as_str(), score.scorecard.as_str()), ("queueproof/score/1", "small"));
    let conclusions: Vec<_> = score.targets.iter().map(|t| t.conclusion.as_str()).collect();
    assert_eq!(
        conclusions,
        [
            "meets all 2 musts and 2 of 3 shoulds (fails: small)",
            "fails: locked; undecided: once",
            "fails: once"
        ]
    );
    assert_eq!(score.conclusion, "nats alone meets all musts");
}

#[test]
fn the_exit_code_tells_failing_from_undecided() {
    let folder = brokers();
    let only = |name: &str, file: &str| {
        let all: Value =
            serde_json::from_slice(&fs::read(folder.path("conform.json")).unwrap()).unwrap();
        let targets = all["targets"].as_array().unwrap();
        let found = targets.iter().find(|target| target["name"] == name).unwrap();
        folder.write(file, &results(std::slice::from_ref(found)));
    };
    only("nsq", "nsq.json");
    only("pulsar", "pulsar.json");
    assert_eq!(code(&folder.scored(&["nsq.json"], &[])), Some(1));
    assert_eq!(code(&folder.scored(&["nsq.json", "pulsar.json"], &[])), Some(1));
    assert_eq!(code(&folder.scored(&["schedule.json"], &[])), Some(4));
    let mut gone = target("nats", "", &[]);
    gone["absent"] = "no nats-server is installed".into();
    folder.write("gone.json", &results(&[gone]));
    let output = folder.scored(&["gone.json"], &[]);
    assert_eq!(code(&output), Some(4));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("absent, so not judged: nats") && shown.contains("no target was judged")
    );
}

#[test]
fn what_cannot_be_read_ends_with_2_and_its_place() {
    let folder = brokers();
    let broken = CARD.replace("work-queue/lock", "work-queue/lok");
    folder.write("card.yaml", &broken);
    let output = folder.scored(&["conform.json"], &[]);
    assert_eq!((code(&output), output.stdout.len()), (Some(2), 0));
    let words = text(&output.stderr);
    let expected = "card.yaml:8:18: requirements[0].properties[0]: there is no property \
                    \"work-queue/lok\"; did you mean work-queue/lock?";
    assert!(words.contains(expected), "{words}");
    folder.write("card.yaml", CARD);
    folder.write("bad.json", "{}");
    let output = folder.scored(&["bad.json"], &[]);
    assert_eq!(code(&output), Some(2));
    assert!(text(&output.stderr).contains("bad.json:1:2: missing field `schema`"));
    let missing = folder.path("none.yaml");
    let output = queueproof().arg("scorecard").arg(&missing).arg("x.json").output().unwrap();
    assert_eq!(code(&output), Some(2));
    assert!(text(&output.stderr).contains("none.yaml: No such file"));
    let output = queueproof().args(["scorecard", SENSU]).output().unwrap();
    assert_eq!(code(&output), Some(2), "no results were named");
}

#[test]
fn what_the_suite_finds_on_the_embedded_broker_meets_what_it_was_asked() {
    let found = queueproof()
        .args(["conform", "--format", "json", "--seed", "7"])
        .args(["--property", "work-queue,redelivery,dedup"])
        .output()
        .unwrap();
    let output = queueproof()
        .args(["scorecard", SENSU, "-", "--format", "json"])
        .write_stdin(found.stdout)
        .output()
        .unwrap();
    let score: Score = serde_json::from_slice(&output.stdout).unwrap();
    let status = |name: &str| {
        let answers = &score.targets[0].answers;
        answers.iter().find(|answer| answer.requirement == name).unwrap().status
    };
    for met in ["deleted", "scheduled-once", "consumed-directly"] {
        assert_eq!(status(met), Status::Meets, "{met}");
    }
    assert_eq!(status("once-in-practice"), Status::Undecided, "nothing was scheduled");
    assert_eq!(code(&output), Some(4));
}

#[test]
fn sensus_scorecard_asks_for_all_that_its_scheduler_needs() {
    let sensu = file::read(Path::new(SENSU)).unwrap();
    let mut asked = Vec::new();
    fn ids<'t>(test: &'t Test, found: &mut Vec<&'t str>) {
        match test {
            Test::Properties(ids) => found.extend(ids.iter().map(String::as_str)),
            Test::Figure { property, .. } => found.push(property),
            Test::Any(tests) => tests.iter().for_each(|test| ids(test, found)),
            Test::Cost { .. } | Test::Fact(_) => {}
        }
    }
    sensu.requirements.iter().for_each(|requirement| ids(&requirement.test, &mut asked));
    for id in [
        "scheduling/every-tick-executed",
        "scheduling/once-per-tick",
        "scheduling/fair-coverage",
        "scheduling/agent-crash",
        "scheduling/lateness",
        "redelivery/ack-timeout",
        "dedup/across-publishers",
        "pubsub/exclusive-publisher",
        "pubsub/fan-out",
    ] {
        assert!(asked.contains(&id), "{id}");
    }
}

#[test]
fn the_table_shows_nothing_that_a_terminal_obeys_fits_the_paper_and_colours_only_on_demand() {
    let folder = brokers();
    let evil = CARD
        .replace("words: The broker is small.", "words: \"\\e[2Jsmall\"")
        .replace("about: one of each kind", "about: \"\\e]0;title\\a\"");
    folder.write("card.yaml", &evil);
    let conform = fs::read_to_string(folder.path("conform.json")).unwrap();
    folder.write("evil.json", &conform.replace("the drain", r"\u001b[8mthe drain"));
    let output = folder.scored(&["evil.json", "schedule.json"], &[]);
    let shown = text(&output.stdout);
    assert!(shown.contains("[2Jsmall") && shown.contains("[8mthe drain"), "{shown}");
    assert_eq!(shown.chars().find(|c| c.is_control() && *c != '\n'), None);
    for line in shown.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let output = folder.scored(&["conform.json"], &["--color", "always"]);
    assert!(text(&output.stdout).contains("\u{1b}["));
}

/// All that is done with a scorecard that may come from anywhere.
fn answer_all(card: &str, folder: &Folder) {
    let Ok(card) = file::parse(card, &"a.yaml") else { return };
    let bytes = fs::read(folder.path("conform.json")).unwrap();
    let results = queueproof::compare::read::parse("b.json", &bytes).unwrap();
    let score = scorecard::evaluate(&card, &results.targets);
    for format in [Format::Table, Format::Json] {
        for width in [None, Some(1), Some(100)] {
            report::render_score(format, &score, Style { color: true, width }).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_to_a_scorecard_makes_it_panic(at in 0_usize..1200, with in "[ -~\n\t]{0,4}") {
        let folder = brokers();
        let mut text = CARD.to_string();
        text.insert_str(at.min(text.len()), &with);
        answer_all(&text, &folder);
    }
}
