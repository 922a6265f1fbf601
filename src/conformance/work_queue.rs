//! `work-queue/`: each message goes to one of many consumers, and nobody waits in vain.

use std::{cell::Cell, time::Duration};

use futures::future::{join_all, try_join_all};
use queueproof_backends::{
    Capability::{ConfirmedAck, Depth, TopicLimit, WorkQueue},
    Disconnect, RejectKind, Retention,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Connection, Consumer, Draft, Subscribe, Subscription},
};
use crate::{
    checker::{
        AnomalyKind::{
            Blocked, Corrupt, DuplicateDelivery, EarlyRedelivery, LateRedelivery, Lost, NotDeleted,
            NotRedelivered, OverLimit, Phantom, RedeliveredAfterAck, Starved,
        },
        Evidence, Findings,
        evidence::Time,
        millis,
        timing::{Spans, late, redeliveries},
        words,
    },
    flaw::Flaw::Backend,
    history::{Halt, Published, What, nanos},
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "work-queue/once-each",
        title: "Among competing consumers each message is delivered once and none is lost.",
        doc: "Publishers and consumers work at the same time, every one on a connection of its \
              own. Each stored message must be delivered, and none twice, also in a quiet period \
              that outlasts the ack timeout: a lost acknowledgement shows only then.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::LosePublish), Lost),
            (Backend(Flaw::LoseDelivery), Lost),
            (Backend(Flaw::DeliverTwice), DuplicateDelivery),
            (Backend(Flaw::DeliverToTwo), RedeliveredAfterAck),
            (Backend(Flaw::ForgetAck), RedeliveredAfterAck),
            (Backend(Flaw::Invent), Phantom),
            (Backend(Flaw::Corrupt), Corrupt),
        ],
        scenario: |stage| Box::pin(once_each(stage)),
        judge: judge_once_each,
    },
    Property {
        id: "work-queue/lock",
        title: "Nobody else gets a delivery that is held.",
        doc: "One consumer holds deliveries for seven tenths of the ack timeout while others wait \
              for work. None of the held ones may go to anybody else.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::DeliverToTwo), DuplicateDelivery),
            (Backend(Flaw::DeliverTwice), DuplicateDelivery),
            (Backend(Flaw::ExpireEarly), EarlyRedelivery),
        ],
        scenario: |stage| Box::pin(lock(stage)),
        judge: judge_lock,
    },
    Property {
        id: "work-queue/fairness",
        title: "Equal consumers that all wait get about equal shares.",
        doc: "Equal consumers with a prefetch of 1 take a message, work for the same short time and \
              acknowledge. The figures are each one's share, Jain's index (1 is perfectly equal), \
              the largest share over the smallest, and the longest time that one waited between \
              two messages. A consumer that gets less than a tenth of its share is an anomaly.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::Starve), Starved)],
        scenario: |stage| Box::pin(fairness(stage)),
        judge: judge_fairness,
    },
    Property {
        id: "work-queue/slow-consumer",
        title: "A slow consumer with a prefetch of 1 holds back nobody else's messages.",
        doc: "One consumer takes a message and works on it for seven tenths of a long ack timeout; \
              its prefetch lets one more be locked for it. The others must get all the rest \
              meanwhile.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::HeadOfLine), Blocked), (Backend(Flaw::HoardPrefetch), Blocked)],
        scenario: |stage| Box::pin(slow_consumer(stage)),
        judge: judge_blocked,
    },
    Property {
        id: "work-queue/join",
        title: "A consumer that joins a running flow soon gets its first message.",
        doc: "While messages flow to busy consumers a new one joins, on a new connection. It must \
              be given a message within the tolerance, though others wait too.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::StarveNewcomer), Starved)],
        scenario: |stage| Box::pin(join(stage)),
        judge: judge_join,
    },
    Property {
        id: "work-queue/leave",
        title: "When a consumer leaves, what it had not settled comes back.",
        doc: "A consumer takes some messages, has more locked ahead for it, settles none and \
              leaves gracefully. What it was never handed must reach the others at once; what it \
              held, as the backend declares for a consumer that is gone.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::AutoAck), NotRedelivered),
            (Backend(Flaw::LeaveAcks), NotRedelivered),
        ],
        scenario: |stage| Box::pin(leave(stage)),
        judge: judge_leave,
    },
    Property {
        id: "work-queue/ack-deletes",
        title: "What was acknowledged is deleted, and stays so after reconnecting.",
        doc: "All messages are consumed and acknowledged; the broker's own count must come down to \
              zero. Then all connections are closed and new ones opened: nothing may come.",
        needs: &[WorkQueue, Depth],
        catches: &[
            (Backend(Flaw::DepthStuck), NotDeleted),
            (Backend(Flaw::ForgetAck), RedeliveredAfterAck),
            (Backend(Flaw::Resurrect), RedeliveredAfterAck),
        ],
        scenario: |stage| Box::pin(ack_deletes(stage)),
        judge: judge_ack_deletes,
    },
    Property {
        id: "work-queue/head-of-line",
        title: "One held delivery does not block the rest.",
        doc: "The first message is held for seven tenths of a long ack timeout. The messages behind \
              it must be delivered meanwhile, to another consumer and to the one that holds it.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::HeadOfLine), Blocked)],
        scenario: |stage| Box::pin(head_of_line(stage)),
        judge: judge_blocked,
    },
    Property {
        id: "work-queue/topic-limit",
        title: "A full topic refuses, and takes again when there is room.",
        doc: "A topic is limited to ten messages. Those beyond must be refused for certain, never \
              be delivered, and cost nothing that was stored; after some were acknowledged the \
              topic must take new ones.",
        needs: &[WorkQueue, TopicLimit, ConfirmedAck],
        catches: &[(Backend(Flaw::IgnoreLimit), OverLimit)],
        scenario: |stage| Box::pin(topic_limit(stage)),
        judge: judge_topic_limit,
    },
];

