//! The baseline on a real etcd: what a ring does, and what it loses.
#![allow(clippy::unwrap_used, clippy::panic)]
#![cfg(feature = "etcd-ring")]

#[allow(dead_code)] // Its other half plays properties.
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use queueproof::{
    brokers::PrivateBroker,
    history::{Halt, Published},
    scheduler::{
        AgentGroup, AgentState, BrokerControl, Cadence, CheckGroup, Distribution, Event, Load,
        Recorder, SchedulerState, Schedulers, Strategy, Workload,
        ring::{self, RingSetup},
    },
};
use tokio_util::sync::CancellationToken;

const SECOND: u64 = 1_000_000_000;

/// Two seconds is the shortest lease of an etcd with its own settings.
const INTERVAL: Duration = Duration::from_secs(2);

/// A check every two seconds, three schedulers, six agents that are at it for a while.
fn workload(seconds: u64, timeline: &[&str]) -> Workload {
    Workload {
        duration: Duration::from_secs(seconds),
        epoch_unix_ms: 1_767_225_600_000,
        strategy: Strategy::Ring,
        schedulers: Schedulers {
            count: 3,
            skew: Duration::ZERO,
            drift_ppm: 0,
            catch_up: true,
            in_flight: 256,
            retries: 3,
        },
        pools: vec!["linux".into()],
        checks: vec![CheckGroup {
            name: "disk".into(),
            count: 1,
            namespace: "default".into(),
            pool: 0,
            cadence: Cadence::Interval { every: INTERVAL, splay: false },
            broadcast: false,
            expires: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
        }],
        agents: vec![AgentGroup {
            count: 6,
            pools: vec![0],
            execution: Distribution::Constant(Duration::from_millis(100)),
            concurrency: 1,
            fails: 0.0,
            slow: false,
        }],
        connection_per_agent: false,
        agents_per_connection: 100,
        ack_timeout: Duration::from_secs(10),
        dedup_window: Duration::from_secs(120),
        tolerance: Duration::from_millis(500),
        churn: None,
        timeline: timeline.iter().map(|line| line.parse().unwrap()).collect(),
    }
}

/// What happened, each with its time since the epoch, nanoseconds (0 before it).
type Events = Vec<(u64, Event)>;

/// Runs a workload on an etcd.
fn run(
    workload: Workload,
    endpoint: &str,
    prefix: &str,
    broker: Option<Arc<dyn BrokerControl>>,
) -> (Events, Result<(), Halt>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let out = Arc::clone(&events);
    let ended = runtime.block_on(async {
        let recorder = Recorder::new(tokio::time::Instant::now(), move |(_, at), event| {
            out.lock().unwrap().push((at, event));
        });
        let setup = RingSetup {
            workload,
            endpoint: endpoint.into(),
            prefix: prefix.into(),
            recorder,
            seed: 7,
            broker,
            cancel: CancellationToken::new(),
        };
        ring::run(setup).await
    });
    drop(runtime);
    let mut events = std::mem::take(&mut *events.lock().unwrap());
    let epoch = events.iter().find(|(_, event)| *event == Event::Begin).map_or(0, |(at, _)| *at);
    for (at, _) in &mut events {
        *at = at.saturating_sub(epoch);
    }
    (events, ended)
}

/// An etcd of the test's own.
fn etcd(test: &str) -> Option<PrivateBroker> {
    support::broker("etcd", test)
}

/// Which tick was given to which agent, in that order.
fn given(events: &Events) -> Vec<(u64, u32)> {
    let given = events.iter().filter_map(|(_, event)| match event {
        Event::Receive { agent, request, .. } => Some((request.tick, *agent)),
        _ => None,
    });
    given.collect()
}

fn count(events: &Events, of: impl Fn(&Event) -> bool) -> usize {
    events.iter().filter(|(_, event)| of(event)).count()
}

/// The ticks that a scheduler's transaction scheduled, with the times.
fn scheduled(events: &Events) -> BTreeMap<u64, u64> {
    let won = |event: &Event| match event {
        Event::Publish {
            request,
            outcome: Published::Confirmed { duplicate: Some(false), .. },
        } => Some(request.tick),
        _ => None,
    };
    events.iter().filter_map(|(at, event)| Some((won(event)?, *at))).collect()
}

