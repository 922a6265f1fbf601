//! `scheduling/`: checks, scheduled by several schedulers that know nothing of each other, executed
//! by the agents of a pool.
//!
//! Here each property has a small workload of its own; `queueproof schedule` judges the same
//! properties of one large workload.

use std::time::Duration;

use queueproof_backends::{
    Capabilities, Capability,
    Capability::{
        AckTimeout, Broadcast, DedupId, DedupWindow, ExclusivePublisher, StartLatest, WorkQueue,
    },
    flawed::Flaw as BackendFlaw,
};

use super::{Property, Stage};
use crate::{
    checker::{
        AnomalyKind, Evidence, Findings,
        scheduling::{Aspect, Watch, exercised},
    },
    flaw::Flaw::{Backend, Scheduler},
    history::{Halt, What},
    results::{PropertyResult, Verdict},
    scheduler::{
        Action, AgentGroup, Cadence, CheckGroup, Distribution, Flaw, Moment, Schedulers, Strategy,
        Workload,
    },
};

pub(super) static PROPERTIES: &[Property] = &[
    Property {
        id: "scheduling/every-tick-executed",
        title: "Every tick of every check is executed at least once.",
        doc: "Three schedulers, which know nothing of each other, publish a request for each tick of \
              ten checks to a pool's work queue; five agents take requests from it, execute and \
              acknowledge them. Some executions fail and are handed on. Every tick that was due must \
              have been executed to its end; what nobody published is missed, what was stored and \
              not executed is lost.",
        needs: &[WorkQueue],
        catches: &[
            (Scheduler(Flaw::SkipTick), AnomalyKind::TickMissed),
            (Scheduler(Flaw::AckWithoutExecuting), AnomalyKind::TickLost),
            (Backend(BackendFlaw::LoseDelivery), AnomalyKind::TickLost),
        ],
        scenario: |stage| Box::pin(stage.schedule(every_tick(stage))),
        judge: |evidence, findings| judge(Aspect::EveryTick, evidence, findings),
    },
    Property {
        id: "scheduling/once-per-tick",
        title: "A tick that several schedulers publish is scheduled once.",
        doc: "The same workload without failing executions. However many schedulers publish a tick, \
              one request of it may be stored, and it may be executed once: more only with a cause, \
              as an agent that crashed. The broker drops equal keys, or elects one publisher; \
              without either the property is skipped here, and `schedule` counts the duplicates.",
        needs: &[WorkQueue],
        catches: &[
            (Scheduler(Flaw::PublishTwice), AnomalyKind::ScheduledTwice),
            (Scheduler(Flaw::OwnKeys), AnomalyKind::ScheduledTwice),
            (Scheduler(Flaw::ExecuteTwice), AnomalyKind::ExecutedTwice),
            (Backend(BackendFlaw::IgnoreDedup), AnomalyKind::ScheduledTwice),
            (Backend(BackendFlaw::DeliverTwice), AnomalyKind::DeliveredTwice),
        ],
        scenario: |stage| Box::pin(stage.schedule(small(stage))),
        judge: |evidence, findings| judge(Aspect::OncePerTick, evidence, findings),
    },
    Property {
        id: "scheduling/failover",
        title: "A scheduler that dies costs no tick.",
        doc: "The scheduler whose clock is ahead, or which the broker has elected, is killed in the \
              middle. The others must go on: no tick may be missed but those that fell due while \
              the broker elected another one, and the longest gap is told.",
        needs: &[WorkQueue],
        catches: &[(Scheduler(Flaw::StopWithFirst), AnomalyKind::TickMissed)],
        scenario: |stage| Box::pin(stage.schedule(failover(stage))),
        judge: |evidence, findings| judge(Aspect::Failover, evidence, findings),
    },
    Property {
        id: "scheduling/skew",
        title: "Schedulers whose clocks disagree schedule a tick once all the same.",
        doc: "The clocks of the three schedulers differ by half of the deduplication window, so that \
              they publish each tick at different times. No tick may be scheduled twice, and none \
              before a clock that is ahead shows its time.",
        needs: &[WorkQueue, DedupId, DedupWindow],
        catches: &[
            (Scheduler(Flaw::EarlyTick), AnomalyKind::EarlyTick),
            (Backend(BackendFlaw::DedupShortWindow), AnomalyKind::ScheduledTwice),
        ],
        scenario: |stage| Box::pin(stage.schedule(skew(stage, stage.suite.dedup_window / 4))),
        judge: |evidence, findings| judge(Aspect::Skew, evidence, findings),
    },
    Property {
        id: "scheduling/skew-beyond-window",
        title: "Ticks are scheduled twice only where clocks differ by more than the window.",
        doc: "The clocks of the schedulers differ by more than the deduplication window, which no \
              broker can make good: ticks must appear twice then, and only those whose publishes \
              were farther apart than the window.",
        needs: &[WorkQueue, DedupId, DedupWindow],
        catches: &[(Backend(BackendFlaw::DedupShortWindow), AnomalyKind::ScheduledTwice)],
        scenario: |stage| Box::pin(stage.schedule(skew(stage, stage.suite.dedup_window * 3 / 4))),
        judge: |evidence, findings| judge(Aspect::Skew, evidence, findings),
    },
    Property {
        id: "scheduling/fair-coverage",
        title: "The checks are spread over the whole pool.",
        doc: "Five agents wait for requests all the time. None may be given so little that choosing \
              by chance would give as little in fewer than one run in a million. The shares, Jain's \
              index and the longest idle time are told beside those of a strict round robin and of \
              choice by chance.",
        needs: &[WorkQueue],
        catches: &[
            (Scheduler(Flaw::IdleAgent), AnomalyKind::Starved),
            (Backend(BackendFlaw::Starve), AnomalyKind::Starved),
        ],
        scenario: |stage| Box::pin(stage.schedule(coverage(stage))),
        judge: |evidence, findings| judge(Aspect::Coverage, evidence, findings),
    },
    Property {
        id: "scheduling/lateness",
        title: "Requests reach an agent when they are due.",
        doc: "How long after a tick was due its request was received, and its execution began and \
              ended: counted from the due time itself, so that nothing that waits is left out. \
              None may come later than tolerated, none before its time.",
        needs: &[WorkQueue],
        catches: &[
            (Scheduler(Flaw::Drift), AnomalyKind::LateTick),
            (Scheduler(Flaw::EarlyTick), AnomalyKind::EarlyTick),
            (Backend(BackendFlaw::HeadOfLine), AnomalyKind::LateTick),
        ],
        scenario: |stage| Box::pin(stage.schedule(lateness(stage))),
        judge: |evidence, findings| judge(Aspect::Lateness, evidence, findings),
    },
    Property {
        id: "scheduling/expired",
        title: "Requests whose time has passed are dropped, and no others.",
        doc: "All agents hang for longer than a request is worth executing. When they go on they \
              must drop what has expired meanwhile, and execute the rest.",
        needs: &[WorkQueue],
        catches: &[
            (Scheduler(Flaw::ExecuteExpired), AnomalyKind::ExecutedExpired),
            (Scheduler(Flaw::DropFresh), AnomalyKind::DroppedFresh),
        ],
        scenario: |stage| Box::pin(stage.schedule(expired(stage))),
        judge: |evidence, findings| judge(Aspect::Expired, evidence, findings),
    },
    Property {
        id: "scheduling/agent-crash",
        title: "What a crashed agent was executing is executed by another one.",
        doc: "Agents crash in the middle of an execution. The request must return, when the broker \
              notices or when the lock passes, and be executed elsewhere; after how long is told.",
        needs: &[WorkQueue, AckTimeout],
        catches: &[
            (Scheduler(Flaw::AckFirst), AnomalyKind::TickLost),
            (Backend(BackendFlaw::AutoAck), AnomalyKind::TickLost),
        ],
        scenario: |stage| Box::pin(stage.schedule(crash(stage))),
        judge: |evidence, findings| judge(Aspect::AgentCrash, evidence, findings),
    },
    Property {
        id: "scheduling/broadcast-reach",
        title: "A check for all agents reaches each of them once.",
        doc: "A check is published to all agents, by three schedulers. Each agent must be given each \
              tick, and once.",
        needs: &[Broadcast, StartLatest],
        catches: &[
            (Scheduler(Flaw::DeafAgent), AnomalyKind::MissedBroadcast),
            (Backend(BackendFlaw::SplitFanOut), AnomalyKind::MissedBroadcast),
        ],
        scenario: |stage| Box::pin(stage.schedule(broadcast(stage))),
        judge: |evidence, findings| judge(Aspect::Broadcast, evidence, findings),
    },
    Property {
        id: "scheduling/slow-minority",
        title: "Slow agents hold nobody else up.",
        doc: "Two agents of six take far longer for each execution. No request may wait behind its \
              work while others are idle, but the ones that it has taken itself.",
        needs: &[WorkQueue],
        catches: &[(Backend(BackendFlaw::HeadOfLine), AnomalyKind::Blocked)],
        scenario: |stage| Box::pin(stage.schedule(slow(stage))),
        judge: |evidence, findings| judge(Aspect::SlowMinority, evidence, findings),
    },
];

