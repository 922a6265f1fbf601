//! The embedded broker under random operations, against a model that is as simple as can be: it
//! knows no queues and no prefetch, only what each message may do next.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use queueproof_backends::{
    Connector, Consumer, ConsumerOptions, DedupKey, Delivery, Link, Message, PublisherOptions,
    Retention, SettleError, Settlement, Start, SubscriptionSpec, TopicSpec,
    memory::{MemoryConnector, MemorySettings},
};

const TIMEOUT: u64 = 100;
const WINDOW: u64 = 150;

/// What is done, with small numbers so that operations meet.
#[derive(Debug, Clone)]
enum Step {
    Publish(Option<u8>),
    Receive(usize, usize),
    /// Settles one of the deliveries that were made so far, also old ones.
    Ack(usize),
    Nack(usize, u64),
    Touch(usize),
    Wait(u64),
    Leave(usize),
    CutAndHeal,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => proptest::option::of(0_u8..4).prop_map(Step::Publish),
        6 => (0_usize..3, 1_usize..4).prop_map(|(who, max)| Step::Receive(who, max)),
        3 => (0_usize..30).prop_map(Step::Ack),
        2 => ((0_usize..30), prop_oneof![Just(0), Just(40)]).prop_map(|(d, t)| Step::Nack(d, t)),
        1 => (0_usize..30).prop_map(Step::Touch),
        3 => prop_oneof![Just(10_u64), Just(60), Just(120)].prop_map(Step::Wait),
        1 => (0_usize..3).prop_map(Step::Leave),
        1 => Just(Step::CutAndHeal),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Now {
    /// It may be leased from that time on.
    Free {
        from: u64,
    },
    /// It is locked at least and at most until: a lease may have waited in a prefetch.
    Held {
        by: usize,
        delivery: usize,
        least: u64,
        most: u64,
    },
    Gone,
}

#[derive(Debug, Default)]
struct Model {
    /// What each message may do, and how often it was delivered.
    messages: Vec<(Now, u32)>,
    /// Until when a key is remembered, and the position of its message.
    keys: BTreeMap<u8, (u64, u64)>,
    deliveries: usize,
}

impl Model {
    fn advance(&mut self, now: u64) {
        for (state, _) in &mut self.messages {
            if let Now::Held { least, most, .. } = *state
                && most <= now
            {
                *state = Now::Free { from: least };
            }
        }
        self.keys.retain(|_, (until, _)| *until > now);
    }

    /// A delivery was made: it must have been allowed.
    fn deliver(&mut self, delivery: &Delivery, by: usize, now: u64) {
        let index = delivery.position.unwrap() as usize - 1;
        let (state, attempts) = &mut self.messages[index];
        let from = match *state {
            Now::Free { from } => from,
            Now::Held { least, .. } => least,
            Now::Gone => u64::MAX,
        };
        assert!(from <= now, "{state:?} at {now}");
        *attempts += 1;
        assert_eq!(delivery.attempt, Some(*attempts));
        assert_eq!(delivery.message.payload, (index + 1).to_string());
        let (least, most) = (from + TIMEOUT, now + TIMEOUT);
        *state = Now::Held { by, delivery: self.deliveries, least, most };
        self.deliveries += 1;
    }

    /// What a consumer held is free again.
    fn free(&mut self, who: usize, now: u64) {
        for (state, _) in &mut self.messages {
            if matches!(state, Now::Held { by, .. } if *by == who) {
                *state = Now::Free { from: now };
            }
        }
    }

    /// What is held by a delivery, if it still is.
    fn held(&mut self, delivery: usize) -> Option<&mut Now> {
        let of = |state: &Now| matches!(state, Now::Held { delivery: d, .. } if *d == delivery);
        self.messages.iter_mut().map(|(state, _)| state).find(|state| of(state))
    }

