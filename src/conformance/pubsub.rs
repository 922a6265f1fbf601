//! `pubsub/`: every subscription gets what was published, whole and in order.

use std::time::Duration;

use queueproof_backends::{
    Capability::{Broadcast, Headers, Keys, Nack, Order, StartEarliest, StartLatest, WorkQueue},
    PublisherOptions, RejectKind, Retention, Start,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Draft, Extra, Subscribe},
};
use crate::{
    checker::{
        AnomalyKind::{
            BeforeStart, ConnectionLost, Corrupt, DuplicateDelivery, Lost, Phantom,
            RedeliveredAfterAck, RejectedDelivered, Reordered, TooLargeTaken,
        },
        Evidence, Findings, words,
    },
    flaw::Flaw::Backend,
    history::{Halt, Published},
    message::HEADER,
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "pubsub/fan-out",
        title: "Every subscription gets every message once.",
        doc: "Several publishers fill a topic with three subscriptions, each on a connection of \
              its own. Each subscription must get each message, none twice, and nothing else, \
              also in a quiet period that outlasts the ack timeout.",
        needs: &[Broadcast],
        catches: &[
            (Backend(Flaw::LosePublish), Lost),
            (Backend(Flaw::LoseDelivery), Lost),
            (Backend(Flaw::SplitFanOut), Lost),
            (Backend(Flaw::DeliverTwice), DuplicateDelivery),
            (Backend(Flaw::Invent), Phantom),
        ],
        scenario: |stage| Box::pin(fan_out(stage)),
        judge: judge_fan_out,
    },
    Property {
        id: "pubsub/late-subscriber",
        title: "A late subscription begins where it was told to.",
        doc: "Beside a subscription that is there from the beginning two others are made when half \
              of the messages are published and confirmed: one that begins with the earliest \
              stored message (where the backend has that) and one that begins with the next. The \
              first must get all, the second none of those that were stored before.",
        needs: &[Broadcast, StartLatest],
        catches: &[
            (Backend(Flaw::LatestAsEarliest), BeforeStart),
            (Backend(Flaw::EarliestAsLatest), Lost),
            (Backend(Flaw::ConfirmBeforeStoring), BeforeStart),
        ],
        scenario: |stage| Box::pin(late_subscriber(stage)),
        judge: judge_late_subscriber,
    },
    Property {
        id: "pubsub/independent-settlement",
        title: "What one subscription does with a message does not touch another.",
        doc: "Two subscriptions get the same messages. One acknowledges half of them and keeps \
              the rest; the other hands all of them back. Only the other may see them again.",
        needs: &[Broadcast, Nack],
        catches: &[(Backend(Flaw::SharedSettlement), RedeliveredAfterAck)],
        scenario: |stage| Box::pin(independent_settlement(stage)),
        judge: judge_independent_settlement,
    },
    Property {
        id: "pubsub/payload-integrity",
        title: "Payload, key and headers arrive as they were sent.",
        doc: "Payloads of many sizes from the smallest that the backend declares to its limit, of \
              every byte value and with the protocol's own line ends in them; with keys and \
              headers where the backend has them. Each must arrive unchanged.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::Corrupt), Corrupt),
            (Backend(Flaw::TruncateLarge), Corrupt),
            (Backend(Flaw::DropHeaders), Corrupt),
        ],
        scenario: |stage| Box::pin(payload_integrity(stage)),
        judge: judge_payload_integrity,
    },
    Property {
        id: "pubsub/too-large",
        title: "A payload over the limit is refused for certain, and the connection lives on.",
        doc: "Between legal messages one is published that is a byte over the declared limit, and \
              one of twice the limit. Each must be refused with a definite answer and never be \
              delivered; the same publisher must go on without its connection being lost.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::TakeTooLarge), TooLargeTaken),
            (Backend(Flaw::CloseOnReject), ConnectionLost),
            (Backend(Flaw::DeliverRejected), RejectedDelivered),
        ],
        scenario: |stage| Box::pin(too_large(stage)),
        judge: judge_too_large,
    },
    Property {
        id: "pubsub/order",
        title: "One publisher's messages reach a single consumer in their order.",
        doc: "One publisher, one consumer. First deliveries must come in the order of publishing.",
        needs: &[WorkQueue, Order],
        catches: &[(Backend(Flaw::Reorder), Reordered)],
        scenario: |stage| Box::pin(order(stage)),
        judge: judge_order,
    },
    Property {
        id: "pubsub/while-down",
        title: "What was reported as not sent while the connection was down is not sent later.",
        doc: "A publisher's link is cut, and it publishes meanwhile; then the link heals. A publish \
              that was answered with \"not sent\" must never be delivered; one that was answered \
              with \"indeterminate\" may. After the healing the publisher must work again by itself.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::SendLater), RejectedDelivered)],
        scenario: |stage| Box::pin(while_down(stage)),
        judge: judge_while_down,
    },
];

