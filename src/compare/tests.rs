//! What is a change, a figure that moved, a difference in circumstances, and what is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const VERDICTS: [&str; 5] = ["pass", "skipped", "unknown", "broken", "fail"];

/// Results of some targets. They are made from JSON, as those of a file are.
fn run(targets: Value) -> Results {
    let run = json!({
        "schema": crate::results::SCHEMA,
        "tool": { "name": "queueproof", "version": "0.1.0" },
        "run": {
            "seed": 7,
            "started_at": "2026-05-01T12:00:00Z",
            "duration_ms": 1000,
            "host": { "os": "linux", "arch": "x86_64", "cpus": 2 },
        },
        "targets": targets,
    });
    serde_json::from_value(run).unwrap()
}

fn target(name: &str, properties: Vec<Value>) -> Value {
    json!({
        "name": name,
        "backend": name,
        "broker_version": "1.2.3",
        "settings": { "storage": "file", "suite": { "messages": 200 } },
        "capabilities": null,
        "properties": properties,
    })
}

fn property(id: &str, verdict: &str, kinds: &[&str], observed: Value) -> Value {
    let kinds = kinds.iter().map(|kind| json!({ "kind": kind, "count": 3, "examples": [] }));
    json!({
        "id": id,
        "group": id.split('/').next(),
        "verdict": verdict,
        "reason": if verdict == "pass" { "" } else { "because" },
        "anomalies": kinds.collect::<Vec<_>>(),
        "observed": observed,
        "key_figure": "",
        "duration_ms": 5,
    })
}

/// A run of one property on one target.
fn one(verdict: &str, kinds: &[&str], observed: Value) -> Results {
    run(json!([target("nats", vec![property("dedup/x", verdict, kinds, observed)])]))
}

fn passed(observed: Value) -> Results {
    one("pass", &[], observed)
}

/// A comparison of runs, in files called 0.json, 1.json, …
fn compared(runs: &[Results], tolerance: f64) -> Comparison {
    let named = |(number, run): (usize, &Results)| (format!("{number}.json"), run.clone());
    let inputs: Vec<_> = runs.iter().enumerate().map(named).collect();
    compare(&inputs, Tolerance::try_from(tolerance).unwrap())
}

/// The changes of all targets: property, numbers of the files, direction.
fn changes(comparison: &Comparison) -> Vec<(Option<&str>, usize, usize, Direction)> {
    let changes = comparison.targets.iter().flat_map(|series| &series.changes);
    let parts = |c: &'_ Change| (c.from.file, c.to.file, c.direction);
    changes
        .map(|c| {
            let (from, to, direction) = parts(c);
            (c.property.as_deref(), from, to, direction)
        })
        .collect()
}

/// The figures that moved, with their change.
fn moved(comparison: &Comparison) -> Vec<(&str, Option<f64>)> {
    let moved = comparison.targets.iter().flat_map(|series| &series.moved);
    moved.flat_map(|m| &m.figures).map(|f| (f.name.as_str(), f.change_percent)).collect()
}

#[test]
fn a_verdict_gets_worse_in_one_order_and_better_only_by_a_pass() {
    for (rank, from) in VERDICTS.iter().enumerate() {
        for (other, to) in VERDICTS.iter().enumerate() {
            let kinds = |verdict: &str| if verdict == "fail" { vec!["lost"] } else { vec![] };
            let runs = [one(from, &kinds(from), json!({})), one(to, &kinds(to), json!({}))];
            let expected = match (rank, other) {
                (rank, other) if rank == other => vec![],
                (_, 0) => vec![(Some("dedup/x"), 0, 1, Direction::Better)],
                (rank, other) if other > rank => vec![(Some("dedup/x"), 0, 1, Direction::Worse)],
                _ => vec![(Some("dedup/x"), 0, 1, Direction::Other)],
            };
            assert_eq!(changes(&compared(&runs, 10.0)), expected, "{from} to {to}");
        }
    }
}

