//! The Pulsar backend against a real standalone: one case for each trap of the broker and its
//! protocol, and for each way in which a connection can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broker;
mod probe;

use std::{future::Future, process::ExitCode, sync::Arc, time::Duration};

use broker::{Broker, unique};
use libtest_mimic::{Arguments, Trial};
use queueproof_backends::{
    Connector, ConsumerOptions, Depth, Publisher, QueueBackend, Retention, Start, SubscriptionSpec,
    TopicSpec,
    pulsar::{PulsarConnector, PulsarSettings},
};

const SOON: Duration = Duration::from_secs(20);
const OPTIONS: ConsumerOptions = ConsumerOptions { prefetch: 16, confirm_acks: true };

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let broker = if arguments.list { None } else { Broker::start() };
    let mut trials = Vec::new();
    if let Some(broker) = &broker {
        let broker: &'static Place = Box::leak(Box::new(Place::of(broker)));
        probe::add(&mut trials, broker);
    }
    arguments.test_threads.get_or_insert(4);
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    drop(broker); // it stops here, whatever was found
    code
}

/// Where the shared broker is.
struct Place {
    url: String,
    admin_url: String,
}

impl Place {
    fn of(broker: &Broker) -> Self {
        Place { url: broker.url(), admin_url: broker.admin_url() }
    }

    fn settings(&self) -> PulsarSettings {
        PulsarSettings {
            url: self.url.clone(),
            admin_url: self.admin_url.clone(),
            connect_timeout: SOON,
            ..PulsarSettings::default()
        }
    }

    fn connector(&self) -> PulsarConnector {
        PulsarConnector::new(self.settings()).unwrap()
    }

    async fn connect(&self) -> Arc<dyn QueueBackend> {
        self.connector().connect(None).await.unwrap()
    }
}

/// A case that runs on a runtime of its own.
fn case<F: Future<Output = ()> + 'static>(
    trials: &mut Vec<Trial>,
    name: &'static str,
    place: &'static Place,
    run: impl Fn(&'static Place) -> F + Send + 'static,
) {
    trials.push(Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(place));
        Ok(())
    }));
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
    let name = unique("t");
    connection.create_topic(&topic(&name, Retention::UntilAcked)).await.unwrap();
    connection.create_subscription(&subscription(&name, "s", SOON * 6)).await.unwrap();
    name
}
