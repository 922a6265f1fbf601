//! `dedup/` by numbers: under one publisher's name a number that is not above the highest one stored
//! is a duplicate.

use queueproof_backends::{
    Capability::{DedupSequence, WorkQueue},
    PublisherOptions,
    flawed::Flaw,
};

use super::{
    Property, Stage,
    stage::{Draft, Publisher, Scene},
};
use crate::{
    checker::{
        AnomalyKind::{
            DuplicateStored, FalseDuplicate, NameTakenTwice, SequenceRegressed, UnreportedDuplicate,
        },
        Evidence, Findings,
    },
    flaw::Flaw::Backend,
    history::Halt,
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "dedup/sequence-repeat",
        title: "A named publisher that repeats a number stores one message.",
        doc: "A publisher with a name publishes rising numbers, repeats some at once and all of \
              them later. Each must be stored once. (A repetition while the first is still on its \
              way is left out: a broker may answer that it cannot tell yet.)",
        needs: &[WorkQueue, DedupSequence],
        catches: &[
            (Backend(Flaw::IgnoreDedup), DuplicateStored),
            (Backend(Flaw::MisreportDuplicate), UnreportedDuplicate),
        ],
        scenario: |stage| Box::pin(repeat(stage)),
        judge: judge_numbers,
    },
    Property {
        id: "dedup/sequence-gap",
        title: "Numbers under a name may leave gaps.",
        doc: "A named publisher publishes numbers that leave gaps of many sizes, also after it was \
              opened again. All must be stored, and no receipt may say duplicate.",
        needs: &[WorkQueue, DedupSequence],
        catches: &[(Backend(Flaw::DropGaps), FalseDuplicate)],
        scenario: |stage| Box::pin(gap(stage)),
        judge: judge_gap,
    },
    Property {
        id: "dedup/sequence-regression",
        title: "A number below the highest one stored under its name is dropped.",
        doc: "A named publisher publishes numbers with gaps, then numbers that lie in the gaps: \
              these come too late and must be dropped, though they were never stored. Higher ones \
              must be stored afterwards.",
        needs: &[WorkQueue, DedupSequence],
        catches: &[
            (Backend(Flaw::ExactNumbersOnly), SequenceRegressed),
            (Backend(Flaw::IgnoreDedup), SequenceRegressed),
        ],
        scenario: |stage| Box::pin(regression(stage)),
        judge: judge_numbers,
    },
    Property {
        id: "dedup/sequence-reopened",
        title: "The numbers of a name go on when its publisher is opened again.",
        doc: "A named publisher is closed and opened again under its name, on the same connection \
              and on a new one. What it repeats must be dropped, and what it goes on with must be \
              stored: a client whose numbers begin anew would lose it behind good receipts.",
        needs: &[WorkQueue, DedupSequence],
        catches: &[
            (Backend(Flaw::DedupPerPublisher), DuplicateStored),
            (Backend(Flaw::RestartNumbers), UnreportedDuplicate),
        ],
        scenario: |stage| Box::pin(reopened(stage)),
        judge: judge_numbers,
    },
    Property {
        id: "dedup/taken-name",
        title: "A second publisher of a name is refused while the first is open.",
        doc: "While a named publisher is open another connection asks for the same name, and must \
              be refused; another name must be let in. Whether the first's name is free again when \
              it has closed is looked at too; if not, nothing is decided.",
        needs: &[WorkQueue, DedupSequence],
        catches: &[(Backend(Flaw::AdmitTakenName), NameTakenTwice)],
        scenario: |stage| Box::pin(taken_name(stage)),
        judge: judge_taken_name,
    },
];

/// The name of the scenario's publisher.
const NAME: &str = "scheduler";

fn named(name: &str) -> PublisherOptions {
    PublisherOptions { name: Some(name.into()), ..PublisherOptions::default() }
}

/// Opens the scenario's publisher on the director's connection.
async fn scheduler<'s>(scene: &Scene<'s>) -> Result<Publisher<'s>, Halt> {
    scene.director.publisher_with(&scene.topic, named(NAME)).await
}

/// How many numbers a scenario uses that waits for each confirmation.
fn numbers(stage: &Stage) -> u64 {
    u64::from(stage.suite.messages / 4).clamp(10, 100)
}

async fn repeat(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scheduler(&scene).await?;
    for number in 0..numbers(stage) {
        publisher.publish(Draft::numbered(number)).await;
        if number % 2 == 0 {
            publisher.publish(Draft::numbered(number)).await;
        }
    }
    for number in 0..numbers(stage) {
        publisher.publish(Draft::numbered(number)).await;
    }
    scene.drain(stage).await
}

