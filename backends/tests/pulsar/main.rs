//! The Pulsar backend against a real standalone: one case for each trap of the broker and its
//! protocol, and for each way in which a connection can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod auth;
mod broker;
mod connecting;
mod consuming;
mod publishing;
mod redelivery;
mod restart;

use std::{
    future::Future,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use broker::{Broker, unique};
use libtest_mimic::{Arguments, Trial};
use queueproof_backends::{
    Connector, Consumer, ConsumerOptions, Delivery, Depth, Link, Message, PublishError,
    PublishReceipt, Publisher, PublisherOptions, QueueBackend, Retention, Start, SubscriptionSpec,
    TopicSpec,
    pulsar::{PulsarConnector, PulsarSettings},
};

/// How long anything may take that is due at once.
const SOON: Duration = Duration::from_secs(20);

/// How long nothing must come for nothing to be there.
const QUIET: Duration = Duration::from_millis(500);

const OPTIONS: ConsumerOptions = ConsumerOptions { prefetch: 16, confirm_acks: true };

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let broker = if arguments.list { None } else { Broker::start().map(Arc::new) };
    let mut trials = Vec::new();
    if let Some(broker) = &broker {
        let mut cases = Cases { trials: &mut trials, broker };
        publishing::add(&mut cases);
        consuming::add(&mut cases);
        redelivery::add(&mut cases);
        connecting::add(&mut cases);
        restart::add(&mut cases);
        auth::add(&mut cases);
    }
    arguments.test_threads.get_or_insert(3);
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    drop(broker); // it stops here, whatever was found
    code
}

/// The cases, and the broker that they share.
struct Cases<'a> {
    trials: &'a mut Vec<Trial>,
    broker: &'a Arc<Broker>,
}

impl Cases<'_> {
    /// One that runs on a runtime of its own.
    fn add<F: Future<Output = ()>>(
        &mut self,
        name: &'static str,
        run: impl Fn(Arc<Broker>) -> F + Send + 'static,
    ) {
        // Weak, so that the broker is stopped when the harness has run.
        let broker = Arc::downgrade(self.broker);
        self.trials.push(Trial::test(name, move || {
            let broker = broker.upgrade().ok_or("the broker is gone")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(broker));
            Ok(())
        }));
    }
}

fn settings(broker: &Broker) -> PulsarSettings {
    PulsarSettings {
        url: broker.url(),
        admin_url: broker.admin_url(),
        connect_timeout: SOON,
        ..PulsarSettings::default()
    }
}

fn connector(broker: &Broker) -> PulsarConnector {
    PulsarConnector::new(settings(broker)).unwrap()
}

async fn connect(broker: &Broker) -> Arc<dyn QueueBackend> {
    connector(broker).connect(None).await.unwrap()
}

/// A connection that can be cut, and its link.
async fn linked(broker: &Broker) -> (Arc<dyn QueueBackend>, Arc<dyn Link>) {
    let connector = connector(broker);
    let link = connector.link().await.unwrap();
    (connector.connect(Some(Arc::clone(&link))).await.unwrap(), link)
}

fn topic(name: &str, retention: Retention) -> TopicSpec {
    TopicSpec { name: name.into(), retention, dedup_window: None, max_messages: None }
}

fn subscription(topic: &str, name: &str, ack_timeout: Duration) -> SubscriptionSpec {
    SubscriptionSpec {
        topic: topic.into(),
        name: name.into(),
        start: Start::Earliest,
        ack_timeout,
        dead_letter: None,
        ordered_by_key: false,
    }
}

/// A new work queue with its subscription `s`; its name.
async fn work_queue(connection: &Arc<dyn QueueBackend>) -> String {
    work_queue_with(connection, |spec| spec).await
}

async fn work_queue_with(
    connection: &Arc<dyn QueueBackend>,
    how: impl Fn(SubscriptionSpec) -> SubscriptionSpec,
) -> String {
    let name = unique("t");
    connection.create_topic(&topic(&name, Retention::UntilAcked)).await.unwrap();
    connection.create_subscription(&how(subscription(&name, "s", SOON * 6))).await.unwrap();
    name
}

fn named(name: &str) -> PublisherOptions {
    PublisherOptions { name: Some(name.into()), ..PublisherOptions::default() }
}

async fn plain(connection: &Arc<dyn QueueBackend>, topic: &str) -> Box<dyn Publisher> {
    connection.publisher(topic, PublisherOptions::default()).await.unwrap()
}

/// Publishes, and waits for the confirmation.
async fn publish(
    publisher: &mut Box<dyn Publisher>,
    message: impl Into<Message>,
) -> Result<PublishReceipt, PublishError> {
    publisher.publish(message.into()).await?.await
}

async fn consumer(
    connection: &Arc<dyn QueueBackend>,
    topic: &str,
    prefetch: u32,
) -> Box<dyn Consumer> {
    connection.consumer(topic, "s", ConsumerOptions { prefetch, ..OPTIONS }).await.unwrap()
}

/// Exactly this many deliveries, within the time that anything may take.
async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let began = Instant::now();
    let mut taken = Vec::new();
    while taken.len() < count {
        assert!(began.elapsed() < SOON, "{} of {count} came", taken.len());
        taken.append(&mut consumer.receive(count - taken.len(), SOON).await.unwrap());
    }
    taken
}

/// Makes sure that nothing comes.
async fn nothing(consumer: &mut Box<dyn Consumer>) {
    let came = consumer.receive(1, QUIET).await.unwrap();
    assert!(came.is_empty(), "{came:?}");
}

fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    let body = |d: &Delivery| String::from_utf8_lossy(&d.message.payload).into_owned();
    deliveries.iter().map(body).collect()
}

fn attempts(deliveries: &[Delivery]) -> Vec<u32> {
    deliveries.iter().map(|d| d.attempt.unwrap()).collect()
}

/// Waits until the broker counts so.
async fn until_depth(
    connection: &Arc<dyn QueueBackend>,
    topic: &str,
    (waiting, unsettled): (u64, u64),
) {
    let expected = Depth { waiting, unsettled, stored: None };
    let began = Instant::now();
    loop {
        let depth = connection.depth(topic, "s").await.unwrap();
        if depth == expected {
            return;
        }
        assert!(began.elapsed() < SOON, "{depth:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < SOON, "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
