//! Who may be given what, and when: holds for every property.
//!
//! For each message in each subscription the deliveries are put into the order of the broker's
//! making, and each but the first needs a cause: an earlier delivery that was handed back, timed
//! out, or whose consumer was gone. The earliest moment at which a cause can have worked is
//! computed from below, so that a breach is a breach under every reading of the history.

use super::{
    AnomalyKind, Evidence, Findings,
    evidence::{Delivered, PublishIndex, Settled, Subscribed, Time},
    words,
};
use crate::{
    history::{How, SettleOutcome, nanos},
    message::Seen,
};

/// When a delivery can have lost its lock at the earliest, and why.
#[derive(Debug, Clone, Copy)]
struct Release {
    at: Time,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Acked,
    Nacked,
    TimedOut,
    Gone,
}

/// Never, in a history.
const NEVER: Time = Time::MAX;

/// Judges all deliveries.
pub fn judge(evidence: &Evidence<'_>, findings: &mut Findings) {
    for delivery in &evidence.deliveries {
        identity(evidence, delivery, findings);
    }
    for subscription in &evidence.subscriptions {
        for (publish, deliveries) in subscription.by_message.iter().enumerate() {
            causes(evidence, subscription, publish, deliveries, findings);
            attempts(evidence, publish, deliveries, findings);
            if let Some(drained) = subscription.drained {
                ending(evidence, subscription, publish, deliveries, drained, findings);
            }
        }
    }
    dead_letters(evidence, findings);
}

/// Whether what was delivered is what was published.
fn identity(evidence: &Evidence<'_>, delivery: &Delivered<'_>, findings: &mut Findings) {
    let op = delivery.op;
    let here = || {
        format!(
            "consumer {} of subscription {} at {}",
            op.consumer,
            op.subscription,
            words(delivery.at.1)
        )
    };
    let Some(index) = delivery.publish else {
        match op.seen {
            Seen::Damaged => findings.anomaly(AnomalyKind::Corrupt, || {
                format!("{} was given {} bytes that were changed on their way", here(), op.len)
            }),
            Seen::Nameless => findings.anomaly(AnomalyKind::Phantom, || {
                format!("{} was given {} bytes that nobody published", here(), op.len)
            }),
            Seen::Foreign => findings.anomaly(AnomalyKind::Phantom, || {
                format!("{} was given another run's message", here())
            }),
            Seen::Known(id) => findings.anomaly(AnomalyKind::Phantom, || {
                format!(
                    "{} was given message {}/{}, never published",
                    here(),
                    id.publisher,
                    id.number
                )
            }),
        }
        return;
    };
    let sent = &evidence.publishes[index];
    let name = || evidence.name(index);
    let topic = evidence.subscription(delivery).spec.topic;
    let is_dead_letter = |s: &Subscribed<'_>| s.spec.dead_letter.is_some_and(|(_, to)| to == topic);
    if sent.op.topic != topic && !evidence.on_topic(sent.op.topic).any(|(_, s)| is_dead_letter(s)) {
        findings.anomaly(AnomalyKind::Phantom, || {
            format!("{} was given {}, published on topic {}", here(), name(), sent.op.topic)
        });
    }
    if delivery.at.1 < sent.at.0 {
        findings.anomaly(AnomalyKind::Phantom, || {
            format!(
                "{} was given {} before it was published at {}",
                here(),
                name(),
                words(sent.at.0)
            )
        });
    }
    // The broker can have begun to wait when the publish was invoked, and not before.
    let early = nanos(evidence.header.capabilities.limits.publish_delay_early);
    let due = sent.at.0.saturating_add(sent.op.delay.unwrap_or(0)).saturating_sub(early);
    if delivery.at.1.saturating_add(evidence.slack()) < due && sent.op.delay.is_some() {
        findings.anomaly(AnomalyKind::EarlyDelivery, || {
            format!(
                "{} was given {}, published at {} to be delivered no earlier than {}",
                here(),
                name(),
                words(sent.at.0),
                words(due)
            )
        });
    }
    if (op.len, op.body) != (sent.op.len, sent.op.body) {
        findings.anomaly(AnomalyKind::Corrupt, || {
            format!(
                "{} was given {} with another payload: {} bytes for {}",
                here(),
                name(),
                op.len,
                sent.op.len
            )
        });
    } else if op.extra != sent.op.extra {
        findings.anomaly(AnomalyKind::Corrupt, || {
            format!("{} was given {} with another key or other headers", here(), name())
        });
    }
    if !sent.possible() {
        findings.anomaly(AnomalyKind::RejectedDelivered, || {
            format!("{} was given {}, whose publish ended {:?}", here(), name(), sent.op.outcome)
        });
    }
    // A moved message has another position than the one it was published at.
    if sent.op.topic == topic
        && let (Some(receipt), Some(position)) = (sent.position(), op.position)
        && sent.stored()
        && receipt != position
    {
        findings.anomaly(AnomalyKind::ReceiptContradicted, || {
            format!(
                "the receipt of {} says position {receipt}, {} got it at {position}",
                name(),
                here()
            )
        });
    }
}

