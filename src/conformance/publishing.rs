//! `pubsub/`: what a publisher can ask for: a delay, the topic for itself, a name for the topic.

use std::{cell::Cell, time::Duration};

use futures::future::{Either, select};
use queueproof_backends::{
    Access,
    Capability::{DelayedPublish, ExclusivePublisher, WorkQueue},
    PublisherOptions,
    flawed::Flaw,
};

use super::{Property, Stage, stage::Draft};
use crate::{
    checker::{
        AnomalyKind::{
            ConnectionLost, EarlyDelivery, IllegalNameTaken, LateDelivery, NoHandOver, TwoExclusive,
        },
        Evidence, Findings, millis,
        timing::{Spans, late},
        words,
    },
    flaw::Flaw::Backend,
    history::{Halt, nanos},
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "pubsub/delayed",
        title: "A delayed message is delivered after its delay, and holds nobody up.",
        doc: "Messages with a delay and messages without one are published in turn while a \
              consumer waits. None of the delayed may come before its delay has passed since the \
              publish, nor later than that and the tolerance; the others must come at once.",
        needs: &[WorkQueue, DelayedPublish],
        catches: &[
            (Backend(Flaw::IgnoreDelay), EarlyDelivery),
            (Backend(Flaw::DelayLonger), LateDelivery),
        ],
        scenario: |stage| Box::pin(delayed(stage)),
        judge: judge_delayed,
    },
    Property {
        id: "pubsub/exclusive-publisher",
        title: "The broker lets one exclusive publisher in, and the next when that is gone.",
        doc: "While a publisher has the topic for itself, another that wants it at once must be \
              refused, and one that waits must wait. When the first closes, the waiting one must be \
              let in; when that one's connection is cut, the next. The figures are the times of \
              the hand-over: what a scheduler's fail-over costs.",
        needs: &[WorkQueue, ExclusivePublisher],
        catches: &[
            (Backend(Flaw::AdmitTwoExclusive), TwoExclusive),
            (Backend(Flaw::NeverHandOver), NoHandOver),
        ],
        scenario: |stage| Box::pin(exclusive(stage)),
        judge: judge_exclusive,
    },
    Property {
        id: "pubsub/names",
        title: "A name that the broker would not take is refused before anything is sent.",
        doc: "Topics are asked for with names that are empty, too long, or hold what means \
              something to a protocol. Each must be refused as an invalid name, and the connection \
              must live on.",
        needs: &[WorkQueue],
        catches: &[(Backend(Flaw::TakeIllegalName), IllegalNameTaken)],
        scenario: |stage| Box::pin(names(stage)),
        judge: judge_names,
    },
];

/// The delay: so long that coming at once is too early, however early the broker may be.
fn delay(stage: &Stage) -> Duration {
    stage.suite.nack_delay + stage.capabilities.limits.publish_delay_early * 2
}

async fn delayed(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let mut consumers = [stage.connect().await?.consumer(&subscription, 64).await?];
    let mut publisher = stage.connect().await?.publisher(&topic).await?;
    let over = Cell::new(u64::MAX);
    let limits = &stage.capabilities.limits;
    let longest = delay(stage) + limits.publish_delay_resolution;
    let publishing = async {
        for _ in 0..10 {
            let delay = Some(delay(stage));
            publisher.publish(Draft { delay, ..Draft::default() }).await;
            publisher.publish(Draft::default()).await;
        }
        over.set(stage.now() + nanos(longest));
    };
    // The delayed ones may come after what counts as quiet.
    let receiving = async {
        while stage.now() < over.get() {
            consumers[0].ack_until(stage.now() + nanos(stage.suite.tolerance / 10)).await?;
        }
        Ok::<_, Halt>(())
    };
    futures::join!(publishing, receiving).1?;
    stage.drain(&mut consumers).await
}

fn judge_delayed(evidence: &Evidence<'_>, findings: &mut Findings) {
    let limits = &evidence.header.capabilities.limits;
    let resolution = nanos(limits.publish_delay_resolution);
    let mut spans = Spans::default();
    let (mut at_once, mut delays) = (0, 0);
    for (index, sent) in evidence.publishes.iter().enumerate().filter(|(_, p)| p.stored()) {
        let Some(first) = sent.delivered.map(|d| &evidence.deliveries[d]) else { continue };
        let due = match sent.op.delay {
            Some(delay) => {
                spans.add(first.at.1.saturating_sub(sent.at.0));
                delays = delay;
                sent.at.1 + delay + resolution
            }
            None => {
                at_once += 1;
                sent.at.1
            }
        };
        late(evidence, findings, LateDelivery, (due, first.at.1), || evidence.name(index));
    }
    findings.require(!spans.is_empty(), "no delayed message was delivered");
    findings.require(at_once > 0, "no other message was delivered");
    findings.observe("without_delay", at_once);
    findings.observe("delay_ms", millis(delays));
    findings.observe("may_be_early_by_ms", limits.publish_delay_early.as_millis() as u64);
    spans.observe("delivered", findings);
    if !limits.publish_delay_early.is_zero() {
        findings.key_figure.push_str(&format!(", due {}", words(delays)));
    }
}