/// Consumers of a subscription, each on a connection of its own.
pub(super) async fn crew<'s>(
    stage: &'s Stage,
    subscription: &Subscription,
    count: u32,
    prefetch: u32,
) -> Result<Vec<Consumer<'s>>, Halt> {
    let open =
        (0..count).map(async |_| stage.connect().await?.consumer(subscription, prefetch).await);
    try_join_all(open).await
}

async fn once_each(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumers = crew(stage, &subscription, stage.suite.consumers, 16).await?;
    let mut publishers = Vec::new();
    for _ in 0..stage.suite.publishers {
        publishers.push(stage.connect().await?.publisher(&topic).await?);
    }
    let share = stage.suite.messages.div_ceil(stage.suite.publishers);
    let publishing = join_all(publishers.iter_mut().map(|p| p.send(share)));
    futures::join!(publishing, stage.drain(&mut consumers)).1
}

fn judge_once_each(evidence: &Evidence<'_>, findings: &mut Findings) {
    let stored = evidence.publishes.iter().filter(|p| p.stored()).count();
    let came = evidence.publishes.iter().filter(|p| p.delivered.is_some()).count();
    let consumers = evidence.consumers.len();
    findings.require(came > 0, "no message was delivered");
    findings.require(consumers > 1, "no consumers that compete");
    findings.observe("stored", stored);
    findings.observe("delivered", came);
    findings.observe("deliveries", evidence.deliveries.len());
    findings.key_figure = format!("{came} of {stored}");
}

/// How long a delivery is held that must stay locked: well below the ack timeout.
fn hold(stage: &Stage) -> Duration {
    stage.suite.ack_timeout * 7 / 10
}

async fn lock(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut holder = stage.connect().await?.consumer(&subscription, 10).await?;
    let mut publisher = director.publisher(&topic).await?;
    let (taken, _) = futures::join!(holder.take(10), publisher.send(10));
    let held = taken?;
    stage.mark("held", held.len() as i64);
    let mut others = crew(stage, &subscription, stage.suite.consumers.max(2) - 1, 4).await?;
    let until = held.first().map_or(0, |d| d.at) + nanos(hold(stage));
    // Others are at work meanwhile.
    let (_, outcomes) = futures::join!(
        publisher.send(20),
        try_join_all(others.iter_mut().map(|other| other.ack_until(until)))
    );
    outcomes?;
    stage.ack_all(&held).await;
    others.push(holder);
    stage.drain(&mut others).await
}

fn judge_lock(evidence: &Evidence<'_>, findings: &mut Findings) {
    let held = evidence.mark("held").map_or(0, |(_, n)| n);
    let spans: Vec<Time> =
        evidence.deliveries.iter().filter_map(|d| Some(d.settles.first()?.at.0 - d.at.1)).collect();
    let longest = spans.into_iter().max().unwrap_or(0);
    findings.require(held > 0, "nothing was held");
    findings.require(
        evidence.deliveries.len() as i64 > held,
        "nobody else was given anything, so nobody else was there",
    );
    findings.observe("held", held);
    findings.observe("held_for_ms", millis(longest));
    findings.key_figure = format!("{held} for {}", words(longest));
}

