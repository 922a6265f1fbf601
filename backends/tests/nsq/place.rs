//! Where a test is played, and what the tests have in common.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use queueproof_backends::{
    Connector, Consumer, ConsumerOptions, Delivery, Link, Message, Publisher, PublisherOptions,
    QueueBackend, Retention, Start, SubscriptionSpec, TopicSpec,
    nsq::{NsqConnector, NsqSettings},
};
use tokio::time::{sleep, timeout};

use super::{
    server::Server,
    standin::{Options, StandIn},
};

pub const SOON: Duration = Duration::from_secs(20);
pub const MOMENT: Duration = Duration::from_millis(10);
pub const OPTIONS: ConsumerOptions = ConsumerOptions { prefetch: 16, confirm_acks: true };

/// An nsqd, real or not.
pub enum Place {
    Real(Server),
    StandIn(StandIn),
}

impl Place {
    pub fn stand_in(options: Options) -> Place {
        Place::StandIn(StandIn::start(options))
    }

    pub fn tcp(&self) -> SocketAddr {
        match self {
            Place::Real(server) => server.tcp,
            Place::StandIn(server) => server.tcp,
        }
    }

    pub fn http(&self) -> SocketAddr {
        match self {
            Place::Real(server) => server.http,
            Place::StandIn(server) => server.http,
        }
    }

    /// Settings that reach it. No test depends on when exactly something comes back, so none
    /// waits for nsqd to find its channels.
    pub fn settings(&self) -> NsqSettings {
        NsqSettings {
            url: format!("nsq://{}", self.tcp()),
            http_url: Some(format!("http://{}", self.http())),
            new_channel_wait: Duration::ZERO,
            ..NsqSettings::default()
        }
    }

    pub fn connector(&self) -> NsqConnector {
        NsqConnector::new(self.settings()).unwrap()
    }
}

pub fn topic(name: &str, retention: Retention) -> TopicSpec {
    TopicSpec { name: name.into(), retention, dedup_window: None, max_messages: None }
}

pub fn subscription(topic: &str, name: &str) -> SubscriptionSpec {
    SubscriptionSpec {
        topic: topic.into(),
        name: name.into(),
        start: Start::Earliest,
        ack_timeout: Duration::from_secs(60),
        dead_letter: None,
        ordered_by_key: false,
    }
}

/// A connection, with a work queue `t` and its subscription `s`.
pub async fn work_queue(connector: &NsqConnector, ack_timeout: Duration) -> Arc<dyn QueueBackend> {
    let connection = connector.connect(None).await.unwrap();
    connection.create_topic(&topic("t", Retention::UntilAcked)).await.unwrap();
    let spec = SubscriptionSpec { ack_timeout, ..subscription("t", "s") };
    connection.create_subscription(&spec).await.unwrap();
    connection
}

/// The same, whose deliveries stay locked for a minute.
pub async fn patient_queue(connector: &NsqConnector) -> Arc<dyn QueueBackend> {
    work_queue(connector, Duration::from_secs(60)).await
}

pub async fn publisher(connection: &Arc<dyn QueueBackend>) -> Box<dyn Publisher> {
    connection.publisher("t", PublisherOptions::default()).await.unwrap()
}

pub async fn consumer(connection: &Arc<dyn QueueBackend>, prefetch: u32) -> Box<dyn Consumer> {
    let options = ConsumerOptions { prefetch, ..OPTIONS };
    connection.consumer("t", "s", options).await.unwrap()
}

/// A connection through a link.
pub async fn linked(connector: &NsqConnector) -> (Arc<dyn Link>, Arc<dyn QueueBackend>) {
    let link = connector.link().await.unwrap();
    let connection = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    (link, connection)
}

/// Publishes one message and waits for its confirmation.
pub async fn publish(publisher: &mut Box<dyn Publisher>, body: &'static str) {
    publisher.publish(Message::new(body)).await.unwrap().await.unwrap();
}

/// Takes so many deliveries.
pub async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let received = consumer.receive(count - taken.len(), SOON).await.unwrap();
        assert!(!received.is_empty(), "{} of {count} came", taken.len());
        taken.extend(received);
    }
    taken
}

/// Makes sure that nothing comes for a while.
pub async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    let received = consumer.receive(1, Duration::from_millis(300)).await.unwrap();
    assert!(received.is_empty(), "{received:?}");
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(MOMENT).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("in time: {what}"));
}

/// How many sockets of this process lead to an address.
pub fn sockets_to(address: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = address else { panic!("{address} is no IPv4 address") };
    let [a, b, c, d] = v4.ip().octets();
    let there = format!("{d:02X}{c:02X}{b:02X}{a:02X}:{:04X}", v4.port());
    let all = std::fs::read_to_string("/proc/net/tcp").expect("a Linux system");
    let established = all.lines().filter(|line| {
        let mut words = line.split_ascii_whitespace().skip(2);
        words.next() == Some(there.as_str()) && words.next() == Some("01")
    });
    established.count()
}