#[test]
fn a_property_that_fails_in_another_way_too_is_worse() {
    let fails = |kinds: &[&str]| one("fail", kinds, json!({}));
    let direction = |from: &[&str], to: &[&str]| {
        let comparison = compared(&[fails(from), fails(to)], 10.0);
        changes(&comparison).first().map(|change| change.3)
    };
    assert_eq!(direction(&["duplicate"], &["duplicate", "lost"]), Some(Direction::Worse));
    assert_eq!(direction(&["duplicate"], &["lost"]), Some(Direction::Worse));
    assert_eq!(direction(&["duplicate", "lost"], &["lost"]), Some(Direction::Other));
    assert_eq!(direction(&["duplicate", "lost"], &["lost", "duplicate"]), None);
    // What a broken environment leaves of breaches proves nothing.
    let broken = [one("broken", &[], json!({})), one("broken", &["lost"], json!({}))];
    assert_eq!(changes(&compared(&broken, 10.0)), []);
}

#[test]
fn what_vanished_is_a_regression_and_what_appeared_is_a_change() {
    let of = |ids: &[&str]| {
        let properties = ids.iter().map(|id| property(id, "pass", &[], json!({})));
        run(json!([target("nats", properties.collect())]))
    };
    let comparison = compared(&[of(&["a/1", "a/2"]), of(&["a/1", "a/3"])], 10.0);
    assert_eq!(
        changes(&comparison),
        [(Some("a/2"), 0, 1, Direction::Worse), (Some("a/3"), 0, 1, Direction::Other)]
    );
    assert_eq!(comparison.breaches(FailOn::Regression).unwrap().len(), 1);
    assert_eq!(comparison.breaches(FailOn::Change).unwrap().len(), 2);
    let comparison = compared(&[of(&["a/1"]), of(&["a/1", "a/3"])], 10.0);
    assert!(comparison.breaches(FailOn::Regression).unwrap().is_empty());
    assert_eq!(comparison.breaches(FailOn::Change).unwrap().len(), 1);
}

#[test]
fn a_property_that_was_away_is_compared_with_its_last_verdict() {
    let keep = property("a/1", "pass", &[], json!({}));
    let with = |verdict: &str| {
        run(json!([target("nats", vec![keep.clone(), property("a/2", verdict, &[], json!({}))])]))
    };
    let without = run(json!([target("nats", vec![keep.clone()])]));
    let runs = [with("pass"), without.clone(), without.clone(), with("broken")];
    assert_eq!(
        changes(&compared(&runs, 10.0)),
        [(Some("a/2"), 0, 1, Direction::Worse), (Some("a/2"), 0, 3, Direction::Worse)]
    );
    let runs = [with("pass"), without, with("pass")];
    assert_eq!(
        changes(&compared(&runs, 10.0)),
        [(Some("a/2"), 0, 1, Direction::Worse), (Some("a/2"), 0, 2, Direction::Other)]
    );
}

#[test]
fn a_target_that_vanished_or_has_no_verdicts_is_a_regression() {
    let nats = || target("nats", vec![property("a/1", "pass", &[], json!({}))]);
    let memory = || target("memory", vec![property("a/1", "pass", &[], json!({}))]);
    let both = run(json!([nats(), memory()]));
    for second in [json!([memory()]), json!([target("nats", vec![]), memory()])] {
        let comparison = compared(&[both.clone(), run(second)], 10.0);
        assert_eq!(changes(&comparison), [(None, 0, 1, Direction::Worse)]);
        let found = comparison.breaches(FailOn::Regression).unwrap();
        assert_eq!(found[0].0, "nats");
    }
    let comparison = compared(&[run(json!([target("nats", vec![]), memory()])), both], 10.0);
    assert_eq!(changes(&comparison), [(None, 0, 1, Direction::Other)]);
    assert_eq!(
        (comparison.targets[0].absent.clone(), comparison.targets[0].files.clone()),
        (vec![0], vec![1])
    );
    assert_eq!(comparison.columns[0].absent.as_deref(), Some("no property was checked"));
    assert_eq!(comparison.columns[1].absent, None);
}

#[test]
fn files_with_nothing_in_common_cannot_be_compared_over_time() {
    let with = |name: &str, ids: &[&str]| {
        let properties = ids.iter().map(|id| property(id, "pass", &[], json!({})));
        run(json!([target(name, properties.collect())]))
    };
    let comparison = compared(&[with("nats", &["a/1"]), with("pulsar", &["a/1"])], 10.0);
    assert_eq!(changes(&comparison), [], "two brokers side by side: neither vanished");
    let error = comparison.breaches(FailOn::Regression).unwrap_err();
    assert_eq!(error, NotComparable::NoTarget("nats, pulsar".into()));
    assert!(compared(&[with("nats", &["a/1"])], 10.0).breaches(FailOn::Change).is_err());
    // New properties alone are no regression, and nothing was compared either.
    let comparison = compared(&[with("nats", &[]), with("nats", &["a/1"])], 10.0);
    assert_eq!(comparison.breaches(FailOn::Regression), Err(NotComparable::NoProperty));
    assert_eq!(comparison.breaches(FailOn::Change).unwrap().len(), 1);
    let comparison = compared(&[with("nats", &[]), with("nats", &[])], 10.0);
    assert_eq!(comparison.breaches(FailOn::Change), Err(NotComparable::NoProperty));
}