/// Whether each delivery after the first had a cause.
fn causes(
    evidence: &Evidence<'_>,
    subscription: &Subscribed<'_>,
    publish: PublishIndex,
    deliveries: &[usize],
    findings: &mut Findings,
) {
    if deliveries.len() < 2 {
        return;
    }
    let delivered = |d: usize| &evidence.deliveries[d];
    let mut releases: Vec<Release> = Vec::with_capacity(deliveries.len());
    for (nth, &index) in deliveries.iter().enumerate() {
        let delivery = delivered(index);
        // It was assigned before it was received, and before any later one was.
        let assigned_by =
            deliveries[nth..].iter().map(|&d| delivered(d).at.1).min().unwrap_or(delivery.at.1);
        let held = releases
            .iter()
            .zip(deliveries)
            .find(|(release, _)| release.at > assigned_by.saturating_add(evidence.slack()));
        if let Some((release, &earlier)) = held {
            let earlier = delivered(earlier);
            let recounted = delivery.op.attempt > earlier.op.attempt;
            let kind = match release.why {
                Why::Acked
                    if accepted_ack(earlier).is_some_and(|ack| ack.place < delivery.place) =>
                {
                    AnomalyKind::RedeliveredAfterAck
                }
                Why::Nacked => AnomalyKind::EarlyRedelivery,
                // Acknowledged later: at that time it was held.
                Why::Acked | Why::TimedOut if recounted => AnomalyKind::EarlyRedelivery,
                _ => AnomalyKind::DuplicateDelivery,
            };
            findings.anomaly(kind, || {
                let until = match release.why {
                    Why::Acked => format!(
                        "acknowledged by {}",
                        words(accepted_ack(earlier).map_or(NEVER, |ack| ack.at.1))
                    ),
                    Why::Nacked => format!("handed back until {}", words(release.at)),
                    Why::TimedOut | Why::Gone => format!("locked until {}", words(release.at)),
                };
                format!(
                    "{}: given to consumer {} at {}, {until}; given to consumer {} at {}",
                    evidence.name(publish),
                    earlier.op.consumer,
                    words(earlier.at.1),
                    delivery.op.consumer,
                    words(delivery.at.1),
                )
            });
        }
        let after = releases.iter().map(|r| r.at).filter(|&at| at != NEVER).max().unwrap_or(0);
        let consumer = &evidence.consumers[usize::from(delivery.op.consumer)];
        let locked_from = evidence.publishes[publish]
            .at
            .0
            .max(subscription.created.0)
            .max(consumer.opened.0)
            .max(after)
            .min(delivery.at.1);
        let before = deliveries[..nth].iter().map(|&d| delivered(d));
        releases.push(release(evidence, subscription, delivery, locked_from, before));
    }
}

/// The accepted acknowledgement or rejection of a delivery.
fn accepted_ack<'d, 'h>(delivery: &'d Delivered<'h>) -> Option<&'d Settled<'h>> {
    let ends = |how| matches!(how, How::Ack | How::Reject);
    delivery.settles.iter().find(|s| ends(s.how) && s.accepted())
}

