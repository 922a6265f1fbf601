#![allow(clippy::unwrap_used)]

use queueproof_backends::{Capabilities, Capability, Disconnect, Limits, Support};
use serde_json::json;
use std::time::Duration;

use super::*;
use crate::results::Anomaly;

const DEDUP: &str = "dedup/across-publishers";
const EXCLUSIVE: &str = "pubsub/exclusive-publisher";
const LATENESS: &str = "scheduling/lateness";

fn found(id: &str, verdict: Verdict) -> PropertyResult {
    let anomaly = || Anomaly { kind: "lost".into(), count: 3, examples: vec!["message 7".into()] };
    PropertyResult {
        id: id.into(),
        group: String::new(),
        verdict,
        reason: if verdict == Verdict::Pass { "" } else { "for a reason" }.into(),
        anomalies: (verdict == Verdict::Fail).then(anomaly).into_iter().collect(),
        observed: BTreeMap::new(),
        key_figure: "75 dropped".into(),
        duration_ms: 1,
    }
}

/// Declares everything but these.
fn capabilities(without: &[Capability]) -> Capabilities {
    let support = |capability: &Capability| match without.contains(capability) {
        true => Support::Unsupported { why: "it cannot".into() },
        false => Support::Native,
    };
    let all = Capability::ALL.iter();
    Capabilities {
        support: all.map(|capability| (*capability, support(capability))).collect(),
        limits: Limits {
            min_payload: 0,
            max_payload: None,
            dedup_scope: None,
            disconnect: Disconnect::Immediately,
            ack_timeout_resolution: Duration::ZERO,
            nack_delay_resolution: Duration::ZERO,
            dedup_window_resolution: Duration::ZERO,
            publish_delay_resolution: Duration::ZERO,
            publish_delay_early: Duration::ZERO,
            attempts_forget_disconnects: false,
            prefetch_counts_unsettled: false,
            memory_queue: None,
        },
    }
}

fn target(name: &str, properties: Vec<PropertyResult>) -> TargetResult {
    TargetResult {
        name: name.into(),
        backend: name.into(),
        broker_version: "1".into(),
        settings: Value::Null,
        capabilities: Some(capabilities(&[])),
        absent: None,
        demonstrated: BTreeMap::new(),
        cost: BTreeMap::new(),
        properties,
    }
}

fn lateness(verdict: Verdict, observed: Value) -> TargetResult {
    let observed = serde_json::from_value(observed).unwrap();
    target("a", vec![PropertyResult { observed, ..found(LATENESS, verdict) }])
}

fn requirement(name: &str, level: Level, test: Test) -> Requirement {
    Requirement { name: name.into(), words: "It does.".into(), level, test }
}

fn card(requirements: Vec<Requirement>) -> Scorecard {
    Scorecard { name: "card".into(), about: String::new(), requirements }
}

fn properties(ids: &[&str]) -> Test {
    Test::Properties(ids.iter().map(|id| (*id).into()).collect())
}

fn p99(bound: Bound) -> Test {
    Test::Figure { property: LATENESS.into(), name: "p99_ms".into(), bound }
}

fn answer(test: Test, results: &[TargetResult]) -> (Status, String) {
    let score = evaluate(&card(vec![requirement("r", Level::Must, test)]), results);
    let answer = &score.targets[0].answers[0];
    let words = answer.evidence.iter().map(|e| format!("{} {}", e.of, e.words));
    (answer.status, words.collect::<Vec<_>>().join("; "))
}

fn status(test: Test, results: &[TargetResult]) -> Status {
    answer(test, results).0
}

