//! Consuming and settling.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use queueproof_backends::{
    Connector, ConsumerOptions, Direction, ErrorKind, Message, SettleError, Settled, Settlement,
    settle_all,
};
use tokio::time::{sleep, timeout};

use super::place::{
    MOMENT, OPTIONS, Place, SOON, consumer, linked, nothing_comes, patient_queue, publish,
    publisher, sockets_to, take, until, work_queue,
};

/// Short enough to wait for, and long enough to settle within, also on a slow day.
const LOCK: Duration = Duration::from_secs(3);

fn lease_lost(result: &Result<Settled, SettleError>) -> bool {
    matches!(result, Err(SettleError::LeaseLost(_)))
}

pub async fn a_late_acknowledgement_is_refused_and_the_connection_lives_on(place: &Place) {
    let connection = work_queue(&place.connector(), LOCK).await;
    let mut first = consumer(&connection, 4).await;
    let mut publisher = publisher(&connection).await;
    publish(&mut publisher, "late").await;
    let late = take(&mut first, 1).await;
    // It times out and comes again to the same consumer, which is done with it.
    let again = take(&mut first, 1).await;
    assert_eq!(again[0].attempt, Some(2));
    let stale = late[0].ack().await;
    assert!(lease_lost(&stale), "it would have settled the other delivery: {stale:?}");
    assert_eq!(again[0].ack().await, Ok(Settled::Confirmed));
    assert!(lease_lost(&again[0].ack().await), "twice");
    // It times out, once or more often, and goes to another.
    publish(&mut publisher, "late").await;
    let late = take(&mut first, 1).await;
    let mut other = consumer(&connection, 1).await;
    let held = take(&mut other, 1).await.pop().unwrap();
    assert!(held.attempt > Some(1));
    for settlement in [Settlement::Ack, Settlement::Touch, Settlement::Nack { delay: None }] {
        let refused = late[0].settle(settlement).await;
        assert!(lease_lost(&refused), "{refused:?}");
    }
    held.ack().await.unwrap();
    other.close(SOON).await.unwrap();
    assert_eq!(connection.disconnects(), 0);
    publish(&mut publisher, "after").await;
    until("it still gets messages", async || {
        let received = first.receive(16, SOON).await.unwrap();
        settle_all(&received, Settlement::Ack).await;
        received.iter().any(|delivery| delivery.message.payload == "after")
    })
    .await;
}

pub async fn a_consumer_goes_on_after_its_connection_came_back(place: &Place) {
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut consumer = consumer(&linked, 16).await;
    nothing_comes(&mut consumer).await;
    link.cut();
    assert!(consumer.receive(1, Duration::from_millis(200)).await.unwrap().is_empty());
    link.heal();
    let mut publisher = publisher(&direct).await;
    publish(&mut publisher, "x").await;
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    assert_eq!(delivery.message.payload, "x");
    assert_eq!(delivery.ack().await, Ok(Settled::Confirmed));
    assert_eq!(linked.disconnects(), 1);
    assert_eq!(direct.depth("t", "s").await.unwrap().unsettled, 0);
}

pub async fn what_came_on_a_connection_that_was_lost_can_be_settled_no_more(place: &Place) {
    let connector = place.connector();
    let direct = work_queue(&connector, LOCK).await;
    let (link, linked) = linked(&connector).await;
    let mut lossy = consumer(&linked, 4).await;
    let mut publisher = publisher(&direct).await;
    publisher.publish_batch(vec![Message::new("x"); 4]).await;
    let held = take(&mut lossy, 2).await;
    link.cut();
    until("it is seen", async || linked.disconnects() > 0).await;
    assert!(lease_lost(&held[0].ack().await), "while it is down");
    link.heal();
    // What was waiting in the client is not handed out any more: it all comes again.
    let again = take(&mut lossy, 4).await;
    assert!(again.iter().all(|delivery| delivery.attempt == Some(2)), "{again:?}");
    assert!(lease_lost(&held[1].ack().await), "after it came back");
    for result in settle_all(&again, Settlement::Ack).await {
        assert_eq!(result, Ok(Settled::Confirmed));
    }
    nothing_comes(&mut lossy).await;
}