/// The earliest moment at which a delivery, locked no earlier than `locked_from`, can have been
/// free for another one.
///
/// A former holder may hand a message back after it lost its lock. NATS 2.15 takes that for a nack
/// of the present delivery (measured); so it counts as a cause here, whoever may be blamed.
fn release<'d, 'h: 'd>(
    evidence: &Evidence<'_>,
    subscription: &Subscribed<'_>,
    delivery: &Delivered<'_>,
    locked_from: Time,
    before: impl Iterator<Item = &'d Delivered<'h>>,
) -> Release {
    let timeout = subscription.spec.ack_timeout;
    let mut expiry = locked_from.saturating_add(timeout);
    let mut earliest = Release { at: NEVER, why: Why::Acked };
    if let Some(at) = gone_since(evidence, delivery, locked_from) {
        earliest = Release { at, why: Why::Gone };
    }
    for settle in before.flat_map(|former| &former.settles) {
        if let How::Nack(delay) = settle.how
            && settle.possible()
            && settle.at.1 >= locked_from
        {
            let at = settle.at.0.max(locked_from).saturating_add(delay);
            if at < earliest.at {
                earliest = Release { at, why: Why::Nacked };
            }
        }
    }
    for settle in &delivery.settles {
        // A settlement that was merely sent has arrived after the tolerance.
        let arrived = match settle.outcome {
            SettleOutcome::Confirmed => settle.at.1,
            _ => settle.at.1.saturating_add(evidence.tolerance()),
        };
        let in_time = settle.accepted() && arrived <= expiry.min(earliest.at);
        match settle.how {
            How::Touch if in_time => expiry = expiry.max(settle.at.0.saturating_add(timeout)),
            How::Ack | How::Reject if in_time => return Release { at: NEVER, why: Why::Acked },
            How::Nack(delay) if settle.possible() => {
                let at = settle.at.0.saturating_add(delay);
                if at < earliest.at {
                    earliest = Release { at, why: Why::Nacked };
                }
                // Handed back in time it is no longer locked: its delay alone counts.
                if in_time {
                    return earliest;
                }
            }
            _ => {}
        }
    }
    if expiry < earliest.at { Release { at: expiry, why: Why::TimedOut } } else { earliest }
}

/// When the consumer of a delivery was gone first, at or after this time.
fn gone_since(evidence: &Evidence<'_>, delivery: &Delivered<'_>, from: Time) -> Option<Time> {
    let consumer = &evidence.consumers[usize::from(delivery.op.consumer)];
    let ended = &evidence.connections[consumer.connection].ended;
    ended.iter().copied().chain(consumer.left).filter(|&at| at >= from).min()
}

/// When the consumer of a delivery was gone after it had received it.
fn gone(evidence: &Evidence<'_>, delivery: &Delivered<'_>) -> Option<Time> {
    gone_since(evidence, delivery, delivery.at.0)
}

/// Whether the broker's count of deliveries can be right.
fn attempts(
    evidence: &Evidence<'_>,
    publish: PublishIndex,
    deliveries: &[usize],
    findings: &mut Findings,
) {
    let forgets = evidence.header.capabilities.limits.attempts_forget_disconnects;
    let (mut before, mut seen) = (0, 0);
    for (nth, &index) in deliveries.iter().enumerate() {
        let delivery = &evidence.deliveries[index];
        let Some(attempt) = delivery.op.attempt else { return };
        // A message that was acknowledged, if only by a former holder, has no count any more.
        let done = |&earlier: &usize| {
            let mut settles = evidence.deliveries[earlier].settles.iter();
            settles.any(|s| matches!(s.how, How::Ack | How::Reject) && s.place < delivery.place)
        };
        if deliveries[..nth].iter().any(done) {
            return;
        }
        // Where the broker says so, those do not count whose consumer was gone.
        let forgotten = forgets
            && nth.checked_sub(1).is_some_and(|last| {
                let last = &evidence.deliveries[deliveries[last]];
                gone(evidence, last).is_some_and(|at| at <= delivery.at.1)
            });
        seen += usize::from(!forgotten);
        // They are in the order of their counts. Deliveries that nobody saw may have counted; those
        // that were seen must have.
        if (attempt as usize) < seen || attempt == before && !forgotten {
            findings.anomaly(AnomalyKind::WrongAttempt, || {
                format!(
                    "{}: delivery {} of it, at {}, says attempt {attempt}",
                    evidence.name(publish),
                    nth + 1,
                    words(delivery.at.1)
                )
            });
        }
        before = attempt;
    }
}

