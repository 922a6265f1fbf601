//! Every tick is delivered and executed once; what comes again has a cause, or is a breach.

use super::play::{Play, due, judge};
use crate::{
    checker::{AnomalyKind, Findings, scheduling::Aspect},
    history::{How, SettleOutcome},
    results::Verdict,
    scheduler::{AgentState, BrokerState, Event, SchedulerState},
};

const NACK: How = How::Nack(0);

/// Tick 5 is published as it should be, the others go well.
fn play() -> Play {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    play
}

/// That a delivery that came again has this cause, and is no breach.
fn has_cause(play: Play, cause: &str) {
    let found: Findings = play.judged(Aspect::OncePerTick);
    assert_eq!(found.verdict().0, Verdict::Pass, "{found:#?}");
    assert_eq!(found.observed.get(&format!("again_{cause}")), Some(&1.into()), "{found:#?}");
}

/// That it is the broker's breach.
fn is_breach(play: Play) {
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::DeliveredTwice, 1)]);
}

#[test]
fn a_request_that_comes_again_while_it_is_held_is_a_breach() {
    // However long the agents had been asking by then.
    let mut play = play();
    play.handle(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 5007);
    is_breach(play);
}

#[test]
fn a_request_that_comes_again_after_it_was_acknowledged_is_a_breach() {
    for at in [6000, 14_000, 40_000] {
        let mut play = play();
        play.handle(0, (0, 0), 5, 5005);
        play.handle(1, (0, 0), 5, at);
        is_breach(play);
    }
}

#[test]
fn a_request_that_comes_again_long_after_its_tick_was_closed_is_a_breach() {
    for (attempt, kind) in [
        (Some(2), AnomalyKind::DeliveredTwice),
        (Some(1), AnomalyKind::ScheduledTwice),
        (None, AnomalyKind::ScheduledTwice),
    ] {
        let mut play = Play::new();
        play.workload.duration = std::time::Duration::from_secs(200);
        play.well_but(&[]);
        play.receive_try(1, (0, 0), 5, 190_000, attempt);
        assert_eq!(play.finds(Aspect::OncePerTick), [(kind, 1)]);
    }
}

#[test]
fn what_was_handed_on_comes_again_though_its_nack_is_confirmed_later() {
    for confirmed in [5106, 5300] {
        let mut play = play();
        let first = play.receive(0, (0, 0), 5, 5005);
        play.execute(0, first, (5005, 5105), false);
        play.settle(0, first, NACK, (5105, confirmed));
        play.handle(1, (0, 0), 5, 5200);
        has_cause(play, "handed_on");
    }
}

#[test]
fn what_is_handed_on_after_it_came_again_is_a_breach() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 5200);
    play.execute(0, first, (5005, 5305), false);
    play.settle(0, first, NACK, (5305, 5306));
    is_breach(play);
}

#[test]
fn one_nack_does_not_explain_two_deliveries() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.execute(0, first, (5005, 5105), false);
    play.settle(0, first, NACK, (5105, 5106));
    play.handle(1, (0, 0), 5, 5200);
    play.handle(2, (0, 0), 5, 5250);
    is_breach(play);
}

#[test]
fn a_former_holder_may_hand_on_what_another_one_holds() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    // It is cut off, and another one has the request; then it is back, and hands it back.
    play.agent(0, AgentState::Cut, 5050);
    let second = play.receive(1, (0, 0), 5, 5060);
    play.agent(0, AgentState::Healed, 5100);
    play.settle(0, first, NACK, (5200, 5201));
    play.handle(2, (0, 0), 5, 5210);
    play.execute(1, second, (5060, 5260), true);
    play.settle(1, second, How::Ack, (5260, 5261));
    let found = play.judged(Aspect::OncePerTick);
    assert!(found.clean(), "{found:#?}");
    assert_eq!(found.observed["again_handed_on"], 1);
    assert_eq!(found.observed["again_agent_left_or_cut"], 1);
}

#[test]
fn what_a_lock_has_passed_of_comes_again() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 15_010);
    play.execute(0, first, (5005, 16_000), true);
    play.settled(0, first, How::Ack, (16_000, 16_001), SettleOutcome::LeaseLost);
    has_cause(play, "lock_passed");
}

#[test]
fn what_comes_again_before_its_lock_has_passed_is_a_breach() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 14_000);
    play.execute(0, first, (5005, 14_500), true);
    play.settle(0, first, How::Ack, (14_500, 14_501));
    is_breach(play);
}

#[test]
fn a_lock_that_is_extended_lasts_longer() {
    let extended = |again: i64| {
        let mut play = play();
        let first = play.receive(0, (0, 0), 5, 5005);
        play.settle(0, first, How::Touch, (10_000, 10_001));
        play.handle(1, (0, 0), 5, again);
        play.execute(0, first, (5005, 25_000), true);
        play.settle(0, first, How::Ack, (25_000, 25_001));
        play
    };
    is_breach(extended(19_900));
    has_cause(extended(20_100), "lock_passed");
}

