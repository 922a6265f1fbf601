//! Schedulers that are killed, stopped or paused.

use std::time::Duration;

use super::play::{Play, STORED, due, judge, workload};
use crate::{
    checker::{AnomalyKind, scheduling::Aspect},
    history::Published,
    results::Verdict,
    scheduler::{Event, SchedulerState, Strategy},
};

/// Scheduler 0 is killed after 30.5 s; the other one goes on.
fn killed(missed: &[u64]) -> Play {
    let mut play = Play::new();
    play.scheduler(0, SchedulerState::Killed, 30_500);
    for tick in (0..60).filter(|tick| !missed.contains(tick)) {
        match tick {
            0..31 => play.well([tick]),
            _ => {
                play.publish((1, 0), tick, (due(tick), due(tick) + 2), STORED);
                play.handle(2, (1, 0), tick, due(tick) + 5);
            }
        }
    }
    play
}

#[test]
fn where_another_scheduler_goes_on_nothing_is_missed() {
    let found = killed(&[]).judged(Aspect::Failover);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["handovers"], 1);
    assert_eq!(found.observed["longest_wait_for_publish_ms"], 2.0);
}

#[test]
fn a_tick_that_is_missed_when_a_scheduler_dies_or_after_it_is_caught() {
    for missed in [31, 32, 50] {
        let found = killed(&[missed]).finds(Aspect::Failover);
        assert_eq!(found, [(AnomalyKind::TickMissed, 1)], "{missed}");
    }
    // One long before is not the failover's.
    assert_eq!(killed(&[3]).finds(Aspect::Failover), []);
}

#[test]
fn a_tick_that_is_published_late_though_another_scheduler_was_there_is_caught() {
    for (after, late) in [(400, false), (600, true)] {
        let mut play = killed(&[31]);
        play.publish((1, 0), 31, (due(31) + after, due(31) + after + 1), STORED);
        play.handle(1, (1, 0), 31, due(31) + after + 5);
        let mut watch = play.watch();
        assert_eq!(judge(&mut watch, Aspect::Failover).has(AnomalyKind::LateTick), late);
        assert_eq!(judge(&mut watch, Aspect::Lateness).has(AnomalyKind::LateTick), late);
    }
}

#[test]
fn a_failover_that_did_not_happen_is_not_passed() {
    // Nobody went, or only when all was over.
    let mut play = Play::new();
    play.well_but(&[]);
    play.scheduler(0, SchedulerState::Stopped, 60_010);
    assert_eq!(play.judged(Aspect::Failover).verdict().0, Verdict::Unknown);
}

#[test]
fn a_paused_scheduler_that_catches_up_makes_late_ticks_only_where_it_is_alone() {
    for (alone, late) in [(true, false), (false, true)] {
        let mut workload = workload();
        workload.schedulers.count = if alone { 1 } else { 2 };
        let mut play = Play::of(workload);
        play.scheduler(0, SchedulerState::Paused, 30_500);
        play.scheduler(0, SchedulerState::Resumed, 33_500);
        play.well((0..31).chain(34..60));
        for tick in 31..34 {
            play.publish((0, 0), tick, (33_500, 33_501), STORED);
            play.handle(0, (0, 0), tick, 33_505);
        }
        let mut watch = play.watch();
        for aspect in [Aspect::Failover, Aspect::Lateness] {
            let found = judge(&mut watch, aspect);
            assert_eq!(found.has(AnomalyKind::LateTick), late, "alone: {alone}: {found:#?}");
        }
    }
}

/// The broker elects one. Scheduler 0 is killed after 30.5 s, and the other one elected after this.
fn elected(after: i64, missed: std::ops::Range<u64>) -> Play {
    let mut workload = workload();
    workload.strategy = Strategy::ExclusivePublisher;
    let mut play = Play::of(workload);
    play.scheduler(0, SchedulerState::Elected, -400);
    play.scheduler(0, SchedulerState::Killed, 30_500);
    play.scheduler(1, SchedulerState::Elected, 30_500 + after);
    for tick in (0..60).filter(|tick| !missed.contains(tick)) {
        let who = if tick < 31 { 0 } else { 1 };
        play.publish((who, 0), tick, (due(tick), due(tick) + 2), STORED);
        play.handle(0, (who, 0), tick, due(tick) + 5);
    }
    play
}

#[test]
fn what_falls_due_during_an_election_is_missed_and_not_the_failovers_fault() {
    let mut watch = elected(2000, 31..33).watch();
    let found = judge(&mut watch, Aspect::Failover);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["missed_in_gap"], 2);
    assert_eq!(found.observed["replaced_after_ms"], 2000.0);
    assert!(judge(&mut watch, Aspect::EveryTick).has(AnomalyKind::TickMissed));
}