/// What each property judges of a workload.
static ASPECTS: &[(&str, Aspect)] = &[
    ("scheduling/every-tick-executed", Aspect::EveryTick),
    ("scheduling/once-per-tick", Aspect::OncePerTick),
    ("scheduling/failover", Aspect::Failover),
    ("scheduling/skew", Aspect::Skew),
    ("scheduling/fair-coverage", Aspect::Coverage),
    ("scheduling/lateness", Aspect::Lateness),
    ("scheduling/expired", Aspect::Expired),
    ("scheduling/agent-crash", Aspect::AgentCrash),
    ("scheduling/broadcast-reach", Aspect::Broadcast),
    ("scheduling/slow-minority", Aspect::SlowMinority),
];

/// The properties of which one is enough, where a property can be had in several ways.
pub(super) static ONE_OF: &[(&str, &[Capability])] = &[
    ("scheduling/once-per-tick", &[DedupId, ExclusivePublisher]),
    ("scheduling/failover", &[DedupId, ExclusivePublisher]),
    ("scheduling/broadcast-reach", &[DedupId, ExclusivePublisher]),
];

/// The properties that one workload is judged by, each with what it judges.
pub fn of_workload() -> impl Iterator<Item = (&'static Property, Aspect)> {
    ASPECTS.iter().filter_map(|(id, aspect)| Some((super::property(id)?, *aspect)))
}