async fn fairness(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumers = crew(stage, &subscription, stage.suite.consumers, 1).await?;
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let count = stage.suite.messages.min(100 * stage.suite.consumers);
    let left = Cell::new(count);
    let working = consumers.iter_mut().map(async |consumer| {
        while left.get() > 0 {
            let received = consumer.receive(1, stage.suite.tolerance).await?;
            if received.is_empty() && stage.now() > nanos(stage.quiet()) * 4 {
                break; // Lost messages are the drain's business.
            }
            stage.sleep(Duration::from_millis(2)).await;
            stage.ack_all(&received).await;
            left.set(left.get().saturating_sub(received.len() as u32));
        }
        Ok(())
    });
    let (_, worked) = futures::join!(publisher.send(count), try_join_all(working));
    worked?;
    stage.mark("worked", 0);
    stage.drain(&mut consumers).await
}

fn judge_fairness(evidence: &Evidence<'_>, findings: &mut Findings) {
    let until = evidence.mark("worked").map_or(Time::MAX, |(at, _)| at);
    let mut shares = vec![0_u64; evidence.consumers.len()];
    let mut last: Vec<Option<Time>> = vec![None; shares.len()];
    let mut longest_idle = 0;
    for delivery in evidence.deliveries.iter().filter(|d| d.at.1 <= until) {
        let consumer = usize::from(delivery.op.consumer);
        shares[consumer] += 1;
        if let Some(before) = last[consumer].replace(delivery.at.1) {
            longest_idle = longest_idle.max(delivery.at.1 - before);
        }
    }
    let total: u64 = shares.iter().sum();
    let squares: u64 = shares.iter().map(|s| s * s).sum();
    let jain = if squares == 0 {
        0.0
    } else {
        (total * total) as f64 / (shares.len() as u64 * squares) as f64
    };
    let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
    findings.require(shares.len() > 1, "no consumers that compete");
    findings.require(total >= 10 * shares.len() as u64, "fewer than ten messages a consumer");
    for (consumer, &share) in shares.iter().enumerate() {
        if share * 10 * (shares.len() as u64) < total {
            findings.anomaly(Starved, || {
                format!(
                    "consumer {consumer} got {share} of {total} messages among {}",
                    shares.len()
                )
            });
        }
    }
    findings.observe("jain_index", (jain * 1000.0).round() / 1000.0);
    findings.observe("share_min", least.unwrap_or(0));
    findings.observe("share_max", most.unwrap_or(0));
    findings.observe("longest_idle_ms", millis(longest_idle));
    findings.observe("shares", shares);
    findings.key_figure = format!("Jain {jain:.3}");
}

/// The messages of a scenario whose holding lasts below one ack timeout.
fn within_a_hold(stage: &Stage) -> u32 {
    stage.suite.messages.min(200)
}

/// How many ack timeouts the lock lasts of what is held while messages flow past.
const LONG: u32 = 3;

/// A work queue whose locks last long.
async fn with_long_locks(
    stage: &Stage,
    director: &Connection<'_>,
) -> Result<(super::stage::Topic, Subscription), Halt> {
    let topic = stage.topic(director, Retention::UntilAcked, None).await?;
    let how = Subscribe { timeouts: LONG, ..Subscribe::default() };
    let subscription = stage.subscribe(director, &topic, how).await?;
    Ok((topic, subscription))
}

/// Messages flow to the others while one delivery is held; then the one is let go.
async fn flow_past<'s>(
    stage: &'s Stage,
    director: &Connection<'s>,
    subscription: &Subscription,
    topic: &super::stage::Topic,
    mut slow: Consumer<'s>,
    also_the_holder: bool,
) -> Result<(), Halt> {
    let mut publisher = director.publisher(topic).await?;
    // All that takes time happens before the hold, but for what would compete for the first message.
    let connect = (1..stage.suite.consumers.max(2)).map(|_| stage.connect());
    let connections = try_join_all(connect).await?;
    let (taken, _) = futures::join!(slow.take(1), publisher.send(1));
    let held = taken?;
    let until = held.first().map_or(0, |d| d.at) + nanos(hold(stage) * LONG);
    let open = connections.iter().map(|connection| connection.consumer(subscription, 16));
    let mut others = try_join_all(open).await?;
    // Only now is there anybody to be blocked.
    stage.mark("hold-begins", i64::from(held.is_empty()));
    let count = within_a_hold(stage);
    let working = async {
        let slow = also_the_holder.then_some(&mut slow);
        try_join_all(others.iter_mut().chain(slow).map(|c| c.ack_until(until))).await
    };
    let (_, worked) = futures::join!(publisher.send(count), working);
    worked?;
    stage.mark("hold-ends", 0);
    stage.ack_all(&held).await;
    others.push(slow);
    stage.drain(&mut others).await
}

