//! Consuming: prefetch, order, starts, leaving, and what the broker closes.

use queueproof_backends::{Capability, ErrorKind, SettleError, Settled, Settlement, settle_all};
use tokio::time::timeout;

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases
        .add("exactly the prefetch is locked ahead, and one more for each that is taken", prefetch);
    cases.add("a receive that is cancelled loses nothing", cancelled);
    cases.add("acknowledgements are confirmed, thousands at a time too", acks);
    cases.add("without confirmation acknowledgements are sent all the same", unconfirmed);
    cases.add("a consumer goes on after its connection came back", resumes);
    cases.add("one consumer gets everything in its order", order);
    cases.add("the messages of a key go in their order to one consumer at a time", keys);
    cases.add("a subscription begins with what is stored, or with what comes", starts);
    cases.add("what is to be kept is found by a later subscription", kept);
    cases.add("what a consumer held and had ahead returns at once when it leaves", leaves);
    cases.add("a consumer that is dropped is gone", dropped);
    cases.add("a topic that moves interrupts nobody for long", moves);
    cases.add("a topic that is deleted is told", deleted);
}

async fn prefetch(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    for prefetch in [1, 3, 10] {
        let topic = work_queue(&connection).await;
        let mut consumer = consumer(&connection, &topic, prefetch).await;
        plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 50]).await;
        let mut held = Vec::new();
        for taken in 0..5_u64 {
            let locked = u64::from(prefetch) + taken;
            until_depth(&connection, &topic, (50 - locked, locked)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            until_depth(&connection, &topic, (50 - locked, locked)).await;
            held.append(&mut take(&mut consumer, 1).await);
            if prefetch > 2 {
                break; // More are asked for when half are gone.
            }
        }
        held.append(&mut take(&mut consumer, 50 - held.len()).await);
        settle_all(&held, Settlement::Ack).await;
        until_depth(&connection, &topic, (0, 0)).await;
    }
}

async fn cancelled(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 4).await;
    let mut publisher = plain(&connection, &topic).await;
    let publishing = async {
        for n in 0..100 {
            publish(&mut publisher, Message::new(n.to_string())).await.unwrap();
        }
    };
    let mut came = Vec::new();
    let receiving = async {
        while came.len() < 100 {
            let receiving = consumer.receive(3, SOON);
            if let Ok(some) = timeout(Duration::from_millis(1), receiving).await {
                came.append(&mut some.unwrap());
            }
        }
    };
    timeout(SOON * 2, async { futures::join!(publishing, receiving) }).await.expect("all come");
    assert!(bodies(&came).into_iter().eq((0..100).map(|n| n.to_string())));
}

async fn acks(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 3000).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 2500]).await;
    let came = take(&mut consumer, 2500).await;
    let answers = settle_all(&came, Settlement::Ack).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Settled::Confirmed)));
    until_depth(&connection, &topic, (0, 0)).await;
    consumer.close(SOON).await.unwrap();
    let mut consumer = connection.consumer(&topic, "s", OPTIONS).await.unwrap();
    nothing(&mut consumer).await;
}

async fn unconfirmed(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let options = ConsumerOptions { prefetch: 16, confirm_acks: false };
    let mut consumer = connection.consumer(&topic, "s", options).await.unwrap();
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 10]).await;
    for delivery in take(&mut consumer, 10).await {
        assert_eq!(delivery.ack().await, Ok(Settled::Sent));
    }
    until_depth(&connection, &topic, (0, 0)).await;
}

async fn resumes(broker: Arc<Broker>) {
    let direct = connect(&broker).await;
    let topic = work_queue(&direct).await;
    let (connection, link) = linked(&broker).await;
    let mut consumer = consumer(&connection, &topic, 16).await;
    let mut publisher = plain(&direct, &topic).await;
    for round in 1..4 {
        link.cut();
        assert!(consumer.receive(1, Duration::from_millis(100)).await.unwrap().is_empty());
        until("the loss is noticed", async || connection.disconnects() == round).await;
        link.heal();
        publish(&mut publisher, Message::new(round.to_string())).await.unwrap();
        let came = take(&mut consumer, 1).await;
        assert_eq!(bodies(&came), [round.to_string()]);
        assert_eq!(came[0].ack().await, Ok(Settled::Confirmed));
    }
    until_depth(&direct, &topic, (0, 0)).await;
}

async fn order(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 7).await;
    let sent: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
    let messages = sent.iter().map(|n| Message::new(n.clone())).collect();
    let mut publisher = plain(&connection, &topic).await;
    let (_, came) = futures::join!(publisher.publish_batch(messages), take(&mut consumer, 2000));
    assert_eq!(bodies(&came), sent);
}

async fn keys(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic =
        work_queue_with(&connection, |spec| SubscriptionSpec { ordered_by_key: true, ..spec })
            .await;
    let mut consumers = Vec::new();
    for _ in 0..3 {
        consumers.push(consumer(&connect(&broker).await, &topic, 4).await);
    }
    let messages = (0..300)
        .map(|n| Message { key: Some(format!("k{}", n % 10)), ..Message::new(n.to_string()) });
    let receipts = plain(&connection, &topic).await.publish_batch(messages.collect()).await;
    assert!(receipts.iter().all(Result::is_ok));
    let mut by_key = vec![Vec::new(); 10];
    let mut shares = [0; 3];
    let began = Instant::now();
    while shares.iter().sum::<i32>() < 300 {
        assert!(began.elapsed() < SOON * 2, "{shares:?} came");
        for (number, consumer) in consumers.iter_mut().enumerate() {
            for delivery in consumer.receive(2, Duration::from_millis(5)).await.unwrap() {
                let n: usize = bodies(std::slice::from_ref(&delivery))[0].parse().unwrap();
                delivery.ack().await.unwrap();
                // At least once: Pulsar 4.0.8 has been seen to deliver one of these twice,
                // unasked. The second delivery says nothing about the order of the firsts.
                if !by_key[n % 10].iter().any(|(seen, _)| *seen == n) {
                    by_key[n % 10].push((n, number));
                    shares[number] += 1;
                }
            }
        }
    }
    for key in by_key {
        assert!(key.is_sorted_by(|(a, _), (b, _)| a < b), "{key:?}");
        assert!(key.iter().all(|(_, consumer)| *consumer == key[0].1), "{key:?}");
    }
    assert!(shares.iter().filter(|share| **share > 0).count() > 1, "{shares:?}");
}

