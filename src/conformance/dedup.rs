//! `dedup/`: of several publishes with one key, one is stored.

use std::time::Duration;

use futures::future::{join_all, try_join_all};
use queueproof_backends::{
    Capability::{ConfirmedAck, DedupId, DedupWindow, DuplicateReported, TopicLimit, WorkQueue},
    Direction, PublisherOptions, RejectKind, Retention,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Draft, Publisher, Scene, Subscribe, Topic},
};
use crate::{
    checker::{
        AnomalyKind::{DuplicateStored, FalseDuplicate, ReceiptContradicted, UnreportedDuplicate},
        Evidence, Findings, millis, words,
    },
    flaw::Flaw::Backend,
    history::{Halt, Published, nanos},
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "dedup/same-publisher",
        title: "A publisher that repeats a key stores one message.",
        doc: "One publisher publishes each key three times, some at once and some later.",
        needs: &[WorkQueue, DedupId],
        catches: &[
            (Backend(Flaw::IgnoreDedup), DuplicateStored),
            (Backend(Flaw::WrongPosition), ReceiptContradicted),
        ],
        scenario: |stage| Box::pin(same_publisher(stage)),
        judge: judge_copies,
    },
    Property {
        id: "dedup/reopened-publisher",
        title: "A publisher that was closed and opened again is still deduplicated.",
        doc: "Keys are published; the publisher is closed; the keys are published again by a new \
              publisher on the same connection, and by one on a new connection.",
        needs: &[WorkQueue, DedupId],
        catches: &[
            (Backend(Flaw::IgnoreDedup), DuplicateStored),
            (Backend(Flaw::DedupPerPublisher), DuplicateStored),
        ],
        scenario: |stage| Box::pin(reopened_publisher(stage)),
        judge: judge_copies,
    },
    Property {
        id: "dedup/across-publishers",
        title: "Several publishers that repeat a key store one message.",
        doc: "Publishers, each on a connection of its own, publish the same keys one after the \
              other: several schedulers without a leader.",
        needs: &[WorkQueue, DedupId],
        catches: &[
            (Backend(Flaw::IgnoreDedup), DuplicateStored),
            (Backend(Flaw::DedupPerPublisher), DuplicateStored),
        ],
        scenario: |stage| Box::pin(across_publishers(stage)),
        judge: judge_copies,
    },
    Property {
        id: "dedup/concurrent-publishers",
        title: "Publishers that race with a key store one message.",
        doc: "Publishers, each on a connection of its own, publish the same keys at the same time, \
              key by key. The figure is how many keys had publishes that overlapped.",
        needs: &[WorkQueue, DedupId],
        catches: &[
            (Backend(Flaw::DedupRace), DuplicateStored),
            (Backend(Flaw::DedupPerPublisher), DuplicateStored),
        ],
        scenario: |stage| Box::pin(concurrent_publishers(stage)),
        judge: judge_concurrent,
    },
    Property {
        id: "dedup/distinct-kept",
        title: "Messages with different keys are all stored.",
        doc: "Many keys, some of which begin or end like others, are published once each. All must \
              be delivered, and no receipt may say duplicate.",
        needs: &[WorkQueue, DedupId],
        catches: &[(Backend(Flaw::DedupCollide), FalseDuplicate)],
        scenario: |stage| Box::pin(distinct_kept(stage)),
        judge: judge_distinct,
    },
    Property {
        id: "dedup/window-inside",
        title: "A key is remembered throughout the window.",
        doc: "Keys are published again after a tenth, half and seven tenths of the topic's \
              deduplication window.",
        needs: &[WorkQueue, DedupId, DedupWindow],
        catches: &[(Backend(Flaw::DedupShortWindow), DuplicateStored)],
        scenario: |stage| Box::pin(window_inside(stage)),
        judge: judge_copies,
    },
    Property {
        id: "dedup/window-expiry",
        title: "A key is accepted again after the window.",
        doc: "Keys are published again at several times around and after the window, which shows \
              how long it is; one is repeated within the window and then again after it, counted \
              from the first: it is stored if the window is fixed, and dropped if it slides. After \
              window and tolerance have passed since the last repetition a key must be accepted.",
        needs: &[WorkQueue, DedupId, DedupWindow],
        catches: &[(Backend(Flaw::DedupLongWindow), FalseDuplicate)],
        scenario: |stage| Box::pin(window_expiry(stage)),
        judge: judge_window_expiry,
    },
    Property {
        id: "dedup/after-ack",
        title: "A duplicate of a message that is already consumed and gone is still dropped.",
        doc: "Keys are published, consumed and acknowledged; then they are published again within \
              the window.",
        needs: &[WorkQueue, DedupId],
        catches: &[(Backend(Flaw::DedupForgetAcked), DuplicateStored)],
        scenario: |stage| Box::pin(after_ack(stage)),
        judge: judge_after_ack,
    },
    Property {
        id: "dedup/reported",
        title: "The receipt of a duplicate says so, and that of an original does not.",
        doc: "Each key is published twice. The receipts must tell the original from the duplicate, \
              and must agree with what is delivered.",
        needs: &[WorkQueue, DedupId, DuplicateReported],
        catches: &[(Backend(Flaw::MisreportDuplicate), UnreportedDuplicate)],
        scenario: |stage| Box::pin(reported(stage)),
        judge: judge_reported,
    },
    Property {
        id: "dedup/retry-after-unknown",
        title: "A retry after a lost confirmation leaves exactly one message.",
        doc: "The link to the broker holds back what comes from it while keys are published; \
              another connection sees the messages stored. Then the link is cut, so that the \
              publisher cannot know; after it heals, the same keys are published again.",
        needs: &[WorkQueue, DedupId],
        catches: &[
            (Backend(Flaw::RetryStoredTwice), DuplicateStored),
            (Backend(Flaw::IgnoreDedup), DuplicateStored),
        ],
        scenario: |stage| Box::pin(retry_after_unknown(stage)),
        judge: judge_retry,
    },
    Property {
        id: "dedup/invalid-first",
        title: "A publish that was refused does not use up its key.",
        doc: "Keys are first published with a payload over the limit and, where topics can be \
              limited, to a full topic; both are refused. Then the same keys are published \
              rightly, and must be stored.",
        needs: &[WorkQueue, DedupId],
        catches: &[(Backend(Flaw::RejectBurnsKey), FalseDuplicate)],
        scenario: |stage| Box::pin(invalid_first(stage)),
        judge: judge_invalid_first,
    },
];

