//! The embedded broker does the same in each run, also where it has no order to keep.
#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, rc::Rc, time::Duration};

use queueproof_backends::{
    Connector, ConsumerOptions, Message, PublisherOptions, Retention, Start, SubscriptionSpec,
    TopicSpec,
    memory::{MemoryConnector, MemorySettings},
};
use tokio::task::LocalSet;

/// In which order the subscriptions of a topic receive the messages.
fn order() -> Vec<usize> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let connector = MemoryConnector::new(MemorySettings::default());
        let connection = connector.connect(None).await.unwrap();
        let topic = TopicSpec {
            name: "t".into(),
            retention: Retention::Keep,
            dedup_window: None,
            max_messages: None,
        };
        connection.create_topic(&topic).await.unwrap();
        let received = Rc::new(RefCell::new(Vec::new()));
        for number in 0..20 {
            let subscription = SubscriptionSpec {
                topic: "t".into(),
                name: format!("s{number}"),
                start: Start::Earliest,
                ack_timeout: Duration::from_secs(30),
                dead_letter: None,
                ordered_by_key: false,
            };
            connection.create_subscription(&subscription).await.unwrap();
            let options = ConsumerOptions { prefetch: 1, confirm_acks: true };
            let mut consumer = connection.consumer("t", &subscription.name, options).await.unwrap();
            let received = Rc::clone(&received);
            tokio::task::spawn_local(async move {
                loop {
                    for delivery in consumer.receive(1, Duration::from_secs(3600)).await.unwrap() {
                        received.borrow_mut().push(number);
                        delivery.ack().await.unwrap();
                    }
                }
            });
        }
        let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            publisher.publish(Message::new("")).await.unwrap().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        received.take()
    })
}

#[test]
fn subscriptions_are_served_in_the_same_order_in_each_run() {
    let first = order();
    assert_eq!(first.len(), 100);
    assert_eq!(order(), first);
}
