//! What must be in the store, and so be delivered: holds for every property.
//!
//! Publishes of one topic and one deduplication key are copies of one message. Within the window
//! one of them is stored and the others are dropped; a publish without a key has no copies. From
//! this follow losses too: a message is lost when a receipt says that it was stored, and none of
//! its copies ever came.

use std::collections::{BTreeMap, HashMap};

use super::{
    AnomalyKind, Evidence, Findings,
    evidence::{PublishIndex, Sent, Subscribed, Time},
    words,
};
use crate::history::nanos;

/// Judges what was stored.
pub fn judge(evidence: &Evidence<'_>, findings: &mut Findings) {
    positions(evidence, findings);
    regressions(evidence, findings);
    for copies in groups(evidence) {
        stored_twice(evidence, &copies, findings);
        dropped_for_nothing(evidence, &copies, findings);
        for subscription in &evidence.subscriptions {
            missing(evidence, subscription, &copies, findings);
        }
    }
}

/// The publishes of each topic and key (or name and number), in the order of their invocation; one
/// without a key is alone.
fn groups(evidence: &Evidence<'_>) -> Vec<Vec<PublishIndex>> {
    let mut keyed: BTreeMap<(u16, &str, u64), Vec<PublishIndex>> = BTreeMap::new();
    let mut groups = Vec::new();
    for (index, sent) in evidence.publishes.iter().enumerate() {
        let id = sent.op.key.map(|key| ("", u64::from(key)));
        match id.or(evidence.numbered(index)) {
            Some((name, key)) => keyed.entry((sent.op.topic, name, key)).or_default().push(index),
            None => groups.push(vec![index]),
        }
    }
    groups.extend(keyed.into_values());
    for group in groups.iter_mut().filter(|g| g.len() > 1) {
        group.sort_by_key(|&i| evidence.publishes[i].at.0);
    }
    groups
}

/// How long the key of a publish is remembered: a number under a name has no window.
fn window(evidence: &Evidence<'_>, publish: PublishIndex) -> Time {
    let op = evidence.publishes[publish].op;
    let topic = &evidence.topics[usize::from(op.topic)];
    topic.dedup_window.filter(|_| op.sequence.is_none()).unwrap_or(Time::MAX)
}

/// The other publishes under the name of this one whose numbers are not below its own: that one of
/// them was stored before is what makes a number a duplicate.
fn not_below<'e>(
    evidence: &'e Evidence<'_>,
    publish: PublishIndex,
) -> impl Iterator<Item = PublishIndex> + 'e {
    let series = evidence.numbered(publish);
    let topic = evidence.publishes[publish].op.topic;
    let all = series.map_or(0, |_| evidence.publishes.len());
    (0..all).filter(move |&other| {
        let Some((name, number)) = series.filter(|_| other != publish) else { return false };
        evidence.publishes[other].op.topic == topic
            && evidence.numbered(other).is_some_and(|(n, higher)| n == name && higher >= number)
    })
}

/// A number that came to be stored though a higher one of its name was stored for certain before
/// it was published. (Equal ones are copies, and judged as such.)
fn regressions(evidence: &Evidence<'_>, findings: &mut Findings) {
    for (index, late) in evidence.publishes.iter().enumerate() {
        if late.op.sequence.is_none() || late.delivered.is_none() {
            continue;
        }
        let before = not_below(evidence, index).find(|&other| {
            let higher = &evidence.publishes[other];
            other < index
                && higher.op.sequence > late.op.sequence
                && higher.stored()
                && higher.at.1 <= late.at.0
        });
        if let Some(higher) = before {
            findings.anomaly(AnomalyKind::SequenceRegressed, || {
                let number = |i: PublishIndex| evidence.publishes[i].op.sequence.unwrap_or(0);
                format!(
                    "{}, number {}, was stored after {}, number {}, of the same name",
                    evidence.name(index),
                    number(index),
                    evidence.name(higher),
                    number(higher)
                )
            });
        }
    }
}

/// How late a key may be forgotten.
fn forgotten_within(evidence: &Evidence<'_>) -> Time {
    nanos(evidence.header.capabilities.limits.dedup_window_resolution) + evidence.tolerance()
}

