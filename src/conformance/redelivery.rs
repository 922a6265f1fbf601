//! `redelivery/`: what was not acknowledged comes back, when it should; what was does not.

use std::{cell::RefCell, time::Duration};

use futures::future::{join_all, try_join_all};
use queueproof_backends::{
    Capability::{AckTimeout, AttemptCount, DeadLetter, Nack, NackDelay, Touch, WorkQueue},
    Disconnect, Retention,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Consumer, Delivery, Subscribe, Subscription, Topic},
    work_queue::crew,
};
use crate::{
    checker::{
        AnomalyKind::{
            EarlyRedelivery, FalseLeaseLost, LateRedelivery, NotDeadLettered, NotRedelivered,
            RedeliveredAfterAck, StuckToOne, Unbounded, WrongAttempt,
        },
        Evidence, Findings,
        timing::{Spans, late, redeliveries},
        words,
    },
    flaw::Flaw::Backend,
    history::{Halt, How, SettleOutcome, What, nanos},
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "redelivery/nack",
        title: "A delivery that was handed back comes again.",
        doc: "Every message is handed back once without a delay while consumers wait. Each must \
              come again within the tolerance.",
        needs: &[WorkQueue, Nack],
        catches: &[
            (Backend(Flaw::ForgetNack), NotRedelivered),
            (Backend(Flaw::NackLate), LateRedelivery),
        ],
        scenario: |stage| Box::pin(nack(stage, false)),
        judge: judge_nack,
    },
    Property {
        id: "redelivery/nack-delay",
        title: "A delivery that was handed back with a delay comes again after it.",
        doc: "Every message is handed back once with a delay. None may come before the delay has \
              passed since the call, nor later than that and the tolerance.",
        needs: &[WorkQueue, NackDelay],
        catches: &[
            (Backend(Flaw::NackEarly), EarlyRedelivery),
            (Backend(Flaw::NackLate), LateRedelivery),
            (Backend(Flaw::ForgetNack), NotRedelivered),
        ],
        scenario: |stage| Box::pin(nack(stage, true)),
        judge: judge_nack,
    },
    Property {
        id: "redelivery/ack-timeout",
        title: "A delivery that is not settled comes back when its ack timeout has passed.",
        doc: "A consumer that waits is given messages and never settles them; another waits. Each \
              must come back within the ack timeout and the tolerance, and not before.",
        needs: &[WorkQueue, AckTimeout],
        catches: &[
            (Backend(Flaw::ExpireEarly), EarlyRedelivery),
            (Backend(Flaw::ExpireLate), LateRedelivery),
            (Backend(Flaw::NeverExpire), NotRedelivered),
            (Backend(Flaw::AutoAck), NotRedelivered),
        ],
        scenario: |stage| Box::pin(ack_timeout(stage)),
        judge: judge_ack_timeout,
    },
    Property {
        id: "redelivery/disconnect",
        title: "What a consumer held whose connection was cut comes back as declared.",
        doc: "A consumer holds deliveries, and its connection is cut. They must come to another \
              consumer: at once, or when the ack timeout has passed, as the backend declares.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::AutoAck), NotRedelivered)],
        scenario: |stage| Box::pin(disconnect(stage)),
        judge: judge_disconnect,
    },
    Property {
        id: "redelivery/touch",
        title: "Touching a delivery extends its lock.",
        doc: "A consumer holds deliveries past the ack timeout. Half of them it touched: those \
              must stay its own until the timeout has passed again; the others must come back, or \
              nothing was shown.",
        needs: &[WorkQueue, AckTimeout, Touch],
        catches: &[(Backend(Flaw::IgnoreTouch), EarlyRedelivery)],
        scenario: |stage| Box::pin(touch(stage)),
        judge: judge_touch,
    },
    Property {
        id: "redelivery/never-after-ack",
        title: "What was acknowledged never comes again, whatever is reconnected.",
        doc: "Messages are acknowledged; then the consumer's connection is cut and comes back, and \
              others join. Nothing may come in a quiet period that outlasts the ack timeout.",
        needs: &[WorkQueue],
        catches: &[
            (Backend(Flaw::ForgetAck), RedeliveredAfterAck),
            (Backend(Flaw::Resurrect), RedeliveredAfterAck),
        ],
        scenario: |stage| Box::pin(never_after_ack(stage)),
        judge: judge_never_after_ack,
    },
    Property {
        id: "redelivery/attempt-count",
        title: "The attempt is the number of the delivery, from 1.",
        doc: "Messages are handed back up to four times. Each delivery must carry its number.",
        needs: &[WorkQueue, Nack, AttemptCount],
        catches: &[
            (Backend(Flaw::AttemptStuck), WrongAttempt),
            (Backend(Flaw::AttemptSkips), WrongAttempt),
        ],
        scenario: |stage| Box::pin(attempt_count(stage)),
        judge: judge_attempt_count,
    },
    Property {
        id: "redelivery/other-consumer",
        title: "A delivery that was handed back is not stuck to the consumer that did.",
        doc: "One consumer hands back everything it is given, others wait with room to spare. They \
              must get some of what was handed back.",
        needs: &[WorkQueue, Nack],
        catches: &[(Backend(Flaw::StickyNack), StuckToOne)],
        scenario: |stage| Box::pin(other_consumer(stage)),
        judge: judge_other_consumer,
    },
    Property {
        id: "redelivery/bounded",
        title: "A poison message stops at its limit and is found in the dead-letter topic.",
        doc: "Of messages with a limit of three deliveries some are handed back each time, some \
              are never settled, some are acknowledged at the second delivery. The first two kinds \
              must be delivered three times and then be in the dead-letter topic, whole and once.",
        needs: &[WorkQueue, Nack, AckTimeout, DeadLetter],
        catches: &[
            (Backend(Flaw::IgnoreDeliveryLimit), Unbounded),
            (Backend(Flaw::LoseDeadLetters), NotDeadLettered),
        ],
        scenario: |stage| Box::pin(bounded(stage)),
        judge: judge_bounded,
    },
    Property {
        id: "redelivery/reject",
        title: "A rejected delivery goes to the dead-letter topic at once.",
        doc: "Some messages are rejected at their first delivery, the others acknowledged. The \
              rejected must be in the dead-letter topic, and nowhere else.",
        needs: &[WorkQueue, DeadLetter],
        catches: &[(Backend(Flaw::LoseDeadLetters), NotDeadLettered)],
        scenario: |stage| Box::pin(reject(stage)),
        judge: judge_reject,
    },
    Property {
        id: "redelivery/late-ack",
        title: "An acknowledgement after the lock was lost is refused, or is an acknowledgement.",
        doc: "A consumer loses its locks by the ack timeout, and others are given the messages and \
              hold them; the first acknowledges late what others hold; they hand it back. If the \
              broker \
              refused the late acknowledgement the message must come again; if it took it, the \
              message is done. (It was worked on: nothing is lost.) What happens is reported.",
        needs: &[WorkQueue, Nack, AckTimeout],
        catches: &[(Backend(Flaw::LateAckLoses), NotRedelivered)],
        scenario: |stage| Box::pin(late_ack(stage)),
        judge: judge_late_ack,
    },
];