async fn slow_consumer(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = with_long_locks(stage, &director).await?;
    let slow = stage.connect().await?.consumer(&subscription, 1).await?;
    stage.mark("may-be-held-back", 1);
    flow_past(stage, &director, &subscription, &topic, slow, false).await
}

async fn head_of_line(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = with_long_locks(stage, &director).await?;
    let holder = stage.connect().await?.consumer(&subscription, 4).await?;
    stage.mark("may-be-held-back", 0);
    flow_past(stage, &director, &subscription, &topic, holder, true).await
}

fn judge_blocked(evidence: &Evidence<'_>, findings: &mut Findings) {
    let (Some((from, empty)), Some((until, _)), Some((_, excused))) = (
        evidence.mark("hold-begins"),
        evidence.mark("hold-ends"),
        evidence.mark("may-be-held-back"),
    ) else {
        findings.require(false, "the holding did not take place");
        return;
    };
    findings.require(empty == 0, "nothing was held");
    // By their places, not by their times, many of which are the same on a simulated clock.
    let span = evidence.mark_place("hold-begins")..evidence.mark_place("hold-ends");
    let during: Vec<_> =
        evidence.deliveries.iter().filter(|d| span.contains(&Some(d.place))).collect();
    let came = |index: usize| during.iter().any(|d| d.publish == Some(index));
    // What was stored so early that it must have come by then, while somebody waited for it.
    let soon = evidence.tolerance() + evidence.stalled(from, until);
    let due: Vec<_> = (0..evidence.publishes.len())
        .filter(|&index| {
            let sent = &evidence.publishes[index];
            let held = |d: usize| Some(evidence.deliveries[d].place) < span.start;
            sent.stored()
                && sent.at.0 >= from
                && sent.at.1 + soon < until
                && !sent.delivered.is_some_and(held)
        })
        .collect();
    let missing = due.iter().filter(|&&index| !came(index)).count() as i64;
    findings.require(!due.is_empty(), "nothing was published early enough while one was held");
    if missing > excused {
        let last = during.iter().map(|d| d.at.1).max().unwrap_or(from).max(from);
        let silence = until - last;
        // Still flowing at the end means slow, not blocked; so does a silence no longer, beyond the
        // tolerance, than the broker's answers took.
        if silence > soon + evidence.slowest_answer() {
            findings.anomaly(Blocked, || {
                format!(
                    "{missing} of {} messages did not come while one was held, the last {} of which nothing came",
                    due.len(),
                    words(silence)
                )
            });
        } else {
            findings.undecided("messages were still on their way when the holding ended");
        }
    }
    findings.observe("messages_during_hold", during.len());
    findings.observe("held_for_ms", millis(until - from));
    findings.key_figure =
        format!("{} of {} in {}", due.len() as i64 - missing, due.len(), words(until - from));
}

async fn join(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumers = crew(stage, &subscription, stage.suite.consumers.max(2) - 1, 1).await?;
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let newcomer_connection = stage.connect().await?;
    let done = Cell::new(false);
    let joined: Cell<Option<u64>> = Cell::new(None);
    let publishing = async {
        // Until the newcomer has had its time, however long it takes to open.
        let begun = stage.now();
        let over = |span| stage.now() > span;
        while joined.get().is_none_or(|at| !over(at + 2 * nanos(stage.suite.tolerance)))
            && !over(begun + 10 * nanos(stage.suite.tolerance))
        {
            publisher.publish_all(vec![Draft::default(); 4]).await;
            stage.sleep(stage.suite.tolerance / 50).await;
        }
        done.set(true);
    };
    let work = async |consumer: &mut Consumer<'_>| {
        while !done.get() {
            let received = consumer.receive(1, stage.suite.tolerance / 10).await?;
            stage.ack_all(&received).await;
        }
        Ok::<_, Halt>(())
    };
    let working = async { try_join_all(consumers.iter_mut().map(&work)).await };
    let joining = async {
        stage.sleep(stage.suite.tolerance / 4).await;
        let mut newcomer = newcomer_connection.consumer(&subscription, 1).await?;
        stage.mark("newcomer", i64::from(newcomer.number()));
        joined.set(Some(stage.now()));
        work(&mut newcomer).await?;
        Ok::<_, Halt>(newcomer)
    };
    let (_, worked, newcomer) = futures::join!(publishing, working, joining);
    worked?;
    consumers.push(newcomer?);
    stage.drain(&mut consumers).await
}