pub async fn an_acknowledgement_that_nobody_confirms_is_indeterminate_in_time(place: &Place) {
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut consumer = consumer(&linked, 4).await;
    let mut publisher = publisher(&direct).await;
    publisher.publish_batch(vec![Message::new("x"); 2]).await;
    let held = take(&mut consumer, 2).await;
    link.hold(Direction::ToClient);
    // The settings' five seconds.
    let answer = timeout(SOON, held[0].ack()).await.unwrap();
    assert!(matches!(answer, Err(SettleError::Indeterminate(_))), "{answer:?}");
    let cutting = async {
        sleep(MOMENT * 10).await;
        link.cut();
    };
    let (answer, ()) = tokio::join!(held[1].ack(), cutting);
    assert!(matches!(answer, Err(SettleError::Indeterminate(_))), "{answer:?}");
}

pub async fn a_consumer_that_does_not_ask_locks_its_prefetch_and_loses_nothing(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut consumer = consumer(&connection, 10).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 5000]).await;
    sleep(Duration::from_millis(200)).await;
    let depth = connection.depth("t", "s").await.unwrap();
    assert_eq!((depth.unsettled, depth.waiting), (10, 4990));
    // Those that are unsettled count, handed out or not.
    let held = take(&mut consumer, 10).await;
    nothing_comes(&mut consumer).await;
    let mut received = held.len();
    settle_all(&held, Settlement::Ack).await;
    while received < 5000 {
        let deliveries = consumer.receive(500, SOON).await.unwrap();
        assert!(!deliveries.is_empty(), "{received} of 5000 came");
        received += deliveries.len();
        let results = settle_all(&deliveries, Settlement::Ack).await;
        assert!(results.iter().all(|result| *result == Ok(Settled::Confirmed)));
    }
    let depth = connection.depth("t", "s").await.unwrap();
    assert_eq!((depth.unsettled, depth.waiting), (0, 0));
}

pub async fn a_prefetch_beyond_what_nsqd_takes_is_what_it_takes(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut consumer = consumer(&connection, 1_000_000).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 3000]).await;
    // -max-rdy-count
    until("it has all it may", async || {
        connection.depth("t", "s").await.unwrap().unsettled == 2500
    })
    .await;
    let taken = take(&mut consumer, 2500).await;
    settle_all(&taken, Settlement::Ack).await;
    take(&mut consumer, 500).await;
    assert_eq!(connection.disconnects(), 0);
}

pub async fn what_a_consumer_was_never_handed_returns_at_once_when_it_leaves(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut leaver = consumer(&connection, 16).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 10]).await;
    let held = take(&mut leaver, 3).await;
    until("all are locked", async || connection.depth("t", "s").await.unwrap().unsettled == 10)
        .await;
    leaver.close(SOON).await.unwrap();
    let depth = connection.depth("t", "s").await.unwrap();
    assert_eq!((depth.unsettled, depth.waiting), (3, 7));
    let mut other = consumer(&connection, 16).await;
    take(&mut other, 7).await;
    drop(held);
}

pub async fn what_was_handed_out_can_be_settled_after_its_consumer_was_closed(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut leaver = consumer(&connection, 16).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 3]).await;
    let held = take(&mut leaver, 3).await;
    leaver.close(SOON).await.unwrap();
    assert_eq!(held[0].ack().await, Ok(Settled::Confirmed));
    assert_eq!(held[1].touch().await, Ok(Settled::Confirmed));
    assert_eq!(held[2].nack(None).await, Ok(Settled::Confirmed));
    let depth = connection.depth("t", "s").await.unwrap();
    assert_eq!((depth.unsettled, depth.waiting), (1, 1));
    // Only as long as somebody holds one of them.
    drop((held, publisher));
    until("its socket is gone", async || sockets_to(place.tcp()) == 0).await;
    assert_eq!(connection.disconnects(), 0);
}

pub async fn a_consumer_that_is_dropped_gives_back_and_leaves_no_socket(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let dropped = consumer(&connection, 16).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 5]).await;
    until("all are locked", async || connection.depth("t", "s").await.unwrap().unsettled == 5)
        .await;
    drop((dropped, publisher));
    until("its socket is gone", async || sockets_to(place.tcp()) == 0).await;
    let mut other = consumer(&connection, 16).await;
    take(&mut other, 5).await;
}

pub async fn a_cancelled_receive_loses_nothing(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut consumer = consumer(&connection, 8).await;
    let mut publisher = publisher(&connection).await;
    let publishing = async {
        for _ in 0..50 {
            publisher.publish_batch(vec![Message::new("x"); 4]).await;
        }
    };
    let mut received = 0;
    let receiving = async {
        while received < 200 {
            let patience = Duration::from_micros(300);
            if let Ok(taken) = timeout(patience, consumer.receive(3, SOON)).await {
                let taken = taken.unwrap();
                received += taken.len();
                settle_all(&taken, Settlement::Ack).await;
            }
        }
    };
    timeout(SOON, async { tokio::join!(publishing, receiving) }).await.expect("all of them");
    nothing_comes(&mut consumer).await;
}