async fn fan_out(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let topic = stage.topic(&director, Retention::Keep, None).await?;
    let mut consumers = Vec::new();
    for _ in 0..3 {
        let subscription = stage.subscribe(&director, &topic, Subscribe::default()).await?;
        consumers.push(stage.connect().await?.consumer(&subscription, 64).await?);
    }
    let mut publishers = Vec::new();
    for _ in 0..stage.suite.publishers {
        publishers.push(stage.connect().await?.publisher(&topic).await?);
    }
    let share = stage.suite.messages.div_ceil(stage.suite.publishers);
    let publishing = futures::future::join_all(publishers.iter_mut().map(|p| p.send(share)));
    let (_, drained) = futures::join!(publishing, stage.drain(&mut consumers));
    drained
}

fn judge_fan_out(evidence: &Evidence<'_>, findings: &mut Findings) {
    let stored = evidence.publishes.iter().filter(|p| p.stored()).count();
    findings.require(stored > 0, "no message was stored");
    let counts: Vec<_> = evidence
        .subscriptions
        .iter()
        .map(|s| s.by_message.iter().filter(|d| !d.is_empty()).count())
        .collect();
    findings.require(counts.len() > 1, "fewer than two subscriptions");
    findings.observe("stored", stored);
    findings.key_figure = format!("{} × {stored}", counts.len());
    findings.observe("messages_per_subscription", counts);
}

async fn late_subscriber(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let topic = stage.topic(&director, Retention::Keep, None).await?;
    let first = stage.subscribe(&director, &topic, Subscribe::default()).await?;
    let mut consumers = vec![stage.connect().await?.consumer(&first, 64).await?];
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let half = stage.suite.messages.div_ceil(2);
    publisher.send(half).await;
    // So that "before" is before on any clock.
    stage.sleep(BETWEEN).await;
    let earliest = stage.has(StartEarliest).then_some(Start::Earliest);
    for start in earliest.into_iter().chain([Start::Latest]) {
        let how = Subscribe { start, ..Subscribe::default() };
        let subscription = stage.subscribe(&director, &topic, how).await?;
        consumers.push(stage.connect().await?.consumer(&subscription, 64).await?);
    }
    stage.sleep(BETWEEN).await;
    publisher.send(half).await;
    stage.drain(&mut consumers).await
}

/// What separates publishes from the making of a subscription.
const BETWEEN: Duration = Duration::from_millis(10);

fn judge_late_subscriber(evidence: &Evidence<'_>, findings: &mut Findings) {
    let got = |earliest: bool, before: bool| {
        let late = evidence.subscriptions.iter().skip(1);
        let of_kind = late.filter(|s| s.spec.earliest == earliest);
        let came = |s: &crate::checker::evidence::Subscribed<'_>| {
            let sent = evidence.publishes.iter().zip(&s.by_message);
            sent.filter(|(p, d)| (p.at.1 < s.created.0) == before && !d.is_empty()).count()
        };
        of_kind.map(came).sum::<usize>()
    };
    let earliest = evidence.header.capabilities.has(StartEarliest);
    findings.require(
        got(true, true) > 0 || !earliest,
        "the earliest subscription got no older message",
    );
    findings.require(got(false, false) > 0, "the latest subscription got no newer message");
    findings.observe("earliest_got_older", got(true, true));
    findings.observe("latest_got_older", got(false, true));
    findings.observe("latest_got_newer", got(false, false));
    findings.key_figure = match earliest {
        true => format!("{} older, {} newer", got(true, true), got(false, false)),
        false => format!("{} newer", got(false, false)),
    };
}

