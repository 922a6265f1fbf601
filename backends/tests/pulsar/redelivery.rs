//! What comes back, when, with which count, and what is moved away.

use queueproof_backends::{DeadLetter, SettleError, Settled};

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases.add("the broker counts what is handed back, and not what a lost consumer held", counts);
    cases.add("what is not settled comes back after the ack timeout and not before", timeouts);
    cases.add("an ack timeout does not run while a message waits in the prefetch", waiting);
    cases.add("a late acknowledgement is taken by the broker", late_ack);
    cases.add("a late nack takes nobody's lock", late_nack);
    cases.add("what Pulsar cannot do to a delivery is told", unsupported);
    cases
        .add("what is handed back too often, too late or rejected is moved, whole and once", moved);
    cases.add("a rejected delivery without a dead-letter topic is deleted", rejected);
}

fn timing_out(spec: SubscriptionSpec) -> SubscriptionSpec {
    SubscriptionSpec { ack_timeout: Duration::from_millis(500), ..spec }
}

async fn counts(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let (cut, link) = linked(&broker).await;
    let mut one = consumer(&cut, &topic, 4).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 2]).await;
    for attempt in 1..4 {
        let came = take(&mut one, 2).await;
        assert_eq!(attempts(&came), [attempt; 2]);
        for delivery in came {
            assert_eq!(delivery.nack(None).await, Ok(Settled::Sent));
        }
    }
    assert_eq!(attempts(&take(&mut one, 2).await), [4; 2]);
    // Somebody else is there: the counts stay as they are.
    let mut other = consumer(&connection, &topic, 4).await;
    link.cut();
    assert_eq!(attempts(&take(&mut other, 2).await), [4; 2], "a cut does not count");
    let third = consumer(&connection, &topic, 4).await;
    other.close(SOON).await.unwrap();
    let mut third = third;
    assert_eq!(attempts(&take(&mut third, 2).await), [4; 2], "leaving does not count");
    // Nobody else is there: they begin anew.
    third.close(SOON).await.unwrap();
    let mut last = consumer(&connection, &topic, 4).await;
    assert_eq!(attempts(&take(&mut last, 2).await), [1; 2], "nobody left to count for");
}

async fn timeouts(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue_with(&connection, timing_out).await;
    let mut holder = consumer(&connection, &topic, 10).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 10]).await;
    let held = take(&mut holder, 10).await;
    let began = Instant::now();
    held[0].ack().await.unwrap();
    let mut other = consumer(&connection, &topic, 10).await;
    nothing_before(&mut other, began, Duration::from_millis(450)).await;
    let mut back = Vec::new();
    while back.len() < 9 {
        assert!(began.elapsed() < SOON, "{} came back", back.len());
        for consumer in [&mut other, &mut holder] {
            back.append(&mut consumer.receive(10, Duration::from_millis(5)).await.unwrap());
        }
    }
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
    assert_eq!(attempts(&back), [2; 9]);
}

async fn nothing_before(consumer: &mut Box<dyn Consumer>, began: Instant, until: Duration) {
    let left = until.saturating_sub(began.elapsed());
    let came = consumer.receive(1, left).await.unwrap();
    assert!(came.is_empty() || began.elapsed() >= until, "{came:?} after {:?}", began.elapsed());
}

async fn waiting(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue_with(&connection, timing_out).await;
    let mut consumer = consumer(&connection, &topic, 10).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x"); 5]).await;
    until_depth(&connection, &topic, (0, 5)).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let came = take(&mut consumer, 5).await;
    assert_eq!(attempts(&came), [1; 5]);
    for delivery in came {
        delivery.ack().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    nothing(&mut consumer).await;
}

async fn late_ack(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue_with(&connection, timing_out).await;
    let mut late = consumer(&connection, &topic, 1).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x")]).await;
    let lapsed = take(&mut late, 1).await;
    let again = take(&mut late, 1).await;
    assert_eq!(attempts(&again), [2]);
    assert_eq!(lapsed[0].ack().await, Ok(Settled::Confirmed));
    until_depth(&connection, &topic, (0, 0)).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    nothing(&mut late).await;
}

async fn late_nack(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue_with(&connection, timing_out).await;
    let mut late = consumer(&connection, &topic, 1).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x")]).await;
    let lapsed = take(&mut late, 1).await;
    let again = take(&mut late, 1).await;
    let refused = lapsed[0].nack(None).await;
    assert!(matches!(refused, Err(SettleError::LeaseLost(_))), "{refused:?}");
    assert!(late.receive(1, Duration::from_millis(200)).await.unwrap().is_empty());
    assert_eq!(again[0].nack(None).await, Ok(Settled::Sent));
    let refused = again[0].nack(None).await;
    assert!(matches!(refused, Err(SettleError::LeaseLost(_))), "{refused:?}");
    assert_eq!(attempts(&take(&mut late, 1).await), [3]);
}

async fn unsupported(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 1).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x")]).await;
    let delivery = take(&mut consumer, 1).await.remove(0);
    for answer in [delivery.touch().await, delivery.nack(Some(Duration::from_secs(1))).await] {
        assert!(matches!(answer, Err(SettleError::Unsupported(_))), "{answer:?}");
    }
    assert_eq!(delivery.ack().await, Ok(Settled::Confirmed), "it is still held");
}

async fn moved(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let graveyard = work_queue(&connection).await;
    let topic = work_queue_with(&connection, |spec| SubscriptionSpec {
        dead_letter: Some(DeadLetter { max_deliveries: 3, topic: graveyard.clone() }),
        ..timing_out(spec)
    })
    .await;
    let mut consumer = consumer(&connection, &topic, 16).await;
    let messages: Vec<_> = (0..8)
        .map(|n| Message {
            key: Some(format!("k{n}")),
            headers: vec![("h".into(), n.to_string())],
            ..Message::new(n.to_string())
        })
        .collect();
    plain(&connection, &topic).await.publish_batch(messages.clone()).await;
    let mut deliveries = [0; 8];
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        for delivery in consumer.receive(1, Duration::from_millis(50)).await.unwrap() {
            let n: usize = bodies(std::slice::from_ref(&delivery))[0].parse().unwrap();
            deliveries[n] += 1;
            match n {
                0..3 => drop(delivery.nack(None).await.unwrap()),
                3..6 => {} // times out
                6 => assert_eq!(delivery.reject().await, Ok(Settled::Confirmed)),
                _ => drop(delivery.ack().await.unwrap()),
            }
        }
    }
    assert_eq!(deliveries, [3, 3, 3, 3, 3, 3, 1, 1]);
    let mut gravedigger = super::consumer(&connection, &graveyard, 16).await;
    let mut buried = take(&mut gravedigger, 7).await;
    nothing(&mut gravedigger).await;
    buried.sort_by(|a, b| a.message.payload.cmp(&b.message.payload));
    assert!(buried.iter().map(|d| &d.message).eq(&messages[..7]));
    until_depth(&connection, &topic, (0, 0)).await;
}

async fn rejected(broker: Arc<Broker>) {
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut consumer = consumer(&connection, &topic, 1).await;
    plain(&connection, &topic).await.publish_batch(vec![Message::new("x")]).await;
    let delivery = take(&mut consumer, 1).await.remove(0);
    assert_eq!(delivery.reject().await, Ok(Settled::Confirmed));
    until_depth(&connection, &topic, (0, 0)).await;
}
