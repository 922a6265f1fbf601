//! Connections, topics and subscriptions.

use std::time::Duration;

use queueproof_backends::{
    Capability, Connector, DeadLetter, Disconnect, ErrorKind, Message, PublishError, Retention,
    SettleError, Start, SubscriptionSpec, Support, TopicSpec,
    nsq::{NsqConnector, NsqSettings},
};
use tokio::time::timeout;

use super::{
    place::{
        OPTIONS, Place, SOON, consumer, linked, patient_queue, publish, publisher, sockets_to,
        subscription, take, topic, until,
    },
    server::ask,
};

pub async fn what_is_missing_exists_otherwise_or_cannot_be_is_told(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let create = async |spec: SubscriptionSpec| {
        connection.create_subscription(&spec).await.unwrap_err().kind
    };
    assert_eq!(create(subscription("t", "other")).await, ErrorKind::Conflict);
    connection.create_topic(&topic("t", Retention::UntilAcked)).await.expect("the same again");
    let kept = connection.create_topic(&topic("t", Retention::Keep)).await;
    assert_eq!(kept.unwrap_err().kind, ErrorKind::Conflict);
    connection.create_subscription(&subscription("t", "s")).await.expect("the same again");
    let longer = SubscriptionSpec { ack_timeout: SOON, ..subscription("t", "s") };
    assert_eq!(create(longer).await, ErrorKind::Conflict);
    assert_eq!(create(subscription("nothing", "s")).await, ErrorKind::NotFound);
    let other = connection.consumer("t", "nobody", OPTIONS).await.map(drop);
    assert_eq!(other.unwrap_err().kind, ErrorKind::NotFound);
    let other = connection.publisher("nothing", Default::default()).await.map(drop);
    assert_eq!(other.unwrap_err().kind, ErrorKind::NotFound);
    let other = connection.depth("t", "nobody").await;
    assert_eq!(other.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(connection.topics("").await.unwrap(), ["t"], "asking made nothing");
    // What NSQ has not, or not so.
    for ack_timeout in [Duration::from_millis(999), Duration::from_secs(901)] {
        let spec = SubscriptionSpec { ack_timeout, ..subscription("t", "s") };
        assert_eq!(create(spec).await, ErrorKind::InvalidArgument);
    }
    let dead_letter = Some(DeadLetter { max_deliveries: 3, topic: "t".into() });
    let spec = SubscriptionSpec { dead_letter, ..subscription("t", "s") };
    assert_eq!(create(spec).await, ErrorKind::Unsupported);
    let spec = SubscriptionSpec { ordered_by_key: true, ..subscription("t", "s") };
    assert_eq!(create(spec).await, ErrorKind::Unsupported);
    let limited = TopicSpec { max_messages: Some(1), ..topic("u", Retention::Keep) };
    let limited = connection.create_topic(&limited).await;
    assert_eq!(limited.unwrap_err().kind, ErrorKind::Unsupported);
    for name in ["", "a.b", "a b", "a#ephemeral", "ä", &"x".repeat(61)] {
        let refused = connection.create_topic(&topic(name, Retention::Keep)).await;
        assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument, "{name:?}");
        let refused = create(subscription("t", name)).await;
        assert_eq!(refused, ErrorKind::InvalidArgument, "{name:?}");
    }
    connection.delete_topic("t").await.unwrap();
    connection.delete_topic("t").await.expect("what does not exist is deleted");
    connection.create_topic(&topic("t", Retention::Keep)).await.expect("it may be otherwise now");
    connection.create_subscription(&subscription("t", "a")).await.unwrap();
    connection.create_subscription(&subscription("t", "b")).await.expect("a second one");
}

pub async fn a_subscription_begins_where_nsqd_can_let_it_begin(place: &Place) {
    let connection = place.connector().connect(None).await.unwrap();
    connection.create_topic(&topic("t", Retention::Keep)).await.unwrap();
    let mut publisher = publisher(&connection).await;
    publish(&mut publisher, "before").await;
    let starting = |name: &str, start| SubscriptionSpec { start, ..subscription("t", name) };
    let create = async |name: &str, start| {
        connection.create_subscription(&starting(name, start)).await.map_err(|e| e.kind)
    };
    // The first channel is given what the topic holds.
    assert_eq!(create("latest", Start::Latest).await, Err(ErrorKind::Unsupported));
    assert_eq!(create("first", Start::Earliest).await, Ok(()));
    assert_eq!(create("earliest", Start::Earliest).await, Err(ErrorKind::Unsupported));
    assert_eq!(create("latest", Start::Latest).await, Ok(()));
    publish(&mut publisher, "after").await;
    let bodies = async |name: &str, count| {
        let mut consumer = connection.consumer("t", name, OPTIONS).await.unwrap();
        let taken = take(&mut consumer, count).await;
        taken.iter().map(|d| d.message.payload.clone()).collect::<Vec<_>>()
    };
    assert_eq!(bodies("first", 2).await, ["before", "after"]);
    assert_eq!(bodies("latest", 1).await, ["after"]);
}

