//! Every tick is executed; what has expired is dropped; nothing is there that nobody published.

use std::time::Duration;

use super::play::{DROPPED, Play, STORED, due, judge, unknown, workload};
use crate::{
    checker::{AnomalyKind, Findings, scheduling::Aspect},
    history::{How, Published},
    results::Verdict,
    scheduler::{AgentState, BrokerState, Event, SchedulerState},
};

fn observed(found: &Findings, name: &str) -> u64 {
    found.observed[name].as_u64().unwrap()
}

#[test]
fn where_all_goes_well_every_aspect_that_has_traffic_passes() {
    let mut play = Play::new();
    play.well_but(&[]);
    let mut watch = play.watch();
    for aspect in [
        Aspect::EveryTick,
        Aspect::OncePerTick,
        Aspect::Skew,
        Aspect::Coverage,
        Aspect::Lateness,
        Aspect::Expired,
    ] {
        let found = judge(&mut watch, aspect);
        assert_eq!(found.verdict().0, Verdict::Pass, "{aspect:?}: {found:#?}");
    }
    let found = judge(&mut watch, Aspect::EveryTick);
    assert_eq!(observed(&found, "ticks"), 60);
    assert_eq!(observed(&found, "executed"), 60);
    assert_eq!(found.key_figure, "60 of 60");
}

#[test]
fn what_has_no_traffic_is_not_passed() {
    let mut play = Play::new();
    play.well_but(&[]);
    let mut watch = play.watch();
    for aspect in [Aspect::Failover, Aspect::AgentCrash, Aspect::Broadcast, Aspect::SlowMinority] {
        assert_eq!(judge(&mut watch, aspect).verdict().0, Verdict::Unknown, "{aspect:?}");
    }
    let mut play = Play::new();
    play.workload.duration = Duration::ZERO;
    let mut watch = play.watch();
    for aspect in [Aspect::EveryTick, Aspect::OncePerTick, Aspect::Lateness, Aspect::Coverage] {
        assert_eq!(judge(&mut watch, aspect).verdict().0, Verdict::Unknown, "{aspect:?}");
    }
}

#[test]
fn a_tick_that_nobody_publishes_is_missed() {
    let mut play = Play::new();
    play.well_but(&[7]);
    let found = play.judged(Aspect::EveryTick);
    assert!(found.has(AnomalyKind::TickMissed), "{found:#?}");
    assert_eq!(observed(&found, "missed"), 1);
    let example = &found.anomalies()[0].examples[0];
    assert!(example.contains("tick 7 of check") && example.contains("no scheduler"), "{example}");
}

#[test]
fn a_tick_whose_publishes_may_have_failed_is_missed_and_not_lost() {
    let mut play = Play::new();
    play.well_but(&[7]);
    play.publish((0, 0), 7, (7000, 9000), unknown());
    play.publish((1, 0), 7, (7000, 9000), Published::NotSent("no connection".into()));
    assert_eq!(play.finds(Aspect::EveryTick), [(AnomalyKind::TickMissed, 1)]);
}

#[test]
fn a_tick_that_may_have_been_stored_and_was_executed_is_fine() {
    let mut play = Play::new();
    play.well_but(&[7]);
    play.publish((0, 0), 7, (7000, 9000), unknown());
    play.handle(1, (0, 0), 7, 7010);
    play.passes(Aspect::EveryTick);
}

#[test]
fn a_tick_that_is_stored_and_never_delivered_is_lost() {
    let mut play = Play::new();
    play.well_but(&[7]);
    play.published(7);
    assert_eq!(play.finds(Aspect::EveryTick), [(AnomalyKind::TickLost, 1)]);
}

#[test]
fn a_tick_that_is_acknowledged_and_not_executed_is_lost() {
    let mut play = Play::new();
    play.well_but(&[7]);
    play.published(7);
    let delivery = play.receive(1, (0, 0), 7, 7005);
    play.settle(1, delivery, How::Ack, (7006, 7007));
    assert_eq!(play.finds(Aspect::EveryTick), [(AnomalyKind::TickLost, 1)]);
}

#[test]
fn nothing_is_lost_where_the_queue_was_not_drained() {
    let mut play = Play::new();
    // One long before, that waits in the queue still, and one at the end.
    play.well_but(&[1, 59]);
    play.published(1);
    play.published(59);
    play.break_off();
    let found = play.judged(Aspect::EveryTick);
    assert_eq!(found.verdict().0, Verdict::Unknown, "{found:#?}");
    assert_eq!(observed(&found, "ticks_still_open"), 2);
}