/// Whether a message that was delivered and not settled for good has come back, by the end of a
/// drain. (Whether it was delivered at all is [`super::dedup`]'s business, which knows the copies.)
fn ending(
    evidence: &Evidence<'_>,
    subscription: &Subscribed<'_>,
    publish: PublishIndex,
    deliveries: &[usize],
    drained: Time,
    findings: &mut Findings,
) {
    let Some(last) = deliveries.last().map(|&d| &evidence.deliveries[d]) else { return };
    let done = |d: &Delivered<'_>| {
        d.settles.iter().any(|s| matches!(s.how, How::Ack | How::Reject) && s.possible())
    };
    if deliveries.iter().any(|&d| done(&evidence.deliveries[d])) {
        return;
    }
    if let Some((limit, _)) = subscription.spec.dead_letter
        && deliveries.len() >= limit as usize
    {
        return; // It belongs into the dead-letter topic.
    }
    let extended = last.settles.iter().filter(|s| s.how == How::Touch).map(|s| s.at.1).max();
    let mut due = extended.unwrap_or(last.at.1).max(last.at.1) + subscription.spec.ack_timeout;
    for settle in &last.settles {
        if let (How::Nack(delay), true) = (settle.how, settle.accepted()) {
            due = settle.at.1.saturating_add(delay);
        }
    }
    if due.saturating_add(evidence.tolerance() / 2) <= drained {
        findings.anomaly(AnomalyKind::NotRedelivered, || {
            format!(
                "{}: last given to consumer {} at {}, not acknowledged, due again by {}, not back by {}",
                evidence.name(publish),
                last.op.consumer,
                words(last.at.1),
                words(due),
                words(drained)
            )
        });
    } else {
        findings.undecided("the drain ended before every unsettled message was due again");
    }
}

/// Whether messages go to the dead-letter topic when, and only when, they have used up their
/// deliveries.
fn dead_letters(evidence: &Evidence<'_>, findings: &mut Findings) {
    for subscription in &evidence.subscriptions {
        let Some((limit, to)) = subscription.spec.dead_letter else { continue };
        let graveyards: Vec<_> = evidence.on_topic(to).map(|(_, s)| s).collect();
        let drained = subscription.drained.is_some()
            && !graveyards.is_empty()
            && graveyards.iter().all(|s| s.drained.is_some());
        for (publish, deliveries) in subscription.by_message.iter().enumerate() {
            if deliveries.len() > limit as usize {
                findings.anomaly(AnomalyKind::Unbounded, || {
                    let (name, n) = (evidence.name(publish), deliveries.len());
                    format!("{name}: {n} deliveries, and the limit is {limit}")
                });
            }
            let settled = |how: fn(How) -> bool| {
                deliveries.iter().any(|&d| {
                    evidence.deliveries[d].settles.iter().any(|s| how(s.how) && s.possible())
                })
            };
            let rejected = settled(|how| how == How::Reject);
            let acked = settled(|how| how == How::Ack);
            let moved = graveyards.iter().any(|s| !s.by_message[publish].is_empty());
            // Deliveries that nobody saw count too, where the broker tells of them.
            let counted = deliveries.iter().filter_map(|&d| evidence.deliveries[d].op.attempt);
            let used_up = deliveries.len() >= limit as usize || counted.max() >= Some(limit);
            if moved && !rejected && !used_up {
                findings.anomaly(AnomalyKind::EarlyDeadLetter, || {
                    let (name, n) = (evidence.name(publish), deliveries.len());
                    format!("{name}: moved after {n} of {limit} deliveries")
                });
            }
            if !moved && drained && (rejected || used_up && !acked) {
                findings.anomaly(AnomalyKind::NotDeadLettered, || {
                    let (name, n) = (evidence.name(publish), deliveries.len());
                    format!(
                        "{name}: {n} deliveries, the limit is {limit}, not in the dead-letter topic"
                    )
                });
            }
        }
    }
}