/// Keys in a scenario that waits for each confirmation.
fn keys(stage: &Stage) -> u32 {
    (stage.suite.messages / 4).clamp(10, 100)
}

async fn same_publisher(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    for key in 0..keys(stage) {
        publisher.publish(Draft::keyed(key, 0)).await;
        if key % 2 == 0 {
            publisher.publish(Draft::keyed(key, 1)).await;
        }
    }
    for key in 0..keys(stage) {
        publisher.publish(Draft::keyed(key, 2)).await;
    }
    // And pipelined, original and copy in one batch.
    let pairs = (0..keys(stage)).map(|k| k + keys(stage));
    let batch = pairs.flat_map(|key| [Draft::keyed(key, 0), Draft::keyed(key, 1)]).collect();
    publisher.publish_all(batch).await;
    scene.drain(stage).await
}

async fn reopened_publisher(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    for (copy, connection) in (0..).zip([&scene.director, &scene.director, &stage.connect().await?])
    {
        let mut publisher = connection.publisher(&scene.topic).await?;
        for key in 0..keys(stage) {
            publisher.publish(Draft::keyed(key, copy)).await;
        }
        publisher.close().await;
    }
    scene.drain(stage).await
}

/// Publishers, each on a connection of its own.
async fn publishers<'s>(stage: &'s Stage, topic: &Topic) -> Result<Vec<Publisher<'s>>, Halt> {
    let count = stage.suite.publishers.max(2);
    try_join_all((0..count).map(async |_| stage.connect().await?.publisher(topic).await)).await
}

async fn across_publishers(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publishers = publishers(stage, &scene.topic).await?;
    for (copy, publisher) in (0..).zip(&mut publishers) {
        // Apart from each other, so that this is not the race of the next property.
        stage.sleep(Duration::from_millis(10)).await;
        for key in 0..keys(stage) / 2 {
            publisher.publish(Draft::keyed(key, copy)).await;
        }
    }
    scene.drain(stage).await
}

async fn concurrent_publishers(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publishers = publishers(stage, &scene.topic).await?;
    for key in 0..keys(stage) {
        let race = (0..).zip(&mut publishers);
        join_all(race.map(|(copy, publisher)| publisher.publish(Draft::keyed(key, copy)))).await;
    }
    scene.drain(stage).await
}