fn judge_join(evidence: &Evidence<'_>, findings: &mut Findings) {
    let Some((_, newcomer)) = evidence.mark("newcomer") else {
        findings.require(false, "nobody joined");
        return;
    };
    let Some(joined) = evidence.consumers.get(newcomer as usize) else { return };
    let there = joined.opened.1;
    let deadline = there + evidence.tolerance();
    let offered = evidence.publishes.iter().filter(|p| (there..deadline).contains(&p.at.0)).count();
    findings.observe("published_while_waiting", offered);
    let first = evidence.deliveries.iter().find(|d| i64::from(d.op.consumer) == newcomer);
    // What it got in time needs no others to prove it; that it got nothing proves something only
    // when there was enough for it.
    if offered <= 20 && first.is_none_or(|first| first.at.1 > deadline) {
        findings.require(false, "too few messages were published after the newcomer was there");
        return;
    }
    match first {
        Some(first) => {
            let waited = first.at.1 - there.min(first.at.1);
            findings.observe("first_message_after_ms", millis(waited));
            findings.key_figure = format!("after {}", words(waited));
            late(evidence, findings, Starved, (there, first.at.1), || {
                format!(
                    "the first message of consumer {newcomer}, that was there at {}",
                    words(there)
                )
            });
        }
        None => findings.anomaly(Starved, || {
            format!("consumer {newcomer} joined at {} and got nothing", words(there))
        }),
    }
}

async fn leave(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut leaver = stage.connect().await?.consumer(&subscription, 10).await?;
    let mut others = crew(stage, &subscription, 2, 4).await?;
    let mut publisher = director.publisher(&topic).await?;
    let (taken, _) = futures::join!(leaver.take(5), publisher.send(40));
    stage.mark("held", taken?.len() as i64);
    leaver.leave(stage.suite.tolerance).await?;
    stage.drain(&mut others).await
}

fn judge_leave(evidence: &Evidence<'_>, findings: &mut Findings) {
    let left = evidence.ops.iter().find(|op| matches!(op.what, What::Leave { .. }));
    let (Some(left), Some((_, held))) = (left, evidence.mark("held")) else {
        findings.require(false, "nobody left");
        return;
    };
    findings.require(held > 0, "the leaver held nothing");
    let limits = &evidence.header.capabilities.limits;
    let mut back = Spans::default();
    // While others are given one after another, the broker is slow, and holds nothing back.
    let flowing = |came: Time| {
        let earlier = evidence.deliveries.iter().map(|d| d.at.1).filter(|&at| at < came);
        earlier.max().unwrap_or(0)
    };
    for (before, again) in redeliveries(evidence, 0) {
        let due = match limits.disconnect {
            Disconnect::Immediately => left.at.1,
            Disconnect::AfterAckTimeout => {
                before.at.1
                    + evidence.subscription(before).spec.ack_timeout
                    + nanos(limits.ack_timeout_resolution)
            }
        };
        back.add(again.at.1.saturating_sub(left.at.0));
        let due = due.max(flowing(again.at.1));
        late(evidence, findings, LateRedelivery, (due, again.at.1), || {
            format!(
                "a message held by consumer {}, that left by {}",
                before.op.consumer,
                words(left.at.1)
            )
        });
    }
    // What was locked ahead for the leaver, and was never handed to it.
    for delivery in &evidence.deliveries {
        let first = delivery.publish.is_some_and(|p| {
            let of_message = &evidence.subscription(delivery).by_message[p];
            of_message.len() == 1 && evidence.publishes[p].at.1 < left.at.0
        });
        if first && delivery.at.1 > left.at.1 {
            let due = left.at.1.max(flowing(delivery.at.1));
            late(evidence, findings, LateRedelivery, (due, delivery.at.1), || {
                "a message that the leaver had not been handed".into()
            });
        }
    }
    findings.require(!back.is_empty() || findings.has(NotRedelivered), "nothing came back");
    back.observe("back", findings);
}