/// Two copies in the store though the second arrived within the window of the first.
fn stored_twice(evidence: &Evidence<'_>, copies: &[PublishIndex], findings: &mut Findings) {
    let sent = |i: PublishIndex| &evidence.publishes[i];
    let there = |&i: &PublishIndex| sent(i).delivered.is_some();
    let stored: Vec<_> = copies.iter().copied().filter(there).collect();
    for pair in stored.windows(2) {
        let (first, second) = (sent(pair[0]), sent(pair[1]));
        let arrived = latest_arrival(evidence, second);
        let span = arrived.saturating_sub(first.at.0);
        if span.saturating_add(evidence.slack()) < window(evidence, pair[0]) {
            findings.anomaly(AnomalyKind::DuplicateStored, || {
                format!(
                    "{} and {} have one key, were published within {}, and both were delivered",
                    evidence.name(pair[0]),
                    evidence.name(pair[1]),
                    words(span)
                )
            });
        }
    }
}

/// When a publish has reached the broker at the latest.
fn latest_arrival(evidence: &Evidence<'_>, sent: &Sent<'_>) -> Time {
    let received = sent.delivered.map_or(Time::MAX, |d| evidence.deliveries[d].at.1);
    if sent.confirmed() { sent.at.1.min(received) } else { received }
}

/// A receipt says duplicate, and there is nothing that it can repeat.
fn dropped_for_nothing(evidence: &Evidence<'_>, copies: &[PublishIndex], findings: &mut Findings) {
    for &index in copies {
        let dropped = &evidence.publishes[index];
        if !dropped.dropped() {
            continue;
        }
        let window = window(evidence, index);
        let higher = |&other: &PublishIndex| {
            let other = &evidence.publishes[other];
            other.possible() && !other.dropped() && other.at.0 <= dropped.at.1
        };
        let below_another = not_below(evidence, index).any(|other| higher(&other));
        // Some copy must have come first and not have been dropped itself …
        let original = |&&i: &&PublishIndex| {
            let other = &evidence.publishes[i];
            i != index && other.possible() && !other.dropped() && other.at.0 <= dropped.at.1
        };
        // … and some copy, dropped or not (a window may slide), within the window before.
        let remembered = |&i: &PublishIndex| {
            let other = &evidence.publishes[i];
            let until =
                other.at.1.saturating_add(window).saturating_add(forgotten_within(evidence));
            i != index && other.possible() && other.at.0 <= dropped.at.1 && dropped.at.0 <= until
        };
        let originals: Vec<_> = copies.iter().filter(original).collect();
        if !below_another && (originals.is_empty() || !copies.iter().any(remembered)) {
            findings.anomaly(AnomalyKind::FalseDuplicate, || {
                let name = evidence.name(index);
                match copies.len() {
                    1 => format!("{name}: its receipt says duplicate, and no other has its key"),
                    _ => format!(
                        "{name}: its receipt says duplicate, and no message of its key was stored within the window of {}",
                        words(window)
                    ),
                }
            });
        }
        if evidence.publishes[index].delivered.is_some() {
            findings.anomaly(AnomalyKind::ReceiptContradicted, || {
                format!(
                    "{}: its receipt says dropped as a duplicate, and it was delivered",
                    evidence.name(index)
                )
            });
        }
        if let Some(position) = dropped.position()
            && !originals.is_empty()
            && originals
                .iter()
                .all(|&&i| evidence.publishes[i].position().is_some_and(|p| p != position))
        {
            findings.anomaly(AnomalyKind::ReceiptContradicted, || {
                format!(
                    "{}: its receipt gives position {position}, where no message of its key is",
                    evidence.name(index)
                )
            });
        }
    }
}

