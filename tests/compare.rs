//! Comparing saved results, as a user does it: with files that the program itself made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::LazyLock,
};

use assert_cmd::Command;
use proptest::prelude::*;
use queueproof::{
    compare::{self, Comparison, FailOn, Tolerance},
    config::Format,
    report::{self, Style},
};
use serde_json::{Value, json};

/// Files of results, made once for all tests; nothing drops what is static, so they are made over
/// in the folder of the build.
struct Files {
    folder: PathBuf,
}

/// Some of the suite, so that what is recorded here does not change with all of it.
const PROPERTIES: &str = "work-queue/once-each,work-queue/lock,work-queue/fairness,\
    work-queue/join,work-queue/leave,dedup/same-publisher,dedup/reopened-publisher,\
    dedup/across-publishers,dedup/window-expiry";

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let files = Files { folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare") };
    fs::create_dir_all(&files.folder).unwrap();
    let conform = |flags: &[&str]| {
        let property = ["--property", PROPERTIES];
        let fixed = ["conform", "--format", "json", "--seed", "7"];
        run(&[&fixed[..], &property, flags].concat()).stdout
    };
    let base: Value = serde_json::from_slice(&conform(&[])).unwrap();
    let mut flawed: Value =
        serde_json::from_slice(&conform(&["--flaw", "dedup-per-publisher"])).unwrap();
    files.write("base.json", &base, "2026-05-01T12:00:00Z");
    files.write("flawed.json", &flawed, "2026-05-02T12:00:00Z");
    // As an older version on another machine might have found it.
    flawed["run"]["seed"] = 8.into();
    flawed["run"]["host"]["cpus"] = 64.into();
    flawed["tool"]["version"] = "0.0.9".into();
    let target = &mut flawed["targets"][0];
    target["broker_version"] = "0.0.9".into();
    target["settings"]["max_payload"] = 4096.into();
    target["settings"]["suite"]["messages"] = 5000.into();
    target["capabilities"]["support"].as_object_mut().unwrap().remove("touch");
    let properties = target["properties"].as_array_mut().unwrap();
    properties.retain(|p| p["id"] != "work-queue/lock" && p["id"] != "work-queue/join");
    let mut edit = |id: &str, fields: Value| {
        let property = properties.iter_mut().find(|p| p["id"] == id).unwrap();
        property.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    };
    let anomaly = |kind: &str| json!({ "kind": kind, "count": 2, "examples": ["an example"] });
    edit(
        "dedup/same-publisher",
        json!({ "verdict": "fail", "anomalies": [anomaly("duplicate-stored"), anomaly("lost")] }),
    );
    let broken = json!({ "verdict": "broken", "reason": "the broker is gone", "observed": {} });
    edit("work-queue/leave", broken.clone());
    edit("work-queue/fairness", broken);
    let unknown = json!({ "verdict": "unknown", "reason": "the drain did not end" });
    edit("work-queue/once-each", unknown);
    let figures = json!({ "longest_dropped_ms": 1950.5, "shortest_accepted_ms": 2600,
        "window": "sliding" });
    edit("dedup/window-expiry", json!({ "observed": figures }));
    files.write("edited.json", &flawed, "2026-05-03T12:00:00Z");
    // Another broker, and one that was not there.
    let mut other = base;
    other["targets"][0]["name"] = "other".into();
    files.write("other.json", &other, "2026-05-04T12:00:00Z");
    let absent = json!({ "name": "memory", "backend": "memory", "broker_version": "",
        "settings": null, "capabilities": null, "absent": "no such broker\n\tis installed",
        "properties": [] });
    other["targets"].as_array_mut().unwrap().push(absent);
    files.write("absent.json", &other, "2026-05-05T12:00:00Z");
    files
});

