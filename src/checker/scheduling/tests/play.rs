//! Plays events by hand. Times are milliseconds since the epoch; check 0 is due each second.

use std::time::Duration;

use queueproof_backends::{
    Connector,
    memory::{MemoryConnector, MemorySettings},
};

use crate::{
    checker::{
        AnomalyKind, Findings,
        scheduling::{Aspect, Watch},
    },
    history::{How, Published, SettleOutcome},
    results::Verdict,
    scheduler::{AgentState, Event, Request, SchedulerState, Workload, testing},
};

/// When the epoch is.
const EPOCH: u64 = 3_600_000;

/// What was stored, dropped, or may be either.
pub(super) const STORED: Published =
    Published::Confirmed { duplicate: Some(false), position: None };
pub(super) const DROPPED: Published =
    Published::Confirmed { duplicate: Some(true), position: None };

pub(super) fn unknown() -> Published {
    Published::Indeterminate("no confirmation".into())
}

/// A workload of a minute: one check a second, two schedulers, three agents; an ack timeout of ten
/// seconds, a tolerance of half a second.
pub(super) fn workload() -> Workload {
    let mut workload = testing::workload();
    workload.checks[0].expires = Duration::from_secs(20);
    workload
}

/// Events, and who is there.
pub(super) struct Play {
    pub(super) workload: Workload,
    events: Vec<((u64, u64), Event)>,
    stalls: Vec<(u64, u64)>,
    deliveries: u64,
    agents: u32,
    drained: bool,
}

impl Play {
    /// All schedulers are running and all agents are there.
    pub(super) fn of(workload: Workload) -> Self {
        let mut play = Play {
            events: Vec::new(),
            stalls: Vec::new(),
            deliveries: 0,
            agents: workload.agent_count(),
            drained: true,
            workload,
        };
        for agent in 0..play.agents {
            play.joins(agent, -1000);
        }
        for scheduler in 0..play.workload.schedulers.count {
            play.scheduler(scheduler, SchedulerState::Started, -500);
        }
        play.note((0, 0), Event::Begin);
        play
    }

    pub(super) fn new() -> Self {
        Self::of(workload())
    }

    pub(super) fn note(&mut self, at: (i64, i64), event: Event) {
        let nanos = |ms: i64| EPOCH.saturating_add_signed(ms) * 1_000_000;
        self.events.push(((nanos(at.0), nanos(at.1)), event));
    }

    /// The program does not run.
    pub(super) fn stalled(&mut self, from: i64, to: i64) {
        let nanos = |ms: i64| EPOCH.saturating_add_signed(ms) * 1_000_000;
        self.stalls.push((nanos(from), nanos(to)));
    }

    pub(super) fn joins(&mut self, agent: u32, at: i64) {
        self.agents = self.agents.max(agent + 1);
        self.note((at, at), Event::Agent { agent, is: AgentState::Joined });
    }

    pub(super) fn agent(&mut self, agent: u32, is: AgentState, at: i64) {
        self.note((at, at), Event::Agent { agent, is });
    }

    pub(super) fn scheduler(&mut self, scheduler: u16, is: SchedulerState, at: i64) {
        self.note((at, at), Event::Scheduler { scheduler, is });
    }

    pub(super) fn publish(&mut self, who: (u16, u16), tick: u64, at: (i64, i64), what: Published) {
        let request = request(who, tick);
        self.note(at, Event::Publish { request, outcome: what });
    }

    /// All schedulers publish when their clocks say so: the first one stores it, the others try in
    /// vain. Who that was.
    pub(super) fn published(&mut self, tick: u64) -> (u16, u16) {
        let ns = u64::try_from(due(tick)).unwrap() * 1_000_000;
        let at = |scheduler| self.workload.clock(scheduler).when(ns).div_ceil(1_000_000);
        let mut order: Vec<_> = (0..self.workload.schedulers.count).map(|s| (at(s), s)).collect();
        order.sort_unstable();
        let first = (order[0].1, 0);
        for (at, scheduler) in order {
            let at = i64::try_from(at).unwrap() + i64::from(scheduler);
            let outcome = if scheduler == first.0 { STORED } else { DROPPED };
            self.publish((scheduler, 0), tick, (at, at + 2), outcome);
        }
        first
    }

    /// An agent that has been asking for an hour is given a request.
    pub(super) fn receive(&mut self, agent: u32, who: (u16, u16), tick: u64, at: i64) -> u64 {
        self.receive_try(agent, who, tick, at, Some(1))
    }

