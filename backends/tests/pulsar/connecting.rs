//! Connecting, or saying why not; names and specifications; closing.

use std::sync::atomic::{AtomicUsize, Ordering};

use queueproof_backends::{BackendError, Capability, DedupKey, Direction, ErrorKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases.add("what is no Pulsar broker is told in time", wrong_servers);
    cases.add("an admin interface that is not there, or is none, is told", wrong_admin);
    cases.add("a namespace that is missing is made, with deduplication", new_namespace);
    cases.add("a namespace of somebody else's is left as it is", foreign_namespace);
    cases.add("a tenant that is missing is told", no_tenant);
    cases.add("names are refused before anything is sent", names);
    cases.add("what exists is not changed", existing);
    cases.add("topics are listed by the beginning of their names", listed);
    cases.add("a Pulsar proxy leads to the broker behind it, through a link too", proxied);
    cases.add("another name for the broker's address leads to it all the same", another_name);
    cases.add("closing leaves no connection, and everything of it is closed", closing);
    cases.add("dropping everything leaves no connection", dropping);
    cases.add("asking for the depth waits for a connection that comes back", depth_waits);
    cases.add("a broker that falls silent is noticed by a question in time", silent);
}

/// Why connecting fails.
async fn refusal(settings: PulsarSettings) -> BackendError {
    let connector = PulsarConnector::new(settings).unwrap();
    let answer = timeout(SOON, connector.connect(None)).await.expect("in time");
    answer.map(drop).expect_err("it connected")
}

/// Something that greets with these words, if any, and says no more; or closes.
async fn stranger(greeting: &'static str, closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            // It hears something before it answers.
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(greeting.as_bytes()).await;
            if !closes {
                open.push(socket);
            }
        }
    });
    address
}

async fn wrong_servers(broker: Arc<Broker>) {
    let settings = |url: String| PulsarSettings {
        url,
        connect_timeout: Duration::from_secs(1),
        ..settings(&broker)
    };
    let free = format!("127.0.0.1:{}", broker::free_port());
    let error = refusal(settings(format!("pulsar://{free}"))).await;
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    assert!(error.context.contains(&free), "{error}");
    for (greeting, closes, kind) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", false, ErrorKind::WrongServer),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", true, ErrorKind::WrongServer),
        ("", true, ErrorKind::WrongServer),
        ("\0\0\0\x08nonsense", false, ErrorKind::WrongServer),
        ("", false, ErrorKind::Timeout),
        ("\0", false, ErrorKind::Timeout),
    ] {
        let address = stranger(greeting, closes).await;
        for scheme in ["pulsar", "pulsar+ssl"] {
            let error = refusal(settings(format!("{scheme}://{address}"))).await;
            let expected = match scheme {
                "pulsar" => [kind, kind],
                _ => [ErrorKind::WrongServer, ErrorKind::Timeout],
            };
            assert!(expected.contains(&error.kind), "{scheme} {greeting:?}: {error:?}");
            assert!(error.context.contains(&address), "{error}");
        }
    }
    let error = refusal(settings("pulsar://no-such-host.invalid:6650".into())).await;
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    // Its own web port, and its own broker port with TLS.
    let error = refusal(settings(broker.admin_url().replace("http", "pulsar"))).await;
    assert_eq!(error.kind, ErrorKind::WrongServer, "{error}");
    let error = refusal(settings(broker.url().replace("pulsar", "pulsar+ssl"))).await;
    assert!([ErrorKind::WrongServer, ErrorKind::Timeout].contains(&error.kind), "{error:?}");
}

