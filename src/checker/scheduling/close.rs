//! What is judged of a tick: as it is received, as it is received again, and when nothing of it can
//! be due any more.

use super::{Aspect, Cause, EXACT, Handed, Handover, Key, Open, Time, Watch, tick::Fate};
use crate::{
    checker::{AnomalyKind, words},
    history::{How, Published, nanos},
    scheduler::Request,
};
use queueproof_backends::RejectKind;

/// How long after it was started again a broker's clients may take to be back: their back-off, and
/// the life of a request that the broker forgot.
const RECOVERY: std::time::Duration = std::time::Duration::from_secs(15);

/// How soon an agent takes what was waiting in its hands.
const AT_ONCE: std::time::Duration = std::time::Duration::from_millis(50);

/// Why a tick came late, where that is nobody's fault.
enum Late {
    /// It did not.
    No,
    /// Something happened to those who had it, or should have published it.
    Disturbed,
    /// It waited for the very agent that took it, which was at something else.
    BehindOwnWork,
    /// All agents were at something, or this program did not run.
    Undecided(&'static str),
    /// It is somebody's fault.
    Yes,
}

impl Watch {
    /// Why a copy was delivered again: its cause, or how long ago to whom it had been given. `None`
    /// if it had not been delivered before.
    pub(super) fn cause(
        &self,
        open: &Open,
        agent: u32,
        broadcast: bool,
        request: &Request,
        at: (Time, Time),
    ) -> Option<Result<Cause, (Time, u32)>> {
        let mine =
            |handed: &&Handed| handed.request == *request && (!broadcast || handed.agent == agent);
        let before: Vec<_> = open.deliveries.iter().filter(mine).collect();
        let (last, older) = before.split_last()?;
        let published = open.published(request).map_or(last.at.0, |published| published.0);
        let stale = older.iter().filter(|handed| {
            handed.settled.is_some_and(|s| matches!(s.how, How::Nack(_)) && s.at.1 >= last.at.0)
        });
        let causes = self.cause_of(last, published, at.1);
        let cause = causes.or_else(|| stale.map(|_| Cause::HandedOn).next());
        Some(cause.ok_or((at.1.saturating_sub(last.at.1), last.agent)))
    }

    /// What explains that a delivery of a copy was followed by another one.
    fn cause_of(&self, handed: &Handed, published: Time, again: Time) -> Option<Cause> {
        let settled = handed.settled;
        if settled.is_some_and(|settled| matches!(settled.how, How::Nack(_))) {
            return Some(Cause::HandedOn);
        }
        if handed.crashed.is_some() {
            return Some(Cause::Crash);
        }
        if self
            .restarts
            .iter()
            .any(|(from, to)| *from <= again && to.is_none_or(|to| to >= handed.at.0))
        {
            return Some(Cause::Restart);
        }
        // A confirmed acknowledgement stands, unless the lock had passed before it.
        let lock = nanos(self.workload.ack_timeout);
        let starts = handed.touched.unwrap_or(handed.at.0.min(published));
        let may_have_passed = |by: Time| by >= starts.saturating_add(lock);
        match settled {
            Some(settled) if settled.confirmed => {
                may_have_passed(settled.at.1).then_some(Cause::LockPassed)
            }
            Some(settled) if !settled.accepted => Some(Cause::AckUncertain),
            _ => {
                let agent = self.agents.get(handed.agent);
                if agent.is_some_and(|agent| agent.disturbed_since(handed.at.0)) {
                    return Some(Cause::Disturbed);
                }
                let by = settled.map_or(again, |settled| settled.at.1);
                may_have_passed(by).then_some(Cause::LockPassed)
            }
        }
    }

    /// A tick was received for the first time.
    pub(super) fn first_received(
        &mut self,
        key: Key,
        pool: u16,
        agent: u32,
        at: (Time, Time),
        behind: Option<(Time, Time)>,
    ) {
        let Some(open) = self.open.get(&key) else { return };
        let due = open.due;
        let published = open.first_publish();
        let after = at.1.saturating_sub(due);
        self.figures.received_after.add(after);
        if self.agents.get(agent).is_some_and(|agent| !agent.slow) {
            self.figures.received_after_by_fast.add(after);
        }
        match self.lateness(due, pool, agent, at, behind, published) {
            Late::No => {}
            Late::Disturbed => self.figures.late_excused += 1,
            Late::BehindOwnWork => self.figures.behind_own_work += 1,
            Late::Undecided(why) => {
                self.figures.late_excused += 1;
                self.of(Aspect::Lateness).undecided(why);
                self.of(Aspect::SlowMinority).undecided(why);
            }
            Late::Yes => {
                self.figures.late += 1;
                let how = match published {
                    Some(published) => {
                        format!("published {} after that", words(published.0.saturating_sub(due)))
                    }
                    None => "its publish not confirmed yet".into(),
                };
                let example = format!(
                    "{} was received by agent {agent} {} late ({how})",
                    self.name(key),
                    words(after)
                );
                self.of(Aspect::Lateness).anomaly(AnomalyKind::LateTick, || example.clone());
                self.of(Aspect::SlowMinority).anomaly(AnomalyKind::Blocked, || example);
            }
        }
    }