async fn exclusive(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let asking = |access| PublisherOptions { access, ..PublisherOptions::default() };
    let patience = stage.suite.tolerance * 4;
    let mut first = director.publisher_with(&topic, asking(Access::Exclusive)).await?;
    first.publish(Draft::default()).await;
    let second = stage.connect().await?;
    let beside = second.ask_publisher(&topic, asking(Access::Exclusive)).await?;
    stage.mark("admitted-beside", i64::from(beside.is_some()));
    drop(beside);

    // The second waits, and is let in when the first closes.
    let waiting = Box::pin(second.publisher_with(&topic, asking(Access::WaitForExclusive)));
    let waiting = match select(waiting, Box::pin(stage.sleep(stage.suite.tolerance / 2))).await {
        Either::Left((admitted, _)) => {
            stage.mark("admitted-beside", 1);
            return admitted.map(drop);
        }
        Either::Right(((), waiting)) => waiting,
    };
    stage.mark("admitted-beside", 0);
    first.publish(Draft::default()).await;
    let closed = stage.now();
    let (_, admitted) = futures::join!(first.close(), tokio::time::timeout(patience, waiting));
    let Ok(admitted) = admitted else {
        stage.mark("hand-over-by-close-ns", -1);
        return Ok(());
    };
    let mut holder = admitted?;
    stage.mark("hand-over-by-close-ns", (stage.now() - closed) as i64);
    holder.publish(Draft::default()).await;
    holder.close().await;

    // The next has a connection that is cut.
    let linked = stage.connect_by_link().await?;
    let mut holder = linked.publisher_with(&topic, asking(Access::WaitForExclusive)).await?;
    holder.publish(Draft::default()).await;
    let third = stage.connect().await?;
    let waiting = Box::pin(third.publisher_with(&topic, asking(Access::WaitForExclusive)));
    let waiting = match select(waiting, Box::pin(stage.sleep(stage.suite.tolerance / 2))).await {
        Either::Left((admitted, _)) => {
            stage.mark("admitted-beside", 1);
            return admitted.map(drop);
        }
        Either::Right(((), waiting)) => waiting,
    };
    let cut = stage.now();
    linked.cut();
    let Ok(admitted) = tokio::time::timeout(patience, waiting).await else {
        stage.mark("hand-over-by-cut-ns", -1);
        return Ok(());
    };
    let mut last = admitted?;
    stage.mark("hand-over-by-cut-ns", (stage.now() - cut) as i64);
    last.publish(Draft::default()).await;
    stage.drain(&mut [director.consumer(&subscription, 64).await?]).await
}

fn judge_exclusive(evidence: &Evidence<'_>, findings: &mut Findings) {
    let beside: Vec<_> = evidence.marks("admitted-beside").collect();
    let admitted = beside.iter().filter(|(_, admitted)| *admitted > 0).count();
    if admitted > 0 {
        findings.anomaly(TwoExclusive, || {
            format!("{admitted} of {} were let in beside an exclusive publisher", beside.len())
        });
    }
    let mut figure = |mark: &str, name: &str, how: &str| {
        let (at, took) = evidence.mark(mark)?;
        let Ok(took) = u64::try_from(took) else {
            let stalled = evidence.stalled(0, at);
            let patience = evidence.tolerance() * 4;
            if stalled > evidence.tolerance() {
                findings.undecided("this program was held up by the machine while it waited");
            } else {
                findings.anomaly(NoHandOver, || {
                    format!("nobody was let in within {} after the first {how}", words(patience))
                });
            }
            return None;
        };
        findings.observe(name, took as f64 / 1e6);
        Some(words(took))
    };
    let closed = figure("hand-over-by-close-ns", "hand_over_by_close_ms", "closed");
    let cut = figure("hand-over-by-cut-ns", "hand_over_by_cut_ms", "was cut off");
    let seen = closed.is_some() && cut.is_some() || !findings.clean();
    findings.require(beside.len() > 1, "nobody asked beside an exclusive publisher");
    findings.require(seen, "nothing was handed over");
    let word = |figure: Option<String>| figure.unwrap_or_else(|| "never".into());
    findings.key_figure = format!("after {}, {}", word(closed), word(cut));
}

async fn names(stage: &Stage) -> Result<(), Halt> {
    let director = stage.connect().await?;
    let (topic, subscription) = stage.work_queue(&director).await?;
    let asking = stage.connect().await?;
    let long = "x".repeat(300);
    let illegal =
        ["", "a b", "a/b", "a.b*", "a>", "a\nb", "a\0b", "#ephemeral", "näme", "../a", &long];
    for name in illegal {
        let refused = asking.refuses_topic(name).await?;
        stage.mark("illegal-name-refused", i64::from(refused));
    }
    let mut publisher = asking.publisher(&topic).await?;
    publisher.publish(Draft::default()).await;
    stage.mark("lost", asking.disconnects() as i64);
    // Anything at all that arrives shows that the broker is there.
    stage.sleep(Duration::from_millis(1)).await;
    stage.drain(&mut [director.consumer(&subscription, 4).await?]).await
}

fn judge_names(evidence: &Evidence<'_>, findings: &mut Findings) {
    let asked: Vec<_> = evidence.marks("illegal-name-refused").collect();
    let refused = asked.iter().filter(|(_, refused)| *refused > 0).count();
    if refused < asked.len() {
        findings.anomaly(IllegalNameTaken, || {
            format!("{} of {} illegal names were taken", asked.len() - refused, asked.len())
        });
    }
    if evidence.mark("lost").is_some_and(|(_, lost)| lost > 0) {
        findings.anomaly(ConnectionLost, || "the connection that asked was lost".into());
    }
    findings.require(!asked.is_empty(), "no name was asked for");
    findings.require(
        evidence.publishes.iter().any(|p| p.delivered.is_some()),
        "nothing was delivered afterwards",
    );
    findings.observe("asked", asked.len());
    findings.observe("refused", refused);
    findings.key_figure = format!("{refused} refused");
}
