//! How fast the evaluator itself is: it must not be what a measurement measures.
//!
//! `round-trip`: publish, receive and acknowledge through the contract on the embedded backend,
//! every operation written into the history. `judge`: a history of a million operations.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{sync::Arc, time::Duration, time::Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use queueproof::{
    conformance::{self, Stage, property, stage::Consumer},
    history::{self, Header, History, Ledger},
    plan::Suite,
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
    group.finish();
}

criterion_group!(benches, evaluator);
criterion_main!(benches);