/// Messages in a scenario that settles them singly.
fn few(stage: &Stage) -> u32 {
    stage.suite.messages.min(50)
}

async fn nack(stage: &Stage, delayed: bool) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let count = few(stage);
    let delay = delayed.then_some(stage.suite.nack_delay);
    let mut first = stage.connect().await?.consumer(&subscription, count).await?;
    let mut publisher = director.publisher(&topic).await?;
    // Connecting takes time, which what is held has not.
    let others = [stage.connect().await?, stage.connect().await?];
    let (taken, _) = futures::join!(first.take(count as usize), publisher.send(count));
    let taken = taken?;
    stage.mark("handed-back", taken.len() as i64);
    let mut consumers = vec![first];
    for other in others {
        consumers.push(other.consumer(&subscription, 64).await?);
    }
    let handing_back = join_all(taken.iter().map(|delivery| delivery.nack(delay)));
    futures::join!(handing_back, stage.drain(&mut consumers)).1
}

/// How a span is due that began with this delivery's being handed back: from, until.
fn handed_back(delivery: &crate::checker::evidence::Delivered<'_>) -> Option<(u64, u64, u64)> {
    delivery.settles.iter().find_map(|s| match s.how {
        How::Nack(delay) if s.accepted() => Some((s.at.0, s.at.1, delay)),
        _ => None,
    })
}