async fn gap(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut number = 0;
    for round in 0..3 {
        let mut publisher = scheduler(&scene).await?;
        for step in [1, 2, 10, 1000, 1, 1 << 20, 3] {
            publisher.publish(Draft::numbered(number)).await;
            number += step + round;
        }
        publisher.close().await;
    }
    scene.drain(stage).await
}

async fn regression(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut publisher = scheduler(&scene).await?;
    let highest = numbers(stage) * 10;
    for number in (0..highest).step_by(10) {
        publisher.publish(Draft::numbered(number)).await;
    }
    for number in (5..highest - 10).step_by(10) {
        publisher.publish(Draft::numbered(number)).await;
    }
    for number in highest..highest + 5 {
        publisher.publish(Draft::numbered(number)).await;
    }
    scene.drain(stage).await
}

async fn reopened(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let count = numbers(stage) / 2;
    for (round, connection) in
        (1..).zip([&scene.director, &scene.director, &stage.connect().await?])
    {
        let mut publisher = connection.publisher_with(&scene.topic, named(NAME)).await?;
        // What was sent in all rounds before, then as much again.
        for number in 0..round * count {
            publisher.publish(Draft::numbered(number)).await;
        }
        publisher.close().await;
    }
    scene.drain(stage).await
}

fn judge_numbers(evidence: &Evidence<'_>, findings: &mut Findings) {
    let confirmed = evidence.publishes.iter().filter(|p| p.confirmed()).count();
    let came = evidence.publishes.iter().filter(|p| p.delivered.is_some()).count();
    let reported = evidence.publishes.iter().filter(|p| p.dropped()).count();
    let dropped = confirmed.saturating_sub(came);
    findings.require(came > 1, "fewer than two numbers were delivered");
    findings.require(
        dropped > 0 || !findings.clean(),
        "no number was repeated or came late, or none was confirmed",
    );
    findings.observe("published", confirmed);
    findings.observe("delivered", came);
    findings.observe("reported_as_duplicates", reported);
    findings.key_figure = format!("{dropped} dropped");
}

fn judge_gap(evidence: &Evidence<'_>, findings: &mut Findings) {
    let confirmed = evidence.publishes.iter().filter(|p| p.confirmed()).count();
    let came = evidence.publishes.iter().filter(|p| p.delivered.is_some()).count();
    findings.require(confirmed > 1, "fewer than two numbers were confirmed");
    findings.observe("published", confirmed);
    findings.observe("delivered", came);
    findings.key_figure = format!("{came} of {confirmed}");
}

async fn taken_name(stage: &Stage) -> Result<(), Halt> {
    let scene = Scene::new(stage).await?;
    let mut first = scheduler(&scene).await?;
    first.publish(Draft::numbered(0)).await;
    let elsewhere = stage.connect().await?;
    for _ in 0..3 {
        let second = elsewhere.ask_publisher(&scene.topic, named(NAME)).await?;
        stage.mark("admitted-beside", i64::from(second.is_some()));
        if let Some(second) = second {
            second.close().await;
        }
    }
    let mut other = elsewhere.publisher_with(&scene.topic, named("another")).await?;
    other.publish(Draft::numbered(0)).await;
    first.publish(Draft::numbered(1)).await;
    first.close().await;
    // The broker may need a moment to see that it has gone.
    let deadline = stage.now() + crate::history::nanos(stage.suite.tolerance);
    let mut again = None;
    while again.is_none() && stage.now() < deadline {
        again = elsewhere.ask_publisher(&scene.topic, named(NAME)).await?;
        if again.is_none() {
            stage.sleep(stage.suite.tolerance / 20).await;
        }
    }
    stage.mark("admitted-after", i64::from(again.is_some()));
    if let Some(mut again) = again {
        again.publish(Draft::numbered(2)).await;
    }
    scene.drain(stage).await
}

fn judge_taken_name(evidence: &Evidence<'_>, findings: &mut Findings) {
    let beside: Vec<_> = evidence.marks("admitted-beside").collect();
    let admitted = beside.iter().filter(|(_, admitted)| *admitted > 0).count();
    if admitted > 0 {
        findings.anomaly(NameTakenTwice, || {
            format!("{admitted} of {} were let in beside a publisher of their name", beside.len())
        });
    }
    let after = evidence.mark("admitted-after").map(|(_, admitted)| admitted);
    findings.require(!beside.is_empty(), "nobody asked for a taken name");
    findings.require(after.is_some(), "the first publisher did not close");
    if after == Some(0) {
        findings.undecided(
            "the name was not free again within the tolerance after its publisher closed",
        );
    }
    findings.observe("asked", beside.len());
    findings.observe("refused", beside.len() - admitted);
    findings.key_figure = format!("{} refused", beside.len() - admitted);
}
