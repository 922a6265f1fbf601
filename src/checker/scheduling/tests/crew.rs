//! Agents that crash, pools that are covered, broadcasts.

use std::time::Duration;

use super::play::{Play, STORED, due, judge, workload};
use crate::{
    checker::{AnomalyKind, scheduling::Aspect},
    history::How,
    results::Verdict,
    scheduler::{AgentGroup, AgentState, Event, Workload},
};

/// Agent 2 crashes at tick 5.
fn crash() -> Play {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    play.receive(2, (0, 0), 5, 5005);
    play.agent(2, AgentState::Crashed, 5050);
    play
}

#[test]
fn what_a_crash_broke_off_is_executed_elsewhere() {
    let mut play = crash();
    play.handle(0, (0, 0), 5, 15_010);
    let found = play.judged(Aspect::AgentCrash);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["broken_off"], 1);
    assert_eq!(found.observed["elsewhere_after_max_ms"].as_f64().unwrap().round(), 9960.0);
}

#[test]
fn what_a_crash_broke_off_and_nobody_executes_is_lost() {
    assert_eq!(crash().finds(Aspect::AgentCrash), [(AnomalyKind::TickLost, 1)]);
    // Nor is it enough that it was given to another one.
    let mut play = crash();
    let delivery = play.receive(0, (0, 0), 5, 15_010);
    play.settle(0, delivery, How::Ack, (15_011, 15_012));
    assert_eq!(play.finds(Aspect::AgentCrash), [(AnomalyKind::TickLost, 1)]);
}

#[test]
fn what_was_acknowledged_before_it_was_executed_is_lost_in_a_crash() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    let delivery = play.receive(2, (0, 0), 5, 5005);
    play.settle(2, delivery, How::Ack, (5006, 5007));
    play.agent(2, AgentState::Crashed, 5050);
    assert_eq!(play.finds(Aspect::AgentCrash), [(AnomalyKind::TickLost, 1)]);
}

#[test]
fn what_returns_later_than_its_lock_allows_is_late() {
    // Ten seconds and half a second of tolerance after 5050.
    for (at, late) in [(15_550, false), (15_560, true)] {
        let mut play = crash();
        play.handle(0, (0, 0), 5, at);
        assert_eq!(play.judged(Aspect::AgentCrash).has(AnomalyKind::LateRedelivery), late, "{at}");
    }
}

#[test]
fn a_crash_that_broke_nothing_off_shows_nothing() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    play.handle(2, (0, 0), 5, 5005);
    play.agent(2, AgentState::Crashed, 5500);
    assert_eq!(play.judged(Aspect::AgentCrash).verdict().0, Verdict::Unknown);
}

#[test]
fn what_a_crash_broke_off_and_is_dropped_as_expired_is_not_the_crashs_fault() {
    let mut play = crash();
    let delivery = play.receive(0, (0, 0), 5, 25_100);
    play.note((25_100, 25_101), Event::Expire { agent: 0, delivery });
    play.settle(0, delivery, How::Ack, (25_101, 25_102));
    assert!(!play.judged(Aspect::AgentCrash).has(AnomalyKind::TickLost));
}

/// The agents get these shares of 10 minutes' ticks.
fn shares(workload: Workload, shares: &[u64]) -> Play {
    let mut workload = workload;
    let total: u64 = shares.iter().sum();
    workload.duration = Duration::from_secs(total);
    let mut play = Play::of(workload);
    // As even as may be: who has the least of its share is next.
    let mut given = vec![0_u64; shares.len()];
    for tick in 0..total {
        let next = (0..shares.len()).filter(|&a| given[a] < shares[a]);
        let agent = next.min_by_key(|&a| given[a] * 1_000_000 / shares[a]).unwrap();
        given[agent] += 1;
        let who = play.published(tick);
        play.handle(u32::try_from(agent).unwrap(), who, tick, due(tick) + 5);
    }
    play
}

#[test]
fn an_agent_that_gets_what_chance_would_not_give_is_starved() {
    for (given, verdict) in [
        (vec![200, 200, 200], Verdict::Pass),
        // What choice by chance may do.
        (vec![230, 205, 165], Verdict::Pass),
        (vec![260, 240, 100], Verdict::Fail),
        (vec![300, 300, 0], Verdict::Fail),
        // Too few to tell.
        (vec![20, 20, 0], Verdict::Unknown),
    ] {
        let found = shares(workload(), &given).judged(Aspect::Coverage);
        assert_eq!(found.verdict().0, verdict, "{given:?}: {found:#?}");
    }
}

#[test]
fn the_figures_of_coverage_stand_beside_those_of_a_round_robin_and_of_chance() {
    let found = shares(workload(), &[200, 200, 200]).judged(Aspect::Coverage);
    assert_eq!(found.observed["jain"], 1.0);
    assert_eq!(found.observed["share_min"], 200);
    assert_eq!(found.observed["until_all_had_one"], 3);
    assert_eq!(found.observed["until_all_had_one_in_turn"], 3);
    // 3 (1 + 1/2 + 1/3) = 5.5, and 600 / 602.
    assert_eq!(found.observed["until_all_had_one_by_chance"], 6);
    assert_eq!(found.observed["jain_by_chance"], 0.9967);
    assert_eq!(found.observed["longest_idle_ms"], 3045.0);
}