#[test]
fn what_waits_in_the_queue_for_long_is_neither_lost_nor_scheduled_twice_when_it_comes() {
    let mut workload = workload();
    workload.duration = Duration::from_secs(300);
    let mut play = Play::of(workload);
    play.well_but(&[3]);
    play.published(3);
    // Its time has passed by far.
    let delivery = play.receive(0, (0, 0), 3, 250_000);
    play.note((250_000, 250_001), Event::Expire { agent: 0, delivery });
    play.settle(0, delivery, How::Ack, (250_001, 250_002));
    let mut watch = play.watch();
    let found = judge(&mut watch, Aspect::EveryTick);
    assert!(found.has(AnomalyKind::TickMissed) && !found.has(AnomalyKind::TickLost), "{found:#?}");
    assert!(found.anomalies()[0].examples[0].contains("expired"));
    assert!(judge(&mut watch, Aspect::OncePerTick).clean());
}

#[test]
fn a_breach_counts_though_the_queue_was_not_drained() {
    let mut play = Play::new();
    play.well_but(&[58]);
    play.publish((0, 0), 58, (58_000, 58_002), STORED);
    play.publish((1, 0), 58, (58_001, 58_002), STORED);
    play.handle(0, (0, 0), 58, 58_005);
    play.handle(1, (1, 0), 58, 58_005);
    play.break_off();
    assert_eq!(play.finds(Aspect::OncePerTick), [(AnomalyKind::ScheduledTwice, 1)]);
}

#[test]
fn what_all_schedulers_left_out_is_not_missed_and_what_one_left_out_is() {
    let skip = |scheduler| Event::Skip { scheduler, check: 0, ticks: (5, 9), expired: false };
    for (skipping, missed) in [(vec![0, 1], 0), (vec![0], 5), (vec![], 5)] {
        let mut play = Play::new();
        play.well_but(&[5, 6, 7, 8, 9]);
        for scheduler in skipping {
            play.note((10_000, 10_000), skip(scheduler));
        }
        let found = play.judged(Aspect::EveryTick);
        assert_eq!(observed(&found, "missed"), missed, "{found:#?}");
        assert_eq!(observed(&found, "left_out_on_purpose"), 5 - missed);
    }
}

#[test]
fn a_scheduler_that_was_gone_need_not_leave_out_anything() {
    let mut play = Play::new();
    play.well_but(&[5, 6, 7, 8, 9]);
    play.scheduler(1, SchedulerState::Killed, 2000);
    play.note(
        (10_000, 10_000),
        Event::Skip { scheduler: 0, check: 0, ticks: (5, 9), expired: false },
    );
    play.passes(Aspect::EveryTick);
}

#[test]
fn a_tick_that_fell_due_without_a_scheduler_is_missed_and_says_so() {
    let mut play = Play::new();
    play.well(0..10);
    play.scheduler(0, SchedulerState::Stopped, 9500);
    play.scheduler(1, SchedulerState::Killed, 9500);
    let found = play.judged(Aspect::EveryTick);
    assert_eq!(observed(&found, "missed"), 50);
    assert!(found.anomalies()[0].examples[0].contains("no scheduler was running"));
}

#[test]
fn a_request_that_is_executed_in_time_or_dropped_afterwards_is_fine() {
    let mut play = Play::new();
    play.well_but(&[5, 6]);
    play.published(5);
    play.published(6);
    // It expires after 20 s; what was received just in time may still be executed.
    play.handle(0, (0, 0), 5, due(5) + 20_000);
    let delivery = play.receive(1, (0, 0), 6, due(6) + 20_001);
    play.note((26_001, 26_001), Event::Expire { agent: 1, delivery });
    play.settle(1, delivery, How::Ack, (26_002, 26_003));
    let mut watch = play.watch();
    assert!(judge(&mut watch, Aspect::Expired).clean());
    let found = judge(&mut watch, Aspect::EveryTick);
    assert_eq!(observed(&found, "expired"), 1);
}

#[test]
fn a_request_that_is_executed_after_its_time_is_caught() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    play.handle(0, (0, 0), 5, due(5) + 20_001);
    assert_eq!(play.finds(Aspect::Expired), [(AnomalyKind::ExecutedExpired, 1)]);
}

#[test]
fn a_request_that_is_dropped_before_its_time_is_caught() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.published(5);
    let delivery = play.receive(0, (0, 0), 5, due(5) + 5);
    play.note((5006, 5006), Event::Expire { agent: 0, delivery });
    play.settle(0, delivery, How::Ack, (5006, 5007));
    assert_eq!(play.finds(Aspect::Expired), [(AnomalyKind::DroppedFresh, 1)]);
}