async fn independent_settlement(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let topic = stage.topic(&director, Retention::Keep, None).await?;
    let mut consumers = Vec::new();
    for _ in 0..2 {
        let subscription = stage.subscribe(&director, &topic, Subscribe::default()).await?;
        consumers.push(stage.connect().await?.consumer(&subscription, 64).await?);
    }
    let count = stage.suite.messages.min(50);
    stage.connect().await?.publisher(&topic).await?.send(count).await;
    let [keeper, returner] = consumers.as_mut_slice() else { return Ok(()) };
    let (kept, returned) =
        futures::join!(keeper.take(count as usize), returner.take(count as usize));
    let (kept, returned) = (kept?, returned?);
    let (acked, held) = kept.split_at(kept.len() / 2);
    stage.ack_all(acked).await;
    for delivery in &returned {
        delivery.nack(None).await;
    }
    // Long enough for anything that came back by mistake, well within the lock of the rest.
    stage.sleep(stage.suite.ack_timeout / 4).await;
    stage.ack_all(held).await;
    stage.drain(&mut consumers).await
}

fn judge_independent_settlement(evidence: &Evidence<'_>, findings: &mut Findings) {
    let again = |s: usize| crate::checker::timing::redeliveries(evidence, s).count();
    findings.require(again(1) > 0, "nothing that was handed back came again");
    findings.observe("redelivered_in_the_other", again(0));
    findings.observe("redelivered_in_its_own", again(1));
    findings.key_figure = format!("{} and {} again", again(0), again(1));
}

/// Payloads that hold what a careless protocol would stumble over.
fn awkward_extras(stage: &Stage) -> Vec<Extra> {
    let header = |name: &str, value: &str| (name.to_string(), value.to_string());
    let mut extras = Vec::new();
    let key = |key: &str| Some(key.to_string());
    if stage.has(Keys) {
        extras.push(Extra { key: key("agent-17"), headers: Vec::new() });
        let awkward = "a key: with / many = signs & \"quotes\"";
        extras.push(Extra { key: key(awkward), headers: Vec::new() });
    }
    if stage.has(Headers) {
        extras.push(Extra { key: None, headers: vec![header("one", "1")] });
        let headers = vec![
            header("Content-Type", "text/plain; charset=utf-8"),
            header("content-type", "another, by its case"),
            header("colon", "a: b: c"),
            header("long", &"x".repeat(2000)),
        ];
        extras.push(Extra { key: None, headers });
    }
    if stage.has(Keys) && stage.has(Headers) {
        extras.push(Extra { key: key("both"), headers: vec![header("with", "a header")] });
    }
    extras
}

async fn payload_integrity(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let limits = &stage.capabilities.limits;
    // A limit of its own keeps a backend without one from taking all memory.
    let largest = limits.max_payload.unwrap_or(1 << 20).min(8 << 20) as usize;
    let mut sizes = vec![HEADER, HEADER + 1, 127, 128, 255, 256, 1000, 4095, 4096, 65_536];
    sizes.extend([largest / 2, largest - 1, largest]);
    sizes.retain(|&size| size <= largest);
    let mut publisher = director.publisher(&topic).await?;
    for &size in &sizes {
        publisher.publish(Draft { len: Some(size), ..Draft::default() }).await;
    }
    for extra in awkward_extras(stage) {
        publisher.publish(Draft { extra, ..Draft::default() }).await;
    }
    // Payloads too small to say who they are: each alone on a topic.
    let smallest = limits.min_payload as usize;
    let mut consumers = vec![stage.connect().await?.consumer(&subscription, 4).await?];
    for size in [smallest, smallest + 1].into_iter().filter(|&size| size < HEADER) {
        let (topic, subscription) = stage.work_queue(&director).await?;
        let draft = Draft { len: Some(size), ..Draft::default() };
        director.publisher(&topic).await?.publish(draft).await;
        consumers.push(director.consumer(&subscription, 1).await?);
    }
    stage.drain(&mut consumers).await
}

fn judge_payload_integrity(evidence: &Evidence<'_>, findings: &mut Findings) {
    let sizes = || evidence.publishes.iter().filter(|p| p.delivered.is_some()).map(|p| p.op.len);
    let (smallest, largest) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    findings.require(largest > 0, "no message was delivered");
    findings.observe("smallest_bytes", smallest);
    findings.observe("largest_bytes", largest);
    let extras = evidence.publishes.iter().filter(|p| p.op.extra != 0).count();
    findings.observe("with_key_or_headers", extras);
    findings.key_figure = format!("{smallest} B – {largest} B");
}

async fn too_large(stage: &Stage) -> Result<(), Halt> {
    let Some(limit) = stage.capabilities.limits.max_payload else {
        return Err(Halt::Undecided("the backend declares no limit".into()));
    };
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let publishing = stage.connect().await?;
    let mut publisher = publishing.publisher(&topic).await?;
    let limit = limit as usize;
    publisher.publish(Draft::default()).await;
    for len in [limit + 1, limit * 2] {
        publisher.publish(Draft { len: Some(len), illegal: true, ..Draft::default() }).await;
        publisher.publish(Draft::default()).await;
    }
    // Was it the refusal that took the connection down, or is the broker gone?
    stage.connect().await?.close().await;
    stage.mark("broker-answers-and-lost", publishing.disconnects() as i64);
    stage.drain(&mut [director.consumer(&subscription, 4).await?]).await
}