    fn lateness(
        &self,
        due: Time,
        pool: u16,
        agent: u32,
        at: (Time, Time),
        behind: Option<(Time, Time)>,
        published: Option<(Time, Time)>,
    ) -> Late {
        let tolerance = nanos(self.workload.tolerance);
        let allowed = due
            .saturating_add(tolerance)
            .saturating_add(nanos(self.workload.clock_error() + EXACT));
        if at.1 <= allowed {
            return Late::No;
        }
        let happened = self.happened(due, at.1);
        let published_late = published.is_some_and(|published| published.0 > allowed);
        // An agent that went may have had it in its hands, unseen.
        let held = self
            .agents
            .iter()
            .any(|(_, other)| other.disturbed.is_some_and(|disturbed| disturbed >= due));
        if happened || (!published_late && held) {
            return Late::Disturbed;
        }
        if at.1 <= allowed.saturating_add(self.stalled(due, at.1)) {
            return Late::Undecided("this program was held up by the machine while it waited");
        }
        if published_late {
            return Late::Yes;
        }
        let own = self.agents.get(agent).is_some_and(|agent| agent.disturbed_since(due));
        // One request may have waited in its hands for as long as it was at another one.
        let worked = behind.is_some_and(|(from, to)| {
            at.1 <= to.saturating_add(nanos(AT_ONCE))
                && at.1 <= allowed.saturating_add(to.saturating_sub(from.max(due)))
        });
        if own || worked {
            return Late::BehindOwnWork;
        }
        if self.agents.was_full(pool, due) {
            return Late::Undecided("all agents were busy, so that requests had to wait");
        }
        Late::Yes
    }

    /// Whether a scheduler went, or the broker was restarted, so that it explains what happened
    /// between these times.
    fn happened(&self, from: Time, to: Time) -> bool {
        let over = |restart: &(Time, Option<Time>)| {
            restart.1.map_or(Time::MAX, |started| started.saturating_add(nanos(RECOVERY)))
        };
        self.restarts.iter().any(|restart| restart.0 <= to && over(restart) >= from)
            || self.handovers.iter().any(|h| h.at <= to && self.until(h) >= from)
    }

    /// Until when what schedulers did not publish in time is explained by one that went.
    fn until(&self, handover: &Handover) -> Time {
        let elected = handover.elected.map(|at| at.saturating_add(nanos(self.workload.tolerance)));
        elected.unwrap_or(handover.until)
    }

    /// How long this program did not run between these times.
    fn stalled(&self, from: Time, to: Time) -> Time {
        let within = |&(begun, ended): &(Time, Time)| ended.min(to).saturating_sub(begun.max(from));
        self.stalls.iter().rev().take(1000).map(within).sum()
    }

    /// A tick that is closed was received again.
    pub(super) fn received_closed(&mut self, at: (Time, Time), agent: u32, key: Key) {
        let due = self.ticks[key.0 as usize].due(key.1);
        let exists = due.is_some_and(|due| due < nanos(self.workload.duration));
        if !exists || self.epoch.is_none() {
            let name = self.name(key);
            self.general.anomaly(AnomalyKind::Phantom, || {
                format!("agent {agent} was given {name}, which there is not")
            });
        } else if !self.unexecuted.contains(&key) {
            self.figures.extra_copies += 1;
            let ago = at.1.saturating_sub(self.epoch.unwrap_or(0) + due.unwrap_or(0));
            let example = format!(
                "{} was given to agent {agent} {} after it was due, long after it was executed",
                self.name(key),
                words(ago)
            );
            for aspect in [Aspect::OncePerTick, Aspect::Skew] {
                self.of(aspect).anomaly(AnomalyKind::ScheduledTwice, || example.clone());
            }
        }
    }

    /// A tick was executed to its end.
    pub(super) fn executed_tick(&mut self, key: Key, at: (Time, Time), ok: bool) {
        let Some(open) = self.open.get(&key) else { return };
        let broadcast = self.workload.check(key.0).is_some_and(|check| check.group.broadcast);
        if !ok || broadcast || open.executions() != 1 {
            return;
        }
        let due = open.due;
        let agent = open.deliveries.iter().find(|handed| handed.executed > 0).map(|h| h.agent);
        self.figures.begun_after.add(at.0.saturating_sub(due));
        self.figures.ended_after.add(at.1.saturating_sub(due));
        match agent.and_then(|agent| self.agents.get(agent)).is_some_and(|agent| agent.slow) {
            true => self.figures.by_slow += 1,
            false => self.figures.by_fast += 1,
        }
    }