#[test]
fn what_falls_due_after_an_election_is_the_failovers_fault() {
    let found = elected(2000, 31..36).finds(Aspect::Failover);
    assert_eq!(found, [(AnomalyKind::TickMissed, 2)]);
}

#[test]
fn an_election_that_takes_for_ever_is_caught_and_one_that_the_end_cuts_short_is_not() {
    let never = |killed: i64, second: bool| {
        let mut workload = workload();
        workload.strategy = Strategy::ExclusivePublisher;
        let mut play = Play::of(workload);
        play.scheduler(0, SchedulerState::Elected, -400);
        play.scheduler(0, SchedulerState::Killed, killed);
        if second {
            play.scheduler(1, SchedulerState::Killed, killed + 10);
        }
        for tick in 0..u64::try_from(killed / 1000).unwrap() {
            play.publish((0, 0), tick, (due(tick), due(tick) + 2), STORED);
            play.handle(0, (0, 0), tick, due(tick) + 5);
        }
        play.judged(Aspect::Failover).has(AnomalyKind::NoHandOver)
    };
    assert!(never(30_500, false));
    assert!(!never(58_500, false));
    // Nobody is left to be elected.
    assert!(!never(30_500, true));
}

#[test]
fn a_scheduler_that_waited_for_its_election_can_go_without_a_hand_over() {
    let mut workload = workload();
    workload.strategy = Strategy::ExclusivePublisher;
    let mut play = Play::of(workload);
    play.scheduler(0, SchedulerState::Elected, -400);
    play.scheduler(1, SchedulerState::Killed, 30_500);
    for tick in 0..60 {
        play.publish((0, 0), tick, (due(tick), due(tick) + 2), STORED);
        play.handle(0, (0, 0), tick, due(tick) + 5);
    }
    assert_eq!(play.judged(Aspect::Failover).verdict().0, Verdict::Unknown);
}

#[test]
fn who_lost_an_election_may_be_refused_and_nobody_else() {
    for (strategy, verdict) in
        [(Strategy::ExclusivePublisher, Verdict::Pass), (Strategy::DedupId, Verdict::Broken)]
    {
        let mut workload = workload();
        workload.strategy = strategy;
        let mut play = Play::of(workload);
        play.well_but(&[]);
        let refused = Published::Rejected(
            queueproof_backends::RejectKind::NotAllowed,
            "somebody else has it".into(),
        );
        play.publish((0, 1), 5, (5010, 5011), refused);
        assert_eq!(play.judged(Aspect::EveryTick).verdict().0, verdict, "{strategy:?}");
    }
}

#[test]
fn two_who_are_killed_one_after_the_other_are_replaced_by_one() {
    let mut workload = workload();
    workload.strategy = Strategy::ExclusivePublisher;
    workload.schedulers.count = 3;
    let mut play = Play::of(workload);
    play.scheduler(0, SchedulerState::Elected, -400);
    play.scheduler(0, SchedulerState::Killed, 30_500);
    play.scheduler(1, SchedulerState::Elected, 30_510);
    play.scheduler(1, SchedulerState::Killed, 30_520);
    play.scheduler(2, SchedulerState::Elected, 30_530);
    for tick in 0..60 {
        let who = if tick < 31 { 0 } else { 2 };
        play.publish((who, 0), tick, (due(tick), due(tick) + 2), STORED);
        play.handle(0, (who, 0), tick, due(tick) + 5);
    }
    let found = play.judged(Aspect::Failover);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["handovers"], 2);
}

#[test]
fn what_a_scheduler_leaves_out_after_its_pause_is_neither_missed_nor_late() {
    let mut workload = workload();
    workload.schedulers.count = 1;
    workload.schedulers.catch_up = false;
    workload.timeline = vec!["30s500ms pause 1 scheduler for 3s".parse().unwrap()];
    let mut play = Play::of(workload);
    play.scheduler(0, SchedulerState::Paused, 30_500);
    play.scheduler(0, SchedulerState::Resumed, 33_500);
    play.note(
        (33_500, 33_500),
        Event::Skip { scheduler: 0, check: 0, ticks: (31, 33), expired: false },
    );
    play.well((0..31).chain(34..60));
    let mut watch = play.watch();
    for aspect in [Aspect::Failover, Aspect::EveryTick, Aspect::Lateness] {
        let found = judge(&mut watch, aspect);
        assert_eq!(found.verdict().0, Verdict::Pass, "{aspect:?}: {found:#?}");
    }
    assert!(Duration::from_secs(3) <= watch.workload.longest_disturbance());
}
