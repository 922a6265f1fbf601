//! What operations answered, and what that says about the environment: holds for every property.

use super::{AnomalyKind, Evidence, Findings, words};
use crate::history::{How, Published, SettleOutcome};
use queueproof_backends::RejectKind;

/// Judges the answers.
pub fn judge(evidence: &Evidence<'_>, findings: &mut Findings) {
    connections(evidence, findings);
    publishes(evidence, findings);
    settlements(evidence, findings);
}

/// A connection that was lost and that nobody cut: the environment failed.
fn connections(evidence: &Evidence<'_>, findings: &mut Findings) {
    let unplanned: u64 =
        evidence.connections.iter().map(|c| c.disconnects.saturating_sub(c.cuts)).sum();
    if unplanned > 0 {
        findings.observe("connections_lost", unplanned);
        findings.disturbed(format!(
            "the connection to the broker was lost {unplanned} time(s) without being cut"
        ));
    }
}

fn publishes(evidence: &Evidence<'_>, findings: &mut Findings) {
    // A limit that the scenario itself set is no failure of the environment.
    let limited = |topic: u16| evidence.topics[usize::from(topic)].max_messages.is_some();
    let mut unconfirmed = 0;
    let mut example = String::new();
    for (index, sent) in evidence.publishes.iter().enumerate() {
        let faulted = evidence.connections[sent.connection].faulted;
        match &sent.op.outcome {
            Published::Confirmed { .. } => {}
            Published::Rejected(
                RejectKind::LimitReached | RejectKind::NotAllowed | RejectKind::NoTopic,
                reason,
            ) if !sent.op.illegal && !limited(sent.op.topic) => {
                findings
                    .disturbed(format!("the broker refused {}: {reason}", evidence.name(index)));
            }
            Published::Rejected(kind, reason) if !sent.op.illegal => {
                findings.anomaly(AnomalyKind::Refused, || {
                    format!("{}, {} bytes: {kind:?}: {reason}", evidence.name(index), sent.op.len)
                });
            }
            Published::Rejected(..) => {}
            Published::NotSent(reason)
            | Published::Indeterminate(reason)
            | Published::Failed(reason) => {
                if !faulted {
                    unconfirmed += 1;
                    example.clone_from(reason);
                }
            }
        }
    }
    if unconfirmed > 0 {
        findings.undecided(format!(
            "{unconfirmed} publish(es) on a healthy connection got no confirmation: {example}"
        ));
    }
}

fn settlements(evidence: &Evidence<'_>, findings: &mut Findings) {
    let mut unanswered = 0;
    let mut example = String::new();
    for delivery in &evidence.deliveries {
        let consumer = &evidence.consumers[usize::from(delivery.op.consumer)];
        if evidence.connections[consumer.connection].faulted {
            continue;
        }
        // The lock lasts at least this long after the broker made it; a delivery that may have
        // waited in a prefetch has no such bound.
        let timeout = evidence.subscription(delivery).spec.ack_timeout;
        let locked_from = delivery.publish.map_or(0, |p| evidence.publishes[p].at.0);
        for (nth, settle) in delivery.settles.iter().enumerate() {
            match settle.outcome {
                SettleOutcome::Confirmed | SettleOutcome::Sent => {}
                SettleOutcome::Indeterminate(reason) | SettleOutcome::NotSent(reason) => {
                    unanswered += 1;
                    example.clone_from(reason);
                }
                SettleOutcome::LeaseLost => {
                    let first = delivery.settles[..nth].iter().all(|s| s.how == How::Touch);
                    let late = settle.at.1.saturating_sub(locked_from);
                    if first && late < timeout && consumer.left.is_none() {
                        findings.anomaly(AnomalyKind::FalseLeaseLost, || {
                            format!(
                                "consumer {}: {:?} was refused as too late {} after the publish, and the ack timeout is {}",
                                delivery.op.consumer,
                                settle.how,
                                words(late),
                                words(timeout)
                            )
                        });
                    }
                }
            }
        }
    }
    if unanswered > 0 {
        findings.undecided(format!(
            "{unanswered} settlement(s) on a healthy connection got no answer: {example}"
        ));
    }
}
