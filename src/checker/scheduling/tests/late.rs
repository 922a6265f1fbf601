//! When requests reach agents, and who holds whom up.

use std::time::Duration;

use super::play::{DROPPED, Play, STORED, due, judge, workload};
use crate::{
    checker::{AnomalyKind, scheduling::Aspect},
    history::How,
    results::Verdict,
    scheduler::{AgentGroup, AgentState, BrokerState, Distribution, Event},
};

/// Tick 5 is published in time, and the others go well.
fn play() -> Play {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    play
}

#[test]
fn the_due_time_is_what_lateness_counts_from() {
    let mut play = Play::new();
    play.well_but(&[5]);
    // Published late, received at once: it is the due time that counts.
    play.publish((0, 0), 5, (5300, 5302), STORED);
    play.handle(0, (0, 0), 5, 5310);
    let found = play.judged(Aspect::Lateness);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["received_max_ms"].as_f64().unwrap().round(), 310.0);
    assert_eq!(found.observed["begun_max_ms"].as_f64().unwrap().round(), 310.0);
    assert_eq!(found.observed["ended_max_ms"].as_f64().unwrap().round(), 410.0);
    assert_eq!(found.observed["received_p50_ms"].as_f64().unwrap().round(), 5.0);
}

#[test]
fn what_is_received_later_than_tolerated_is_late() {
    for (after, late) in [(499, false), (501, false), (510, true), (5000, true)] {
        let mut play = play();
        play.handle(2, (0, 0), 5, due(5) + after);
        assert_eq!(play.judged(Aspect::Lateness).has(AnomalyKind::LateTick), late, "{after}");
    }
}

#[test]
fn clocks_that_may_be_behind_make_no_tick_late() {
    let mut workload = workload();
    workload.schedulers.skew = Duration::from_secs(1);
    let mut play = Play::of(workload);
    play.well_but(&[5]);
    // The one that is ahead could not publish it.
    play.publish((0, 0), 5, (6000, 6001), STORED);
    play.handle(0, (0, 0), 5, 6005);
    play.passes(Aspect::Lateness);
}

#[test]
fn a_broker_that_confirms_as_slowly_as_it_delivers_decides_nothing_and_later_than_that_is_late() {
    for (after, verdict) in [(1400, Verdict::Unknown), (1900, Verdict::Fail)] {
        let mut play = play();
        // Another tick's publish took a second to be confirmed.
        play.publish((0, 1), 4, (4001, 5001), DROPPED);
        play.handle(2, (0, 0), 5, due(5) + after);
        let found = play.judged(Aspect::Lateness);
        assert_eq!(found.verdict().0, verdict, "{found:#?}");
    }
}

#[test]
fn a_stall_of_this_program_decides_nothing_and_one_at_another_time_excuses_nothing() {
    for (from, to, verdict) in [(5000, 5600, Verdict::Unknown), (3000, 4000, Verdict::Fail)] {
        let mut play = play();
        play.stalled(from, to);
        play.handle(2, (0, 0), 5, 5700);
        assert_eq!(play.judged(Aspect::Lateness).verdict().0, verdict);
    }
}

#[test]
fn a_restart_of_the_broker_excuses_what_it_held_up() {
    for (at, late) in [(5500, false), (7000, true)] {
        let mut play = play();
        play.note((at, at), Event::Broker(BrokerState::Stopped));
        play.note((at, at + 200), Event::Broker(BrokerState::Started));
        play.handle(2, (0, 0), 5, 6500);
        assert_eq!(play.judged(Aspect::Lateness).has(AnomalyKind::LateTick), late);
    }
}

#[test]
fn what_waited_in_the_hands_of_the_agent_that_took_it_is_told_apart() {
    let mut play = Play::new();
    play.well_but(&[4, 5]);
    play.published(4);
    play.published(5);
    let first = play.receive(2, (0, 0), 4, 4005);
    play.execute(2, first, (4005, 6000), true);
    play.settle(2, first, How::Ack, (6000, 6001));
    play.handle(2, (0, 0), 5, 6002);
    let found = play.judged(Aspect::Lateness);
    assert!(found.clean(), "{found:#?}");
    assert_eq!(found.observed["behind_own_work"], 1);
}