async fn wrong_admin(broker: Arc<Broker>) {
    let free = format!("http://127.0.0.1:{}", broker::free_port());
    let ssh = format!("http://{}", stranger("SSH-2.0-OpenSSH_9.2\r\n", true).await);
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>";
    let page = format!("http://{}", stranger(page, true).await);
    let silent = format!("http://{}", stranger("", false).await);
    for (admin_url, kinds) in [
        (free, [ErrorKind::Unreachable; 2]),
        (ssh, [ErrorKind::Unreachable; 2]),
        (page, [ErrorKind::WrongServer; 2]),
        (silent, [ErrorKind::Timeout; 2]),
        (broker.url().replace("pulsar", "http"), [ErrorKind::Unreachable, ErrorKind::Timeout]),
    ] {
        let settings = PulsarSettings {
            admin_url: admin_url.clone(),
            connect_timeout: Duration::from_secs(1),
            ..settings(&broker)
        };
        let error = refusal(settings).await;
        assert!(kinds.contains(&error.kind), "{error:?}");
        assert!(error.context.contains("pulsar.admin_url"), "{error}");
        assert!(error.context.contains("127.0.0.1"), "{error}");
    }
}

fn policies(broker: &Broker, namespace: &str) -> serde_json::Value {
    let (status, body) = broker.get(&format!("/admin/v2/namespaces/public/{namespace}")).unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

async fn new_namespace(broker: Arc<Broker>) {
    let namespace = unique("ns");
    let settings = PulsarSettings { namespace: namespace.clone(), ..settings(&broker) };
    let connector = PulsarConnector::new(settings).unwrap();
    // Several at once, of which one makes it.
    let (one, two) = futures::join!(connector.connect(None), connector.connect(None));
    for connection in [one.unwrap(), two.unwrap(), connector.connect(None).await.unwrap()] {
        assert!(connection.capabilities().has(Capability::DedupSequence));
    }
    let policies = policies(&broker, &namespace);
    assert_eq!(policies["deduplicationEnabled"], true);
    assert_eq!(policies["autoTopicCreationOverride"]["allowAutoTopicCreation"], false);
}

async fn foreign_namespace(broker: Arc<Broker>) {
    let namespace = unique("ns");
    let path = format!("/admin/v2/namespaces/public/{namespace}");
    assert_eq!(broker.ask("PUT", &path, "{}").unwrap().0, 204);
    let before = policies(&broker, &namespace);
    let settings = PulsarSettings { namespace: namespace.clone(), ..settings(&broker) };
    let connection = PulsarConnector::new(settings).unwrap().connect(None).await.unwrap();
    let capabilities = connection.capabilities();
    for capability in [Capability::DedupSequence, Capability::DuplicateReported] {
        let why = capabilities.missing(capability).unwrap();
        assert!(why.contains(&namespace), "{why}");
    }
    let topic = work_queue(&connection).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    let numbered = Message { dedup: Some(DedupKey::Sequence(1)), ..Message::new("x") };
    let refused = publish(&mut publisher, numbered).await;
    assert!(matches!(refused, Err(PublishError::Unsupported(_))), "{refused:?}");
    // It cannot tell a duplicate, and does not say that it could.
    let receipt = publish(&mut publisher, Message::new("x")).await.unwrap();
    assert_eq!(receipt.duplicate, None);
    assert!(receipt.position.is_some());
    assert_eq!(policies(&broker, &namespace), before);
    // There topics come into being by the way; here they do not.
    let nowhere = unique("t");
    let missing = connection.publisher(&nowhere, PublisherOptions::default()).await.map(drop);
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
    let missing = connection.create_subscription(&subscription(&nowhere, "s", SOON)).await;
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
    assert!(connection.topics(&nowhere).await.unwrap().is_empty());
}

async fn no_tenant(broker: Arc<Broker>) {
    let error = refusal(PulsarSettings { tenant: "nobody".into(), ..settings(&broker) }).await;
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.context.contains("nobody/queueproof"), "{error}");
}