fn judge_nack(evidence: &Evidence<'_>, findings: &mut Findings) {
    let resolution = nanos(evidence.header.capabilities.limits.nack_delay_resolution);
    let mut spans = Spans::default();
    for (before, again) in redeliveries(evidence, 0) {
        let Some((from, until, delay)) = handed_back(before) else { continue };
        spans.add(again.at.1.saturating_sub(from));
        let due = until + delay + resolution;
        late(evidence, findings, LateRedelivery, (due, again.at.1), || {
            format!("a message handed back at {} for {}", words(until), words(delay))
        });
    }
    findings.require(
        !spans.is_empty() || findings.has(NotRedelivered),
        "nothing handed back came again",
    );
    spans.observe("redelivered", findings);
}

async fn ack_timeout(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut holder = stage.connect().await?.consumer(&subscription, 10).await?;
    let mut publisher = director.publisher(&topic).await?;
    // It asks before there is anything: so a lock begins when its message is published.
    let (taken, _) = futures::join!(holder.take(10), publisher.send(10));
    stage.mark("held", taken?.len() as i64);
    let mut other = stage.connect().await?.consumer(&subscription, 10).await?;
    // Long enough to tell late from never. The holder goes on asking too, so that nothing that
    // comes back waits in its prefetch.
    let until = stage.now() + nanos(stage.suite.ack_timeout + stage.suite.tolerance * 2);
    let (one, another) = futures::join!(other.ack_until(until), holder.ack_until(until));
    one.and(another)?;
    stage.drain(&mut [other, holder]).await
}

fn judge_ack_timeout(evidence: &Evidence<'_>, findings: &mut Findings) {
    let resolution = nanos(evidence.header.capabilities.limits.ack_timeout_resolution);
    let mut spans = Spans::default();
    for (before, again) in redeliveries(evidence, 0) {
        let timeout = evidence.subscription(before).spec.ack_timeout;
        spans.add(again.at.1.saturating_sub(before.at.1));
        late(
            evidence,
            findings,
            LateRedelivery,
            (before.at.1 + timeout + resolution, again.at.1),
            || {
                format!(
                    "a message held since {} with an ack timeout of {}",
                    words(before.at.1),
                    words(timeout)
                )
            },
        );
    }
    findings.require(!spans.is_empty() || findings.has(NotRedelivered), "nothing came back");
    spans.observe("redelivered", findings);
}

async fn disconnect(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let linked = stage.connect_by_link().await?;
    let mut holder = linked.consumer(&subscription, 10).await?;
    let mut publisher = director.publisher(&topic).await?;
    let elsewhere = stage.connect().await?;
    let (taken, _) = futures::join!(holder.take(10), publisher.send(10));
    stage.mark("held", taken?.len() as i64);
    // It is there before the cut: what comes back has somebody to come to.
    let other = elsewhere.consumer(&subscription, 10).await?;
    linked.cut();
    stage.drain(&mut [other]).await
}

fn judge_disconnect(evidence: &Evidence<'_>, findings: &mut Findings) {
    let Some(cut) = evidence.ops.iter().find(|op| matches!(op.what, What::Cut)) else {
        findings.require(false, "no connection was cut");
        return;
    };
    let limits = &evidence.header.capabilities.limits;
    let mut spans = Spans::default();
    for (before, again) in redeliveries(evidence, 0) {
        if again.at.1 < cut.at.0 {
            continue; // By its ack timeout, as the cut came late.
        }
        let timeout = evidence.subscription(before).spec.ack_timeout;
        let due = match limits.disconnect {
            Disconnect::Immediately => cut.at.1,
            Disconnect::AfterAckTimeout => {
                before.at.1 + timeout + nanos(limits.ack_timeout_resolution)
            }
        };
        // Before that there was nobody to give it to.
        let due = due.max(evidence.consumers[usize::from(again.op.consumer)].opened.1);
        spans.add(again.at.1.saturating_sub(cut.at.0));
        late(evidence, findings, LateRedelivery, (due, again.at.1), || {
            format!("a message whose consumer was cut at {}", words(cut.at.1))
        });
        let sent = before.publish.map_or(0, |p| evidence.publishes[p].at.0);
        if limits.disconnect == Disconnect::AfterAckTimeout
            && again.at.1 + evidence.slack() < sent + timeout
        {
            findings.anomaly(EarlyRedelivery, || {
                format!(
                    "a message published at {} came again at {}; the backend declares that a cut consumer's come after the ack timeout",
                    words(sent),
                    words(again.at.1)
                )
            });
        }
    }
    findings.require(!spans.is_empty() || findings.has(NotRedelivered), "nothing came back");
    spans.observe("back_after_cut", findings);
}