/// How many keys were published more than once, and how many copies were dropped.
fn copies(evidence: &Evidence<'_>) -> (usize, usize) {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for sent in evidence.publishes.iter().filter(|p| p.confirmed()) {
        if let Some(key) = sent.op.key {
            *counts.entry((sent.op.topic, key)).or_default() += 1;
        }
    }
    let repeated = counts.values().filter(|&&n| n > 1).count();
    let came = evidence.publishes.iter().filter(|p| p.delivered.is_some()).count();
    let confirmed: usize = counts.values().sum();
    (repeated, confirmed.saturating_sub(came))
}

fn judge_copies(evidence: &Evidence<'_>, findings: &mut Findings) {
    let (repeated, dropped) = copies(evidence);
    findings.require(repeated > 0, "no key was published twice");
    findings.observe("keys_repeated", repeated);
    findings.observe("copies_dropped", dropped);
    findings.key_figure = format!("{dropped} dropped");
}

fn judge_concurrent(evidence: &Evidence<'_>, findings: &mut Findings) {
    judge_copies(evidence, findings);
    let mut by_key = std::collections::BTreeMap::<_, Vec<(u64, u64)>>::new();
    for sent in evidence.publishes.iter().filter(|p| p.confirmed()) {
        by_key.entry(sent.op.key).or_default().push(sent.at);
    }
    let overlap = |spans: &&Vec<(u64, u64)>| {
        spans
            .iter()
            .enumerate()
            .any(|(i, a)| spans[i + 1..].iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
    };
    let overlapping = by_key.values().filter(overlap).count();
    findings.require(overlapping > 0, "no two publishes of one key overlapped");
    findings.observe("keys_raced", overlapping);
    findings.key_figure = format!("{overlapping} races");
}

async fn distinct_kept(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    // In hexadecimal these are 1, 11, 111, 10, 100, …: beginnings and ends of each other.
    let alike = [0x1, 0x11, 0x111, 0x1111, 0x10, 0x100, 0x101, 0x1000, 0x1001, 0x0011_1111];
    let others = 0x2_0000..0x2_0000 + stage.suite.messages.min(1000);
    let drafts: Vec<_> = alike.into_iter().chain(others).map(|key| Draft::keyed(key, 0)).collect();
    for batch in drafts.chunks(256) {
        publisher.publish_all(batch.to_vec()).await;
    }
    scene.drain(stage).await
}

fn judge_distinct(evidence: &Evidence<'_>, findings: &mut Findings) {
    let keys = evidence.publishes.iter().filter(|p| p.confirmed()).count();
    let came = evidence.publishes.iter().filter(|p| p.delivered.is_some()).count();
    findings.require(keys > 1, "fewer than two keys were confirmed");
    findings.observe("keys", keys);
    findings.observe("delivered", came);
    findings.key_figure = format!("{came} of {keys}");
}

async fn window_inside(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    let window = nanos(stage.suite.dedup_window);
    let began = stage.now();
    for key in 0..10 {
        publisher.publish(Draft::keyed(key, 0)).await;
    }
    for (copy, tenths) in [(1, 1), (2, 5), (3, 7)] {
        stage.sleep_until(began + window * tenths / 10).await;
        for key in 0..10 {
            publisher.publish(Draft::keyed(key, copy)).await;
        }
    }
    scene.drain(stage).await
}

/// When keys are repeated, in twentieths of the window.
const PROBES: [u64; 7] = [14, 17, 19, 20, 21, 22, 24];

async fn window_expiry(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    let window = nanos(stage.suite.dedup_window);
    let resolution = nanos(stage.capabilities.limits.dedup_window_resolution);
    let began = stage.now();
    let probes = PROBES.len() as u32;
    let (sliding, outside) = (probes, probes + 1);
    for key in 0..=outside {
        publisher.publish(Draft::keyed(key, 0)).await;
    }
    let published = stage.now();
    stage.sleep_until(began + window * 6 / 10).await;
    publisher.publish(Draft::keyed(sliding, 1)).await;
    for (key, twentieths) in (0..).zip(PROBES) {
        stage.sleep_until(began + window * twentieths / 20).await;
        publisher.publish(Draft::keyed(key, 1)).await;
    }
    // Beyond all doubt, with a margin for the judge's own bounds.
    let surely = window + resolution + nanos(stage.suite.tolerance) * 11 / 10;
    stage.sleep_until(published + surely).await;
    publisher.publish(Draft::keyed(sliding, 2)).await;
    publisher.publish(Draft::keyed(outside, 1)).await;
    stage.mark("sliding-key", i64::from(sliding));
    stage.mark("outside-key", i64::from(outside));
    scene.drain(stage).await
}

fn judge_window_expiry(evidence: &Evidence<'_>, findings: &mut Findings) {
    let (Some((_, sliding)), Some((_, outside))) =
        (evidence.mark("sliding-key"), evidence.mark("outside-key"))
    else {
        findings.require(false, "the window was not waited out");
        return;
    };
    let of = |key: i64, copy: u16| {
        evidence.publishes.iter().find(|p| i64::from(p.op.number) == key && p.op.copy == copy)
    };
    let (mut dropped_at, mut stored_at): (u64, Option<u64>) = (0, None);
    for key in 0..PROBES.len() as i64 {
        let (Some(first), Some(again)) = (of(key, 0), of(key, 1)) else { continue };
        if again.delivered.is_some() {
            let after = again.at.0.saturating_sub(first.at.1);
            stored_at = Some(stored_at.map_or(after, |s| s.min(after)));
        } else if again.confirmed() {
            dropped_at = dropped_at.max(again.at.1 - first.at.0);
        }
    }
    findings.observe("longest_dropped_ms", millis(dropped_at));
    findings.observe("shortest_accepted_ms", stored_at.map(millis));
    let kind = match of(sliding, 2) {
        Some(again) if again.delivered.is_some() => "fixed from the first publish",
        Some(again) if again.confirmed() => "slides with each repetition",
        _ => "unknown",
    };
    findings.observe("window", kind);
    findings.require(
        of(outside, 1).is_some_and(|p| p.confirmed()),
        "no key was repeated after the window",
    );
    let short = kind.split(' ').next().unwrap_or_default();
    findings.key_figure = match stored_at {
        Some(stored) => format!("{} – {}, {short}", words(dropped_at), words(stored)),
        None => format!("over {}", words(dropped_at)),
    };
    // Where receipts do not tell, a copy that was swallowed shows only by its absence.
    if let Some(again) = of(outside, 1)
        && again.confirmed()
        && again.delivered.is_none()
        && evidence.subscriptions.iter().all(|s| s.drained.is_some())
    {
        findings.anomaly(FalseDuplicate, || {
            format!("a key repeated {} after its first publish was dropped", words(again.at.0))
        });
    }
}

async fn after_ack(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    let mut consumer = stage.connect().await?.consumer(&scene.subscription, 64).await?;
    let count = keys(stage).min(50);
    for key in 0..count {
        publisher.publish(Draft::keyed(key, 0)).await;
    }
    let taken = consumer.take(count as usize).await?;
    stage.ack_all(&taken).await;
    if !stage.has(ConfirmedAck) {
        stage.sleep(stage.suite.tolerance / 2).await;
    }
    stage.mark("acknowledged", taken.len() as i64);
    for key in 0..count {
        publisher.publish(Draft::keyed(key, 1)).await;
    }
    stage.drain(&mut [consumer]).await
}

fn judge_after_ack(evidence: &Evidence<'_>, findings: &mut Findings) {
    judge_copies(evidence, findings);
    let acked = evidence.mark("acknowledged").map_or(0, |(_, n)| n);
    findings.require(acked > 0, "nothing was acknowledged before the repetition");
    findings.observe("acknowledged_before", acked);
}

async fn reported(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    for copy in 0..2 {
        for key in 0..keys(stage) {
            publisher.publish(Draft::keyed(key, copy)).await;
        }
    }
    scene.drain(stage).await
}

fn judge_reported(evidence: &Evidence<'_>, findings: &mut Findings) {
    judge_copies(evidence, findings);
    let reported = evidence.publishes.iter().filter(|p| p.dropped()).count();
    for (index, sent) in evidence.publishes.iter().enumerate() {
        if matches!(sent.op.outcome, Published::Confirmed { duplicate: None, .. }) {
            findings.anomaly(UnreportedDuplicate, || {
                format!("{}: the receipt does not tell", evidence.name(index))
            });
        }
    }
    findings.observe("reported", reported);
    findings.key_figure = format!("{reported} reported");
}

async fn retry_after_unknown(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut witness = stage.connect().await?.consumer(&scene.subscription, 16).await?;
    let linked = stage.connect_by_link().await?;
    let options = PublisherOptions {
        // Far longer than the broker needs, so that it is the cut that ends the waiting.
        confirm_timeout: Some(stage.quiet() * 2),
        ..PublisherOptions::default()
    };
    let mut publisher = linked.publisher_with(&scene.topic, options.clone()).await?;
    let count = 10;
    // Proves that the link works before it is broken.
    publisher.publish(Draft::keyed(count, 0)).await;
    linked.hold(Direction::ToClient);
    let unknown = publisher.publish_all((0..count).map(|key| Draft::keyed(key, 0)).collect());
    let witnessing = async {
        let seen = witness.take(count as usize + 1).await;
        linked.cut();
        seen
    };
    let (_, seen) = futures::join!(unknown, witnessing);
    let seen = seen?;
    stage.mark("seen-stored", seen.len() as i64);
    linked.heal();
    for key in 0..count {
        for copy in 1..100 {
            match publisher.publish(Draft::keyed(key, copy)).await {
                Published::Confirmed { .. } => break,
                _ => stage.sleep(stage.suite.tolerance / 20).await,
            }
        }
    }
    stage.ack_all(&seen).await;
    stage.drain(&mut [witness]).await
}

fn judge_retry(evidence: &Evidence<'_>, findings: &mut Findings) {
    let unknown = |p: &&crate::checker::evidence::Sent<'_>| {
        matches!(p.op.outcome, Published::Indeterminate(_)) && p.delivered.is_some()
    };
    let unknown = evidence.publishes.iter().filter(unknown).count();
    let retried = evidence.publishes.iter().filter(|p| p.op.copy > 0 && p.confirmed()).count();
    findings.require(unknown > 0, "no publish was stored whose confirmation was lost");
    findings.require(retried > 0, "no retry was confirmed");
    findings.observe("stored_unconfirmed", unknown);
    findings.observe("retried", retried);
    findings.key_figure = format!("{unknown} retried");
}