/// The results of one workload, which was watched to its end.
pub fn results(watch: &mut Watch, workload: &Workload, halt: Option<&Halt>) -> Vec<PropertyResult> {
    of_workload()
        .map(|(property, aspect)| result(watch, workload, halt, property, aspect))
        .collect()
}

fn result(
    watch: &mut Watch,
    workload: &Workload,
    halt: Option<&Halt>,
    property: &'static Property,
    aspect: Aspect,
) -> PropertyResult {
    if let Err(why) = exercised(aspect, workload) {
        let skipped = super::broken(property, why.into());
        return PropertyResult { verdict: Verdict::Skipped, ..skipped };
    }
    let mut findings = Findings::default();
    findings.halted(halt);
    watch.judge(aspect, &mut findings);
    super::verdict::found(property, findings, watch.duration_ms())
}

/// Judges one aspect of the workload in a history.
fn judge(aspect: Aspect, evidence: &Evidence<'_>, findings: &mut Findings) {
    let workload = evidence.ops.iter().find_map(|op| match &op.what {
        What::Workload(workload) => Some(workload),
        _ => None,
    });
    let Some(workload) = workload else {
        findings.undecided("no workload was begun");
        return;
    };
    match Watch::new(workload, &evidence.header.capabilities) {
        Ok(mut watch) => {
            for op in evidence.ops {
                if let Err(problem) = watch.see_op(op) {
                    findings.undecided(format!("the history contradicts itself: {problem}"));
                    return;
                }
            }
            watch.judge(aspect, findings);
        }
        Err(problem) => findings.undecided(format!("the workload cannot be judged: {problem}")),
    }
}

