//! Publishing: numbers, confirmations, sizes, delays, exclusive access, entries of several.

use queueproof_backends::{Access, Capability, DedupKey, Direction, ErrorKind, RejectKind};
use tokio::time::timeout;

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases
        .add("a number is taken as given: gaps are stored, and what is not above is told", numbers);
    cases.add("a number that is in flight already is refused, and stored once", in_flight);
    cases.add("a publisher opened again under its name goes on after its last number", reopened);
    cases.add("a number is told as a duplicate when its confirmation was lost", retried);
    cases.add("a name that is taken is refused, and free when its publisher is gone", taken);
    cases.add("numbers want a name, and ids are not what Pulsar deduplicates by", not_numbers);
    cases.add("confirmations that wait fail when the connection is lost", lost);
    cases.add("a confirmation that is held back is given up in time", held);
    cases.add("what is published while the connection is down is not stored later", down);
    cases.add("more publishes than may be in flight do not block each other", many);
    cases.add("the largest payload is taken, and a larger one costs nothing else", sizes);
    cases.add("key, headers and an empty payload come as they were sent", whole);
    cases.add("an exclusive publisher is alone, and hands over when it goes", exclusive);
    cases.add("an exclusive publisher that lost its place is told so", fenced);
    cases.add("one that no longer waits for exclusive access is not in the queue", gives_up);
    cases.add("one that waits for exclusive access goes on waiting when its topic moves", waits_on);
    cases.add("a confirmation comes when its publisher is dropped, too", dropped);
    cases.add("several messages in one entry have a receipt and an acknowledgement each", batches);
}

fn numbered(number: u64, body: &str) -> Message {
    Message { dedup: Some(DedupKey::Sequence(number)), ..Message::new(body.to_string()) }
}

fn duplicate(receipt: Result<PublishReceipt, PublishError>) -> bool {
    let receipt = receipt.unwrap();
    let duplicate = receipt.duplicate.unwrap();
    assert_eq!(receipt.position.is_none(), duplicate, "{receipt:?}");
    duplicate
}

async fn numbers(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    for (number, repeated) in [(5, false), (5, true), (9, false), (7, true), (10, false), (0, true)]
    {
        let receipt = publish(&mut publisher, numbered(number, &number.to_string())).await;
        assert_eq!(duplicate(receipt), repeated, "{number}");
    }
    let mut consumer = consumer(&connection, &topic, 16).await;
    assert_eq!(bodies(&take(&mut consumer, 3).await), ["5", "9", "10"]);
    nothing(&mut consumer).await;
}

