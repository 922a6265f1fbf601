//! How fast the evaluator itself is: it must not be what a measurement measures.
//!
//! `round-trip`: publish, receive and acknowledge through the contract on the embedded backend,
//! every operation written into the history. `judge`: a history of a million operations. `watch`: the
//! events of a workload of 20,000 agents and 1,000 checks a minute, as they come.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{sync::Arc, time::Duration, time::Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use queueproof::{
    checker::Findings,
    checker::scheduling::{Aspect, Watch},
    conformance::{self, Stage, property, stage::Consumer},
    history::{self, Header, History, Ledger},
    history::{How, Published, SettleOutcome},
    plan::Suite,
    scheduler::{AgentState, Event, Request, SchedulerState, Ticks, Workload},
};
use queueproof_backends::{
    Connector,
    memory::{MemoryConnector, MemorySettings},
};
use tokio::runtime::Runtime;

/// Messages in a batch.
const BATCH: usize = 1000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn stage() -> Stage {
    let connector = Arc::new(MemoryConnector::new(MemorySettings::default()));
    let capabilities = connector.connect(None).await.unwrap().capabilities();
    let header = Header {
        schema: history::SCHEMA.into(),
        target: "memory".into(),
        property: "work-queue/once-each".into(),
        seed: 1,
        suite: Suite::quick(),
        capabilities: capabilities.clone(),
        virtual_time: true,
        flaw: None,
    };
    let ledger = Ledger::new(header, None).unwrap();
    Stage::new(connector, Suite::quick(), capabilities, ledger, 1, "qp-bench".into(), None)
}

async fn receive(stage: &Stage, consumer: &mut Consumer<'_>, count: usize) {
    let mut left = count;
    while left > 0 {
        let received = consumer.receive(BATCH, Duration::from_secs(1)).await.unwrap();
        stage.ack_all(&received).await;
        left -= received.len();
    }
}

/// Publishes, receives and acknowledges; the time that took, and the history.
fn round_trips(count: usize) -> (Duration, History) {
    runtime().block_on(async {
        let stage = stage().await;
        let director = stage.connect().await.unwrap();
        let (topic, subscription) = stage.work_queue(&director).await.unwrap();
        let mut publisher = director.publisher(&topic).await.unwrap();
        let mut consumers = [
            director.consumer(&subscription, BATCH as u32).await.unwrap(),
            director.consumer(&subscription, BATCH as u32).await.unwrap(),
        ];
        let began = Instant::now();
        for _ in 0..count / BATCH {
            publisher.send(BATCH as u32).await;
            for consumer in &mut consumers {
                receive(&stage, consumer, BATCH / 2).await;
            }
        }
        let took = began.elapsed();
        drop(consumers);
        drop((director, publisher));
        (took, stage.strike().await.finish(None))
    })
}

/// Schedulers that publish each tick, one of them with success.
const SCHEDULERS: u16 = 3;

/// 1,000 checks a minute for an hour, 20,000 agents.
fn workload() -> Workload {
    let workload = r#"{
        "duration": "1h", "epoch_unix_ms": 0, "strategy": "dedup-id",
        "schedulers": { "count": 3, "skew": "0s", "drift_ppm": 0, "catch_up": true,
                        "in_flight": 256, "retries": 3 },
        "pools": ["pool"],
        "checks": [{ "name": "check", "count": 1000, "namespace": "default", "pool": 0,
                     "cadence": { "interval": { "every": "1m", "splay": true } },
                     "expires": "1m", "timeout": "10s" }],
        "agents": [{ "count": 20000, "pools": [0], "execution": { "constant": "100ms" },
                     "concurrency": 1, "fails": 0.0 }],
        "connection_per_agent": false, "agents_per_connection": 100, "ack_timeout": "30s",
        "dedup_window": "2m", "tolerance": "500ms", "timeline": []
    }"#;
    serde_json::from_str(workload).unwrap()
}

/// Watches all of it; how many events that were. They are made as they are watched, so that this is
/// a little more than it costs to watch them.
fn watch(workload: &Workload, watch: &mut Watch) -> u64 {
    const MS: u64 = 1_000_000;
    let mut events = 0;
    let mut see = |at: (u64, u64), event: Event| {
        events += 1;
        watch.see(at, &event).unwrap();
    };
    let agents = workload.agent_count();
    for agent in 0..agents {
        see((0, 0), Event::Agent { agent, is: AgentState::Joined });
    }
    for scheduler in 0..SCHEDULERS {
        see((0, 0), Event::Scheduler { scheduler, is: SchedulerState::Started });
    }
    see((0, 0), Event::Begin);
    // All ticks of a minute in the order of their times.
    let first = |check| Ticks::of(workload, check).unwrap().from(0).unwrap();
    let mut ticks: Vec<_> =
        workload.all_checks().map(|check| (first(check).due, check.id)).collect();
    ticks.sort_unstable();
    let minutes = workload.duration.as_secs() / 60;
    for (delivery, (tick, (after, check))) in
        (0..).zip((0..minutes).flat_map(|tick| ticks.iter().map(move |due| (tick, *due))))
    {
        let due = tick * 60_000 * MS + after;
        let request = Request { check, tick, scheduler: 0, copy: 0 };
        for scheduler in 0..SCHEDULERS {
            let outcome = Published::Confirmed { duplicate: Some(scheduler > 0), position: None };
            let request = Request { scheduler, ..request };
            see((due, due), Event::Publish { request, outcome });
        }
        let agent = u32::try_from(delivery % u64::from(agents)).unwrap();
        see((0, due), Event::Receive { agent, delivery, request, attempt: Some(1) });
        see((due, due), Event::Execute { agent, delivery, ok: true });
        let (how, outcome) = (How::Ack, SettleOutcome::Confirmed);
        see((due, due), Event::Settle { agent, delivery, how, outcome });
    }
    let end = workload.duration.as_nanos() as u64;
    see((end, end), Event::End);
    see((end + 60_000 * MS, end + 60_000 * MS), Event::Drained);
    events
}

fn evaluator(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("evaluator");
    group.sample_size(10);
    let messages = 100 * BATCH;
    group.throughput(Throughput::Elements(messages as u64));
    group.bench_function("round-trip", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| round_trips(messages).0).sum());
    });
    let (_, history) = round_trips(334 * BATCH);
    assert!(history.ops.len() > 1_000_000);
    let property = property("work-queue/once-each").unwrap();
    group.throughput(Throughput::Elements(history.ops.len() as u64));
    group.bench_function("judge", |bencher| {
        bencher.iter_batched(
            || (),
            |()| conformance::judge(property, &history).unwrap(),
            BatchSize::PerIteration,
        );
    });
    let workload = workload();
    let capabilities = history.header.capabilities.clone();
    let begin = || Watch::new(&workload, &capabilities).unwrap();
    let mut watched = begin();
    group.throughput(Throughput::Elements(watch(&workload, &mut watched)));
    let mut findings = Findings::default();
    watched.judge(Aspect::OncePerTick, &mut findings);
    assert_eq!(findings.key_figure, "60000 once each");
    group.bench_function("watch", |bencher| {
        bencher.iter_batched(begin, |mut to| watch(&workload, &mut to), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, evaluator);
criterion_main!(benches);