pub async fn names_of_memory_only_topics_are_marked_on_the_wire_alone(place: &Place) {
    let settings = NsqSettings { ephemeral: true, ..place.settings() };
    let connector = NsqConnector::new(settings).unwrap();
    let connection = patient_queue(&connector).await;
    let support = connection.capabilities().support;
    assert!(matches!(support[&Capability::Backlog], Support::Unsupported { .. }));
    let stats = ask(place.http(), "GET", "/stats?format=json&include_mem=false").await;
    assert!(stats.contains("t#ephemeral") && stats.contains("s#ephemeral"), "{stats}");
    assert_eq!(connection.topics("t").await.unwrap(), ["t"]);
    let mut publisher = publisher(&connection).await;
    publish(&mut publisher, "x").await;
    let mut consumer = consumer(&connection, 1).await;
    take(&mut consumer, 1).await[0].ack().await.unwrap();
    assert_eq!(connection.depth("t", "s").await.unwrap().unsettled, 0);
    // With its last consumer goes the channel, and with that the topic.
    consumer.close(SOON).await.unwrap();
    until("it is gone", async || connection.topics("t").await.unwrap().is_empty()).await;
    let long = topic(&"x".repeat(55), Retention::Keep);
    let refused = connection.create_topic(&long).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument);
    // One is found and deleted by who is set otherwise.
    connection.create_topic(&topic("u", Retention::Keep)).await.unwrap();
    let other = place.connector().connect(None).await.unwrap();
    assert_eq!(other.topics("u").await.unwrap(), ["u"]);
    other.delete_topic("u").await.unwrap();
    assert!(other.topics("u").await.unwrap().is_empty());
}

pub async fn closing_leaves_no_socket_and_everything_of_it_is_closed(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 4).await;
    publish(&mut publisher, "x").await;
    let held = take(&mut consumer, 1).await;
    assert_eq!(sockets_to(place.tcp()), 2);
    timeout(SOON, connection.close()).await.unwrap();
    assert_eq!((sockets_to(place.tcp()), sockets_to(place.http())), (0, 0));
    let answer = publisher.publish(Message::new("x")).await.map(drop);
    assert_eq!(answer, Err(PublishError::Closed));
    let answers = publisher.publish_batch(vec![Message::new("x")]).await;
    assert_eq!(answers, [Err(PublishError::Closed)]);
    let answer = consumer.receive(1, SOON).await.map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    assert_eq!(held[0].ack().await, Err(SettleError::Closed));
    let answer = connection.publisher("t", Default::default()).await.map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    let answer = connection.consumer("t", "s", OPTIONS).await.map(drop);
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Closed);
    assert_eq!(connection.depth("t", "s").await.unwrap_err().kind, ErrorKind::Closed);
    assert_eq!(connection.disconnects(), 0);
    timeout(SOON, connection.close()).await.expect("twice");
    assert_eq!(sockets_to(place.tcp()), 0);
}

pub async fn asking_for_the_depth_shows_that_the_consumers_are_connected(place: &Place) {
    let connector = place.connector();
    let _director = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let _consumer = consumer(&linked, 4).await;
    let _publisher = publisher(&linked).await;
    linked.depth("t", "s").await.unwrap();
    link.cut();
    let down = linked.depth("t", "s").await;
    assert_eq!(down.unwrap_err().kind, ErrorKind::Unreachable);
    link.heal();
    linked.depth("t", "s").await.unwrap();
    // One cut breaks every socket once.
    assert_eq!(linked.disconnects(), 1);
    link.cut();
    link.heal();
    linked.topics("t").await.unwrap();
    assert_eq!(linked.disconnects(), 2);
}