async fn starts(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let name = unique("t");
    connection.create_topic(&topic(&name, Retention::Keep)).await.unwrap();
    let mut publisher = plain(&connection, &name).await;
    publish(&mut publisher, Message::new("before")).await.unwrap();
    let other = connect(&broker).await;
    for (subscribed, start) in [("all", Start::Earliest), ("new", Start::Latest)] {
        let spec = SubscriptionSpec { start, ..subscription(&name, subscribed, SOON) };
        other.create_subscription(&spec).await.unwrap();
    }
    publish(&mut publisher, Message::new("after")).await.unwrap();
    let mut all = other.consumer(&name, "all", OPTIONS).await.unwrap();
    assert_eq!(bodies(&take(&mut all, 2).await), ["before", "after"]);
    let mut new = other.consumer(&name, "new", OPTIONS).await.unwrap();
    assert_eq!(bodies(&take(&mut new, 1).await), ["after"]);
    nothing(&mut new).await;
}

async fn kept(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let name = unique("t");
    connection.create_topic(&topic(&name, Retention::Keep)).await.unwrap();
    connection.create_subscription(&subscription(&name, "s", SOON)).await.unwrap();
    plain(&connection, &name).await.publish_batch(vec![Message::new("x"); 20]).await;
    let mut first = consumer(&connection, &name, 16).await;
    settle_all(&take(&mut first, 20).await, Settlement::Ack).await;
    until_depth(&connection, &name, (0, 0)).await;
    first.close(SOON).await.unwrap();
    // The broker closes the ledger, and throws away the old one if it may.
    let path = format!("/admin/v2/persistent/public/queueproof/{name}/unload");
    assert_eq!(broker.ask("PUT", &path, "").unwrap().0, 204);
    plain(&connection, &name).await.publish_batch(vec![Message::new("y"); 5]).await;
    tokio::time::sleep(QUIET).await;
    connection.create_subscription(&subscription(&name, "later", SOON)).await.unwrap();
    let mut later = connection.consumer(&name, "later", OPTIONS).await.unwrap();
    let expected: Vec<_> = std::iter::repeat_n("x", 20).chain(["y"; 5]).collect();
    assert_eq!(bodies(&take(&mut later, 25).await), expected);
}

async fn leaves(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut leaver = consumer(&connection, &topic, 10).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 20]).await;
    let held = take(&mut leaver, 5).await;
    until("more is locked ahead", async || {
        connection.depth(&topic, "s").await.unwrap().unsettled > 10
    })
    .await;
    held[0].ack().await.unwrap();
    timeout(SOON, leaver.close(SOON)).await.expect("a full prefetch does not hang it").unwrap();
    for how in [Settlement::Ack, Settlement::Nack { delay: None }] {
        let answer = held[1].settle(how).await;
        assert!(matches!(answer, Err(SettleError::LeaseLost(_))), "{answer:?}");
    }
    let mut other = consumer(&connection, &topic, 30).await;
    let came = take(&mut other, 19).await;
    settle_all(&came, Settlement::Ack).await;
    nothing(&mut other).await;
}

async fn dropped(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 10]).await;
    let mut consumer = consumer(&connection, &topic, 10).await;
    let held = take(&mut consumer, 2).await;
    drop((consumer, held));
    until_depth(&connection, &topic, (10, 0)).await;
}

async fn moves(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 10).await;
    let mut publisher = plain(&connection, &topic).await;
    let path = format!("/admin/v2/persistent/public/queueproof/{topic}/unload");
    assert_eq!(broker.ask("PUT", &path, "").unwrap().0, 204);
    let began = Instant::now();
    while publish(&mut publisher, Message::new("x")).await.is_err() {
        assert!(began.elapsed() < SOON, "it does not publish again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    take(&mut consumer, 1).await[0].ack().await.unwrap();
    assert_eq!(connection.disconnects(), 0);
}

async fn deleted(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 10).await;
    let mut publisher = plain(&connection, &topic).await;
    connection.delete_topic(&topic).await.unwrap();
    let gone = timeout(SOON, consumer.receive(1, SOON)).await.unwrap().map(drop).unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound, "{gone}");
    let began = Instant::now();
    loop {
        match publish(&mut publisher, Message::new("x")).await {
            Err(PublishError::Rejected { .. }) => break,
            Err(_) => assert!(began.elapsed() < SOON),
            Ok(receipt) => panic!("{receipt:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for answer in [
        connection.publisher(&topic, PublisherOptions::default()).await.map(drop),
        connection.consumer(&topic, "s", OPTIONS).await.map(drop),
        connection.create_subscription(&subscription(&topic, "s", SOON)).await,
        connection.depth(&topic, "s").await.map(drop),
    ] {
        assert_eq!(answer.unwrap_err().kind, ErrorKind::NotFound);
    }
    assert!(!connection.topics(&topic).await.unwrap().contains(&topic));
    connection.delete_topic(&topic).await.expect("what does not exist is deleted");
    assert!(connection.capabilities().has(Capability::Depth));
}
