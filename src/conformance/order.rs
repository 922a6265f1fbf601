//! `work-queue/`: order by key among competing consumers, and backlogs that outgrow memory.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use futures::future::try_join_all;
use queueproof_backends::{
    Capability::{Backlog, KeyOrder, Keys, Order, WorkQueue},
    Retention,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Draft, Subscribe},
    work_queue::crew,
};
use crate::{
    checker::{
        AnomalyKind::{KeyShared, Lost, Reordered},
        Evidence, Findings,
        evidence::Delivered,
        words,
    },
    flaw::Flaw::Backend,
    history::{Halt, nanos},
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "work-queue/key-order",
        title: "Messages of one key come in their order, and to one consumer at a time.",
        doc: "Competing consumers, each on a connection of its own, share a subscription that is \
              ordered by key; one publisher sends messages of thirteen keys in turn, two by two. \
              The first deliveries of each key must come in the order of publishing, and while a \
              consumer holds one of a key nobody else may be given another.",
        needs: &[WorkQueue, Keys, KeyOrder],
        catches: &[(Backend(Flaw::IgnoreKeyOrder), KeyShared), (Backend(Flaw::Reorder), Reordered)],
        scenario: |stage| Box::pin(key_order(stage)),
        judge: judge_key_order,
    },
    Property {
        id: "work-queue/backlog",
        title: "A backlog larger than the broker's memory queue is kept whole.",
        doc: "While nobody consumes more messages are published than the broker says it holds in \
              memory; then one consumer takes them all. None may be lost. Where the backend \
              declares an order they must come in it; otherwise the figure tells how many came \
              after a later one.",
        needs: &[WorkQueue, Backlog],
        catches: &[(Backend(Flaw::DropBacklog), Lost), (Backend(Flaw::Reorder), Reordered)],
        scenario: |stage| Box::pin(backlog(stage)),
        judge: judge_backlog,
    },
];

/// How many keys there are: a number that no number of consumers in turn fits.
const KEYS: u32 = 13;

async fn key_order(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let topic = stage.topic(&director, Retention::UntilAcked, None).await?;
    let how = Subscribe { ordered_by_key: true, ..Subscribe::default() };
    let subscription = stage.subscribe(&director, &topic, how).await?;
    let mut consumers = crew(stage, &subscription, stage.suite.consumers, 4).await?;
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let count = stage.suite.messages.min(100 * KEYS);
    let left = Cell::new(count);
    let until = stage.now() + nanos(stage.quiet()) * 4;
    let working = consumers.iter_mut().map(async |consumer| {
        // Lost messages are the drain's business.
        while left.get() > 0 && stage.now() < until {
            let received = consumer.receive(4, stage.suite.tolerance / 10).await?;
            stage.sleep(Duration::from_millis(1)).await;
            stage.ack_all(&received).await;
            left.set(left.get().saturating_sub(received.len() as u32));
        }
        Ok::<_, Halt>(())
    });
    let publishing = async {
        for first in (0..count).step_by(64) {
            let numbers = first..count.min(first + 64);
            // Two of a key follow one another, so that both may be out at the same time.
            let draft = |n| Draft { route: Some(n / 2 % KEYS), ..Draft::default() };
            publisher.publish_all(numbers.map(draft).collect()).await;
        }
    };
    let (_, worked) = futures::join!(publishing, try_join_all(working));
    worked?;
    stage.drain(&mut consumers).await
}

/// The first delivery of each message, in the order of the history, with its key and number.
fn firsts<'e, 'h>(
    evidence: &'e Evidence<'h>,
) -> impl Iterator<Item = (Option<u32>, u32, &'e Delivered<'h>)> {
    evidence.deliveries.iter().enumerate().filter_map(|(index, delivery)| {
        let publish = delivery.publish?;
        let of_message = &evidence.subscription(delivery).by_message[publish];
        let op = evidence.publishes[publish].op;
        (of_message.first() == Some(&index)).then_some((op.route, op.number, delivery))
    })
}