struct Restarts(Arc<PrivateBroker>);

impl BrokerControl for Restarts {
    fn restart(&self) -> Result<(), String> {
        self.0.restart().map_err(|error| error.to_string())
    }

    fn load(&self) -> Load {
        self.0.load()
    }
}

#[test]
fn agents_execute_in_turn_each_firing_once_and_the_ring_falls_behind_its_ticks() {
    let Some(etcd) = etcd("a ring with nothing going wrong") else { return };
    let (events, ended) = run(workload(20, &[]), etcd.url(), "calm", None);
    ended.unwrap();
    let given = given(&events);
    let agents: Vec<_> = given.iter().map(|(_, agent)| *agent).collect();
    let in_turn: Vec<u32> = (0..6).cycle().take(agents.len()).collect();
    assert_eq!(agents, in_turn);
    let ticks: BTreeSet<_> = given.iter().map(|(tick, _)| *tick).collect();
    assert_eq!(ticks.len(), given.len(), "none twice: {given:?}");
    assert!((6..=10).contains(&ticks.len()), "{given:?}");
    assert_eq!(count(&events, |e| matches!(e, Event::Execute { ok: true, .. })), given.len());
    assert_eq!(count(&events, |e| matches!(e, Event::Settle { .. })), 0);
    assert_eq!(count(&events, |e| matches!(e, Event::Drained)), 1);
    // Never early, and each firing an interval after the one before, or more.
    let scheduled = scheduled(&events);
    assert_eq!(scheduled.keys().copied().collect::<BTreeSet<_>>(), ticks);
    assert!(scheduled.iter().all(|(tick, at)| *at >= tick * 2 * SECOND), "{scheduled:?}");
    let times: Vec<_> = scheduled.values().collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 2 * SECOND), "{scheduled:?}");
    let (first, last) = (scheduled.first_key_value(), scheduled.last_key_value());
    let late = |at: Option<(&u64, &u64)>| at.map(|(tick, at)| at - tick * 2 * SECOND).unwrap();
    assert!(late(last) > late(first) || ticks.len() < 10, "{scheduled:?}");
}

#[test]
fn what_a_crashed_agent_was_at_is_lost_and_the_others_go_on_without_it() {
    let Some(etcd) = etcd("a ring whose agent crashes") else { return };
    let mut workload = workload(20, &["5s crash 1 agent"]);
    workload.agents[0].execution = Distribution::Constant(Duration::from_millis(1900));
    let (events, ended) = run(workload, etcd.url(), "crash", None);
    ended.unwrap();
    let crashed = events.iter().find_map(|(at, event)| match event {
        Event::Agent { agent, is: AgentState::Crashed } => Some((*at, *agent)),
        _ => None,
    });
    let (at, crashed) = crashed.unwrap();
    let of_it = |event: &Event| matches!(event, Event::Receive { agent, .. } if *agent == crashed);
    let received = count(&events, of_it);
    let executed = |e: &Event| matches!(e, Event::Execute { agent, .. } if *agent == crashed);
    assert_eq!(count(&events, executed) + 1, received, "{events:?}");
    assert!(events.iter().all(|(time, event)| *time <= at || !of_it(event)), "{events:?}");
    // No tick of those that nobody had in hands is lost.
    let after = scheduled(&events).into_iter().filter(|(_, time)| *time > at + SECOND).count();
    let given_after = events
        .iter()
        .filter(|(time, event)| *time > at + SECOND && matches!(event, Event::Receive { .. }))
        .count();
    assert!(after >= 4, "{events:?}");
    assert_eq!(given_after, after);
}