    /// A publish was refused.
    pub(super) fn refused(&mut self, request: &Request, outcome: &Published) {
        let Published::Rejected(kind, why) = outcome else {
            if let Published::Failed(why) = outcome {
                self.general.disturbed(format!("a scheduler cannot publish: {why}"));
            }
            return;
        };
        // Who lost its election is refused: that is how it learns of it.
        if *kind == RejectKind::NotAllowed && self.workload.strategy.elects() {
            return;
        }
        let name = self.name((request.check, request.tick));
        self.general.disturbed(format!("the broker refused {name}: {why}"));
    }

    /// Something went wrong that has no event of its own.
    pub(super) fn trouble(&mut self, words: &str) {
        if self.restarts.is_empty() {
            self.general.disturbed(words);
        }
    }

    /// Judges a tick of which nothing is due any more, and forgets it.
    pub(super) fn close(&mut self, key: Key) {
        let Some(open) = self.open.remove(&key) else { return };
        for handed in &open.deliveries {
            self.deliveries.remove(&handed.delivery);
            if let Some(held) = self.held.get_mut(&handed.agent) {
                held.retain(|delivery| *delivery != handed.delivery);
            }
        }
        self.figures.ticks += 1;
        let broadcast =
            self.workload.check(key.0).map(|check| (check.group.broadcast, check.group.pool));
        let Some((broadcast, pool)) = broadcast else { return };
        self.close_publishes(key, &open);
        match broadcast {
            true => self.close_broadcast(key, pool, &open),
            false => self.close_copies(key, &open, None),
        }
        if !open.deliveries.is_empty() {
            self.figures.delivered_ticks += 1;
        }
        if open.executions() > 0 {
            self.figures.executed_ticks += 1;
        } else {
            self.close_unexecuted(key, &open);
        }
        if !broadcast {
            self.close_crashes(key, &open);
        }
        self.close_phantoms(key, &open);
    }

    fn close_publishes(&mut self, key: Key, open: &Open) {
        let sent = open.publishes.iter().filter(|sent| sent.fate != Fate::NotStored);
        let times: Vec<_> = sent.map(|sent| sent.at.0).collect();
        let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else { return };
        if times.len() > 1 {
            self.figures.spread.add(last - first);
        }
        if *first < open.due {
            self.figures.early.add(open.due - first);
        }
        let waited = first.saturating_sub(open.due);
        for handover in &mut self.handovers {
            if (handover.at..=handover.until).contains(&open.due) {
                handover.gap = handover.gap.max(waited);
            }
        }
        let _ = key;
    }

    /// Judges how many copies of a tick were delivered, to one agent where each has its own.
    fn close_copies(&mut self, key: Key, open: &Open, agent: Option<u32>) {
        let copies = open.copies(agent);
        let Some(first) = copies.iter().filter_map(|copy| open.published(copy)).min() else {
            return;
        };
        let first_copy = copies.iter().find(|copy| open.published(copy) == Some(first)).copied();
        for copy in copies.iter().filter(|copy| Some(**copy) != first_copy) {
            self.figures.extra_copies += 1;
            let window = nanos(self.workload.dedup_window);
            let apart = open.published(copy).map(|at| at.1.saturating_sub(first.0));
            // What is farther apart than the window no broker is to drop.
            let explained = apart.is_some_and(|apart| apart >= window)
                && self.workload.strategy == crate::scheduler::Strategy::DedupId;
            let example = format!(
                "{} was scheduled by scheduler {} and again by scheduler {}, {} apart",
                self.name(key),
                first_copy.map_or(0, |copy| copy.scheduler),
                copy.scheduler,
                words(apart.unwrap_or(0))
            );
            self.of(Aspect::OncePerTick).anomaly(AnomalyKind::ScheduledTwice, || example.clone());
            match explained {
                true => self.figures.explained_copies += 1,
                false => self.of(Aspect::Skew).anomaly(AnomalyKind::ScheduledTwice, || example),
            }
        }
    }