fn judge_too_large(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut refused = 0;
    let answers = evidence.mark("broker-answers-and-lost");
    for (index, sent) in evidence.publishes.iter().enumerate() {
        let size = sent.op.len;
        match &sent.op.outcome {
            Published::Rejected(RejectKind::TooLarge, reason) if sent.op.illegal => {
                refused += 1;
                findings.observe("refusal", reason.clone());
            }
            Published::Confirmed { .. } if sent.op.illegal => {
                findings.anomaly(TooLargeTaken, || {
                    format!("{} of {size} bytes was confirmed", evidence.name(index))
                });
            }
            other if sent.op.illegal => {
                findings
                    .undecided(format!("{size} bytes were not refused as too large: {other:?}"));
            }
            // A legal one after an illegal one.
            Published::NotSent(why) | Published::Indeterminate(why) | Published::Failed(why)
                if index > 0 && answers.is_some() =>
            {
                findings.anomaly(ConnectionLost, || {
                    format!("{} after the refusal: {why}", evidence.name(index))
                });
            }
            _ => {}
        }
    }
    if answers.is_some_and(|(_, lost)| lost > 0) {
        findings.anomaly(ConnectionLost, || "the publisher's connection was lost".into());
    }
    findings.require(refused > 0 || findings.has(TooLargeTaken), "nothing was refused");
    findings.observe("refused", refused);
    findings.key_figure = format!("{refused} refused");
}

async fn order(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let mut consumers = [stage.connect().await?.consumer(&subscription, 64).await?];
    let (_, drained) =
        futures::join!(publisher.send(stage.suite.messages), stage.drain(&mut consumers));
    drained
}

fn judge_order(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut highest: Option<u32> = None;
    let mut judged = 0;
    let first = |d: usize| {
        let delivery = &evidence.deliveries[d];
        let of_message = &evidence.subscription(delivery).by_message[delivery.publish?];
        (of_message.first() == Some(&d)).then_some(delivery)
    };
    for delivery in (0..evidence.deliveries.len()).filter_map(first) {
        let Some(publish) = delivery.publish else { continue };
        let number = evidence.publishes[publish].op.number;
        judged += 1;
        if let Some(before) = highest.filter(|&before| number < before) {
            findings.anomaly(Reordered, || {
                format!("message {number} came after message {before}, at {}", words(delivery.at.1))
            });
        }
        highest = highest.max(Some(number));
    }
    findings.require(judged > 1, "fewer than two messages came");
    findings.observe("in_order", judged);
    findings.key_figure = format!("{judged} in order");
}

async fn while_down(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let linked = stage.connect_by_link().await?;
    let options = PublisherOptions {
        confirm_timeout: Some(stage.suite.ack_timeout),
        ..PublisherOptions::default()
    };
    let mut publisher = linked.publisher_with(&topic, options).await?;
    publisher.send(5).await;
    linked.cut();
    // The client may need a moment to see it; until then its answers are indeterminate.
    for _ in 0..20 {
        publisher.publish(Draft::default()).await;
        stage.sleep(stage.suite.tolerance / 25).await;
    }
    linked.heal();
    let healed = stage.now();
    loop {
        let outcome = publisher.publish(Draft::default()).await;
        if matches!(outcome, Published::Confirmed { .. }) {
            stage.mark("works-again-after-ns", (stage.now() - healed) as i64);
            break;
        }
        stage.sleep(stage.suite.tolerance / 10).await;
    }
    stage.drain(&mut [director.consumer(&subscription, 64).await?]).await
}

fn judge_while_down(evidence: &Evidence<'_>, findings: &mut Findings) {
    let not_sent =
        evidence.publishes.iter().filter(|p| matches!(p.op.outcome, Published::NotSent(_)));
    let not_sent = not_sent.count();
    findings.require(not_sent > 0, "no publish was answered with \"not sent\"");
    findings.observe("not_sent", not_sent);
    if let Some((_, after)) = evidence.mark("works-again-after-ns") {
        findings.observe("works_again_after_ms", after as f64 / 1e6);
    }
    findings.key_figure = format!("{not_sent} not sent");
}