async fn ack_deletes(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let connection = stage.connect().await?;
    let mut consumer = connection.consumer(&subscription, 64).await?;
    let mut publisher = director.publisher(&topic).await?;
    let count = stage.suite.messages.min(500);
    let mut left = count as usize;
    publisher.send(count).await;
    while left > 0 {
        let received = consumer.receive(left, stage.quiet()).await?;
        if received.is_empty() {
            break;
        }
        stage.ack_all(&received).await;
        left -= received.len();
    }
    let deadline = stage.now() + nanos(stage.suite.tolerance);
    loop {
        let depth = director.depth(&subscription).await?;
        let empty = depth.waiting == 0 && depth.unsettled == 0 && depth.stored.unwrap_or(0) == 0;
        if empty || stage.now() > deadline {
            break;
        }
        stage.sleep(stage.suite.tolerance / 20).await;
    }
    consumer.leave(stage.suite.tolerance).await?;
    connection.close().await;
    stage.mark("reconnected", 0);
    let mut consumers = crew(stage, &subscription, 2, 16).await?;
    stage.drain(&mut consumers).await
}

fn judge_ack_deletes(evidence: &Evidence<'_>, findings: &mut Findings) {
    let acked = evidence.deliveries.iter().filter(|d| d.acked()).count();
    findings.require(acked > 0, "nothing was acknowledged");
    findings.require(evidence.mark("reconnected").is_some(), "nobody reconnected");
    let depth = evidence.ops.iter().rev().find_map(|op| match op.what {
        What::Depth { waiting, unsettled, stored, .. } => {
            Some((op.at.1, waiting, unsettled, stored))
        }
        _ => None,
    });
    let Some((at, waiting, unsettled, stored)) = depth else {
        findings.require(false, "the broker was not asked for its count");
        return;
    };
    // What was refused an acknowledgement is rightly still there.
    let open = evidence.deliveries.iter().filter(|d| !d.acked()).count();
    if waiting + unsettled + stored.unwrap_or(0) > 0 && open == 0 {
        findings.anomaly(NotDeleted, || {
            format!(
                "at {} all {acked} were acknowledged, and the broker counts {waiting} waiting, {unsettled} unsettled, {} stored",
                words(at),
                stored.map_or("an unknown number".into(), |n| n.to_string())
            )
        });
    }
    findings.observe("acknowledged", acked);
    findings.observe("left_waiting", waiting);
    findings.observe("left_unsettled", unsettled);
    findings.observe("left_stored", stored);
    findings.key_figure =
        format!("{acked} acked, {} left", waiting + unsettled + stored.unwrap_or(0));
}

/// The limit of the topic that is filled.
const LIMIT: u64 = 10;

async fn topic_limit(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let topic = stage.topic(&director, Retention::UntilAcked, Some(LIMIT)).await?;
    let subscription = stage.subscribe(&director, &topic, Subscribe::default()).await?;
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    for _ in 0..LIMIT {
        publisher.publish(Draft::default()).await;
    }
    for _ in 0..3 {
        publisher.publish(Draft { illegal: true, ..Draft::default() }).await;
    }
    let mut consumer = stage.connect().await?.consumer(&subscription, 4).await?;
    let taken = consumer.take(4).await?;
    stage.ack_all(&taken).await;
    // The broker may delete a moment after it confirmed the acknowledgement.
    stage.sleep(stage.suite.tolerance / 10).await;
    stage.mark("room-for", taken.len() as i64);
    for _ in 0..taken.len() {
        publisher.publish(Draft::default()).await;
    }
    stage.drain(&mut [consumer]).await
}

fn judge_topic_limit(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut refused = 0;
    for (index, sent) in evidence.publishes.iter().enumerate().filter(|(_, p)| p.op.illegal) {
        match &sent.op.outcome {
            Published::Rejected(RejectKind::LimitReached, _) => refused += 1,
            Published::Confirmed { .. } => findings.anomaly(OverLimit, || {
                format!(
                    "{} was confirmed, and {LIMIT} messages were stored already",
                    evidence.name(index)
                )
            }),
            other => findings.undecided(format!("a message over the limit was answered {other:?}")),
        }
    }
    findings.require(refused > 0 || findings.has(OverLimit), "nothing was refused");
    findings.require(evidence.mark("room-for").is_some_and(|(_, n)| n > 0), "no room was made");
    findings.observe("limit", LIMIT);
    findings.observe("refused", refused);
    findings.key_figure = format!("{refused} refused at {LIMIT}");
}
