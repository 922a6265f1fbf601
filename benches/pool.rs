//! What the embedded broker costs under a pool of 20,000 consumers in simulated time.
//!
//! `simulated`: a thousand checks a minute, each published by three schedulers under one id,
//! executed in 100 ms by one agent and acknowledged; three agents a second vanish, with what they
//! hold, and others come. The time for a tick must be the same for ten minutes and for an hour.
//! The others are single steps, with all those consumers there.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use queueproof_backends::{
    Connector, Consumer, ConsumerOptions, DedupKey, Message, Publisher, PublisherOptions,
    QueueBackend, Retention, Start, SubscriptionSpec, TopicSpec,
    memory::{MemoryConnector, MemorySettings},
};
use tokio::{runtime::Runtime, task::JoinHandle, time::sleep};

const AGENTS: usize = 20_000;
const SCHEDULERS: usize = 3;
const TICKS_A_MINUTE: u64 = 1000;
/// Messages of a single step.
const MESSAGES: u64 = 10_000;
const LINGER: Duration = Duration::from_secs(3600);

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

async fn pool() -> Arc<dyn QueueBackend> {
    let connector = MemoryConnector::new(MemorySettings::default());
    let connection = connector.connect(None).await.unwrap();
    let topic = TopicSpec {
        name: "pool".into(),
        retention: Retention::UntilAcked,
        dedup_window: None,
        max_messages: None,
    };
    connection.create_topic(&topic).await.unwrap();
    let subscription = SubscriptionSpec {
        topic: "pool".into(),
        name: "agents".into(),
        start: Start::Earliest,
        ack_timeout: Duration::from_secs(30),
        dead_letter: None,
        ordered_by_key: false,
    };
    connection.create_subscription(&subscription).await.unwrap();
    connection
}

async fn consumer(connection: &dyn QueueBackend) -> Box<dyn Consumer> {
    let options = ConsumerOptions { prefetch: 1, confirm_acks: true };
    connection.consumer("pool", "agents", options).await.unwrap()
}

async fn publishers(connection: &dyn QueueBackend) -> Vec<Box<dyn Publisher>> {
    let mut publishers = Vec::new();
    for _ in 0..SCHEDULERS {
        let options = PublisherOptions::default();
        publishers.push(connection.publisher("pool", options).await.unwrap());
    }
    publishers
}

fn agent(connection: &Arc<dyn QueueBackend>) -> JoinHandle<()> {
    let connection = Arc::clone(connection);
    tokio::spawn(async move {
        let mut consumer = consumer(&*connection).await;
        loop {
            for delivery in consumer.receive(1, LINGER).await.unwrap() {
                sleep(Duration::from_millis(100)).await;
                delivery.ack().await.unwrap();
            }
        }
    })
}

async fn publish(publisher: &mut dyn Publisher, tick: u64) {
    let id = DedupKey::Id(format!("default/check-{}/{tick}", tick % TICKS_A_MINUTE));
    let message = Message { dedup: Some(id), ..Message::new(vec![0; 128]) };
    publisher.publish(message).await.unwrap().await.unwrap();
}

/// How long so many simulated minutes take.
fn simulate(minutes: u64) -> Duration {
    runtime().block_on(async {
        let connection = pool().await;
        let mut agents: Vec<_> = (0..AGENTS).map(|_| agent(&connection)).collect();
        let mut publishers = publishers(&*connection).await;
        let ticks = minutes * TICKS_A_MINUTE;
        let began = Instant::now();
        for tick in 0..ticks {
            sleep(Duration::from_secs(60) / TICKS_A_MINUTE as u32).await;
            for publisher in &mut publishers {
                publish(&mut **publisher, tick).await;
            }
            if tick % 6 == 5 {
                // One that executes, every other time, else one that waits, from all over the pool.
                let served = tick as usize;
                let gone = match tick % 12 {
                    5 => served,
                    _ => served * 7919,
                };
                let gone = &mut agents[gone % AGENTS];
                gone.abort();
                *gone = agent(&connection);
            }
        }
        sleep(Duration::from_secs(60)).await;
        let took = began.elapsed();
        let depth = connection.depth("pool", "agents").await.unwrap();
        assert_eq!((depth.waiting, depth.unsettled), (0, 0));
        took
    })
}

/// How long each step takes for all messages: publishing them, publishing them again, and
/// receiving and acknowledging them.
fn steps() -> [Duration; 3] {
    runtime().block_on(async {
        let connection = pool().await;
        let mut consumers = Vec::new();
        for _ in 0..AGENTS {
            consumers.push(consumer(&*connection).await);
        }
        let mut publishers = publishers(&*connection).await;
        let mut took = [Duration::ZERO; 3];
        for (took, publisher) in took.iter_mut().zip(&mut publishers).take(2) {
            let began = Instant::now();
            for tick in 0..MESSAGES {
                publish(&mut **publisher, tick).await;
            }
            *took = began.elapsed();
        }
        let began = Instant::now();
        for consumer in consumers.iter_mut().take(MESSAGES as usize) {
            for delivery in consumer.receive(1, Duration::ZERO).await.unwrap() {
                delivery.ack().await.unwrap();
            }
        }
        took[2] = began.elapsed();
        let depth = connection.depth("pool", "agents").await.unwrap();
        assert_eq!((depth.waiting, depth.unsettled), (0, 0));
        took
    })
}

fn pools(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool of 20,000");
    group.sample_size(10);
    for minutes in [10, 60] {
        group.throughput(Throughput::Elements(minutes * TICKS_A_MINUTE));
        group.bench_function(format!("simulated/{minutes} min"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| simulate(minutes)).sum());
        });
    }
    group.throughput(Throughput::Elements(MESSAGES));
    for (step, name) in ["publish/kept", "publish/dropped", "receive and ack"].iter().enumerate() {
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| steps()[step]).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, pools);
criterion_main!(benches);