async fn touch(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut holder = stage.connect().await?.consumer(&subscription, 10).await?;
    let mut publisher = director.publisher(&topic).await?;
    let elsewhere = stage.connect().await?;
    let (taken, _) = futures::join!(holder.take(10), publisher.send(10));
    let taken = taken?;
    let (touched, left) = taken.split_at(taken.len() / 2);
    let timeout = nanos(stage.suite.ack_timeout);
    let began = stage.now();
    stage.mark("control", left.len() as i64);
    let mut other = elsewhere.consumer(&subscription, 10).await?;
    let holding = async {
        stage.sleep_until(began + timeout * 4 / 10).await;
        join_all(touched.iter().map(Delivery::touch)).await;
        stage.mark("touched", touched.len() as i64);
        // Past the first timeout, well within the second.
        stage.sleep_until(began + timeout * 125 / 100).await;
        stage.ack_all(touched).await;
    };
    let until = began + timeout * 13 / 10;
    let (_, one, another) =
        futures::join!(holding, other.ack_until(until), holder.ack_until(until));
    one.and(another)?;
    stage.drain(&mut [other, holder]).await
}

fn judge_touch(evidence: &Evidence<'_>, findings: &mut Findings) {
    let touched = |d: &crate::checker::evidence::Delivered<'_>| {
        d.settles.iter().any(|s| s.how == How::Touch && s.accepted())
    };
    let extended = evidence.deliveries.iter().filter(|d| touched(d)).count();
    let refused = evidence.deliveries.iter().flat_map(|d| &d.settles);
    let refused = refused.filter(|s| s.how == How::Touch && !s.accepted()).count();
    let controls = redeliveries(evidence, 0).filter(|(before, _)| !touched(before)).count();
    findings.require(extended > 0 || findings.has(FalseLeaseLost), "no touch was accepted");
    findings.require(controls > 0, "what was not touched did not come back in the same time");
    findings.observe("extended", extended);
    findings.observe("touches_not_accepted", refused);
    findings.observe("untouched_came_back", controls);
    findings.key_figure = format!("{extended} extended");
}

async fn never_after_ack(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let linked = stage.connect_by_link().await?;
    let count = stage.suite.messages.min(200);
    let mut consumer = linked.consumer(&subscription, 64).await?;
    let mut publisher = director.publisher(&topic).await?;
    let acking = async {
        let mut left = count as usize;
        // Each at once: where the prefetch counts what is unsettled no more would come until the
        // locks have passed, and an acknowledgement after that proves nothing.
        while left > 0 {
            let received = consumer.receive(left, stage.quiet()).await?;
            if received.is_empty() {
                break;
            }
            stage.ack_all(&received).await;
            left -= received.len();
        }
        Ok::<_, Halt>(())
    };
    let (acked, _) = futures::join!(acking, publisher.send(count));
    acked?;
    // An acknowledgement that no broker confirms must have the time to arrive.
    stage.sleep(stage.suite.tolerance).await;
    linked.cut();
    stage.sleep(stage.suite.tolerance / 5).await;
    linked.heal();
    let other = stage.connect().await?.consumer(&subscription, 16).await?;
    stage.drain(&mut [other, consumer]).await
}