#[test]
fn a_lock_that_passed_before_it_was_extended_explains_what_came_meanwhile() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 15_500);
    play.settle(0, first, How::Touch, (16_000, 16_001));
    play.execute(0, first, (5005, 17_000), true);
    play.settle(0, first, How::Ack, (17_000, 17_001));
    has_cause(play, "lock_passed");
}

#[test]
fn what_a_crashed_agent_held_comes_again() {
    // That it crashed may be written down a little later.
    for crashed in [5050, 5065] {
        let mut play = play();
        play.receive(0, (0, 0), 5, 5005);
        play.agent(0, AgentState::Crashed, crashed);
        play.handle(1, (0, 0), 5, 5060);
        has_cause(play, "agent_crashed");
    }
}

#[test]
fn what_an_agent_held_that_crashed_much_later_is_a_breach() {
    let mut play = play();
    play.receive(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 5060);
    play.agent(0, AgentState::Crashed, 9000);
    is_breach(play);
}

#[test]
fn what_was_acknowledged_before_its_agent_was_cut_is_a_breach_and_what_it_held_is_none() {
    let mut held = play();
    held.receive(0, (0, 0), 5, 5005);
    held.agent(0, AgentState::Cut, 5050);
    held.agent(0, AgentState::Healed, 5500);
    held.handle(1, (0, 0), 5, 5060);
    has_cause(held, "agent_left_or_cut");
    let mut acknowledged = play();
    acknowledged.handle(0, (0, 0), 5, 5005);
    acknowledged.agent(0, AgentState::Cut, 5150);
    acknowledged.agent(0, AgentState::Healed, 5500);
    acknowledged.handle(1, (0, 0), 5, 5160);
    is_breach(acknowledged);
}

#[test]
fn an_agent_that_hangs_keeps_what_it_has_until_its_lock_passes() {
    let hangs = |again: i64| {
        let mut play = play();
        let first = play.receive(0, (0, 0), 5, 5005);
        play.agent(0, AgentState::Stalled, 5050);
        play.agent(0, AgentState::Resumed, 25_000);
        play.handle(1, (0, 0), 5, again);
        play.execute(0, first, (5005, 25_100), true);
        play.settled(0, first, How::Ack, (25_100, 25_101), SettleOutcome::LeaseLost);
        play
    };
    is_breach(hangs(8000));
    has_cause(hangs(15_100), "lock_passed");
}

#[test]
fn what_comes_again_after_a_restart_or_an_uncertain_acknowledgement_has_its_cause() {
    let mut restarted = play();
    restarted.handle(0, (0, 0), 5, 5005);
    restarted.note((5500, 5500), Event::Broker(BrokerState::Stopped));
    restarted.note((5500, 5600), Event::Broker(BrokerState::Started));
    restarted.handle(1, (0, 0), 5, 6000);
    has_cause(restarted, "broker_restarted");
    for outcome in
        [SettleOutcome::Indeterminate("no answer".into()), SettleOutcome::NotSent("gone".into())]
    {
        let mut uncertain = play();
        let first = uncertain.receive(0, (0, 0), 5, 5005);
        uncertain.execute(0, first, (5005, 5105), true);
        uncertain.settled(0, first, How::Ack, (5105, 5106), outcome);
        uncertain.handle(1, (0, 0), 5, 6000);
        has_cause(uncertain, "ack_uncertain");
    }
}

#[test]
fn a_restart_before_a_request_was_published_explains_nothing() {
    let mut play = play();
    play.note((2000, 2000), Event::Broker(BrokerState::Stopped));
    play.note((2000, 2100), Event::Broker(BrokerState::Started));
    play.handle(0, (0, 0), 5, 5005);
    play.handle(1, (0, 0), 5, 5010);
    is_breach(play);
}

#[test]
fn one_delivery_that_is_executed_twice_is_the_agents_breach() {
    let mut play = play();
    let delivery = play.receive(0, (0, 0), 5, 5005);
    play.execute(0, delivery, (5005, 5105), true);
    play.execute(0, delivery, (5105, 5205), true);
    play.settle(0, delivery, How::Ack, (5205, 5206));
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ExecutedTwice, 1)]);
}

#[test]
fn a_request_that_is_executed_again_since_its_lock_passed_is_counted_and_no_breach() {
    let mut play = play();
    let first = play.receive(0, (0, 0), 5, 5005);
    play.execute(0, first, (5005, 5105), true);
    play.settled(0, first, How::Ack, (5105, 5106), SettleOutcome::Indeterminate("?".into()));
    play.handle(1, (0, 0), 5, 15_105);
    let mut watch = play.watch();
    let found = judge(&mut watch, Aspect::OncePerTick);
    assert!(found.clean(), "{found:#?}");
    assert_eq!(found.observed["executions"], 61);
}

#[test]
fn one_scheduler_alone_is_no_competition() {
    let mut play = Play::new();
    play.scheduler(1, SchedulerState::Stopped, -100);
    for tick in 0..60 {
        play.publish((0, 0), tick, (due(tick), due(tick) + 2), super::play::STORED);
        play.handle(0, (0, 0), tick, due(tick) + 5);
    }
    assert_eq!(play.judged(Aspect::OncePerTick).verdict().0, Verdict::Unknown);
}