#[test]
fn targets_of_one_name_on_two_backends_are_two_targets() {
    let on = |backend: &str| {
        let mut prod = target("prod", vec![property("a/1", "pass", &[], json!({}))]);
        prod["backend"] = backend.into();
        run(json!([prod]))
    };
    let comparison = compared(&[on("nats"), on("pulsar")], 10.0);
    assert_eq!(comparison.targets.len(), 2);
    assert!(comparison.breaches(FailOn::Regression).is_err());
    assert!(comparison.warnings[0].starts_with("prod is on nats and pulsar"));
}

#[test]
fn a_figure_moves_when_it_passes_the_tolerance_and_not_at_it() {
    let change = |from: Value, to: Value, tolerance: f64| {
        let runs = [passed(json!({ "f": from })), passed(json!({ "f": to }))];
        moved(&compared(&runs, tolerance)).first().map(|(_, change)| *change)
    };
    assert_eq!(change(json!(100), json!(110), 10.0), None);
    assert_eq!(change(json!(100), json!(111), 10.0), Some(Some(11.0)));
    assert_eq!(change(json!(100), json!(89), 10.0), Some(Some(-11.0)));
    assert_eq!(change(json!(1.0), json!(1.1), 10.0), None, "whatever rounding makes of it");
    assert_eq!(change(json!(0.1), json!(0.3), 200.0), None);
    assert_eq!(change(json!(-100), json!(-120), 10.0), Some(Some(-20.0)));
    assert_eq!(change(json!(5), json!(5), 0.0), None);
    assert_eq!(change(json!(5), json!(5.0), 0.0), None);
    assert_eq!(change(json!(0), json!(0.0), 0.0), None);
    assert_eq!(change(json!(0), json!(1), 1000.0), Some(None), "from 0 there is no percentage");
    assert!(change(json!(u64::MAX), json!(u64::MAX - 1), 0.0).is_some(), "exact beyond 2^53");
    assert_eq!(change(json!(-1e308), json!(1e308), 10.0), Some(None), "more than a number holds");
    assert_eq!(change(json!("fixed"), json!("fixed"), 10.0), None);
    assert_eq!(change(json!("fixed"), json!("sliding"), 1000.0), Some(None));
    assert_eq!(change(json!(5), json!("five"), 1000.0), Some(None));
    assert_eq!(change(json!(true), json!(false), 1000.0), Some(None));
}

#[test]
fn figures_that_come_and_go_have_moved_unless_their_property_did() {
    let runs = [passed(json!({ "old": 5, "both": 5 })), passed(json!({ "both": 5, "new": 0 }))];
    let comparison = compared(&runs, 1000.0);
    assert_eq!(moved(&comparison), [("new", None), ("old", None)]);
    assert_eq!(comparison.targets[0].moved[0].figures[0].values, [None, Some(json!(0))]);
    let other = run(json!([target("nats", vec![property("dedup/y", "pass", &[], json!({}))])]));
    assert!(moved(&compared(&[runs[0].clone(), other], 10.0)).is_empty());
}

#[test]
fn lists_are_compared_entry_by_entry_and_long_ones_as_a_whole() {
    let runs = [passed(json!({ "shares": [50, 50, 50] })), passed(json!({ "shares": [50, 90] }))];
    assert_eq!(moved(&compared(&runs, 10.0)), [("shares[1]", Some(80.0)), ("shares[2]", None)]);
    let long = |last: u32| {
        let entries: Vec<_> = (0..100).chain([last]).collect();
        passed(json!({ "long": entries }))
    };
    assert_eq!(moved(&compared(&[long(1), long(2)], 1000.0)), [("long", None)]);
    assert!(moved(&compared(&[long(1), long(1)], 0.0)).is_empty());
    let runs = [passed(json!({ "o": { "k": 1 } })), passed(json!({ "o": { "k": 2 } }))];
    assert_eq!(moved(&compared(&runs, 10.0)), [("o.k", Some(100.0))]);
}