#[test]
fn only_a_pass_meets_and_only_a_breach_or_a_lacking_capability_fails() {
    let of = |verdict| answer(properties(&[DEDUP]), &[target("a", vec![found(DEDUP, verdict)])]);
    let expected = |status, words: &str| (status, format!("{DEDUP} {words}"));
    assert_eq!(of(Verdict::Pass), expected(Status::Meets, "pass: 75 dropped"));
    assert_eq!(of(Verdict::Fail), expected(Status::Fails, "fail: lost ×3, as: message 7"));
    assert_eq!(of(Verdict::Unknown), expected(Status::Undecided, "unknown: for a reason"));
    assert_eq!(of(Verdict::Broken), expected(Status::Undecided, "broken: for a reason"));
    let none = answer(properties(&[DEDUP]), &[target("a", vec![])]);
    assert_eq!(none, expected(Status::Undecided, "not in the results"));
}

#[test]
fn skipped_fails_where_the_backend_lacks_a_capability_and_not_where_nothing_was_tried() {
    let skipped = vec![found(DEDUP, Verdict::Skipped)];
    let mut lacking = target("a", skipped.clone());
    lacking.capabilities = Some(capabilities(&[Capability::DedupId]));
    let words = format!("{DEDUP} skipped: for a reason");
    assert_eq!(answer(properties(&[DEDUP]), &[lacking]), (Status::Fails, words.clone()));
    let untried = target("a", skipped.clone());
    assert_eq!(answer(properties(&[DEDUP]), &[untried]), (Status::Undecided, words));
    let unasked = TargetResult { capabilities: None, ..target("a", skipped) };
    assert_eq!(status(properties(&[DEDUP]), &[unasked]), Status::Undecided);
}

#[test]
fn of_several_properties_all_must_pass_and_one_breach_decides() {
    let both = properties(&[DEDUP, EXCLUSIVE]);
    let of = |first, second| {
        let found = vec![found(DEDUP, first), found(EXCLUSIVE, second)];
        answer(both.clone(), &[target("a", found)])
    };
    assert_eq!(of(Verdict::Pass, Verdict::Pass).0, Status::Meets);
    assert_eq!(of(Verdict::Pass, Verdict::Unknown).0, Status::Undecided);
    let (status, evidence) = of(Verdict::Unknown, Verdict::Fail);
    assert_eq!(status, Status::Fails);
    assert!(evidence.contains(EXCLUSIVE) && !evidence.contains(DEDUP), "{evidence}");
}

#[test]
fn of_alternatives_one_is_enough_and_an_open_one_keeps_it_open() {
    let either = Test::Any(vec![properties(&[DEDUP]), properties(&[EXCLUSIVE])]);
    let of = |first, second| {
        let found = vec![found(DEDUP, first), found(EXCLUSIVE, second)];
        answer(either.clone(), &[target("a", found)])
    };
    let (status, evidence) = of(Verdict::Fail, Verdict::Pass);
    assert_eq!(status, Status::Meets);
    assert!(evidence.contains(EXCLUSIVE) && !evidence.contains(DEDUP), "{evidence}");
    assert_eq!(of(Verdict::Fail, Verdict::Broken).0, Status::Undecided);
    let (status, evidence) = of(Verdict::Fail, Verdict::Fail);
    assert_eq!(status, Status::Fails);
    assert!(evidence.contains(EXCLUSIVE) && evidence.contains(DEDUP), "{evidence}");
}

#[test]
fn a_figure_is_held_to_its_bound_which_is_within() {
    let of = |bound, value: f64| {
        status(p99(bound), &[lateness(Verdict::Pass, json!({ "p99_ms": value }))])
    };
    assert_eq!(of(Bound::AtMost(1000.0), 1000.0), Status::Meets);
    assert_eq!(of(Bound::AtMost(1000.0), 1000.5), Status::Fails);
    assert_eq!(of(Bound::AtLeast(20_000.0), 20_000.0), Status::Meets);
    assert_eq!(of(Bound::AtLeast(20_000.0), 19_999.0), Status::Fails);
    let (_, words) =
        answer(p99(Bound::AtMost(1000.0)), &[lateness(Verdict::Pass, json!({ "p99_ms": 12.5 }))]);
    assert_eq!(words, "scheduling/lateness p99_ms 12.5, asked for: at most 1000");
}

