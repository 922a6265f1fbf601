//! What no real nsqd can be made to do: the stand-in does it.

use std::time::Duration;

use queueproof_backends::{
    Connector, Direction, Message, PublishError, PublisherOptions, RejectKind, SettleError,
    Settlement, settle_all,
};
use tokio::time::timeout;

use super::{
    place::{Place, SOON, consumer, linked, patient_queue, publisher, take, until},
    standin::{Manner, Options},
};

fn place(manner: Manner) -> Place {
    Place::stand_in(Options { manner, ..Options::default() })
}

fn kinds(answers: &[Result<queueproof_backends::PublishReceipt, PublishError>]) -> Vec<&str> {
    let kind = |answer: &Result<_, _>| match answer {
        Ok(_) => "ok",
        Err(PublishError::Indeterminate(_)) => "indeterminate",
        Err(PublishError::Rejected { .. }) => "rejected",
        Err(PublishError::NotSent(_)) => "not sent",
        Err(_) => "other",
    };
    answers.iter().map(kind).collect()
}

#[tokio::test]
async fn a_connection_closed_before_the_confirmation_leaves_the_publish_indeterminate() {
    let place = place(Manner::ClosingUnconfirmed);
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let answer = publisher.publish(Message::new("x")).await.unwrap().await;
    assert!(matches!(answer, Err(PublishError::Indeterminate(_))), "{answer:?}");
    assert_eq!(connection.disconnects(), 1);
    assert_eq!(connection.depth("t", "s").await.unwrap().waiting, 1, "and it was stored");
}

#[tokio::test]
async fn a_confirmation_that_never_comes_is_given_up_in_time() {
    let place = place(Manner::Unconfirming);
    let connection = patient_queue(&place.connector()).await;
    let confirm_timeout = Some(Duration::from_millis(100));
    let options = PublisherOptions { confirm_timeout, ..PublisherOptions::default() };
    let mut publisher = connection.publisher("t", options).await.unwrap();
    let answers = timeout(SOON, publisher.publish_batch(vec![Message::new("x"); 3])).await.unwrap();
    assert_eq!(kinds(&answers), ["indeterminate"; 3]);
    timeout(SOON, publisher.close()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_that_nobody_foresaw_is_a_rejection_of_its_publish_alone() {
    let place = place(Manner::RefusingSecond("E_PUB_FAILED PUB failed no space left on device"));
    let connector = place.connector();
    let _director = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut publisher = linked.publisher("t", PublisherOptions::default()).await.unwrap();
    link.hold(Direction::ToBroker);
    let mut pending = Vec::new();
    for _ in 0..3 {
        pending.push(publisher.publish(Message::new("x")).await.unwrap());
    }
    link.heal();
    let answers = futures::future::join_all(pending).await;
    assert_eq!(kinds(&answers), ["ok", "rejected", "indeterminate"]);
    let full = |a: &Result<_, _>| {
        matches!(a, Err(PublishError::Rejected { kind: RejectKind::LimitReached, .. }))
    };
    assert!(full(&answers[1]), "{answers:?}");
    assert_eq!(linked.disconnects(), 1);
}

#[tokio::test]
async fn a_confirmation_that_came_too_late_is_not_taken_for_the_next_ones() {
    let place = place(Manner::RefusingSecond("E_PUB_FAILED PUB failed exiting"));
    let connector = place.connector();
    let _director = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let confirm_timeout = Some(Duration::from_secs(1));
    let options = PublisherOptions { confirm_timeout, ..PublisherOptions::default() };
    let mut publisher = linked.publisher("t", options).await.unwrap();
    link.hold(Direction::ToClient);
    let late = publisher.publish(Message::new("late")).await.unwrap().await;
    assert!(matches!(late, Err(PublishError::Indeterminate(_))), "{late:?}");
    let second = publisher.publish(Message::new("refused")).await.unwrap();
    link.heal();
    // The first answer is that of the first publish, which nobody waits for any more.
    let second = second.await;
    let gone = RejectKind::NoTopic;
    assert!(
        matches!(second, Err(PublishError::Rejected { kind, .. }) if kind == gone),
        "{second:?}"
    );
}

#[tokio::test]
async fn a_server_that_confirms_what_was_not_published_is_not_believed_any_more() {
    let place = place(Manner::ConfirmingTwice);
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    publisher.publish(Message::new("x")).await.unwrap().await.unwrap();
    until("the connection is given up", async || connection.disconnects() == 1).await;
}

#[tokio::test]
async fn a_connection_closed_before_it_is_said_what_failed_leaves_settlements_indeterminate() {
    let place = place(Manner::ClosingUnsettled);
    let connector = place.connector();
    let connection = patient_queue(&connector).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 4).await;
    publisher.publish_batch(vec![Message::new("x"); 2]).await;
    let held = take(&mut consumer, 2).await;
    for answer in settle_all(&held, Settlement::Ack).await {
        assert!(matches!(answer, Err(SettleError::Indeterminate(_))), "{answer:?}");
    }
    until("it is seen", async || connection.disconnects() == 1).await;
}

#[tokio::test]
async fn refusals_of_a_whole_batch_are_those_of_each_message() {
    let place = place(Manner::Refusing("E_BAD_MESSAGE MPUB message too big 9 > 8"));
    let connector = place.connector();
    let connection = connector.connect(None).await.unwrap();
    connection.close().await;
    let connection = patient_queue(&connector).await;
    let mut publisher = publisher(&connection).await;
    let answers = publisher.publish_batch(vec![Message::new("x"); 3]).await;
    assert_eq!(kinds(&answers), ["rejected"; 3]);
}

#[tokio::test]
async fn a_server_that_answers_out_of_order_confirms_nothing() {
    let place = place(Manner::RefusingOutOfOrder);
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 4).await;
    publisher.publish_batch(vec![Message::new("x"); 2]).await;
    let held = take(&mut consumer, 2).await;
    let (one, another) = tokio::join!(held[0].ack(), held[1].ack());
    for answer in [one, another] {
        assert!(matches!(answer, Err(SettleError::Indeterminate(_))), "{answer:?}");
    }
    until("the connection is given up", async || connection.disconnects() == 1).await;
}