#[test]
fn agents_of_different_kinds_are_not_compared() {
    let mut workload = workload();
    workload.agents[0].count = 2;
    workload.agents.push(AgentGroup { concurrency: 9, ..workload.agents[0].clone() });
    let found = shares(workload, &[60, 60, 540, 540]).judged(Aspect::Coverage);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed["group_0_share_min"], 60);
    assert_eq!(found.observed["group_1_share_min"], 540);
}

#[test]
fn an_agent_that_was_not_there_throughout_is_no_measure() {
    for is in [AgentState::Crashed, AgentState::Left, AgentState::Cut, AgentState::Stalled] {
        let mut play = shares(workload(), &[297, 297, 6]);
        play.agent(2, is, 20_000);
        let found = play.judged(Aspect::Coverage);
        assert_eq!(found.verdict().0, Verdict::Pass, "{is:?}: {found:#?}");
        assert_eq!(found.observed["agents"], 2);
    }
}

fn broadcasts() -> Play {
    let mut workload = workload();
    workload.checks[0].broadcast = true;
    workload.duration = Duration::from_secs(10);
    Play::of(workload)
}

/// All agents but those of a tick get it.
fn reach(play: &mut Play, but: &[(u64, u32)]) {
    for tick in 0..10 {
        let who = play.published(tick);
        for agent in (0..3).filter(|&agent| !but.contains(&(tick, agent))) {
            play.handle(agent, who, tick, due(tick) + 5);
        }
    }
}

#[test]
fn a_broadcast_reaches_every_agent() {
    let mut play = broadcasts();
    reach(&mut play, &[]);
    let mut watch = play.watch();
    for aspect in [Aspect::Broadcast, Aspect::OncePerTick, Aspect::EveryTick] {
        let found = judge(&mut watch, aspect);
        assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    }
    assert_eq!(judge(&mut watch, Aspect::Broadcast).observed["received"], 30);
}

#[test]
fn an_agent_that_a_broadcast_does_not_reach_is_named() {
    let mut play = broadcasts();
    reach(&mut play, &[(5, 1)]);
    let found = play.judged(Aspect::Broadcast);
    assert!(found.anomalies()[0].examples[0].contains("agent 1"), "{found:#?}");
    assert_eq!(found.anomalies()[0].count, 1);
}

#[test]
fn an_agent_that_was_not_there_need_not_be_reached() {
    for is in [AgentState::Crashed, AgentState::Left, AgentState::Stalled, AgentState::Cut] {
        let mut play = broadcasts();
        reach(&mut play, &[(5, 1), (6, 1), (7, 1), (8, 1), (9, 1)]);
        play.agent(1, is, 4500);
        // One that comes later.
        play.joins(3, 9500);
        play.passes(Aspect::Broadcast);
    }
}

#[test]
fn an_agent_that_gets_a_broadcast_twice_has_a_breach_and_two_agents_have_not() {
    let mut play = broadcasts();
    reach(&mut play, &[]);
    play.handle(1, (0, 0), 5, 5007);
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::DeliveredTwice, 1)]);
    let mut play = broadcasts();
    reach(&mut play, &[(5, 0), (5, 1), (5, 2)]);
    play.publish((1, 1), 5, (5000, 5002), STORED);
    play.handle(0, (0, 0), 5, 5005);
    play.handle(0, (1, 1), 5, 5005);
    play.handle(1, (0, 0), 5, 5005);
    play.handle(2, (1, 1), 5, 5005);
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ScheduledTwice, 1)]);
}

#[test]
fn a_broadcast_that_an_agent_takes_late_is_no_second_one() {
    let mut play = broadcasts();
    play.workload.duration = Duration::from_secs(200);
    reach(&mut play, &[(5, 1)]);
    for tick in 10..200 {
        let who = play.published(tick);
        for agent in [0, 2] {
            play.handle(agent, who, tick, due(tick) + 5);
        }
    }
    // It hung, and then has a lot to catch up with.
    play.agent(1, AgentState::Stalled, 4500);
    play.agent(1, AgentState::Resumed, 190_000);
    for tick in [5].into_iter().chain(10..200) {
        play.handle(1, (0, 0), tick, 205_000 + due(tick) / 100);
    }
    let mut watch = play.watch();
    assert!(judge(&mut watch, Aspect::OncePerTick).clean());
    assert!(judge(&mut watch, Aspect::Broadcast).clean());
}

#[test]
fn where_nothing_is_acknowledged_agents_have_room_again_after_an_execution() {
    let mut play = Play::new();
    for tick in 0..60 {
        play.publish((0, 0), tick, (due(tick), due(tick) + 1), STORED);
        let agent = u32::try_from(tick % 3).unwrap();
        let late = if tick == 30 { 600 } else { 5 };
        let delivery = play.receive(agent, (0, 0), tick, due(tick) + late);
        play.execute(agent, delivery, (due(tick) + late, due(tick) + late + 100), true);
    }
    // Not all were busy, so that one that came late is late.
    assert_eq!(play.finds(Aspect::Lateness), [(AnomalyKind::LateTick, 1)]);
}