async fn in_flight(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    let mut refused = 0;
    for number in 0..20 {
        let pair = vec![numbered(number, "first"), numbered(number, "second")];
        let mut receipts = publisher.publish_batch(pair).await;
        match receipts.pop().unwrap() {
            // The first was stored already.
            Ok(second) => assert_eq!(second.duplicate, Some(true)),
            Err(PublishError::Rejected { kind: RejectKind::Invalid, .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(!duplicate(receipts.pop().unwrap()));
    }
    assert!(refused > 0, "none was in flight");
    let mut consumer = consumer(&connection, &topic, 64).await;
    assert_eq!(bodies(&take(&mut consumer, 20).await), ["first"; 20]);
    nothing(&mut consumer).await;
}

async fn reopened(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    assert!(!duplicate(publish(&mut publisher, numbered(41, "a")).await));
    publisher.close().await;
    for connection in [&connection, &connect(&broker).await] {
        let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
        assert!(!duplicate(publish(&mut publisher, Message::new("without a number")).await));
        assert!(duplicate(publish(&mut publisher, numbered(41, "a")).await));
        publisher.close().await;
    }
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    assert!(duplicate(publish(&mut publisher, numbered(43, "used twice by then")).await));
    assert!(!duplicate(publish(&mut publisher, numbered(44, "b")).await));
}

async fn retried(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    link.hold(Direction::ToClient);
    let confirmation = publisher.publish(numbered(3, "x")).await.unwrap();
    until_depth(&direct, &topic, (1, 0)).await;
    link.cut();
    let unknown = timeout(SOON, confirmation).await.unwrap();
    assert!(matches!(unknown, Err(PublishError::Indeterminate(_))), "{unknown:?}");
    link.heal();
    let began = Instant::now();
    let again = loop {
        match publish(&mut publisher, numbered(3, "x")).await {
            Err(PublishError::NotSent(_)) if began.elapsed() < SOON => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            again => break again,
        }
    };
    assert!(duplicate(again));
    assert!(!duplicate(publish(&mut publisher, numbered(4, "y")).await));
    until_depth(&direct, &topic, (2, 0)).await;
}

async fn taken(broker: Arc<Broker>) {
    let (one, other) = (connect(&broker).await, connect(&broker).await);
    let topic = work_queue(&one).await;
    let first = one.publisher(&topic, named("n")).await.unwrap();
    for connection in [&one, &other] {
        let refused = connection.publisher(&topic, named("n")).await.map(drop).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    }
    let beside = other.publisher(&topic, named("m")).await.unwrap();
    first.close().await;
    let second = other.publisher(&topic, named("n")).await.unwrap();
    drop((second, beside));
    // Dropping does not wait for the broker.
    until("the name is free", async || one.publisher(&topic, named("n")).await.is_ok()).await;
}

async fn not_numbers(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    let id = Message { dedup: Some(DedupKey::Id("x".into())), ..Message::new("x") };
    for message in [numbered(1, "x"), id] {
        let refused = publish(&mut publisher, message).await;
        assert!(matches!(refused, Err(PublishError::Unsupported(_))), "{refused:?}");
    }
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    let refused = publish(&mut publisher, numbered(1 << 63, "x")).await;
    let invalid = matches!(refused, Err(PublishError::Rejected { kind: RejectKind::Invalid, .. }));
    assert!(invalid, "{refused:?}");
    assert!(!duplicate(publish(&mut publisher, numbered((1 << 63) - 1, "the last")).await));
}

async fn lost(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let options = PublisherOptions { confirm_timeout: Some(SOON * 100), ..Default::default() };
    let mut publisher = connection.publisher(&topic, options).await.unwrap();
    link.hold(Direction::ToClient);
    let confirmation = publisher.publish(Message::new("x")).await.unwrap();
    until_depth(&direct, &topic, (1, 0)).await;
    link.cut();
    let answer = timeout(SOON, confirmation).await.expect("at once, not at the timeout");
    assert!(matches!(answer, Err(PublishError::Indeterminate(_))), "{answer:?}");
    assert_eq!(connection.disconnects(), 1);
}

async fn held(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let limit = Duration::from_millis(300);
    let options = PublisherOptions { confirm_timeout: Some(limit), ..Default::default() };
    let mut publisher = connection.publisher(&topic, options).await.unwrap();
    link.hold(Direction::ToClient);
    let confirmation = publisher.publish(Message::new("x")).await.unwrap();
    let answer = timeout(SOON, confirmation).await.expect("given up in time");
    assert!(matches!(answer, Err(PublishError::Indeterminate(_))), "{answer:?}");
    link.heal();
    // What comes late is not taken for the confirmation of another one.
    let receipt = timeout(SOON, publish(&mut publisher, Message::new("y"))).await.unwrap().unwrap();
    let mut consumer = consumer(&direct, &topic, 16).await;
    let came = take(&mut consumer, 2).await;
    assert_eq!(came[1].position, receipt.position);
    assert_eq!(connection.disconnects(), 0);
}

async fn down(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let mut publisher = plain(&connection, &topic).await;
    link.cut();
    until("the loss is noticed", async || connection.disconnects() > 0).await;
    for _ in 0..20 {
        let answer = publisher.publish(Message::new("x")).await.map(drop);
        assert!(matches!(answer, Err(PublishError::NotSent(_))), "{answer:?}");
    }
    link.heal();
    let began = Instant::now();
    while let Err(error) = publish(&mut publisher, Message::new("y")).await {
        assert!(began.elapsed() < SOON, "it does not work again by itself: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut consumer = consumer(&direct, &topic, 16).await;
    assert_eq!(bodies(&take(&mut consumer, 1).await), ["y"]);
    nothing(&mut consumer).await;
    assert_eq!(connection.disconnects(), 1);
}

async fn many(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    let batch = publisher.publish_batch(vec![Message::new("x"); 5000]);
    let receipts = timeout(SOON * 3, batch).await.expect("no deadlock");
    let mut positions: Vec<_> =
        receipts.into_iter().map(|r| r.unwrap().position.unwrap()).collect();
    assert!(positions.is_sorted());
    positions.dedup();
    assert_eq!(positions.len(), 5000);
    until_depth(&connection, &topic, (5000, 0)).await;
}

async fn sizes(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let max = connection.capabilities().limits.max_payload.unwrap() as usize;
    let mut publisher = plain(&connection, &topic).await;
    publish(&mut publisher, Message::new(vec![7; max])).await.unwrap();
    let too_large = |size: usize, header: usize| Message {
        headers: vec![("h".into(), "x".repeat(header))],
        ..Message::new(vec![7; size])
    };
    for message in [Message::new(vec![7; max + 1]), too_large(max, 20_000), too_large(1, 20_000)] {
        let refused = publish(&mut publisher, message).await;
        let kind = match &refused {
            Err(PublishError::Rejected { kind, .. }) => *kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, RejectKind::TooLarge);
    }
    publish(&mut publisher, too_large(max, 9_000)).await.unwrap();
    let mut consumer = consumer(&connection, &topic, 1).await;
    for delivery in take(&mut consumer, 2).await {
        assert_eq!(delivery.message.payload.len(), max);
    }
    assert_eq!(connection.disconnects(), 0);
}

async fn whole(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    let headers = [("a", "1"), ("A", "two words"), ("a", "again"), ("empty", "")];
    let sent = [
        Message::default(),
        Message { key: Some("k".into()), ..Message::new("x") },
        Message {
            headers: headers.map(|(k, v)| (k.into(), v.into())).to_vec(),
            ..Message::new(vec![0, 255, 10, 13])
        },
    ];
    let mut positions = Vec::new();
    for message in &sent {
        positions.push(publish(&mut publisher, message.clone()).await.unwrap().position);
    }
    let mut consumer = consumer(&connection, &topic, 16).await;
    let came = take(&mut consumer, sent.len()).await;
    assert!(came.iter().map(|d| &d.message).eq(&sent), "{came:?}");
    assert!(came.iter().map(|d| d.position).eq(positions));
}

fn access(access: Access) -> PublisherOptions {
    PublisherOptions { access, ..PublisherOptions::default() }
}

async fn exclusive(broker: Arc<Broker>) {
    let (one, other) = (connect(&broker).await, connect(&broker).await);
    let topic = work_queue(&one).await;
    let refused = async |mode| {
        let refused = other.publisher(&topic, access(mode)).await.map(drop).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict, "{mode:?}: {refused}");
    };
    let shared = plain(&one, &topic).await;
    refused(Access::Exclusive).await;
    shared.close().await;
    let mut first = one.publisher(&topic, access(Access::Exclusive)).await.unwrap();
    refused(Access::Exclusive).await;
    refused(Access::Shared).await;
    let handed_over = async {
        tokio::time::sleep(QUIET).await;
        publish(&mut first, Message::new("first")).await.unwrap();
        first.close().await;
        Instant::now()
    };
    let waiting = async {
        let second = other.publisher(&topic, access(Access::WaitForExclusive)).await.unwrap();
        (second, Instant::now())
    };
    let (closed, (mut second, opened)) =
        timeout(SOON, async { futures::join!(handed_over, waiting) }).await.unwrap();
    // The broker lets it in as soon as the other is gone, perhaps before that is told.
    assert!(opened + QUIET > closed, "it did not wait");
    publish(&mut second, Message::new("second")).await.unwrap();
}

async fn fenced(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let mut first = connection.publisher(&topic, access(Access::Exclusive)).await.unwrap();
    // One that comes back while nobody took its place goes on.
    link.cut();
    until("the loss is noticed", async || connection.disconnects() > 0).await;
    link.heal();
    let began = Instant::now();
    while publish(&mut first, Message::new("x")).await.is_err() {
        assert!(began.elapsed() < SOON, "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    link.cut();
    let waiting = direct.publisher(&topic, access(Access::WaitForExclusive));
    let second = timeout(SOON, waiting).await.unwrap().unwrap();
    link.heal();
    let began = Instant::now();
    loop {
        match publish(&mut first, Message::new("x")).await {
            Err(PublishError::Rejected { kind: RejectKind::NotAllowed, .. }) => break,
            Err(PublishError::NotSent(_)) => assert!(began.elapsed() < SOON),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.close().await;
}

async fn gives_up(broker: Arc<Broker>) {
    let (one, other) = (connect(&broker).await, connect(&broker).await);
    let topic = work_queue(&one).await;
    let first = one.publisher(&topic, access(Access::Exclusive)).await.unwrap();
    let waiting = other.publisher(&topic, access(Access::WaitForExclusive));
    assert!(timeout(QUIET, waiting).await.is_err());
    first.close().await;
    // The broker finds out that nobody is there any more when it is that one's turn.
    let next = one.publisher(&topic, access(Access::WaitForExclusive));
    let mut next = timeout(SOON, next).await.expect("nobody stands in its way").unwrap();
    publish(&mut next, Message::new("x")).await.unwrap();
}

async fn waits_on(broker: Arc<Broker>) {
    let (one, other) = (connect(&broker).await, connect(&broker).await);
    let topic = work_queue(&one).await;
    let first = one.publisher(&topic, access(Access::Exclusive)).await.unwrap();
    let moving = async {
        tokio::time::sleep(QUIET).await;
        let path = format!("/admin/v2/persistent/public/queueproof/{topic}/unload");
        assert_eq!(broker.ask("PUT", &path, "").unwrap().0, 204);
        tokio::time::sleep(QUIET).await;
        first.close().await;
    };
    let waiting = other.publisher(&topic, access(Access::WaitForExclusive));
    let both = async { futures::join!(moving, waiting) };
    let mut second = timeout(SOON * 2, both).await.expect("it got its turn").1.unwrap();
    publish(&mut second, Message::new("x")).await.unwrap();
}

async fn dropped(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    for round in 0..10 {
        let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
        let mut confirmations = Vec::new();
        for number in 0..20 {
            let message = numbered(round * 20 + number, "x");
            confirmations.push(publisher.publish(message).await.unwrap());
        }
        drop(publisher);
        for confirmation in confirmations {
            assert!(!duplicate(timeout(SOON, confirmation).await.unwrap()));
        }
        until("the name is free", async || connection.publisher(&topic, named("n")).await.is_ok())
            .await;
    }
    until_depth(&connection, &topic, (200, 0)).await;
}

async fn batches(broker: Arc<Broker>) {
    let settings = PulsarSettings { batching: true, ..settings(&broker) };
    let connection = PulsarConnector::new(settings).unwrap().connect(None).await.unwrap();
    assert!(!connection.capabilities().has(Capability::ConfirmedAck));
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    let messages: Vec<_> = (0..10)
        .map(|n| Message {
            headers: vec![("n".into(), n.to_string())],
            ..Message::new(n.to_string())
        })
        .collect();
    let receipts = publisher.publish_batch(messages.clone()).await;
    let positions: Vec<_> = receipts.into_iter().map(|r| r.unwrap().position.unwrap()).collect();
    let mut consumer = consumer(&connection, &topic, 16).await;
    let came = take(&mut consumer, 10).await;
    assert!(came.iter().map(|d| &d.message).eq(&messages));
    assert!(came.iter().map(|d| d.position.unwrap()).eq(positions));
    // The broker counts the one entry, until the last of it is acknowledged.
    for delivery in &came[..9] {
        assert_eq!(delivery.ack().await, Ok(queueproof_backends::Settled::Sent));
        assert_eq!(delivery.ack().await, Ok(queueproof_backends::Settled::Sent));
    }
    let depth = connection.depth(&topic, "s").await.unwrap();
    assert!(depth.waiting + depth.unsettled > 0, "{depth:?}");
    assert_eq!(came[9].ack().await, Ok(queueproof_backends::Settled::Confirmed));
    until_depth(&connection, &topic, (0, 0)).await;
    // One that is handed back brings all of its entry.
    publisher.publish_batch(messages).await;
    let came = take(&mut consumer, 10).await;
    came[3].nack(None).await.unwrap();
    assert_eq!(attempts(&take(&mut consumer, 10).await), [2; 10]);
}