#[test]
fn where_all_agents_were_busy_nothing_is_decided() {
    let mut play = Play::new();
    play.well(0..5);
    play.well(20..60);
    // Three agents are at something for four seconds.
    for tick in 5..8 {
        play.published(tick);
        let agent = u32::try_from(tick - 5).unwrap();
        let delivery = play.receive(agent, (0, 0), tick, due(tick) + 5);
        play.execute(agent, delivery, (due(tick) + 5, 15_000), true);
        play.settle(agent, delivery, How::Ack, (15_000, 15_001));
    }
    for tick in 8..20 {
        play.published(tick);
        let at = (due(tick) + 5).max(15_100 + due(tick - 8) / 10);
        play.handle(u32::try_from(tick % 3).unwrap(), (0, 0), tick, at);
    }
    let found = play.judged(Aspect::Lateness);
    assert_eq!(found.verdict().0, Verdict::Unknown, "{found:#?}");
    assert!(found.verdict().1.contains("busy"), "{found:#?}");
}

#[test]
fn an_agent_that_crashed_can_have_held_as_much_as_it_has_room_for_and_no_more() {
    let late = |ticks: std::ops::Range<u64>| {
        let mut play = Play::new();
        let all: Vec<_> = ticks.clone().collect();
        play.well_but(&all);
        play.agent(2, AgentState::Crashed, 5010);
        for tick in ticks {
            play.published(tick);
            play.handle(0, (0, 0), tick, due(tick) + 5000);
        }
        play
    };
    // An agent with room for one request.
    let one = late(5..6);
    assert!(one.judged(Aspect::Lateness).clean());
    let mut play = Play::new();
    play.well_but(&[5, 6, 7]);
    for tick in 5..8 {
        play.published(tick);
    }
    play.agent(2, AgentState::Crashed, 7010);
    for tick in 5..8 {
        play.handle(0, (0, 0), tick, 17_000 + due(tick - 5) / 5);
    }
    assert!(play.judged(Aspect::Lateness).has(AnomalyKind::LateTick));
}

/// Two fast agents, 0 and 1, and a slow one, 2.
fn with_slow() -> Play {
    let mut workload = workload();
    workload.agents[0].count = 2;
    workload.agents.push(AgentGroup {
        count: 1,
        execution: Distribution::Constant(Duration::from_secs(3)),
        slow: true,
        ..workload.agents[0].clone()
    });
    Play::of(workload)
}

#[test]
fn slow_agents_that_hold_nobody_up_pass() {
    let mut play = with_slow();
    play.well_but(&[]);
    let found = play.judged(Aspect::SlowMinority);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["by_slow_agents"], 20);
    assert_eq!(found.observed["by_fast_agents"], 40);
}

#[test]
fn what_waits_while_fast_agents_are_idle_is_blocked() {
    let mut play = with_slow();
    play.well_but(&[5, 6]);
    play.published(5);
    play.published(6);
    let slow = play.receive(2, (0, 0), 5, 5005);
    play.execute(2, slow, (5005, 9000), true);
    play.settle(2, slow, How::Ack, (9000, 9001));
    play.handle(0, (0, 0), 6, 9005);
    let mut watch = play.watch();
    assert!(judge(&mut watch, Aspect::SlowMinority).has(AnomalyKind::Blocked));
}

#[test]
fn what_was_published_late_is_late_and_not_blocked() {
    let mut play = with_slow();
    play.well_but(&[5]);
    play.publish((0, 0), 5, (6000, 6001), STORED);
    play.handle(0, (0, 0), 5, 6005);
    let mut watch = play.watch();
    assert!(judge(&mut watch, Aspect::SlowMinority).clean());
    assert!(judge(&mut watch, Aspect::Lateness).has(AnomalyKind::LateTick));
}