/// Ten checks, each due five times a second for three seconds; three schedulers; five agents.
fn small(stage: &Stage) -> Workload {
    let suite = &stage.suite;
    let strategy = Strategy::of(&stage.capabilities);
    Workload {
        duration: Duration::from_secs(3),
        epoch_unix_ms: 0,
        strategy,
        schedulers: Schedulers {
            // Where nothing keeps them apart, their duplicates would be most of the load.
            count: if strategy == Strategy::None { 1 } else { 3 },
            skew: Duration::ZERO,
            drift_ppm: 0,
            catch_up: true,
            in_flight: 256,
            retries: 5,
        },
        pools: vec!["pool".into()],
        checks: vec![CheckGroup {
            name: "check".into(),
            count: 10,
            namespace: "default".into(),
            pool: 0,
            cadence: Cadence::Interval { every: Duration::from_millis(200), splay: true },
            broadcast: false,
            expires: suite.deadline,
            timeout: suite.ack_timeout,
        }],
        agents: vec![agents(5, Duration::from_millis(5), Duration::from_millis(30))],
        connection_per_agent: false,
        agents_per_connection: 2,
        ack_timeout: suite.ack_timeout,
        dedup_window: suite.dedup_window,
        tolerance: suite.tolerance,
        churn: None,
        timeline: Vec::new(),
    }
}

fn agents(count: u32, least: Duration, most: Duration) -> AgentGroup {
    AgentGroup {
        count,
        pools: vec![0],
        execution: Distribution::Uniform { least, most },
        concurrency: 1,
        fails: 0.0,
        slow: false,
    }
}

fn every_tick(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    if stage.has(Capability::Nack) {
        workload.agents[0].fails = 0.1;
    }
    workload
}

fn failover(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    workload.schedulers.skew = Duration::from_millis(20);
    let at = workload.duration / 2;
    workload.timeline = vec![Moment { at, action: Action::KillSchedulers(1) }];
    workload
}

fn skew(stage: &Stage, skew: Duration) -> Workload {
    let mut workload = small(stage);
    workload.schedulers.skew = skew;
    workload
}

fn coverage(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    workload.checks[0].cadence =
        Cadence::Interval { every: Duration::from_millis(100), splay: true };
    workload
}

fn expired(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    workload.checks[0].expires = stage.suite.tolerance;
    let action = Action::StallAgents(workload.agent_count(), stage.suite.tolerance * 2);
    workload.timeline = vec![Moment { at: workload.duration / 3, action }];
    workload
}

fn crash(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    // Long executions, so that there is something to break off; and agents enough for them.
    workload.checks[0].count = 5;
    workload.agents = vec![agents(12, stage.suite.ack_timeout / 5, stage.suite.ack_timeout / 4)];
    let at = workload.duration / 2;
    workload.timeline = vec![Moment { at, action: Action::CrashAgents(3) }];
    workload
}

fn lateness(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    // One after the other they would take four times as long as there is.
    workload.agents = vec![agents(10, Duration::from_millis(60), Duration::from_millis(100))];
    workload
}

fn broadcast(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    workload.checks[0].broadcast = true;
    workload.checks[0].count = 2;
    workload
}

fn slow(stage: &Stage) -> Workload {
    let mut workload = small(stage);
    workload.checks[0].count = 5;
    // With what may wait at it, within a lock.
    let long = stage.suite.ack_timeout * 2 / 5;
    let slow = AgentGroup { slow: true, ..agents(1, long, long) };
    let fast = agents(4, Duration::from_millis(60), Duration::from_millis(100));
    workload.agents = vec![slow.clone(), fast, slow];
    workload
}

/// What a backend lacks for a property that can be had in several ways.
pub(super) fn lacks(property: &Property, capabilities: &Capabilities) -> Option<String> {
    let (_, ways) = ONE_OF.iter().find(|(id, _)| *id == property.id)?;
    let lacking: Option<Vec<_>> =
        ways.iter().map(|&way| Some(format!("{way}: {}", capabilities.missing(way)?))).collect();
    lacking.map(|words| words.join("; "))
}
