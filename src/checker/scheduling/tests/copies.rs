//! Copies of one tick that several schedulers stored, and what clocks that disagree have to do with
//! that.

use std::time::Duration;

use super::play::{DROPPED, Play, STORED, due, judge, unknown, workload};
use crate::{
    checker::{AnomalyKind, scheduling::Aspect},
    results::Verdict,
    scheduler::{Event, SchedulerState, Strategy, Workload},
};

/// The copies of tick 5 are stored at these times after it was due, each by another scheduler.
fn copies(workload: Workload, after: &[i64]) -> Play {
    let mut play = Play::of(workload);
    play.well_but(&[5]);
    let last = play.workload.schedulers.count - 1;
    // The last one is ahead.
    for (scheduler, after) in (0..=last).rev().zip(after) {
        let at = due(5) + after;
        play.publish((scheduler, 0), 5, (at, at + 2), STORED);
        play.handle(u32::from(scheduler), (scheduler, 0), 5, at + 5);
    }
    play
}

#[test]
fn a_second_copy_counts_as_soon_as_it_is_delivered() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.publish((0, 0), 5, (5000, 5002), STORED);
    play.publish((1, 0), 5, (5000, 5002), STORED);
    play.handle(0, (0, 0), 5, 5005);
    play.receive(1, (1, 0), 5, 5005);
    let mut watch = play.watch();
    for aspect in [Aspect::OncePerTick, Aspect::Skew] {
        let found = judge(&mut watch, aspect);
        assert!(found.has(AnomalyKind::ScheduledTwice), "{found:#?}");
        let anomalies = found.anomalies();
        let twice = anomalies.iter().find(|a| a.kind == "scheduled-twice").unwrap();
        assert!(twice.examples[0].contains("scheduler 0") && twice.count == 1, "{twice:?}");
    }
}

#[test]
fn a_copy_that_was_dropped_or_that_nobody_got_is_none() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.publish((0, 0), 5, (5000, 5002), unknown());
    play.publish((0, 1), 5, (5000, 5002), DROPPED);
    play.publish((1, 0), 5, (5000, 5002), DROPPED);
    play.handle(0, (0, 0), 5, 5005);
    play.passes(Aspect::OncePerTick);
}

#[test]
fn a_scheduler_that_publishes_a_tick_twice_is_caught() {
    let mut play = Play::new();
    play.well_but(&[]);
    play.publish((0, 1), 5, (5000, 5002), STORED);
    play.handle(1, (0, 1), 5, 5010);
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ScheduledTwice, 1)]);
}

#[test]
fn without_a_strategy_the_copies_are_counted_per_tick() {
    let mut workload = workload();
    workload.strategy = Strategy::None;
    workload.schedulers.count = 3;
    let mut play = Play::of(workload);
    for tick in 0..60 {
        for scheduler in 0..3 {
            play.publish((scheduler, 0), tick, (due(tick), due(tick) + 1), STORED);
            play.handle(u32::from(scheduler), (scheduler, 0), tick, due(tick) + 5);
        }
    }
    let found = play.judged(Aspect::OncePerTick);
    assert_eq!(found.key_figure, "2.00 extra per tick");
    assert_eq!(found.anomalies()[0].count, 120);
}

#[test]
fn two_who_were_elected_at_the_same_time_are_caught_by_what_they_publish() {
    let mut workload = workload();
    workload.strategy = Strategy::ExclusivePublisher;
    let mut play = Play::of(workload);
    play.scheduler(0, SchedulerState::Elected, -400);
    for tick in 0..60 {
        play.publish((0, 0), tick, (due(tick), due(tick) + 1), STORED);
        play.handle(0, (0, 0), tick, due(tick) + 5);
    }
    play.scheduler(1, SchedulerState::Elected, 30_000);
    play.publish((1, 0), 30, (30_001, 30_002), STORED);
    play.handle(1, (1, 0), 30, 30_005);
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ScheduledTwice, 1)]);
}

#[test]
fn copies_that_a_killed_scheduler_did_not_write_down_count_too() {
    let mut play = Play::new();
    play.well_but(&[30]);
    play.publish((0, 0), 30, (30_000, 30_002), STORED);
    play.scheduler(1, SchedulerState::Killed, 30_000);
    play.handle(0, (0, 0), 30, 30_005);
    play.handle(1, (1, 0), 30, 30_010);
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ScheduledTwice, 1)]);
}