/// A message that is stored for certain, and never came to a subscription that was drained.
fn missing(
    evidence: &Evidence<'_>,
    subscription: &Subscribed<'_>,
    copies: &[PublishIndex],
    findings: &mut Findings,
) {
    let Some(topic) = copies.first().map(|&i| evidence.publishes[i].op.topic) else { return };
    if topic != subscription.spec.topic {
        return;
    }
    let came = |i: PublishIndex| !subscription.by_message[i].is_empty();
    // A subscription that begins with the next message is owed what was published after it was
    // there, and nothing that was stored before it was asked for.
    if !subscription.spec.earliest {
        for &i in copies {
            let sent = &evidence.publishes[i];
            if came(i) && sent.confirmed() && sent.at.1 < subscription.created.0 {
                findings.anomaly(AnomalyKind::BeforeStart, || {
                    format!(
                        "{}, stored by {}, came to a subscription made at {} that begins with the next message",
                        evidence.name(i),
                        words(sent.at.1),
                        words(subscription.created.0)
                    )
                });
            }
        }
    }
    let owed = |i: PublishIndex| {
        subscription.spec.earliest || evidence.publishes[i].at.0 >= subscription.created.1
    };
    let Some(drained) = subscription.drained else { return };
    let any_came = copies.iter().any(|&i| came(i));
    for &i in copies {
        let sent = &evidence.publishes[i];
        if !sent.stored() || came(i) || !owed(i) {
            continue;
        }
        if delayed_until(evidence, sent) > drained {
            findings.undecided("the drain ended before every delayed message was due");
            continue;
        }
        let told = evidence.publishes[i].op.outcome
            == crate::history::Published::Confirmed {
                duplicate: Some(false),
                position: sent.position(),
            };
        let repeats =
            not_below(evidence, i).any(|j| came(j) && evidence.publishes[j].at.0 < sent.at.1);
        // Where receipts do not tell, only one copy of a key need come.
        if (any_came || repeats) && !told {
            continue;
        }
        let beside = repeats
            || copies.iter().any(|&j| {
                j != i
                    && came(j)
                    && evidence.publishes[j].at.0.abs_diff(sent.at.0) < window(evidence, i)
            });
        let kind = if beside { AnomalyKind::UnreportedDuplicate } else { AnomalyKind::Lost };
        findings.anomaly(kind, || {
            let name = evidence.name(i);
            let at = words(sent.at.1);
            match beside {
                true => format!(
                    "{name}: its receipt of {at} says stored; another copy of its key came instead"
                ),
                false => format!(
                    "{name}: confirmed at {at}, not delivered to subscription {} by {}",
                    subscription.spec.subscription,
                    words(drained)
                ),
            }
        });
    }
    // All receipts say duplicate, or nothing is known of the original: one must still be there.
    let claimed = copies.iter().any(|&i| evidence.publishes[i].dropped() && owed(i));
    let stored = copies.iter().any(|&i| evidence.publishes[i].stored());
    if claimed && !stored && !any_came && copies.len() > 1 {
        findings.anomaly(AnomalyKind::Lost, || {
            format!(
                "{}: a receipt says duplicate, and no copy of its key came",
                evidence.name(copies[0])
            )
        });
    }
}

/// When a message must have come at the latest: at once, unless it was published with a delay.
fn delayed_until(evidence: &Evidence<'_>, sent: &Sent<'_>) -> Time {
    let resolution = nanos(evidence.header.capabilities.limits.publish_delay_resolution);
    let due = |delay: Time| sent.at.1.saturating_add(delay).saturating_add(resolution);
    sent.op.delay.map_or(0, |delay| due(delay).saturating_add(evidence.tolerance()))
}

/// Whether positions are what receipts and deliveries say they are.
fn positions(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut taken: HashMap<(u16, u64), PublishIndex> = HashMap::new();
    for (index, sent) in evidence.publishes.iter().enumerate() {
        let Some(position) = sent.position().filter(|_| sent.stored()) else { continue };
        if let Some(other) = taken.insert((sent.op.topic, position), index) {
            findings.anomaly(AnomalyKind::ReceiptContradicted, || {
                format!(
                    "the receipts of {} and {} give one position, {position}",
                    evidence.name(other),
                    evidence.name(index)
                )
            });
        }
    }
    // A redelivery is of the stored message: another position is another stored message.
    for subscription in &evidence.subscriptions {
        for (publish, deliveries) in subscription.by_message.iter().enumerate() {
            let mut seen = deliveries.iter().filter_map(|&d| evidence.deliveries[d].op.position);
            let Some(first) = seen.next() else { continue };
            if let Some(other) = seen.find(|&position| position != first) {
                findings.anomaly(AnomalyKind::DuplicateStored, || {
                    format!(
                        "{}, published once, was delivered from positions {first} and {other}",
                        evidence.name(publish)
                    )
                });
            }
        }
    }
}