fn judge_never_after_ack(evidence: &Evidence<'_>, findings: &mut Findings) {
    let acked = evidence.deliveries.iter().filter(|d| d.acked()).count();
    // The lock began no earlier than the publish.
    let in_time = evidence.deliveries.iter().filter(|d| {
        let published = d.publish.map_or(0, |p| evidence.publishes[p].at.0);
        let until = published.saturating_add(evidence.subscription(d).spec.ack_timeout);
        d.acked() && d.settles.iter().any(|s| s.at.1 <= until)
    });
    let in_time = in_time.count();
    findings.require(
        in_time > 0,
        "nothing was acknowledged for certain before its ack timeout can have passed",
    );
    findings.require(evidence.connections.iter().any(|c| c.cuts > 0), "no connection was cut");
    findings.observe("acknowledged", acked);
    findings.observe("acknowledged_in_time", in_time);
    findings.observe("deliveries", evidence.deliveries.len());
    findings.key_figure = format!("{acked} acked");
}

/// How often a message of the attempt count is handed back: none, once, … four times.
const RETURNS: u32 = 5;

async fn attempt_count(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumer = stage.connect().await?.consumer(&subscription, 1).await?;
    let count = RETURNS * 4;
    director.publisher(&topic).await?.send(count).await;
    let mut returns = vec![0; count as usize];
    let mut done = 0;
    while done < count {
        let Some(delivery) = consumer.take(1).await?.pop() else { break };
        let crate::message::Seen::Known(id) = delivery.seen else { break };
        let Some(returned) = returns.get_mut(id.number as usize) else { break };
        if *returned < id.number % RETURNS {
            *returned += 1;
            delivery.nack(None).await;
        } else {
            done += 1;
            delivery.ack().await;
        }
    }
    stage.drain(&mut [consumer]).await
}

fn judge_attempt_count(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut highest = 0;
    for subscription in &evidence.subscriptions {
        for (publish, deliveries) in subscription.by_message.iter().enumerate() {
            for (nth, &delivery) in (1..).zip(deliveries) {
                let attempt = evidence.deliveries[delivery].op.attempt;
                highest = highest.max(nth);
                if attempt != Some(nth) {
                    findings.anomaly(WrongAttempt, || {
                        format!(
                            "{}: delivery {nth} says attempt {attempt:?}",
                            evidence.name(publish)
                        )
                    });
                }
            }
        }
    }
    findings.require(highest > 1, "nothing was delivered more than once");
    findings.observe("highest_attempt", highest);
    findings.key_figure = format!("1 to {highest}");
}

/// How many messages there are to be handed back, and of how many at least it must be known where
/// they went: a few that bounce quickly may meet the same consumer each time by chance (seen).
const BOUNCED: u32 = 60;
const ENOUGH: usize = 3;

/// How often the one consumer hands a message back before it gives in.
const PATIENCE: u32 = 8;

async fn other_consumer(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut returner = stage.connect().await?.consumer(&subscription, 2).await?;
    let mut others = crew(stage, &subscription, 3, 2).await?;
    let mut publisher = director.publisher(&topic).await?;
    let until = stage.now() + nanos(stage.suite.ack_timeout);
    stage.mark("returner", i64::from(returner.number()));
    let returning = async {
        while let left @ 1.. = until.saturating_sub(stage.now()) {
            let linger = Duration::from_nanos(left);
            for delivery in returner.receive(1, linger).await? {
                match delivery.attempt {
                    Some(attempt) if attempt > PATIENCE => delivery.ack().await,
                    _ => delivery.nack(None).await,
                };
            }
        }
        Ok::<_, Halt>(())
    };
    let waiting = try_join_all(others.iter_mut().map(|other| other.ack_until(until)));
    let (_, returned, waited) = futures::join!(publisher.send(BOUNCED), returning, waiting);
    returned?;
    waited?;
    others.push(returner);
    stage.drain(&mut others).await
}

fn judge_other_consumer(evidence: &Evidence<'_>, findings: &mut Findings) {
    let returner = evidence.mark("returner").map_or(-1, |(_, n)| n);
    let (mut again, mut elsewhere) = (0, 0);
    let mut messages = std::collections::BTreeSet::new();
    for (before, after) in redeliveries(evidence, 0) {
        if i64::from(before.op.consumer) == returner && handed_back(before).is_some() {
            again += 1;
            messages.insert(before.publish);
            elsewhere += u64::from(after.op.consumer != before.op.consumer);
        }
    }
    findings.require(
        elsewhere > 0 || messages.len() >= ENOUGH || findings.has(NotRedelivered),
        "fewer than three messages that were handed back came again",
    );
    if messages.len() >= ENOUGH && elsewhere == 0 {
        findings.anomaly(StuckToOne, || {
            format!(
                "{again} deliveries were handed back by consumer {returner}; all came to it again"
            )
        });
    }
    findings.observe("redelivered", again);
    findings.observe("messages_redelivered", messages.len());
    findings.observe("to_another_consumer", elsewhere);
    findings.key_figure = format!("{elsewhere} of {again} elsewhere");
}