fn judge_key_order(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut highest: BTreeMap<u32, u32> = BTreeMap::new();
    // Who was given the latest of a key, and when it can have begun to let go of it.
    let mut held: BTreeMap<u32, (u16, u64)> = BTreeMap::new();
    let mut consumers = std::collections::BTreeSet::new();
    let (mut judged, mut contested) = (0, 0);
    for (key, number, delivery) in firsts(evidence) {
        let Some(key) = key else { continue };
        judged += 1;
        consumers.insert(delivery.op.consumer);
        // The broker takes it from a consumer that holds it past its ack timeout, which begins
        // when it is put into the consumer's prefetch: after its publish, and nothing else is known.
        let timeout = evidence.subscription(delivery).spec.ack_timeout;
        let published = delivery.publish.map_or(0, |p| evidence.publishes[p].at.0);
        let lapses = published.saturating_add(timeout);
        let before = highest.get(&key).copied().filter(|&before| number < before);
        if before.is_some() && delivery.at.1 > lapses {
            findings.undecided(
                "a message came after a later one of its key when it may have been locked and \
                 returned before",
            );
        } else if let Some(before) = before {
            findings.anomaly(Reordered, || {
                let at = words(delivery.at.1);
                format!("of key {key} message {number} came after message {before}, at {at}")
            });
        }
        let latest = highest.entry(key).or_insert(number);
        *latest = number.max(*latest);
        let (consumer, until) = held.get(&key).copied().unwrap_or((delivery.op.consumer, 0));
        let stored = delivery.publish.map_or(0, |p| evidence.publishes[p].at.1);
        contested += usize::from(stored < until);
        if consumer != delivery.op.consumer && delivery.at.1 < until {
            findings.anomaly(KeyShared, || {
                format!(
                    "message {number} of key {key} came to consumer {} at {}, while consumer \
                     {consumer} held another of it until {}",
                    delivery.op.consumer,
                    words(delivery.at.1),
                    words(until)
                )
            });
        }
        let settled = delivery.settles.first().map_or(u64::MAX, |settle| settle.at.0);
        let mut letting_go = settled.min(lapses);
        if consumer == delivery.op.consumer {
            // It may still hold an earlier one.
            letting_go = letting_go.max(until);
        }
        held.insert(key, (delivery.op.consumer, letting_go));
    }
    findings
        .require(contested > 0, "no message was stored while a consumer held another of its key");
    findings.require(judged > 2 * highest.len(), "fewer than three messages a key came");
    findings.require(consumers.len() > 1, "one consumer got all: there was nobody to keep apart");
    findings.observe("keys", highest.len());
    findings.observe("while_one_of_the_key_was_held", contested);
    findings.observe("in_order", judged);
    findings.observe("consumers", consumers.len());
    findings.key_figure = format!("{} keys, {} consumers", highest.len(), consumers.len());
}

/// The most messages that the suite piles up.
const MOST: u64 = 60_000;

async fn backlog(stage: &Stage) -> Result<(), Halt> {
    let memory = stage.capabilities.limits.memory_queue.unwrap_or(0);
    let count = memory.saturating_add(u64::from(stage.suite.messages));
    let Some(count) = u32::try_from(count).ok().filter(|_| count <= MOST) else {
        return Err(Halt::Undecided(format!(
            "the broker's memory queue of {memory} messages is larger than what the suite piles up"
        )));
    };
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    stage.connect().await?.publisher(&topic).await?.send(count).await;
    stage.drain(&mut [stage.connect().await?.consumer(&subscription, 256).await?]).await
}

fn judge_backlog(evidence: &Evidence<'_>, findings: &mut Findings) {
    let stored = evidence.publishes.iter().filter(|p| p.stored()).count() as u64;
    let limits = &evidence.header.capabilities.limits;
    let ordered = evidence.header.capabilities.has(Order);
    let (mut came, mut late) = (0_u64, 0_u64);
    let mut highest = 0;
    for (_, number, delivery) in firsts(evidence) {
        came += 1;
        if number < highest {
            late += 1;
            if ordered {
                findings.anomaly(Reordered, || {
                    let at = words(delivery.at.1);
                    format!("message {number} came after message {highest}, at {at}")
                });
            }
        }
        highest = highest.max(number);
    }
    findings.require(came > 0, "no message was delivered");
    findings.require(
        stored > limits.memory_queue.unwrap_or(0),
        "no more was stored than the broker holds in memory",
    );
    findings.observe("stored", stored);
    findings.observe("delivered", came);
    findings.observe("memory_queue", limits.memory_queue);
    findings.observe("after_a_later_one", late);
    findings.key_figure = match late {
        0 => format!("{came} of {stored}, in order"),
        _ => format!("{came} of {stored}, {late} out of order"),
    };
}