pub async fn the_numbers_of_the_broker_are_those_it_tells(place: &Place) {
    let connector = place.connector();
    let connection = connector.connect(None).await.unwrap();
    assert!(!connection.broker_version().is_empty());
    let limits = connection.capabilities().limits;
    assert_eq!((limits.min_payload, limits.max_payload), (1, Some(1 << 20)));
    assert_eq!(limits.memory_queue, Some(10_000));
    assert_eq!(limits.disconnect, Disconnect::AfterAckTimeout);
    assert!(limits.prefetch_counts_unsettled);
    let again = connector.connect(None).await.unwrap();
    assert_eq!(again.capabilities(), connection.capabilities());
}

/// The kind of error with which connecting fails, and its words.
pub async fn refusal(settings: NsqSettings) -> (ErrorKind, String) {
    let connector = NsqConnector::new(settings).unwrap();
    let Err(error) = timeout(SOON, connector.connect(None)).await.expect("in time") else {
        panic!("it connected");
    };
    (error.kind, error.context)
}

mod wrong {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;

    use super::*;
    use crate::standin::{Manner, Options};

    async fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    fn settings(tcp: SocketAddr, http: SocketAddr) -> NsqSettings {
        NsqSettings {
            url: format!("nsq://{tcp}"),
            http_url: Some(format!("http://{http}")),
            connect_timeout: Duration::from_secs(1),
            ..NsqSettings::default()
        }
    }

    #[tokio::test]
    async fn what_is_no_nsqd_is_told_in_time() {
        let nsqd = Place::stand_in(Options::default());
        let manner = |manner| Place::stand_in(Options { manner, ..Options::default() });
        let (mute, babbling) = (manner(Manner::Mute), manner(Manner::Babbling));
        let cases = [
            (nobody().await, nobody().await, ErrorKind::Unreachable, "nobody answers"),
            (mute.tcp(), mute.http(), ErrorKind::Timeout, "says nothing"),
            (babbling.tcp(), babbling.http(), ErrorKind::WrongServer, "it says \"220 mail"),
            // An HTTP server where the protocol is expected, and the reverse.
            (nsqd.http(), nsqd.http(), ErrorKind::WrongServer, "it says \"HTTP/1.1 400"),
            (nsqd.tcp(), nsqd.tcp(), ErrorKind::Unreachable, "see nsq.http_url"),
            // Only one of the two.
            (nsqd.tcp(), nobody().await, ErrorKind::Unreachable, "see nsq.http_url"),
            (nsqd.tcp(), mute.http(), ErrorKind::Timeout, "see nsq.http_url"),
            (nobody().await, nsqd.http(), ErrorKind::Unreachable, "is the HTTP interface of nsqd"),
            (mute.tcp(), nsqd.http(), ErrorKind::Timeout, "is the HTTP interface of nsqd"),
        ];
        for (tcp, http, expected, hint) in cases {
            let (kind, words) = refusal(settings(tcp, http)).await;
            assert_eq!(kind, expected, "{words}");
            assert!(words.contains(hint), "{hint:?}: {words}");
            assert!(words.contains(&tcp.to_string()), "{words}");
        }
    }

    #[tokio::test]
    async fn a_wrong_secret_is_told_and_not_repeated_and_the_right_one_is_used() {
        let secret = Some("right".into());
        let nsqd = Place::stand_in(Options { secret, ..Options::default() });
        right_and_wrong_secrets(&nsqd).await;
    }

    #[tokio::test]
    async fn tls_is_demanded_where_the_address_says_so() {
        let nsqd = Place::stand_in(Options::default());
        let url = format!("nsqs://{}", nsqd.tcp());
        let (kind, words) = refusal(NsqSettings { url, ..nsqd.settings() }).await;
        assert_eq!(kind, ErrorKind::Unsupported, "{words}");
    }
}

/// A server whose secret is `right`.
pub async fn right_and_wrong_secrets(place: &Place) {
    use queueproof_backends::nsq::Secret;
    let settings =
        |secret: &str| NsqSettings { auth: Some(Secret(secret.into())), ..place.settings() };
    let connector = NsqConnector::new(settings("right")).unwrap();
    let connection = patient_queue(&connector).await;
    let mut publisher = publisher(&connection).await;
    publish(&mut publisher, "x").await;
    let mut consumer = consumer(&connection, 1).await;
    take(&mut consumer, 1).await[0].ack().await.unwrap();
    let shown = format!("{connector:?} {:?}", settings("hunter2"));
    assert!(!shown.contains("right") && !shown.contains("hunter2"), "{shown}");
    for settings in [settings("hunter2"), place.settings()] {
        let (kind, words) = refusal(settings).await;
        assert_eq!(kind, ErrorKind::Unauthorized, "{words}");
        assert!(!words.contains("hunter2") && words.contains("nsq.auth"), "{words}");
    }
}