/// Clocks that are off by up to this.
fn skewed(ms: u64) -> Workload {
    let mut workload = workload();
    workload.schedulers.skew = Duration::from_millis(ms);
    workload.schedulers.count = 3;
    workload.dedup_window = Duration::from_secs(2);
    workload
}

#[test]
fn copies_that_are_farther_apart_than_the_window_are_explained_by_clocks_that_are_too() {
    let found = copies(skewed(1500), &[-1500, 1500]).judged(Aspect::Skew);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["extra_copies_beyond_window"], 1);
    let found = copies(skewed(1500), &[-1500, 1500]).judged(Aspect::OncePerTick);
    assert!(found.has(AnomalyKind::ScheduledTwice), "{found:#?}");
}

#[test]
fn copies_within_the_window_are_never_explained() {
    // The last one is within the window of the second, though not of the first.
    for (after, unexplained) in [(vec![-500, 1400], 1), (vec![-1500, 600, 1500], 1)] {
        let found = copies(skewed(1500), &after).finds(Aspect::Skew);
        assert_eq!(found, [(AnomalyKind::ScheduledTwice, unexplained)], "{after:?}");
    }
}

#[test]
fn where_the_clocks_differ_by_more_than_the_window_and_nothing_came_twice_nothing_was_tried() {
    let mut play = Play::of(skewed(1500));
    play.well_but(&[]);
    assert_eq!(play.judged(Aspect::Skew).verdict().0, Verdict::Unknown);
}

#[test]
fn a_clock_that_is_ahead_publishes_before_the_true_time_and_not_before_its_own() {
    // The last scheduler is ahead by 1.5 s.
    for (before, early) in [(1499, false), (1500, false), (1502, true), (3000, true)] {
        let mut play = Play::of(skewed(1500));
        play.well_but(&[30]);
        let at = due(30) - before;
        play.publish((2, 0), 30, (at, at + 2), STORED);
        play.handle(0, (2, 0), 30, at + 5);
        let mut watch = play.watch();
        for aspect in [Aspect::Skew, Aspect::Lateness] {
            let found = judge(&mut watch, aspect);
            assert_eq!(found.has(AnomalyKind::EarlyTick), early, "{before}: {found:#?}");
        }
        assert!(judge(&mut watch, Aspect::EveryTick).clean());
    }
}

#[test]
fn a_tick_that_is_published_and_executed_long_before_it_is_due_is_early_and_nothing_else() {
    let mut play = Play::new();
    play.well_but(&[30]);
    play.publish((0, 0), 30, (10_000, 10_002), STORED);
    play.handle(0, (0, 0), 30, 10_005);
    let mut watch = play.watch();
    let found = judge(&mut watch, Aspect::Lateness);
    assert!(found.has(AnomalyKind::EarlyTick), "{found:#?}");
    for aspect in [Aspect::EveryTick, Aspect::OncePerTick] {
        assert!(judge(&mut watch, aspect).clean(), "{aspect:?}");
    }
}

#[test]
fn the_first_tick_may_be_late_at_a_clock_that_is_behind_and_a_drift_grows() {
    let mut workload = workload();
    workload.schedulers.drift_ppm = 10_000;
    let mut play = Play::of(workload);
    // After 50 s the last scheduler's clock is ahead by half a second.
    play.well_but(&[50]);
    play.publish((1, 0), 50, (49_520, 49_522), STORED);
    play.handle(0, (1, 0), 50, 49_525);
    play.passes(Aspect::Skew);
    let mut play = Play::of({
        let mut workload = super::play::workload();
        workload.schedulers.drift_ppm = 10_000;
        workload
    });
    play.well_but(&[5]);
    play.publish((1, 0), 5, (4500, 4502), STORED);
    play.handle(0, (1, 0), 5, 4505);
    assert_eq!(play.finds(Aspect::Skew), [(AnomalyKind::EarlyTick, 1)]);
}

#[test]
fn what_a_scheduler_publishes_of_no_tick_is_a_phantom() {
    let mut play = Play::new();
    play.well_but(&[]);
    let request = super::play::request((0, 0), 1000);
    play.note((5000, 5001), Event::Publish { request, outcome: STORED });
    assert!(play.judged(Aspect::Skew).has(AnomalyKind::Phantom));
}