#[test]
fn a_figure_that_is_missing_or_no_number_or_of_a_property_that_does_not_pass_decides_nothing() {
    let of = |verdict, observed| answer(p99(Bound::AtMost(1e3)), &[lateness(verdict, observed)]);
    assert_eq!(of(Verdict::Pass, json!({})).0, Status::Undecided);
    assert_eq!(of(Verdict::Pass, json!({ "p99_ms": "5" })).0, Status::Undecided);
    assert_eq!(of(Verdict::Pass, json!({ "p99_ms": null })).0, Status::Undecided);
    for verdict in [Verdict::Fail, Verdict::Unknown, Verdict::Broken, Verdict::Skipped] {
        for value in [5, 5000] {
            let (status, words) = of(verdict, json!({ "p99_ms": value }));
            assert_eq!(status, Status::Undecided, "{words}");
            assert!(words.contains("which says nothing while"), "{words}");
        }
    }
    assert_eq!(status(p99(Bound::AtMost(1e3)), &[target("a", vec![])]), Status::Undecided);
}

#[test]
fn a_cost_is_held_to_its_bound_and_a_fact_is_of_the_backend_whatever_the_targets_name() {
    let cost = Test::Cost { name: "resident_mb".into(), bound: Bound::AtMost(100.0) };
    let mut costly = target("a", vec![]);
    assert_eq!(status(cost.clone(), &[costly.clone()]), Status::Undecided);
    costly.cost.insert("resident_mb".into(), json!(101));
    assert_eq!(status(cost, &[costly]), Status::Fails);
    let fact = |meets| Fact { meets, words: "MIT".into(), source: "https://example.org".into() };
    let facts = [("a".into(), fact(true)), ("b".into(), fact(false))];
    let facts = Test::Fact(facts.into());
    let of = |backend: &str| {
        let named = TargetResult { name: "mine".into(), ..target(backend, vec![]) };
        answer(facts.clone(), &[named])
    };
    assert_eq!(of("a"), (Status::Meets, " MIT (https://example.org)".into()));
    assert_eq!(of("b").0, Status::Fails);
    assert_eq!(of("c"), (Status::Undecided, " the scorecard has no fact of c".into()));
}

#[test]
fn the_later_of_two_results_counts_and_that_they_differ_is_told() {
    let run = |verdict| target("a", vec![found(DEDUP, verdict)]);
    let of = |first, second| {
        let requirement = requirement("r", Level::Must, properties(&[DEDUP]));
        let score = evaluate(&card(vec![requirement]), &[run(first), run(second)]);
        assert_eq!(score.targets.len(), 1);
        (score.targets[0].answers[0].status, score.warnings.join("; "))
    };
    let (status, warnings) = of(Verdict::Fail, Verdict::Pass);
    assert_eq!(status, Status::Meets);
    assert!(warnings.contains("is fail in an earlier result and pass in the one"), "{warnings}");
    assert_eq!(of(Verdict::Pass, Verdict::Broken).0, Status::Undecided);
    assert_eq!(of(Verdict::Pass, Verdict::Pass), (Status::Meets, String::new()));
    // A workload without anything of the kind takes nothing back, and nothing of it is told.
    assert_eq!(of(Verdict::Pass, Verdict::Skipped), (Status::Meets, String::new()));
    assert_eq!(of(Verdict::Skipped, Verdict::Fail), (Status::Fails, String::new()));
}

#[test]
fn a_target_of_another_backend_is_another_and_versions_and_flaws_that_mix_are_told() {
    let requirement = || requirement("r", Level::Must, properties(&[DEDUP]));
    let pass = || target("a", vec![found(DEDUP, Verdict::Pass)]);
    let other = TargetResult { backend: "b".into(), ..target("a", vec![]) };
    let score = evaluate(&card(vec![requirement()]), &[pass(), other]);
    let statuses: Vec<_> = score.targets.iter().map(|t| t.answers[0].status).collect();
    assert_eq!(statuses, [Status::Meets, Status::Undecided]);
    let newer = TargetResult { broker_version: "2".into(), ..pass() };
    let flawed = TargetResult { settings: json!({ "flaw": "lose-publish" }), ..pass() };
    let score = evaluate(&card(vec![requirement()]), &[pass(), newer, flawed]);
    assert_eq!(score.targets[0].broker_version, "1, 2");
    assert_eq!(
        score.warnings,
        [
            "a: the results are of several versions: 1, 2",
            "a: a flaw was put in on purpose: lose-publish"
        ]
    );
}