#[test]
fn what_nobody_published_is_a_phantom_in_every_aspect() {
    // A tick beyond the end, another scheduler's copy, one that was refused.
    let plays: [fn(&mut Play); 3] = [
        |play| _ = play.handle(0, (0, 0), 61, 30_000),
        |play| {
            play.well([30]);
            play.handle(0, (1, 3), 30, 30_010);
        },
        |play| {
            play.publish((0, 0), 30, (30_000, 30_001), Published::NotSent("down".into()));
            play.handle(0, (0, 0), 30, 30_010);
        },
    ];
    for what in plays {
        let mut play = Play::new();
        play.well_but(&[30]);
        what(&mut play);
        let mut watch = play.watch();
        for aspect in [Aspect::EveryTick, Aspect::Lateness, Aspect::Broadcast] {
            assert!(judge(&mut watch, aspect).has(AnomalyKind::Phantom), "{aspect:?}");
        }
    }
}

#[test]
fn what_a_killed_scheduler_had_in_flight_is_no_phantom_and_what_comes_after_is() {
    for (tick, phantom) in [(30, false), (31, true)] {
        let mut play = Play::new();
        play.well_but(&[tick]);
        play.scheduler(1, SchedulerState::Killed, 30_000);
        play.handle(0, (1, 0), tick, due(tick) + 5);
        let found = play.judged(Aspect::EveryTick);
        assert_eq!(found.has(AnomalyKind::Phantom), phantom, "{found:#?}");
    }
}

#[test]
fn a_receipt_that_says_dropped_of_what_is_delivered_is_contradicted() {
    let mut play = Play::new();
    play.well_but(&[5]);
    play.publish((0, 0), 5, (5000, 5002), unknown());
    play.publish((1, 0), 5, (5000, 5002), DROPPED);
    play.handle(0, (1, 0), 5, 5010);
    assert!(play.judged(Aspect::OncePerTick).has(AnomalyKind::ReceiptContradicted));
}

#[test]
fn damage_is_told_from_what_is_foreign() {
    for (problem, kind) in [
        ("damaged: its checksum is wrong", AnomalyKind::Corrupt),
        ("a request of another run", AnomalyKind::Phantom),
    ] {
        let mut play = Play::new();
        play.well_but(&[]);
        let problem = problem.to_string();
        play.note((100, 5500), Event::Unreadable { agent: 0, delivery: 60, problem });
        assert_eq!(play.finds(Aspect::Coverage), [(kind, 1)]);
    }
}

#[test]
fn a_connection_that_is_lost_and_trouble_break_the_run_unless_the_broker_was_restarted() {
    for event in [Event::Lost { times: 2 }, Event::Trouble("no route".into())] {
        for restart in [false, true] {
            let mut play = Play::new();
            play.well_but(&[]);
            if restart {
                play.note((30_500, 30_500), Event::Broker(BrokerState::Stopped));
                play.note((30_500, 30_600), Event::Broker(BrokerState::Started));
            }
            play.note((30_700, 30_700), event.clone());
            let verdict = play.judged(Aspect::EveryTick).verdict().0;
            let expected = if restart { Verdict::Pass } else { Verdict::Broken };
            assert_eq!(verdict, expected, "{event:?}, restart: {restart}");
        }
    }
}

#[test]
fn what_the_history_says_of_nobody_is_an_error() {
    for event in [
        Event::Receive {
            agent: 77,
            delivery: 99,
            request: super::play::request((0, 0), 1),
            attempt: None,
        },
        Event::Agent { agent: 77, is: AgentState::Left },
        Event::Execute { agent: 0, delivery: 99, ok: true },
        Event::Skip { scheduler: 0, check: 5, ticks: (0, 1), expired: false },
    ] {
        let mut watch = Play::new().watch();
        let last = watch.last;
        assert!(watch.see((last, last), &event).is_err(), "{event:?}");
    }
}

#[test]
fn a_day_needs_no_more_memory_than_an_hour() {
    let kept = |hours: u64| {
        let mut workload = workload();
        workload.duration = Duration::from_secs(3600 * hours);
        let mut play = Play::of(workload);
        play.well_but(&[]);
        play.break_off();
        let watch = play.watch();
        assert!(watch.open.capacity() < 1000 && watch.deliveries.capacity() < 1000);
        let held: usize = watch.held.values().map(Vec::len).sum();
        let maps = (watch.open.len(), watch.deliveries.len(), watch.unexecuted.len());
        (maps, watch.closing.len(), held)
    };
    assert_eq!(kept(1), kept(24));
}