#[test]
fn a_drift_in_small_steps_shows_from_the_first_to_the_last() {
    let runs: Vec<_> = [100, 108, 116].map(|f| passed(json!({ "f": f }))).into();
    assert_eq!(moved(&compared(&runs, 10.0)), [("f", Some(16.0))]);
    let peak: Vec<_> = [100, 150, 100].map(|f| passed(json!({ "f": f }))).into();
    assert_eq!(moved(&compared(&peak, 10.0)), [("f", Some(50.0))]);
}

#[test]
fn how_long_a_run_took_is_no_figure_of_the_broker() {
    let mut later = passed(json!({}));
    later.run.duration_ms = 900_000;
    later.targets[0].properties[0].duration_ms = 900_000;
    let comparison = compared(&[passed(json!({})), later], 0.0);
    assert!(moved(&comparison).is_empty() && comparison.circumstances.is_empty());
}

#[test]
fn every_circumstance_that_differs_is_said() {
    let capabilities = |pulled: &str| {
        json!({
            "support": { "work-queue": "native", "nack": { "unsupported": { "why": pulled } } },
            "limits": {
                "min_payload": 0, "max_payload": null, "dedup_scope": "topic",
                "disconnect": "immediately", "prefetch_counts_unsettled": false,
                "ack_timeout_resolution": { "secs": pulled.len(), "nanos": 5_000_000 },
                "nack_delay_resolution": { "secs": 0, "nanos": 0 },
                "dedup_window_resolution": { "secs": 0, "nanos": 0 },
            },
        })
    };
    let mut first = passed(json!({}));
    first.targets[0].capabilities = serde_json::from_value(capabilities("no")).unwrap();
    let mut second = first.clone();
    second.schema.push_str(".1");
    second.tool.version = "0.2.0".into();
    second.run.seed = 8;
    second.run.host =
        serde_json::from_value(json!({ "os": "macos", "arch": "arm", "cpus": 8 })).unwrap();
    second.targets[0].broker_version = "2.0.0".into();
    second.targets[0].settings =
        json!({ "storage": "memory", "tls": { "first": true }, "suite": { "messages": 5000 } });
    second.targets[0].capabilities = serde_json::from_value(capabilities("never")).unwrap();
    let comparison = compared(&[first, second], 10.0);
    let said: Vec<_> = comparison
        .circumstances
        .iter()
        .map(|d| {
            let value = |shared: &Shared| {
                shared.value.as_ref().map_or("none".into(), |value| {
                    value.as_str().map_or_else(|| value.to_string(), String::from)
                })
            };
            let values: Vec<_> = d.values.iter().map(value).collect();
            format!("{} {}: {}", d.target.as_deref().unwrap_or("-"), d.what, values.join(" | "))
        })
        .collect();
    assert_eq!(
        said,
        [
            "- host.arch: x86_64 | arm",
            "- host.cpus: 2 | 8",
            "- host.os: linux | macos",
            "- schema: queueproof/results/1 | queueproof/results/1.1",
            "- seed: 7 | 8",
            "- tool.version: 0.1.0 | 0.2.0",
            "- settings.suite.messages: 200 | 5000",
            "nats broker_version: 1.2.3 | 2.0.0",
            "nats capabilities.limits.ack_timeout_resolution: 2s 5ms | 5s 5ms",
            "nats capabilities.nack: unsupported: no | unsupported: never",
            "nats settings.storage: file | memory",
            "nats settings.tls.first: none | true",
        ]
    );
    assert_eq!(comparison.circumstances[0].values[1].of, ["1.json"]);
}

#[test]
fn other_sizes_are_said_between_different_targets_too() {
    let properties = || vec![property("a/1", "pass", &[], json!({}))];
    let small = target("memory", properties());
    let mut large = target("nats", properties());
    large["settings"]["suite"]["messages"] = 5000.into();
    let of = |comparison: &Comparison| -> Vec<Vec<String>> {
        comparison.circumstances[0].values.iter().map(|shared| shared.of.clone()).collect()
    };
    let comparison = compared(&[run(json!([small.clone(), large.clone()]))], 10.0);
    assert_eq!(of(&comparison), [["memory"], ["nats"]]);
    let comparison = compared(&[run(json!([small])), run(json!([large]))], 10.0);
    assert_eq!(of(&comparison), [["0.json"], ["1.json"]]);
}