pub async fn each_delivery_says_its_attempt_and_each_settlement_does_what_it_says(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut consumer = consumer(&connection, 8).await;
    let mut publisher = publisher(&connection).await;
    publish(&mut publisher, "x").await;
    for attempt in 1..=4 {
        let delivery = take(&mut consumer, 1).await.pop().unwrap();
        assert_eq!(delivery.attempt, Some(attempt));
        assert_eq!(delivery.nack(None).await, Ok(Settled::Confirmed));
    }
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    let delay = Duration::from_millis(400);
    let began = Instant::now();
    assert_eq!(delivery.nack(Some(delay)).await, Ok(Settled::Confirmed));
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    assert!(began.elapsed() >= delay);
    let too_long = delivery.nack(Some(Duration::from_secs(3601))).await;
    assert!(matches!(too_long, Err(SettleError::Unsupported(_))), "{too_long:?}");
    // Without a dead-letter topic a rejected message is deleted.
    assert_eq!(delivery.reject().await, Ok(Settled::Confirmed));
    let depth = connection.depth("t", "s").await.unwrap();
    assert_eq!((depth.unsettled, depth.waiting), (0, 0));
}

pub async fn touching_extends_the_lock(place: &Place) {
    let connection = work_queue(&place.connector(), LOCK).await;
    let mut consumer = consumer(&connection, 8).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 2]).await;
    let held = take(&mut consumer, 2).await;
    let [touched, left] = held.as_slice() else { panic!("two") };
    // As long as it takes until the other one has come back, however late nsqd looks.
    let again = loop {
        assert_eq!(touched.touch().await, Ok(Settled::Confirmed));
        let received = consumer.receive(8, Duration::from_millis(300)).await.unwrap();
        if let Some(again) = received.into_iter().next() {
            break again;
        }
    };
    assert_eq!(again.attempt, Some(2));
    assert!(lease_lost(&left.touch().await));
    assert_eq!(touched.ack().await, Ok(Settled::Confirmed));
    assert_eq!(again.ack().await, Ok(Settled::Confirmed));
}

pub async fn a_message_settled_twice_in_one_batch_is_settled_once(place: &Place) {
    let connection = patient_queue(&place.connector()).await;
    let mut consumer = consumer(&connection, 8).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish_batch(vec![Message::new("x"); 3]).await;
    let held = take(&mut consumer, 3).await;
    held[0].ack().await.unwrap();
    let batch: Vec<_> = [1, 0, 1, 2].into_iter().map(|index: usize| held[index].clone()).collect();
    let results = settle_all(&batch, Settlement::Ack).await;
    let lost: Vec<_> = results.iter().map(lease_lost).collect();
    assert_eq!(lost, [false, true, true, false], "{results:?}");
}

pub async fn unconfirmed_acknowledgements_arrive_also_when_the_connection_is_closed_at_once(
    place: &Place,
) {
    let connector = place.connector();
    let director = patient_queue(&connector).await;
    let connection = connector.connect(None).await.unwrap();
    let options = ConsumerOptions { prefetch: 200, confirm_acks: false };
    let mut consumer = connection.consumer("t", "s", options).await.unwrap();
    let mut publisher = publisher(&director).await;
    publisher.publish_batch(vec![Message::new("x"); 200]).await;
    let taken = take(&mut consumer, 150).await;
    for result in settle_all(&taken, Settlement::Ack).await {
        assert_eq!(result, Ok(Settled::Sent));
    }
    // With messages still coming in.
    connection.close().await;
    let depth = director.depth("t", "s").await.unwrap();
    assert_eq!(depth.waiting + depth.unsettled, 50);
    assert_eq!(taken[0].ack().await, Err(SettleError::Closed));
}

pub async fn a_consumer_of_a_deleted_topic_ends_and_does_not_make_it_again(place: &Place) {
    let connector = place.connector();
    let connection = patient_queue(&connector).await;
    let mut consumer = connection.consumer("t", "s", OPTIONS).await.unwrap();
    let director = connector.connect(None).await.unwrap();
    director.delete_topic("t").await.unwrap();
    let ended = timeout(SOON, consumer.receive(1, SOON * 2)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind, ErrorKind::NotFound);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(director.topics("t").await.unwrap(), [] as [String; 0]);
    drop(Arc::clone(&connection));
}