impl Files {
    /// Writes results, without what differs from machine to machine.
    fn write(&self, name: &str, results: &Value, began: &str) {
        let mut results = results.clone();
        let cpus = results["run"]["host"]["cpus"].clone();
        results["run"]["host"] = json!({ "os": "linux", "arch": "x86_64",
            "cpus": if cpus == 64 { 64 } else { 2 } });
        results["run"]["started_at"] = began.into();
        let text = serde_json::to_string_pretty(&results).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
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

fn run(arguments: &[&str]) -> Output {
    queueproof().args(arguments).output().unwrap()
}

/// Compares files by their names in the folder of all.
fn compared(files: &[&str], flags: &[&str]) -> Output {
    let paths = files.iter().map(|name| FILES.path(name));
    queueproof().arg("compare").args(paths).args(flags).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
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
    snapshot!("help_compare", text(&run(&["compare", "--help"]).stdout));
}

#[test]
fn the_table_of_a_broken_promise_is_as_recorded() {
    let output = compared(&["base.json", "flawed.json"], &[]);
    snapshot!("compare_flaw", text(&output.stdout));
    assert_eq!(code(&output), Some(0), "nothing was to fail on");
}

#[test]
fn the_table_of_all_that_can_differ_is_as_recorded() {
    let output = compared(&["base.json", "edited.json"], &[]);
    snapshot!("compare_all", text(&output.stdout));
}

#[test]
fn the_table_of_several_brokers_and_files_is_as_recorded() {
    let output = compared(&["base.json", "flawed.json", "other.json", "absent.json"], &[]);
    snapshot!("compare_several", text(&output.stdout));
}

#[test]
fn one_file_is_shown_as_it_was_found() {
    let output = compared(&["base.json"], &[]);
    assert_eq!(code(&output), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.contains("│ work-queue/lock ") && shown.contains("pass  10 for 700 ms"));
    for section in ["changed", "moved", "circumstances", "more than one file", "care"] {
        assert!(!shown.contains(section), "{shown}");
    }
}

#[test]
fn two_brokers_in_two_files_stand_side_by_side() {
    let output = compared(&["base.json", "other.json"], &[]);
    assert_eq!(code(&output), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.contains("memory (0.1.0)") && shown.contains("other (memory 0.1.0)"), "{shown}");
    assert!(shown.contains("no target is in more than one file"), "{shown}");
    for flags in [["--fail-on", "change"], ["--fail-on", "regression"]] {
        let output = compared(&["base.json", "other.json"], &flags);
        assert_eq!((code(&output), output.stdout.len()), (Some(2), 0));
        let words = text(&output.stderr);
        assert!(words.contains("no target is in more than one file (targets: memory, other)"));
    }
}

#[test]
fn a_regression_ends_with_1_and_is_named_and_its_reverse_is_only_a_change() {
    let codes = |files: [&str; 2]| {
        ["change", "regression"].map(|what| code(&compared(&files, &["--fail-on", what])))
    };
    assert_eq!(codes(["base.json", "base.json"]), [Some(0), Some(0)]);
    assert_eq!(codes(["base.json", "flawed.json"]), [Some(1), Some(1)]);
    assert_eq!(codes(["flawed.json", "base.json"]), [Some(1), Some(0)]);
    assert_eq!(codes(["absent.json", "base.json"]), [Some(1), Some(1)], "other vanished");
    let output = compared(&["base.json", "flawed.json"], &["--fail-on", "regression"]);
    let words = text(&output.stderr);
    assert!(words.contains("--fail-on regression: memory dedup/"), "{words}");
    assert!(words.contains(": pass → FAIL duplicate-stored; and "), "{words}");
    assert!(!output.stdout.is_empty(), "the comparison is printed all the same");
    // A step that a later file takes back was one.
    let output = compared(&["base.json", "flawed.json", "base.json"], &["--fail-on", "regression"]);
    assert_eq!(code(&output), Some(1));
}

#[test]
fn the_tolerance_decides_what_moved() {
    let moved = |tolerance: &str| {
        let flags = ["--format", "json", "--tolerance", tolerance];
        let output = compared(&["base.json", "edited.json"], &flags);
        let comparison: Comparison = serde_json::from_slice(&output.stdout).unwrap();
        let moved = comparison.targets[0].moved.clone();
        let moved = moved.into_iter().find(|m| m.property == "dedup/window-expiry").unwrap();
        moved.figures.into_iter().map(|figure| figure.name).collect::<Vec<_>>()
    };
    assert_eq!(moved("0"), ["longest_dropped_ms", "shortest_accepted_ms", "window"]);
    assert_eq!(moved("10"), ["shortest_accepted_ms", "window"]);
    assert_eq!(moved("1000"), ["window"]);
}

#[test]
fn the_json_says_what_the_table_says() {
    let output = compared(&["base.json", "edited.json"], &["--format", "json"]);
    let comparison: Comparison = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(comparison.schema, "queueproof/comparison/1");
    let series = &comparison.targets[0];
    assert_eq!((series.target.as_str(), series.files.as_slice()), ("memory", &[0, 1][..]));
    let change = series.changes.iter().find(|c| c.property.as_deref() == Some("work-queue/leave"));
    let to = change.unwrap().to.found.as_ref().unwrap();
    assert_eq!(to.reason, "the broker is gone");
    let from = change.unwrap().from.found.as_ref().unwrap();
    assert_eq!(from.key_figure, "after 0 µs");
    assert!(comparison.circumstances.iter().any(|d| d.what == "settings.max_payload"));
    assert!(comparison.breaches(FailOn::Regression).is_ok_and(|found| found.len() == 8));
}

#[test]
fn results_are_taken_from_standard_input_once() {
    let base = FILES.path("base.json");
    let mut command = queueproof();
    command.arg("compare").arg(&base).arg("-").args(["--fail-on", "regression"]);
    let output =
        command.write_stdin(fs::read(FILES.path("flawed.json")).unwrap()).output().unwrap();
    assert_eq!(code(&output), Some(1));
    assert!(text(&output.stdout).contains("stdin"));
    let output = run(&["compare", "-", "-"]);
    assert_eq!(code(&output), Some(2));
    assert!(text(&output.stderr).contains("it is named 2 times"));
    let output = queueproof().args(["compare", "-"]).write_stdin("").output().unwrap();
    assert!(text(&output.stderr).contains("stdin:1:1: the file is empty"));
}

#[test]
fn what_cannot_be_read_ends_with_2_and_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let base = fs::read_to_string(FILES.path("base.json")).unwrap();
    let file = |name: &str, text: &str| -> String {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    };
    let missing = folder.path().join("missing.json").display().to_string();
    let cases = [
        (missing, "missing.json: cannot be read: No such file"),
        (folder.path().display().to_string(), "cannot be read: Is a directory"),
        (file("empty.json", ""), "empty.json:1:1: the file is empty"),
        (file("table.txt", "┌───────┐\n"), "table.txt:1:1: expected value"),
        (file("cut.json", &base[..base.len() / 2]), "cut.json:"),
        (
            file("new.json", &base.replacen("results/1", "results/2", 1)),
            "new.json:12:34: the schema is \"queueproof/results/2\", and this version of \
             queueproof compares \"queueproof/results/1\"",
        ),
        (file("big.json", &" ".repeat((16 << 20) + 1)), "big.json: over 16 MiB"),
    ];
    let good = FILES.path("base.json").display().to_string();
    for (path, expected) in cases {
        for arguments in [vec!["compare", &path], vec!["compare", &good, &path]] {
            let output = run(&arguments);
            let words = text(&output.stderr);
            assert_eq!((code(&output), output.stdout.len()), (Some(2), 0), "{path}: {words}");
            assert!(words.contains(expected), "{words}");
            assert!(words.contains("expected results, as queueproof conform --format json"));
        }
    }
    let mistakes: [&[&str]; 4] = [
        &["compare"],
        &["compare", &good, "--tolerance", "1001"],
        &["compare", &good, "--tolerance", "much"],
        &["compare", &good, "--fail-on", "anything"],
    ];
    for arguments in mistakes {
        assert_eq!(code(&run(arguments)), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_table_shows_nothing_that_a_terminal_obeys_and_colours_only_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evil.json");
    let mut evil: Value =
        serde_json::from_slice(&fs::read(FILES.path("edited.json")).unwrap()).unwrap();
    evil["targets"][0]["broker_version"] = "\u{1b}[2Jversion".into();
    evil["targets"][0]["settings"]["\u{7}key"] = "\u{9b}31mvalue".into();
    for property in evil["targets"][0]["properties"].as_array_mut().unwrap() {
        for field in ["reason", "key_figure"] {
            property[field] = format!("\u{1b}]0;{field}\u{7}").into();
        }
        property["observed"]["\u{1b}[5m"] = "\u{1b}[8m".into();
    }
    fs::write(&path, evil.to_string()).unwrap();
    let output = compared(&["base.json", path.to_str().unwrap()], &[]);
    assert_eq!(code(&output), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.contains("version") && shown.contains("]0;reason"), "{shown}");
    assert_eq!(shown.chars().find(|c| c.is_control() && *c != '\n'), None);
    let output = compared(&["base.json", "edited.json"], &["--color", "always"]);
    assert!(text(&output.stdout).contains("\u{1b}["));
}

#[test]
fn no_line_is_wider_than_the_paper() {
    for files in [&["base.json"; 1][..], &["base.json", "edited.json"], &["base.json"; 9]] {
        for line in text(&compared(files, &[]).stdout).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

/// All that a comparison does with bytes that may come from anywhere.
fn compare_all(bytes: &[u8]) {
    static BASE: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(FILES.path("base.json")).unwrap());
    let Ok(results) = compare::read::parse("b.json", bytes) else { return };
    let base = compare::read::parse("a.json", &BASE).unwrap();
    let inputs = [("a.json".to_string(), base), ("b.json".to_string(), results)];
    let comparison = compare::compare(&inputs, Tolerance::default());
    let _ = comparison.breaches(FailOn::Change);
    for format in [Format::Table, Format::Json] {
        for width in [None, Some(1), Some(100)] {
            report::render_comparison(format, &comparison, Style { color: true, width }).unwrap();
        }
    }
}

/// Any JSON, not too deep.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,9}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((".{0,9}", inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        compare_all(&bytes);
    }

    #[test]
    fn no_damage_to_a_file_makes_it_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(FILES.path("edited.json")).unwrap();
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        compare_all(&bytes);
    }

    #[test]
    fn no_settings_figures_and_words_make_it_panic(
        settings in json_value(),
        observed in proptest::collection::btree_map(".{0,9}", json_value(), 0..5),
        words in proptest::collection::vec(".{0,40}", 4),
    ) {
        let mut results: Value =
            serde_json::from_slice(&fs::read(FILES.path("edited.json")).unwrap()).unwrap();
        let target = &mut results["targets"][0];
        target["settings"] = settings;
        target["broker_version"] = words[0].as_str().into();
        let property = &mut target["properties"][0];
        property["observed"] = serde_json::to_value(observed).unwrap();
        property["key_figure"] = words[1].as_str().into();
        property["reason"] = words[2].as_str().into();
        property["id"] = words[3].as_str().into();
        compare_all(results.to_string().as_bytes());
    }
}