/// How often a message is delivered before it is moved away.
const DELIVERIES: u32 = 3;

/// A work queue with a dead-letter topic that has a subscription too.
async fn with_dead_letters(
    stage: &Stage,
    director: &super::stage::Connection<'_>,
) -> Result<(Topic, Subscription, Subscription), Halt> {
    let (graveyard, buried) = stage.work_queue(director).await?;
    let topic = stage.topic(director, Retention::UntilAcked, None).await?;
    let how = Subscribe { dead_letter: Some((DELIVERIES, &graveyard)), ..Subscribe::default() };
    let subscription = stage.subscribe(director, &topic, how).await?;
    Ok((topic, subscription, buried))
}

async fn bounded(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription, buried) = with_dead_letters(stage, &director).await?;
    let mut consumer = stage.connect().await?.consumer(&subscription, 16).await?;
    director.publisher(&topic).await?.send(9).await;
    // All deliveries of all messages take at most this long, and no more come afterwards.
    let timeout = stage.suite.ack_timeout + stage.capabilities.limits.ack_timeout_resolution;
    let until = stage.now() + nanos(timeout * DELIVERIES + stage.suite.tolerance * 2);
    let mut deliveries = 0;
    while let left @ 1.. = until.saturating_sub(stage.now()) {
        let linger = Duration::from_nanos(left);
        for delivery in consumer.receive(1, linger).await? {
            let crate::message::Seen::Known(id) = delivery.seen else { continue };
            deliveries += 1;
            match id.number % 3 {
                // A broker without the limit would go on for ever.
                _ if deliveries > 9 * DELIVERIES * 2 => drop(delivery.ack().await),
                0 => drop(delivery.nack(None).await),
                1 => {} // never settled
                _ if delivery.attempt.is_none_or(|a| a > 1) => drop(delivery.ack().await),
                _ => drop(delivery.nack(None).await),
            }
        }
    }
    let gravedigger = stage.connect().await?.consumer(&buried, 16).await?;
    stage.drain(&mut [consumer, gravedigger]).await
}

/// How many messages of the first subscription with a limit are in its dead-letter topic.
fn moved(evidence: &Evidence<'_>) -> usize {
    let limited = evidence.subscriptions.iter().find_map(|s| s.spec.dead_letter);
    let Some((_, to)) = limited else { return 0 };
    let came = |s: &crate::checker::evidence::Subscribed<'_>| {
        s.by_message.iter().filter(|d| !d.is_empty()).count()
    };
    evidence.on_topic(to).map(|(_, s)| came(s)).sum()
}

fn judge_bounded(evidence: &Evidence<'_>, findings: &mut Findings) {
    let limited = evidence.subscriptions.iter().find(|s| s.spec.dead_letter.is_some());
    let most = limited.and_then(|s| s.by_message.iter().map(Vec::len).max()).unwrap_or(0);
    let moved = moved(evidence);
    findings.require(most >= DELIVERIES as usize, "no message used up its deliveries");
    findings.require(
        moved > 0 || findings.has(NotDeadLettered) || findings.has(Unbounded),
        "nothing was moved",
    );
    findings.observe("most_deliveries", most);
    findings.observe("dead_lettered", moved);
    findings.key_figure = format!("{moved} moved after {most}");
}

async fn reject(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription, buried) = with_dead_letters(stage, &director).await?;
    let mut consumer = stage.connect().await?.consumer(&subscription, 10).await?;
    director.publisher(&topic).await?.send(10).await;
    let taken = consumer.take(10).await?;
    let (rejected, kept) = taken.split_at(taken.len() / 2);
    join_all(rejected.iter().map(Delivery::reject)).await;
    stage.ack_all(kept).await;
    let gravedigger = stage.connect().await?.consumer(&buried, 16).await?;
    stage.drain(&mut [consumer, gravedigger]).await
}