async fn invalid_first(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scene.publisher().await?;
    if let Some(limit) = stage.capabilities.limits.max_payload {
        for key in 0..5 {
            let len = Some(limit as usize + 1);
            let draft = Draft { len, illegal: true, ..Draft::keyed(key, 0) };
            publisher.publish(draft).await;
        }
        for key in 0..5 {
            publisher.publish(Draft::keyed(key, 1)).await;
        }
    }
    let mut consumers = vec![stage.connect().await?.consumer(&scene.subscription, 16).await?];
    if stage.has(TopicLimit) {
        let topic = stage.topic(&scene.director, Retention::UntilAcked, Some(5)).await?;
        let subscription = stage.subscribe(&scene.director, &topic, Subscribe::default()).await?;
        let mut publisher = scene.director.publisher(&topic).await?;
        publisher.send(5).await;
        for key in 100..105 {
            publisher.publish(Draft { illegal: true, ..Draft::keyed(key, 0) }).await;
        }
        let mut consumer = stage.connect().await?.consumer(&subscription, 5).await?;
        let taken = consumer.take(5).await?;
        stage.ack_all(&taken).await;
        stage.sleep(stage.suite.tolerance / 10).await;
        for key in 100..105 {
            publisher.publish(Draft::keyed(key, 1)).await;
        }
        consumers.push(consumer);
    }
    stage.drain(&mut consumers).await
}

fn judge_invalid_first(evidence: &Evidence<'_>, findings: &mut Findings) {
    let refused = |kind: RejectKind| {
        let of_kind = |p: &&crate::checker::evidence::Sent<'_>| matches!(&p.op.outcome, Published::Rejected(k, _) if *k == kind);
        evidence.publishes.iter().filter(of_kind).count()
    };
    let (large, full) = (refused(RejectKind::TooLarge), refused(RejectKind::LimitReached));
    let again = evidence.publishes.iter().filter(|p| p.op.copy == 1 && p.confirmed()).count();
    findings.require(large + full > 0, "no publish with a key was refused");
    findings.require(again > 0, "no refused key was published again");
    findings.observe("refused_too_large", large);
    findings.observe("refused_full", full);
    findings.observe("accepted_then", again);
    findings.key_figure = format!("{} refused, {again} then stored", large + full);
}