async fn names(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic_name = work_queue(&connection).await;
    for name in ["", "a/b", "a b", "persistent://public/queueproof/x", "a.b", "ä", "a%2Fb"] {
        let refusals = [
            connection.create_topic(&topic(name, Retention::Keep)).await,
            connection.create_subscription(&subscription(&topic_name, name, SOON)).await,
            connection.create_subscription(&subscription(name, "s", SOON)).await,
            connection.delete_topic(name).await,
            connection.publisher(name, PublisherOptions::default()).await.map(drop),
            connection.consumer(&topic_name, name, OPTIONS).await.map(drop),
            connection.depth(&topic_name, name).await.map(drop),
        ];
        for refused in refusals {
            assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument, "{name:?}");
        }
    }
    let limited = TopicSpec { max_messages: Some(10), ..topic("x", Retention::Keep) };
    let refused = connection.create_topic(&limited).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    let none = ConsumerOptions { prefetch: 0, ..OPTIONS };
    let refused = connection.consumer(&topic_name, "s", none).await.map(drop).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    for (tenant, namespace) in [("", "x"), ("a/b", "x"), ("x", "a b"), ("x", "..")] {
        let settings = PulsarSettings {
            tenant: tenant.into(),
            namespace: namespace.into(),
            ..settings(&broker)
        };
        assert!(PulsarConnector::new(settings).is_err(), "{tenant}/{namespace}");
    }
}

async fn existing(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let name = work_queue(&connection).await;
    connection.create_topic(&topic(&name, Retention::UntilAcked)).await.expect("the same again");
    let other = connection.create_topic(&topic(&name, Retention::Keep)).await.unwrap_err();
    assert_eq!(other.kind, ErrorKind::Conflict, "{other}");
    let spec = subscription(&name, "s", SOON * 6);
    connection.create_subscription(&spec).await.expect("the same again");
    for other in [
        SubscriptionSpec { ack_timeout: SOON, ..spec.clone() },
        SubscriptionSpec { ordered_by_key: true, ..spec.clone() },
        SubscriptionSpec { start: Start::Latest, ..spec.clone() },
    ] {
        let refused = connection.create_subscription(&other).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    }
    let missing = connection.consumer(&name, "nobody", OPTIONS).await.map(drop).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound, "{missing}");
}

async fn listed(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let prefix = unique("listed");
    let names: Vec<_> = (0..3).map(|n| format!("{prefix}-{n}")).collect();
    for name in &names {
        connection.create_topic(&topic(name, Retention::Keep)).await.unwrap();
    }
    assert_eq!(connection.topics(&prefix).await.unwrap(), names);
    connection.delete_topic(&names[0]).await.unwrap();
    assert_eq!(connection.topics(&prefix).await.unwrap(), names[1..]);
}

/// A way to the broker that counts who is on it.
#[derive(Debug)]
struct Counted(std::net::SocketAddr);