    pub(super) fn receive_try(
        &mut self,
        agent: u32,
        who: (u16, u16),
        tick: u64,
        at: i64,
        attempt: Option<u32>,
    ) -> u64 {
        let delivery = self.deliveries;
        self.deliveries += 1;
        let request = request(who, tick);
        self.note((at - 3_000_000, at), Event::Receive { agent, delivery, request, attempt });
        delivery
    }

    pub(super) fn execute(&mut self, agent: u32, delivery: u64, at: (i64, i64), ok: bool) {
        self.note(at, Event::Execute { agent, delivery, ok });
    }

    pub(super) fn settle(&mut self, agent: u32, delivery: u64, how: How, at: (i64, i64)) {
        self.settled(agent, delivery, how, at, SettleOutcome::Confirmed);
    }

    pub(super) fn settled(
        &mut self,
        agent: u32,
        delivery: u64,
        how: How,
        at: (i64, i64),
        outcome: SettleOutcome,
    ) {
        self.note(at, Event::Settle { agent, delivery, how, outcome });
    }

    /// A request is received, executed and acknowledged, as it should be.
    pub(super) fn handle(&mut self, agent: u32, who: (u16, u16), tick: u64, at: i64) -> u64 {
        let delivery = self.receive(agent, who, tick, at);
        self.execute(agent, delivery, (at, at + 100), true);
        self.settle(agent, delivery, How::Ack, (at + 100, at + 101));
        delivery
    }

    /// These ticks go as they should, the agents in turn.
    pub(super) fn well(&mut self, ticks: impl IntoIterator<Item = u64>) {
        let agents = u64::from(self.workload.agent_count());
        for tick in ticks {
            let who = self.published(tick);
            let agent = u32::try_from(tick % agents).unwrap();
            self.handle(agent, who, tick, due(tick) + 5);
        }
    }

    /// All ticks but these go as they should.
    pub(super) fn well_but(&mut self, ticks: &[u64]) {
        let all = self.workload.duration.as_secs();
        self.well((0..all).filter(|tick| !ticks.contains(tick)));
    }

    /// The queue is not drained.
    pub(super) fn break_off(&mut self) {
        self.drained = false;
    }

    /// Ends the play, and has it watched.
    pub(super) fn watch(mut self) -> Watch {
        let over = i64::try_from(self.workload.duration.as_millis()).unwrap();
        self.note((over + 50, over + 50), Event::End);
        if self.drained {
            // Whatever came late comes before.
            let last = self.events.iter().map(|(at, _)| at.1 / 1_000_000).max().unwrap();
            let last = i64::try_from(last - EPOCH).unwrap().max(over) + 20_000;
            self.note((last, last), Event::Drained);
        }
        // In the order of completion.
        self.events.sort_by_key(|(at, _)| at.1);
        let connector = MemoryConnector::new(MemorySettings::default());
        let capabilities = capabilities(&connector);
        let mut watch = Watch::new(&self.workload, &capabilities).unwrap();
        self.stalls.iter().for_each(|&stall| watch.stalls.push(stall));
        for (at, event) in &self.events {
            watch.see(*at, event).unwrap();
        }
        watch
    }

    /// What is found of an aspect.
    pub(super) fn judged(self, aspect: Aspect) -> Findings {
        judge(&mut self.watch(), aspect)
    }

    /// The anomalies that are found of an aspect, with their number.
    pub(super) fn finds(self, aspect: Aspect) -> Vec<(AnomalyKind, u64)> {
        let found = self.judged(aspect);
        found
            .anomalies()
            .iter()
            .map(|anomaly| {
                let kind = AnomalyKind::ALL.iter().find(|kind| kind.name() == anomaly.kind);
                (*kind.unwrap(), anomaly.count)
            })
            .collect()
    }

    /// That nothing is found of an aspect, and it passes.
    pub(super) fn passes(self, aspect: Aspect) {
        let found = self.judged(aspect);
        assert_eq!(found.verdict().0, Verdict::Pass, "{aspect:?}: {found:#?}");
    }
}

pub(super) fn judge(watch: &mut Watch, aspect: Aspect) -> Findings {
    let mut findings = Findings::default();
    watch.judge(aspect, &mut findings);
    findings
}

/// When a tick of check 0 is due.
pub(super) fn due(tick: u64) -> i64 {
    i64::try_from(tick).unwrap() * 1000
}

pub(super) fn request((scheduler, copy): (u16, u16), tick: u64) -> Request {
    Request { check: 0, tick, scheduler, copy }
}

fn capabilities(connector: &MemoryConnector) -> queueproof_backends::Capabilities {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { connector.connect(None).await.unwrap().capabilities() })
}
