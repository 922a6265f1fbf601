//! The NATS backend against a real server: one test for each trap of the client library and of
//! the server, and for each way in which a connection can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server;

use std::{sync::Arc, time::Duration};

use queueproof_backends::{
    Connector, ConsumerOptions, DedupKey, Direction, ErrorKind, Message, PublishError,
    PublisherOptions, QueueBackend, RejectKind, Retention, Start, SubscriptionSpec, TopicSpec,
    nats::{Auth, NatsConnector, NatsSettings, Tls},
};
use server::Server;
use tokio::{net::TcpListener, time::timeout};

const SOON: Duration = Duration::from_secs(5);
const OPTIONS: ConsumerOptions = ConsumerOptions { prefetch: 16, confirm_acks: true };

fn connector(url: String) -> NatsConnector {
    let settings = NatsSettings { url, connect_timeout: SOON, ..NatsSettings::default() };
    NatsConnector::new(settings).unwrap()
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

/// A connection, with a work queue `t` and its subscription `s`.
async fn work_queue(connector: &NatsConnector) -> Arc<dyn QueueBackend> {
    let connection = connector.connect(None).await.unwrap();
    connection.create_topic(&topic("t", Retention::UntilAcked)).await.unwrap();
    connection.create_subscription(&subscription("t", "s", SOON * 6)).await.unwrap();
    connection
}

/// Runs a test with a server, or says loudly that it did not.
macro_rules! with_server {
    ($server:ident, $arguments:expr) => {
        let Some($server) = Server::start($arguments).await else { return };
    };
}

#[tokio::test]
async fn confirmations_that_wait_fail_when_the_connection_is_lost_and_not_at_their_timeout() {
    with_server!(server, &[]);
    let connector = connector(server.url());
    let direct = work_queue(&connector).await;
    let link = connector.link().await.unwrap();
    let linked = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    let options =
        PublisherOptions { confirm_timeout: Some(SOON * 100), ..PublisherOptions::default() };
    let mut publisher = linked.publisher("t", options).await.unwrap();
    link.hold(Direction::ToClient);
    let confirmation = publisher.publish(Message::new("x")).await.unwrap();
    while direct.depth("t", "s").await.unwrap().stored != Some(1) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    link.cut();
    let answer = timeout(SOON, confirmation).await.unwrap();
    assert!(matches!(answer, Err(PublishError::Indeterminate(_))), "{answer:?}");
}

#[tokio::test]
async fn what_is_published_while_the_connection_is_down_is_refused_and_not_stored_later() {
    with_server!(server, &[]);
    let connector = connector(server.url());
    let direct = work_queue(&connector).await;
    let link = connector.link().await.unwrap();
    let linked = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    let mut publisher = linked.publisher("t", PublisherOptions::default()).await.unwrap();
    link.cut();
    while linked.disconnects() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..20 {
        let answer = publisher.publish(Message::new("x")).await.map(drop);
        assert!(matches!(answer, Err(PublishError::NotSent(_))), "{answer:?}");
    }
    link.heal();
    let stored = async {
        while publisher.publish(Message::new("y")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, stored).await.expect("it works again by itself");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(direct.depth("t", "s").await.unwrap().stored, Some(1));
    assert_eq!(linked.disconnects(), 1);
}

#[tokio::test]
async fn a_consumer_goes_on_after_its_connection_came_back() {
    with_server!(server, &[]);
    let connector = connector(server.url());
    let direct = work_queue(&connector).await;
    let link = connector.link().await.unwrap();
    let linked = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    let mut consumer = linked.consumer("t", "s", OPTIONS).await.unwrap();
    assert!(consumer.receive(1, Duration::from_millis(50)).await.unwrap().is_empty());
    link.cut();
    assert!(consumer.receive(1, Duration::from_millis(200)).await.unwrap().is_empty());
    link.heal();
    let mut publisher = direct.publisher("t", PublisherOptions::default()).await.unwrap();
    publisher.publish(Message::new("x")).await.unwrap().await.unwrap();
    let delivery = consumer.receive(1, SOON * 2).await.unwrap().pop().unwrap();
    assert_eq!(delivery.message.payload, "x");
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn more_publishes_than_the_library_lets_wait_do_not_block_each_other() {
    with_server!(server, &[]);
    let connection = work_queue(&connector(server.url())).await;
    let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
    let receipts = publisher.publish_batch(vec![Message::new("x"); 6000]);
    let receipts = timeout(SOON * 6, receipts).await.expect("no deadlock");
    assert!(receipts.iter().all(Result::is_ok));
    assert_eq!(connection.depth("t", "s").await.unwrap().waiting, 6000);
}

#[tokio::test]
async fn a_consumer_that_does_not_ask_locks_its_prefetch_and_loses_nothing() {
    with_server!(server, &[]);
    let connection = work_queue(&connector(server.url())).await;
    let options = ConsumerOptions { prefetch: 10, ..OPTIONS };
    let mut consumer = connection.consumer("t", "s", options).await.unwrap();
    let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
    publisher.publish_batch(vec![Message::new("x"); 5000]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(connection.depth("t", "s").await.unwrap().unsettled, 10);
    let mut received = 0;
    while received < 5000 {
        let deliveries = consumer.receive(500, SOON).await.unwrap();
        assert!(!deliveries.is_empty(), "{received} of 5000 came");
        received += deliveries.len();
        queueproof_backends::settle_all(&deliveries, queueproof_backends::Settlement::Ack).await;
    }
    assert_eq!(connection.depth("t", "s").await.unwrap().stored, Some(0));
}

#[tokio::test]
async fn what_a_consumer_was_never_handed_returns_at_once_when_it_leaves() {
    with_server!(server, &[]);
    let connection = work_queue(&connector(server.url())).await;
    let consumer = connection.consumer("t", "s", OPTIONS).await.unwrap();
    let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
    publisher.publish_batch(vec![Message::new("x"); 10]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    consumer.close(SOON).await.unwrap();
    let mut other = connection.consumer("t", "s", OPTIONS).await.unwrap();
    let mut received = 0;
    while received < 10 {
        let deliveries = other.receive(10, SOON).await.unwrap();
        assert!(!deliveries.is_empty(), "{received} of 10 came");
        received += deliveries.len();
    }
}

#[tokio::test]
async fn a_stream_takes_more_than_a_thousand_subscriptions() {
    with_server!(server, &[]);
    let connection = connector(server.url()).connect(None).await.unwrap();
    connection.create_topic(&topic("t", Retention::Keep)).await.unwrap();
    for n in 0..1005 {
        connection.create_subscription(&subscription("t", &format!("s{n}"), SOON)).await.unwrap();
    }
}

#[tokio::test]
async fn a_work_queue_takes_one_subscription_and_what_exists_is_not_changed() {
    with_server!(server, &[]);
    let connection = work_queue(&connector(server.url())).await;
    let other = connection.create_subscription(&subscription("t", "other", SOON)).await;
    assert_eq!(other.unwrap_err().kind, ErrorKind::Conflict);
    connection.create_topic(&topic("t", Retention::UntilAcked)).await.expect("the same again");
    let other = connection.create_topic(&topic("t", Retention::Keep)).await;
    assert_eq!(other.unwrap_err().kind, ErrorKind::Conflict);
    connection.create_subscription(&subscription("t", "s", SOON * 6)).await.expect("the same");
    let missing = connection.consumer("t", "nobody", OPTIONS).await.map(drop);
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
    connection.delete_topic("t").await.unwrap();
    connection.delete_topic("t").await.expect("what does not exist is deleted");
    for name in ["", "a.b", "a b", "*", ">", "ä"] {
        let refused = connection.create_topic(&topic(name, Retention::Keep)).await;
        assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument, "{name:?}");
    }
}

#[tokio::test]
async fn deduplication_spans_connections_and_a_refusal_uses_up_no_id() {
    with_server!(server, &[]);
    let connector = connector(server.url());
    let connection = connector.connect(None).await.unwrap();
    let spec = TopicSpec { max_messages: Some(1), ..topic("t", Retention::UntilAcked) };
    connection.create_topic(&spec).await.unwrap();
    connection.create_subscription(&subscription("t", "s", SOON)).await.unwrap();
    let keyed = |key: &str| Message {
        dedup: Some(DedupKey::Id(key.into())),
        ..Message::new(key.to_string())
    };
    let publish = async |message: Message| {
        let connection = connector.connect(None).await.unwrap();
        let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
        publisher.publish(message).await?.await
    };
    let first = publish(keyed("a")).await.unwrap();
    assert_eq!((first.duplicate, first.position), (Some(false), Some(1)));
    let again = publish(keyed("a")).await.unwrap();
    assert_eq!((again.duplicate, again.position), (Some(true), Some(1)));
    let full = publish(keyed("b")).await;
    let full_kind =
        |r| matches!(r, Err(PublishError::Rejected { kind: RejectKind::LimitReached, .. }));
    assert!(full_kind(full));
    let mut consumer = connection.consumer("t", "s", OPTIONS).await.unwrap();
    consumer.receive(1, SOON).await.unwrap()[0].ack().await.unwrap();
    assert_eq!(publish(keyed("b")).await.unwrap().duplicate, Some(false));
    let reserved = Message { headers: vec![("Nats-Msg-Id".into(), "x".into())], ..keyed("c") };
    let refused = publish(reserved).await;
    assert!(matches!(refused, Err(PublishError::Rejected { kind: RejectKind::Invalid, .. })));
}

#[tokio::test]
async fn closing_leaves_no_connection_and_everything_of_it_is_closed() {
    with_server!(server, &[]);
    let connection = work_queue(&connector(server.url())).await;
    let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
    let mut consumer = connection.consumer("t", "s", OPTIONS).await.unwrap();
    assert_eq!(server.connections().await, 1);
    timeout(SOON, connection.close()).await.unwrap();
    let answer = publisher.publish(Message::new("x")).await.map(drop);
    assert_eq!(answer, Err(PublishError::Closed));
    let answer = consumer.receive(1, Duration::ZERO).await.map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    let none = async {
        while server.connections().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, none).await.unwrap();
}

/// The kind of error with which connecting fails.
async fn refusal(settings: NatsSettings) -> (ErrorKind, String) {
    let connector = NatsConnector::new(settings).unwrap();
    let Err(error) = timeout(SOON * 3, connector.connect(None)).await.expect("in time") else {
        panic!("it connected");
    };
    (error.kind, error.context)
}

#[tokio::test]
async fn what_is_no_nats_server_is_told_in_time() {
    let settings = |url: String| NatsSettings {
        url,
        connect_timeout: Duration::from_secs(1),
        ..NatsSettings::default()
    };
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (kind, words) = refusal(settings(format!("nats://{free}"))).await;
    assert_eq!(kind, ErrorKind::Unreachable, "{words}");
    // One that greets with these words, if any, and then says no more.
    for greeting in ["", "SSH-2.0-OpenSSH_9.2\r\n", "INFO nonsense\r\n", "INFO {}\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.writable().await;
                let _ = socket.try_write(greeting.as_bytes());
                open.push(socket);
            }
        });
        let (kind, words) = refusal(settings(format!("nats://{address}"))).await;
        let expected: &[ErrorKind] = match greeting.starts_with("INFO") {
            true => &[ErrorKind::Timeout, ErrorKind::WrongServer],
            false => &[ErrorKind::WrongServer],
        };
        assert!(expected.contains(&kind), "{greeting:?}: {kind:?} {words}");
    }
}

#[tokio::test]
async fn a_server_without_jetstream_is_told() {
    let Some(server) = Server::start_without_jetstream().await else { return };
    let settings = NatsSettings { url: server.url(), ..NatsSettings::default() };
    let (kind, words) = refusal(settings).await;
    assert_eq!(kind, ErrorKind::Unsupported, "{words}");
}

#[tokio::test]
async fn every_kind_of_credentials_is_used_and_wrong_ones_are_told_and_not_repeated() {
    let key = nkeys::KeyPair::new_user();
    let config = format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key());
    let other = nkeys::KeyPair::new_user();
    let password =
        |password: &str| Auth::UserPassword { user: "me".into(), password: password.into() };
    let cases = [
        ("authorization { user: me, password: right }", password("right"), password("hunter2")),
        (
            "authorization { token: right }",
            Auth::Token("right".into()),
            Auth::Token("hunter2".into()),
        ),
        (&config, Auth::NkeySeed(key.seed().unwrap()), Auth::NkeySeed(other.seed().unwrap())),
    ];
    for (config, right, wrong) in cases {
        let Some(server) = Server::start_with(config).await else { return };
        let settings = |auth| NatsSettings { url: server.url(), auth, ..NatsSettings::default() };
        let connector = NatsConnector::new(settings(right)).unwrap();
        connector.connect(None).await.unwrap_or_else(|e| panic!("{config}: {e}"));
        let shown = format!("{:?}", settings(wrong.clone()));
        assert!(!shown.contains("hunter2"), "{shown}");
        for auth in [wrong, Auth::None] {
            let (kind, words) = refusal(settings(auth)).await;
            assert_eq!(kind, ErrorKind::Unauthorized, "{config}: {words}");
            assert!(!words.contains("hunter2"), "{words}");
        }
    }
}

#[tokio::test]
async fn tls_is_used_with_a_trusted_certificate_and_refused_without() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("NOT RUN: TLS: no openssl to make a certificate with");
        return;
    }
    let config = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        certificate.display().to_string(),
        key.display().to_string()
    );
    let Some(server) = Server::start_with(&config).await else { return };
    let settings = |ca_file| NatsSettings {
        url: server.url(),
        tls: Tls { required: true, ca_file, ..Tls::default() },
        ..NatsSettings::default()
    };
    let trusting = NatsConnector::new(settings(Some(certificate))).unwrap();
    trusting.connect(None).await.expect("a trusted certificate");
    let (kind, words) = refusal(settings(None)).await;
    assert_eq!(kind, ErrorKind::WrongServer, "{words}");
}