impl Link for Counted {
    fn address(&self) -> Option<std::net::SocketAddr> {
        Some(self.0)
    }
    fn cut(&self) {}
    fn hold(&self, _: Direction) {}
    fn heal(&self) {}
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

async fn counted(broker: &Broker) -> (Arc<dyn QueueBackend>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Arc::new(Counted(listener.local_addr().unwrap()));
    let upstream = broker.port;
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let count = Arc::clone(&counting);
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", upstream)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                count.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (connector(broker).connect(Some(link)).await.unwrap(), count)
}

async fn closing(broker: Arc<Broker>) {
    let (connection, count) = counted(&broker).await;
    let name = work_queue(&connection).await;
    let mut publisher = plain(&connection, &name).await;
    let mut consumer = consumer(&connection, &name, 4).await;
    publisher.publish_batch(vec![Message::new("x"); 10]).await;
    let held = take(&mut consumer, 1).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
    timeout(SOON, connection.close()).await.unwrap();
    assert_eq!(publish(&mut publisher, Message::new("x")).await, Err(PublishError::Closed));
    let answer = consumer.receive(1, Duration::ZERO).await.map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    assert_eq!(held[0].ack().await, Err(queueproof_backends::SettleError::Closed));
    for answer in [
        connection.create_topic(&topic("x", Retention::Keep)).await,
        connection.depth(&name, "s").await.map(drop),
        connection.publisher(&name, PublisherOptions::default()).await.map(drop),
    ] {
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    }
    until("no connection is left", async || count.load(Ordering::Relaxed) == 0).await;
    // Nothing comes to life again, and closing the rest does not hang.
    timeout(SOON, consumer.close(SOON)).await.unwrap().unwrap();
    timeout(SOON, publisher.close()).await.unwrap();
    timeout(SOON, connection.close()).await.unwrap();
    assert_eq!((count.load(Ordering::Relaxed), connection.disconnects()), (0, 0));
    let direct = connect(&broker).await;
    until_depth(&direct, &name, (10, 0)).await;
}

async fn dropping(broker: Arc<Broker>) {
    let (connection, count) = counted(&broker).await;
    let name = work_queue(&connection).await;
    let publisher = plain(&connection, &name).await;
    let consumer = consumer(&connection, &name, 4).await;
    drop(connection);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(count.load(Ordering::Relaxed), 1, "a publisher keeps its connection");
    drop((publisher, consumer));
    until("no connection is left", async || count.load(Ordering::Relaxed) == 0).await;
}

async fn proxied(broker: Arc<Broker>) {
    let proxy = broker.proxy();
    let settings =
        PulsarSettings { url: format!("pulsar://127.0.0.1:{}", proxy.port), ..settings(&broker) };
    let connector = PulsarConnector::new(settings).unwrap();
    // It accepts connections before it can serve them.
    until("the proxy is ready", async || connector.connect(None).await.is_ok()).await;
    let link = connector.link().await.unwrap();
    for link in [None, Some(Arc::clone(&link))] {
        let connection = connector.connect(link.clone()).await.unwrap();
        let topic = work_queue(&connection).await;
        let mut publisher = plain(&connection, &topic).await;
        let mut consumer = consumer(&connection, &topic, 4).await;
        publish(&mut publisher, Message::new("x")).await.unwrap();
        take(&mut consumer, 1).await[0].ack().await.unwrap();
        until_depth(&connection, &topic, (0, 0)).await;
        let Some(link) = link else { continue };
        link.cut();
        until("the loss is noticed", async || connection.disconnects() > 0).await;
        assert!(
            publish(&mut publisher, Message::new("y")).await.is_err(),
            "it goes round the link"
        );
        link.heal();
        let began = Instant::now();
        while publish(&mut publisher, Message::new("z")).await.is_err() {
            assert!(began.elapsed() < SOON, "it does not work again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bodies(&take(&mut consumer, 1).await), ["z"]);
        timeout(SOON, connection.close()).await.unwrap();
    }
}

async fn another_name(broker: Arc<Broker>) {
    let url = format!("pulsar://localhost:{}", broker.port);
    let settings = PulsarSettings { url, ..settings(&broker) };
    let connection = PulsarConnector::new(settings).unwrap().connect(None).await.unwrap();
    let topic = work_queue(&connection).await;
    publish(&mut plain(&connection, &topic).await, Message::new("x")).await.unwrap();
    until_depth(&connection, &topic, (1, 0)).await;
    timeout(SOON, connection.close()).await.unwrap();
}

async fn depth_waits(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    link.cut();
    until("the loss is noticed", async || connection.disconnects() > 0).await;
    let healing = async {
        tokio::time::sleep(QUIET).await;
        link.heal();
    };
    let (depth, ()) = futures::join!(connection.depth(&topic, "s"), healing);
    depth.unwrap();
    link.cut();
    let short = PulsarSettings { request_timeout: QUIET, ..settings(&broker) };
    let connector = PulsarConnector::new(short).unwrap();
    let link = connector.link().await.unwrap();
    let connection = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    link.cut();
    let answer = timeout(SOON, connection.depth(&topic, "s")).await.expect("in time");
    assert!(answer.is_err(), "{answer:?}");
}

async fn silent(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let short = PulsarSettings { request_timeout: QUIET, ..settings(&broker) };
    let connector = PulsarConnector::new(short).unwrap();
    let link = connector.link().await.unwrap();
    let connection = connector.connect(Some(Arc::clone(&link))).await.unwrap();
    link.hold(Direction::ToClient);
    let answer = timeout(SOON, connection.depth(&topic, "s")).await.expect("in time");
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Timeout);
    let publisher = connection.publisher(&topic, PublisherOptions::default());
    let answer = timeout(SOON, publisher).await.expect("in time").map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Timeout);
    link.heal();
    connection.depth(&topic, "s").await.expect("it lives on");
    plain(&connection, &topic).await;
    assert_eq!(connection.disconnects(), 0);
}