    fn close_unexecuted(&mut self, key: Key, open: &Open) {
        let (kind, why) = if open.deliveries.iter().any(|handed| handed.expired) {
            self.figures.expired_ticks += 1;
            (AnomalyKind::TickMissed, "it expired before an agent could execute it".to_string())
        } else if open.is_stored() {
            self.figures.lost += 1;
            let to = match open.deliveries.last() {
                Some(handed) => format!("it was given to agent {} last", handed.agent),
                None => "no agent was given it".into(),
            };
            (AnomalyKind::TickLost, format!("it was stored, and {to}"))
        } else if open.publishes.is_empty() && open.skipped {
            self.figures.left_out += 1;
            return; // As it was configured.
        } else {
            self.figures.missed += 1;
            let why = match (open.publishes.first(), open.came_too_late) {
                (Some(sent), _) => format!(
                    "scheduler {} could not publish it ({:?})",
                    sent.request.scheduler, sent.fate
                ),
                (None, true) => "a scheduler came to it when it had expired".into(),
                (None, false) => "no scheduler published it".into(),
            };
            (AnomalyKind::TickMissed, why)
        };
        self.unexecuted.insert(key);
        let handover = self.handovers.iter().any(|h| {
            // What was in flight when it went counts too.
            let before =
                h.at.saturating_sub(nanos(self.workload.clock_error() + self.workload.tolerance));
            (before..=self.until(h)).contains(&open.due)
        });
        let after = self.handovers.first().is_some_and(|first| {
            open.due.saturating_add(nanos(self.workload.tolerance)) >= first.at
        });
        let example = format!("{} was not executed: {why}", self.name(key));
        if kind == AnomalyKind::TickMissed && after {
            match handover && self.workload.strategy.elects() {
                true => self.figures.missed_in_gap += 1,
                false => self.of(Aspect::Failover).anomaly(kind, || example.clone()),
            }
        }
        self.of(Aspect::EveryTick).anomaly(kind, || example);
    }

    fn close_crashes(&mut self, key: Key, open: &Open) {
        let lock = self.workload.ack_timeout + self.capabilities.limits.ack_timeout_resolution;
        let limit = nanos(lock + self.workload.tolerance);
        for handed in open.deliveries.iter().filter(|h| h.executed == 0 && !h.failed && !h.expired)
        {
            let Some(crashed) = handed.crashed else { continue };
            let next = open.deliveries.iter().filter(|h| h.at.1 >= crashed).map(|h| h.at.1).min();
            let name = self.name(key);
            let Some(next) = next else {
                if self.expiry_of(key, open) > crashed.saturating_add(limit) {
                    self.of(Aspect::AgentCrash).anomaly(AnomalyKind::TickLost, || {
                        format!(
                            "{name} was not executed anywhere after agent {} crashed at it",
                            handed.agent
                        )
                    });
                }
                continue;
            };
            let span = next - crashed;
            self.figures.rescued.add(span);
            if span > limit {
                let pool = self.workload.check(key.0).map_or(0, |check| check.group.pool);
                let stalled = self.stalled(crashed, next);
                if span <= limit + stalled
                    || self.agents.was_full(pool, crashed)
                    || self.happened(crashed, next)
                {
                    self.of(Aspect::AgentCrash)
                        .undecided("agents were busy, or this program was held up, when something was to return");
                    continue;
                }
                self.of(Aspect::AgentCrash).anomaly(AnomalyKind::LateRedelivery, || {
                    format!(
                        "{name} returned {} after agent {} had crashed at it; its lock lasts {}",
                        words(span),
                        handed.agent,
                        words(nanos(lock))
                    )
                });
            }
        }
    }

    fn expiry_of(&self, key: Key, open: &Open) -> Time {
        let expires = self.workload.check(key.0).map(|check| check.group.expires);
        open.due.saturating_add(nanos(expires.unwrap_or_default()))
    }

    fn close_broadcast(&mut self, key: Key, pool: u16, open: &Open) {
        self.figures.broadcasts += 1;
        let mut agents: Vec<_> = open.deliveries.iter().map(|handed| handed.agent).collect();
        agents.sort_unstable();
        agents.dedup();
        for &agent in &agents {
            self.close_copies(key, open, Some(agent));
        }
        self.figures.broadcast_deliveries += agents.len() as u64;
        let Some(first) = open.first_publish().filter(|_| open.is_stored()) else { return };
        let there = self.agents.iter().filter(|(_, agent)| {
            agent.shares.iter().any(|share| share.pool == pool) && agent.undisturbed_since(first.0)
        });
        let missed: Vec<_> = there
            .map(|(agent, _)| agent)
            .filter(|agent| agents.binary_search(agent).is_err())
            .collect();
        for agent in missed {
            let example = format!("agent {agent} was not given {}", self.name(key));
            self.of(Aspect::Broadcast).anomaly(AnomalyKind::MissedBroadcast, || example);
        }
    }

    /// What was delivered and nobody published.
    fn close_phantoms(&mut self, key: Key, open: &Open) {
        for handed in &open.deliveries {
            let request = &handed.request;
            let sent = open.publishes.iter().find(|sent| sent.request == *request);
            let excused = self.killed.contains(&request.scheduler);
            if sent.is_none_or(|sent| sent.fate == Fate::NotStored) && !excused {
                let name = self.name(key);
                self.general.anomaly(AnomalyKind::Phantom, || {
                    format!(
                        "agent {} was given {name} of scheduler {}, try {}, which did not publish it so",
                        handed.agent, request.scheduler, request.copy
                    )
                });
            }
        }
    }
}
