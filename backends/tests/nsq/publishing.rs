//! Publishing.

use std::time::{Duration, Instant};

use queueproof_backends::{
    Access, DedupKey, Direction, ErrorKind, Message, PublishError, PublisherOptions, RejectKind,
    Settlement, settle_all,
};
use tokio::time::timeout;

use super::place::{
    MOMENT, Place, SOON, consumer, linked, nothing_comes, patient_queue, publish, publisher, take,
    until,
};

pub async fn confirmations_that_wait_fail_when_the_connection_is_lost_and_not_at_their_timeout(
    place: &Place,
) {
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let options =
        PublisherOptions { confirm_timeout: Some(SOON * 100), ..PublisherOptions::default() };
    let mut publisher = linked.publisher("t", options).await.unwrap();
    link.hold(Direction::ToClient);
    let confirmation = publisher.publish(Message::new("x")).await.unwrap();
    until("it is stored", async || direct.depth("t", "s").await.unwrap().waiting == 1).await;
    link.cut();
    let answer = timeout(SOON, confirmation).await.unwrap();
    assert!(matches!(answer, Err(PublishError::Indeterminate(_))), "{answer:?}");
}

pub async fn what_is_published_while_the_connection_is_down_is_refused_and_not_stored_later(
    place: &Place,
) {
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut publisher = linked.publisher("t", PublisherOptions::default()).await.unwrap();
    link.cut();
    until("it is seen", async || linked.disconnects() > 0).await;
    for _ in 0..20 {
        let answer = publisher.publish(Message::new("x")).await.map(drop);
        assert!(matches!(answer, Err(PublishError::NotSent(_))), "{answer:?}");
        let answers = publisher.publish_batch(vec![Message::new("x"); 3]).await;
        assert!(answers.iter().all(|a| matches!(a, Err(PublishError::NotSent(_)))), "{answers:?}");
    }
    link.heal();
    until("it works again by itself", async || match publisher.publish(Message::new("y")).await {
        Ok(confirmation) => confirmation.await.is_ok(),
        Err(_) => false,
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(direct.depth("t", "s").await.unwrap().waiting, 1);
    assert_eq!(linked.disconnects(), 1);
}

pub async fn more_publishes_than_may_be_in_flight_do_not_block_each_other(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let mut pending = Vec::new();
    for _ in 0..6000 {
        pending.push(timeout(SOON, publisher.publish(Message::new("x"))).await.unwrap().unwrap());
    }
    for confirmation in pending {
        confirmation.await.unwrap();
    }
    let receipts = publisher.publish_batch(vec![Message::new("x"); 6000]);
    let receipts = timeout(SOON, receipts).await.unwrap();
    assert_eq!(receipts.iter().filter(|receipt| receipt.is_ok()).count(), 6000);
    until("all arrive", async || connection.depth("t", "s").await.unwrap().waiting == 12_000).await;
}

pub async fn what_nsqd_would_refuse_is_refused_here_and_the_connection_lives_on(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let limit = connection.capabilities().limits.max_payload.unwrap() as usize;
    let rejected = [
        (Message::new(""), RejectKind::TooSmall),
        (Message::new(vec![7; limit + 1]), RejectKind::TooLarge),
        (Message::new(vec![7; limit * 2]), RejectKind::TooLarge),
        (
            Message { delay: Some(Duration::from_secs(3601)), ..Message::new("x") },
            RejectKind::Invalid,
        ),
    ];
    for (message, expected) in rejected {
        match publisher.publish(message).await.map(drop) {
            Err(PublishError::Rejected { kind, .. }) => assert_eq!(kind, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
        publish(&mut publisher, "legal").await;
    }
    let unsupported = [
        Message { key: Some("k".into()), ..Message::new("x") },
        Message { headers: vec![("a".into(), "b".into())], ..Message::new("x") },
        Message { dedup: Some(DedupKey::Id("i".into())), ..Message::new("x") },
        Message { dedup: Some(DedupKey::Sequence(1)), ..Message::new("x") },
    ];
    for message in unsupported {
        let answer = publisher.publish(message).await.map(drop);
        assert!(matches!(answer, Err(PublishError::Unsupported(_))), "{answer:?}");
    }
    // Exactly at the limits: the real server takes them.
    for size in [1, limit] {
        publisher.publish(Message::new(vec![7; size])).await.unwrap().await.unwrap();
    }
    assert_eq!(connection.disconnects(), 0);
    for access in [Access::Exclusive, Access::WaitForExclusive] {
        let options = PublisherOptions { access, ..PublisherOptions::default() };
        let answer = connection.publisher("t", options).await.map(drop);
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Unsupported);
    }
    let mut consumer = consumer(&connection, 16).await;
    let mut sizes: Vec<_> =
        take(&mut consumer, 6).await.iter().map(|d| d.message.payload.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 5, 5, 5, 5, limit]);
}

pub async fn a_batch_keeps_its_places_around_those_that_are_refused(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let limit = connection.capabilities().limits.max_payload.unwrap() as usize;
    // Also more than fits in one command, and than fits in the largest body.
    let mut batch = vec![Message::new(vec![1; limit / 3]); 20];
    batch.insert(7, Message::new(""));
    batch.push(Message::new(vec![1; limit + 1]));
    batch.push(Message::new(vec![2; limit]));
    let answers = timeout(SOON, publisher.publish_batch(batch)).await.unwrap();
    assert_eq!(answers.len(), 23);
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_err(), [7, 21].contains(&index), "{index}: {answer:?}");
    }
    assert_eq!(connection.disconnects(), 0);
    until("all arrive", async || connection.depth("t", "s").await.unwrap().waiting == 21).await;
}

pub async fn a_delayed_message_comes_later_and_keeps_a_batch_in_order(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 16).await;
    let delay = Duration::from_millis(600);
    let began = Instant::now();
    let batch = vec![
        Message::new("first"),
        Message { delay: Some(delay), ..Message::new("late") },
        Message::new("second"),
    ];
    let answers = publisher.publish_batch(batch).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let bodies = |deliveries: &[queueproof_backends::Delivery]| {
        deliveries.iter().map(|d| d.message.payload.clone()).collect::<Vec<_>>()
    };
    let now = take(&mut consumer, 2).await;
    assert_eq!(bodies(&now), ["first", "second"]);
    assert_eq!(connection.depth("t", "s").await.unwrap().waiting, 1, "the delayed one waits");
    let later = take(&mut consumer, 1).await;
    assert_eq!(bodies(&later), ["late"]);
    assert!(began.elapsed() >= delay);
    assert_eq!(later[0].attempt, Some(1));
    settle_all(&[now, later].concat(), Settlement::Ack).await;
    nothing_comes(&mut consumer).await;
}

pub async fn closing_a_publisher_waits_for_what_it_was_handed(place: &Place) {
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut publisher = linked.publisher("t", PublisherOptions::default()).await.unwrap();
    link.hold(Direction::ToBroker);
    let mut pending = Vec::new();
    for _ in 0..10 {
        pending.push(publisher.publish(Message::new("x")).await.unwrap());
    }
    let healing = async {
        tokio::time::sleep(MOMENT * 10).await;
        link.heal();
    };
    timeout(SOON, async { tokio::join!(publisher.close(), healing) }).await.unwrap();
    for confirmation in pending {
        confirmation.await.unwrap();
    }
    assert_eq!(linked.disconnects(), 0);
    until("all arrive", async || direct.depth("t", "s").await.unwrap().waiting == 10).await;
}