fn judge_reject(evidence: &Evidence<'_>, findings: &mut Findings) {
    let rejected = evidence.deliveries.iter().flat_map(|d| &d.settles);
    let rejected = rejected.filter(|s| s.how == How::Reject && s.accepted()).count();
    findings.require(rejected > 0, "nothing was rejected");
    findings.observe("rejected", rejected);
    findings.observe("dead_lettered", moved(evidence));
    findings.key_figure = format!("{} of {rejected} moved", moved(evidence));
}

/// Receives with all consumers, until a time of the ledger or until there are `most`, and keeps
/// all; each with the place of its consumer.
async fn keep<'s>(
    stage: &Stage,
    consumers: &mut [Consumer<'s>],
    until: u64,
    most: usize,
) -> Result<Vec<(usize, Delivery<'s>)>, Halt> {
    let kept = RefCell::new(Vec::new());
    let keeping = consumers.iter_mut().enumerate().map(async |(place, consumer)| {
        while let left @ 1.. = until.saturating_sub(stage.now())
            && kept.borrow().len() < most
        {
            let linger = Duration::from_nanos(left).min(stage.suite.tolerance / 10);
            let received = consumer.receive(most, linger).await?;
            kept.borrow_mut().extend(received.into_iter().map(|delivery| (place, delivery)));
        }
        Ok::<_, Halt>(())
    });
    try_join_all(keeping).await?;
    Ok(kept.into_inner())
}

async fn late_ack(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumers = vec![stage.connect().await?.consumer(&subscription, LATE).await?];
    let mut publisher = director.publisher(&topic).await?;
    // All that takes time happens before, but for what would compete for the first deliveries.
    let others = try_join_all((0..3).map(|_| stage.connect())).await?;
    let all = LATE as usize;
    let soon = stage.now() + nanos(stage.quiet());
    let (first, _) = futures::join!(keep(stage, &mut consumers, soon, all), publisher.send(LATE));
    let first = first?;
    // The locks pass, and the messages go to somebody again, most of them to one of the others.
    let open = others.iter().map(|other| other.consumer(&subscription, LATE));
    consumers.extend(try_join_all(open).await?);
    let until = stage.now() + nanos(stage.suite.ack_timeout + stage.suite.tolerance);
    let again = keep(stage, &mut consumers, until, usize::MAX).await?;
    let elsewhere = |(place, lapsed): &&(usize, Delivery<'_>)| {
        again.iter().any(|(other, held)| other != place && held.seen == lapsed.seen)
    };
    let late: Vec<_> = first.iter().filter(elsewhere).map(|(_, lapsed)| lapsed).collect();
    stage.mark("held-by-another", late.len() as i64);
    let answers = join_all(late.iter().map(|lapsed| lapsed.ack())).await;
    let refused = answers.iter().filter(|a| matches!(a, SettleOutcome::LeaseLost)).count();
    stage.mark("late-acks-refused", refused as i64);
    join_all(again.iter().map(async |(_, held)| {
        match late.iter().any(|lapsed| lapsed.seen == held.seen) {
            true => held.nack(None).await,
            false => held.ack().await,
        }
    }))
    .await;
    stage.drain(&mut consumers).await
}

/// How many messages there are whose locks pass.
const LATE: u32 = 20;

fn judge_late_ack(evidence: &Evidence<'_>, findings: &mut Findings) {
    let held = evidence.mark("held-by-another").map_or(0, |(_, n)| n);
    let refused = evidence.mark("late-acks-refused").map_or(0, |(_, n)| n);
    let back = evidence
        .subscriptions
        .first()
        .map_or(0, |s| s.by_message.iter().filter(|d| d.len() > 2).count());
    findings.require(held > 0, "nothing went to another consumer before the late acknowledgement");
    findings.observe("late_acks", held);
    findings.observe("late_acks_refused", refused);
    findings.observe("came_again_after", back);
    findings.key_figure = match refused {
        0 => format!("taken, {back} again"),
        _ => format!("{refused} refused, {back} again"),
    };
}