#[test]
fn what_makes_a_comparison_vacuous_is_said() {
    let same = passed(json!({}));
    let comparison = compared(&[same.clone(), same.clone()], 10.0);
    assert_eq!(comparison.warnings, ["1.json holds the same run as 0.json: nothing can differ"]);
    let mut earlier = same.clone();
    earlier.run.started_at = "2026-04-30T23:59:59Z".into();
    let comparison = compared(&[same.clone(), earlier.clone()], 10.0);
    assert!(comparison.warnings[0].starts_with("1.json began before 0.json"));
    let mut broken = one("broken", &[], json!({}));
    broken.run.started_at = earlier.run.started_at;
    let comparison = compared(&[broken, same], 10.0);
    assert!(comparison.warnings[0].starts_with("nats has neither a pass nor a fail in 0.json"));
}

#[test]
fn no_two_files_have_the_same_label() {
    let labels = |names: &[&str]| super::labels(names.iter().copied());
    assert_eq!(labels(&["x/a.json", "y/b.json"]), ["a.json", "b.json"]);
    assert_eq!(labels(&["x/a.json", "y/a.json"]), ["x/a.json", "y/a.json"]);
    assert_eq!(labels(&["a.json", "a.json"]), ["a.json", "a.json (2)"]);
    assert_eq!(labels(&["/", "stdin"]), ["/", "stdin"]);
}

#[test]
fn rows_are_in_the_order_of_the_suite_also_when_a_later_file_knows_more() {
    let of = |ids: &[&str]| {
        let properties = ids.iter().map(|id| property(id, "pass", &[], json!({})));
        run(json!([target("nats", properties.collect())]))
    };
    let comparison = compared(&[of(&["b/1", "a/1"]), of(&["b/1", "b/2", "a/1"])], 10.0);
    let ids: Vec<_> = comparison.rows.iter().map(|row| row.property.as_str()).collect();
    assert_eq!(ids, ["b/1", "b/2", "a/1"]);
}

#[test]
fn a_tolerance_is_between_0_and_1000_percent() {
    let percent = |text: &str| text.parse::<Tolerance>().map(Tolerance::percent);
    assert_eq!(percent("0"), Ok(0.0));
    assert_eq!(percent("12.5 %"), Ok(12.5));
    assert_eq!(percent("1000"), Ok(1000.0));
    for wrong in ["-1", "1000.1", "nan", "inf", "", "%", "ten"] {
        assert!(percent(wrong).is_err(), "{wrong}");
    }
}

/// A verdict, or none, and kinds of breaches where it is a fail.
fn state() -> impl Strategy<Value = Option<(usize, Vec<&'static str>)>> {
    let kinds = proptest::sample::subsequence(vec!["lost", "duplicate"], 1..=2);
    proptest::option::weighted(0.8, (0..5_usize, kinds))
}

proptest! {
    /// No way through several files hides that the last is worse than the first.
    #[test]
    fn what_is_worse_from_first_to_last_is_worse_in_some_step(
        states in proptest::collection::vec(state(), 2..6),
    ) {
        let run_of = |state: &Option<(usize, Vec<&str>)>| {
            let keep = property("a/1", "pass", &[], json!({}));
            let judged = state.as_ref().map(|(verdict, kinds)| {
                let kinds = if VERDICTS[*verdict] == "fail" { kinds.clone() } else { vec![] };
                property("a/2", VERDICTS[*verdict], &kinds, json!({}))
            });
            run(json!([target("nats", [keep].into_iter().chain(judged).collect())]))
        };
        let runs: Vec<_> = states.iter().map(run_of).collect();
        let all = compared(&runs, 10.0);
        let ends = compared(&[runs[0].clone(), runs[runs.len() - 1].clone()], 10.0);
        let count = |c: &Comparison, fail_on| c.breaches(fail_on).unwrap().len();
        for fail_on in [FailOn::Change, FailOn::Regression] {
            prop_assert!(count(&ends, fail_on) == 0 || count(&all, fail_on) > 0);
        }
        prop_assert!(count(&all, FailOn::Regression) <= count(&all, FailOn::Change));
        let again = serde_json::from_value(serde_json::to_value(&all).unwrap()).unwrap();
        prop_assert_eq!(all, again, "it can be read again");
    }
}