    fn there(&self) -> u64 {
        self.messages.iter().filter(|(state, _)| *state != Now::Gone).count() as u64
    }
}

struct Scene {
    connector: MemoryConnector,
    link: Arc<dyn Link>,
}

/// The consumer that goes through the link.
const LINKED: usize = 2;

impl Scene {
    async fn consumer(&self, who: usize) -> Box<dyn Consumer> {
        let link = (who == LINKED).then(|| Arc::clone(&self.link));
        let connection = self.connector.connect(link).await.unwrap();
        let options = ConsumerOptions { prefetch: 1, confirm_acks: true };
        connection.consumer("t", "s", options).await.unwrap()
    }
}

async fn play(steps: Vec<Step>) {
    let connector = MemoryConnector::new(MemorySettings::default());
    let connection = connector.connect(None).await.unwrap();
    let topic = TopicSpec {
        name: "t".into(),
        retention: Retention::UntilAcked,
        dedup_window: Some(Duration::from_millis(WINDOW)),
        max_messages: None,
    };
    connection.create_topic(&topic).await.unwrap();
    let subscription = SubscriptionSpec {
        topic: "t".into(),
        name: "s".into(),
        start: Start::Earliest,
        ack_timeout: Duration::from_millis(TIMEOUT),
        dead_letter: None,
        ordered_by_key: false,
    };
    connection.create_subscription(&subscription).await.unwrap();
    let mut publisher = connection.publisher("t", PublisherOptions::default()).await.unwrap();
    let scene = Scene { link: connector.link().await.unwrap(), connector };
    let mut consumers = Vec::new();
    for who in 0..3 {
        consumers.push(scene.consumer(who).await);
    }
    let mut deliveries: Vec<Delivery> = Vec::new();
    let mut model = Model::default();
    let mut now = 0;
    for step in steps {
        model.advance(now);
        match step {
            Step::Publish(key) => {
                let position = model.messages.len() as u64 + 1;
                let message = Message {
                    dedup: key.map(|key| DedupKey::Id(key.to_string())),
                    ..Message::new(position.to_string())
                };
                let receipt = publisher.publish(message).await.unwrap().await.unwrap();
                let known = key.and_then(|key| model.keys.get(&key).copied());
                assert_eq!(receipt.duplicate, Some(known.is_some()));
                assert_eq!(receipt.position, Some(known.map_or(position, |(_, first)| first)));
                if known.is_none() {
                    model.messages.push((Now::Free { from: now }, 0));
                    if let Some(key) = key {
                        model.keys.insert(key, (now + WINDOW, position));
                    }
                }
            }
            Step::Receive(who, max) => {
                for delivery in consumers[who].receive(max, Duration::ZERO).await.unwrap() {
                    model.deliver(&delivery, who, now);
                    deliveries.push(delivery);
                }
            }
            Step::Ack(d) => {
                settle(&deliveries, &mut model, (d, now), Settlement::Ack, Now::Gone).await;
            }
            Step::Nack(d, delay) => {
                let how = Settlement::Nack { delay: Some(Duration::from_millis(delay)) };
                let after = Now::Free { from: now + delay };
                settle(&deliveries, &mut model, (d, now), how, after).await;
            }
            Step::Touch(d) => {
                let after = match model.held(d).copied() {
                    Some(Now::Held { by, delivery, .. }) => {
                        Now::Held { by, delivery, least: now + TIMEOUT, most: now + TIMEOUT }
                    }
                    _ => Now::Gone,
                };
                settle(&deliveries, &mut model, (d, now), Settlement::Touch, after).await;
            }
            Step::Wait(millis) => {
                tokio::time::advance(Duration::from_millis(millis)).await;
                now += millis;
            }
            Step::Leave(who) => {
                let consumer = std::mem::replace(&mut consumers[who], scene.consumer(who).await);
                consumer.close(Duration::ZERO).await.unwrap();
                model.free(who, now);
            }
            Step::CutAndHeal => {
                scene.link.cut();
                model.free(LINKED, now);
                scene.link.heal();
            }
        }
        model.advance(now);
        let depth = connection.depth("t", "s").await.unwrap();
        assert_eq!(depth.waiting + depth.unsettled, model.there(), "{model:?}");
        assert_eq!(depth.stored, Some(model.there()));
    }
    // In the end everything that is not gone comes to one of them, and nothing else.
    for _ in 0..3 {
        tokio::time::advance(Duration::from_millis(TIMEOUT * 2)).await;
        now += TIMEOUT * 2;
        model.advance(now);
        for (who, consumer) in consumers.iter_mut().enumerate() {
            for delivery in consumer.receive(1000, Duration::ZERO).await.unwrap() {
                model.deliver(&delivery, who, now);
                model.held(model.deliveries - 1).map(|state| *state = Now::Gone).unwrap();
                delivery.ack().await.unwrap();
            }
        }
    }
    assert_eq!(model.there(), 0, "{model:?}");
}

async fn settle(
    deliveries: &[Delivery],
    model: &mut Model,
    (index, now): (usize, u64),
    how: Settlement,
    after: Now,
) {
    let Some(delivery) = deliveries.get(index) else { return };
    let answer = delivery.settle(how).await;
    let lost = matches!(answer, Err(SettleError::LeaseLost(_)));
    match model.held(index) {
        Some(state) => match *state {
            Now::Held { least, .. } if lost => {
                assert!(least <= now, "{answer:?} at {now}, {state:?}");
                *state = Now::Free { from: least };
            }
            _ => {
                assert!(answer.is_ok(), "{answer:?}");
                *state = after;
            }
        },
        None => assert!(lost, "{answer:?}"),
    }
}

proptest! {
    #[test]
    fn it_does_what_a_simple_model_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(steps));
    }
}