#[test]
fn while_a_killed_schedulers_agents_are_away_their_turns_are_lost() {
    let Some(etcd) = etcd("a ring whose scheduler is killed") else { return };
    // There is no other, so that nobody sees the trigger end.
    let mut workload = workload(20, &["5s kill 1 scheduler", "9500ms add 1 scheduler"]);
    workload.schedulers.count = 1;
    let (events, ended) = run(workload.clone(), etcd.url(), "alone", None);
    ended.unwrap();
    let given_to = given(&events).into_iter().map(|(tick, _)| tick).collect::<BTreeSet<_>>();
    assert!(!given_to.contains(&3) && !given_to.contains(&4), "{given_to:?}");
    assert!(given_to.last().is_some_and(|last| *last >= 7), "{given_to:?}");
    // With others, the turns of its agents are scheduled all the same, and given to nobody: by then
    // it is that of agent 1, which is at the second one, for about half of the checks.
    workload.schedulers.count = 3;
    workload.timeline = vec!["3s kill 2 schedulers".parse().unwrap()];
    workload.checks[0].count = 24;
    workload.checks[0].cadence = Cadence::Interval { every: INTERVAL, splay: true };
    let (events, ended) = run(workload, etcd.url(), "together", None);
    ended.unwrap();
    let killed = |e: &Event| matches!(e, Event::Scheduler { is: SchedulerState::Killed, .. });
    assert_eq!(count(&events, killed), 2);
    let key = |event: &Event| match event {
        Event::Publish { request, .. } => Some((request.check, request.tick, false)),
        Event::Receive { request, .. } => Some((request.check, request.tick, true)),
        _ => None,
    };
    let keys: BTreeSet<_> = events.iter().filter_map(|(_, event)| key(event)).collect();
    let lost: Vec<_> = keys
        .iter()
        .filter(|(check, tick, given)| !given && !keys.contains(&(*check, *tick, true)))
        .collect();
    assert!(!lost.is_empty(), "{keys:?}");
    // Only for as long as its agents need to connect again.
    assert!(lost.iter().all(|(_, tick, _)| (1..=3).contains(tick)), "{lost:?}");
}

#[test]
fn a_ring_goes_on_after_etcd_was_restarted() {
    let Some(etcd) = etcd("a ring whose etcd is restarted") else { return };
    let etcd = Arc::new(etcd);
    let control = Arc::new(Restarts(Arc::clone(&etcd)));
    let run = run(workload(24, &["5s restart broker"]), etcd.url(), "again", Some(control));
    let (events, ended) = run;
    ended.unwrap();
    let given = given(&events);
    assert!(given.iter().any(|(tick, _)| *tick >= 9), "{given:?}");
    let ticks: BTreeSet<_> = given.iter().map(|(tick, _)| *tick).collect();
    assert_eq!(ticks.len(), given.len(), "none twice: {given:?}");
}

#[test]
fn a_ring_that_nobody_was_in_begins_when_somebody_joins() {
    let Some(etcd) = etcd("a ring that was empty") else { return };
    let timeline = ["1s leave 6 agents", "8s join 2 agents"];
    let (events, ended) = run(workload(20, &timeline), etcd.url(), "empty", None);
    ended.unwrap();
    let given = given(&events);
    assert!(given.iter().all(|(tick, _)| !(2..=4).contains(tick)), "{given:?}");
    let after: Vec<_> = given.iter().filter(|(tick, _)| *tick > 4).map(|(_, a)| *a).collect();
    assert!(after.starts_with(&[6, 7, 6]), "{given:?}");
}

#[test]
fn what_a_ring_cannot_run_is_refused_in_words() {
    let refused = |change: fn(&mut CheckGroup)| {
        let mut workload = workload(20, &[]);
        change(&mut workload.checks[0]);
        ring::unfit(&workload).unwrap()
    };
    let cron = refused(|check| check.cadence = Cadence::Cron("* * * * *".into()));
    assert!(cron.contains("disk") && cron.contains("cron"), "{cron}");
    let short = refused(|check| {
        check.cadence = Cadence::Interval { every: Duration::from_millis(1500), splay: false };
    });
    assert!(short.contains("whole seconds"), "{short}");
    let broadcast = refused(|check| check.broadcast = true);
    assert!(broadcast.contains("one agent"), "{broadcast}");
    assert_eq!(ring::unfit(&workload(20, &[])), None);
}

#[test]
fn an_etcd_that_is_not_there_is_told_with_its_address() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let (events, ended) = run(workload(20, &[]), &endpoint, "nobody", None);
    let Err(Halt::Broken(why)) = ended else { panic!("{ended:?}") };
    assert!(why.contains(&endpoint), "{why}");
    assert_eq!(events, []);
}