/// A target for each way to answer two musts (dedup, exclusive publisher) and two shoulds.
fn judged(name: &str, verdicts: [Verdict; 4]) -> TargetResult {
    let ids = [DEDUP, EXCLUSIVE, "work-queue/lock", "work-queue/join"];
    target(name, ids.into_iter().zip(verdicts).map(|(id, verdict)| found(id, verdict)).collect())
}

fn score_of(results: &[TargetResult]) -> Score {
    let of = |name, level, id| requirement(name, level, properties(&[id]));
    let card = card(vec![
        of("once", Level::Must, DEDUP),
        of("lock", Level::Should, "work-queue/lock"),
        of("one", Level::Must, EXCLUSIVE),
        of("join", Level::Should, "work-queue/join"),
    ]);
    evaluate(&card, results)
}

#[test]
fn the_conclusion_of_a_target_names_what_it_does_not_meet() {
    use Verdict::{Fail, Pass, Unknown};
    let of = |verdicts| score_of(&[judged("a", verdicts)]).targets[0].conclusion.clone();
    assert_eq!(of([Pass; 4]), "meets all 2 musts and 2 of 2 shoulds");
    assert_eq!(
        of([Pass, Pass, Fail, Unknown]),
        "meets all 2 musts and 0 of 2 shoulds (fails: lock; undecided: join)"
    );
    assert_eq!(of([Fail, Unknown, Pass, Pass]), "fails: once; undecided: one");
    assert_eq!(of([Pass, Unknown, Pass, Pass]), "undecided: one");
    assert_eq!(of([Fail, Fail, Pass, Pass]), "fails: once, one");
}

#[test]
fn the_conclusion_and_the_exit_code_follow_from_the_musts_and_then_the_shoulds() {
    use Verdict::{Fail, Pass, Unknown};
    let all = || judged("all", [Pass; 4]);
    let most = || judged("most", [Pass, Pass, Pass, Unknown]);
    let open = || judged("open", [Pass, Unknown, Pass, Pass]);
    let fails = || judged("fails", [Fail, Unknown, Pass, Pass]);
    let absent = || TargetResult { absent: Some("not here".into()), ..target("gone", vec![]) };
    let twin = || judged("twin", [Pass; 4]);
    let cases: [(Vec<TargetResult>, u8, &str); 8] = [
        (vec![fails(), most()], 0, "most alone meets all musts"),
        (
            vec![most(), fails(), all()],
            0,
            "most, all meet all musts; with 2 of 2 shoulds the best: all",
        ),
        (
            vec![most(), all(), twin()],
            0,
            "most, all, twin meet all musts; with 2 of 2 shoulds the best: all, twin",
        ),
        (vec![all(), twin()], 0, "all, twin meet all musts, each with 2 of 2 shoulds"),
        (vec![fails()], 1, "no target meets all musts: fails fail"),
        (vec![fails(), open()], 4, "no target meets all musts yet: undecided for open"),
        (vec![absent()], 4, "no target was judged"),
        (vec![], 4, "no target was judged"),
    ];
    for (results, code, conclusion) in cases {
        let score = score_of(&results);
        assert_eq!((score.exit_code(), score.conclusion.as_str()), (code, conclusion));
    }
    let score = score_of(&[absent(), all()]);
    assert_eq!((score.targets.len(), score.absent), (1, vec!["gone".to_string()]));
    // Absent in one run and there in another is there.
    let there = TargetResult { name: "gone".into(), backend: "gone".into(), ..all() };
    let score = score_of(&[absent(), there]);
    assert_eq!((score.targets.len(), score.absent.len()), (1, 0));
}
