//! What is judged of a tick when nothing of it can be due any more.

use super::{Aspect, EXACT, Handed, Key, Open, Time, Watch, late::SLOW_BROKER, tick::Fate};
use crate::{
    checker::{AnomalyKind, words},
    history::nanos,
    scheduler::{Request, SchedulerState, Strategy},
};

/// What a tick is closed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing of it can come any more.
    Final,
    /// The record breaks off: what did not come may still have been on its way.
    BrokenOff,
}

impl Watch {
    /// Whether something of a tick may still come, however long that takes: it waits in the queue.
    pub(super) fn may_come(&self, key: Key, open: &Open) -> bool {
        let Some(group) = self.workload.check(key.0).map(|check| check.group) else { return false };
        let published = open.publishes.iter().any(|sent| sent.fate != Fate::NotStored);
        if group.broadcast {
            return published && !self.not_reached(group.pool, open).is_empty();
        }
        let somewhere = published || !open.deliveries.is_empty();
        somewhere && open.executions() == 0 && !open.is_given_up()
    }

    /// Judges a tick, and forgets it.
    pub(super) fn close(&mut self, key: Key, ending: Ending) {
        let Some(open) = self.open.remove(&key) else { return };
        for handed in &open.deliveries {
            self.deliveries.remove(&handed.delivery);
            if let Some(held) = self.held.get_mut(&handed.agent) {
                held.retain(|delivery| *delivery != handed.delivery);
            }
        }
        let Some(group) = self.workload.check(key.0).map(|check| check.group) else { return };
        let (broadcast, pool) = (group.broadcast, group.pool);
        self.figures.ticks += 1;
        self.close_publishes(key, &open);
        self.close_deliveries(key, &open, broadcast);
        if !open.deliveries.is_empty() {
            self.figures.delivered_ticks += 1;
        }
        if !broadcast {
            self.close_lateness(key, pool, &open);
        }
        if open.executions() > 0 {
            self.figures.executed_ticks += 1;
        }
        if ending == Ending::BrokenOff {
            self.figures.broken_off_ticks += u64::from(self.may_come(key, &open));
            return;
        }
        if open.executions() == 0 {
            self.close_unexecuted(key, &open);
        }
        match broadcast {
            true => self.close_broadcast(key, pool, &open),
            false => self.close_crashes(key, &open),
        }
        self.close_phantoms(key, &open);
    }

    fn close_publishes(&mut self, key: Key, open: &Open) {
        let sent = || open.publishes.iter().filter(|sent| sent.fate != Fate::NotStored);
        let times = || sent().map(|sent| sent.at.0);
        let (Some(first), Some(last)) = (times().min(), times().max()) else { return };
        let mut schedulers = sent().map(|sent| sent.request.scheduler);
        let one = schedulers.next();
        if schedulers.any(|other| Some(other) != one) {
            self.figures.spread.add(last - first);
        }
        if first < open.due {
            self.figures.early.add(open.due - first);
        }
        // When it was in the broker's hands for certain.
        let stored = sent().filter(|s| matches!(s.fate, Fate::Stored | Fate::Dropped));
        let waited = stored.map(|sent| sent.at.1).min().map(|at| at.saturating_sub(open.due));
        let mut late_by = None;
        for nth in 0..self.handovers.len() {
            let handover = self.handovers[nth];
            if !(handover.at..=handover.until).contains(&open.due) {
                continue;
            }
            self.handovers[nth].gap = handover.gap.max(waited.unwrap_or(0));
            let excused = if handover.excuses { handover.replaced } else { None };
            let allowed = self.in_time(open.due.max(excused.unwrap_or(0)));
            let allowed = allowed.saturating_add(self.stalled(handover.at, first));
            let unknown = handover.excuses && handover.replaced.is_none();
            if first <= allowed || unknown || self.restarted_within(open.due, first) {
                continue;
            }
            match first <= allowed.saturating_add(self.figures.slowest_answer) {
                true => self.of(Aspect::Failover).undecided(SLOW_BROKER),
                false => late_by = Some(first - open.due),
            }
        }
        if let Some(late_by) = late_by {
            let example = format!(
                "{} was published {} after it was due, though a scheduler could have",
                self.name(key),
                words(late_by)
            );
            self.of(Aspect::Failover).anomaly(AnomalyKind::LateTick, || example);
        }
    }

    /// Judges how often a tick was delivered, for each agent where each has its own.
    fn close_deliveries(&mut self, key: Key, open: &Open, broadcast: bool) {
        // The one way of nearly all.
        if open.deliveries.len() < 2 {
            return;
        }
        let to = |handed: &Handed| if broadcast { Some(handed.agent) } else { None };
        let of = |&place: &usize| {
            let handed = &open.deliveries[place];
            let Request { scheduler, copy, .. } = handed.request;
            (to(handed), scheduler, copy)
        };
        let mut places: Vec<_> = (0..open.deliveries.len()).collect();
        places.sort_by_key(|place| (of(place), *place));
        for one in places.chunk_by(|a, b| of(a) == of(b)) {
            self.close_redelivered(key, open, one);
        }
        // The first delivery of each copy.
        places.dedup_by_key(|place| of(place));
        for copies in places.chunk_by(|a, b| of(a).0 == of(b).0).filter(|c| c.len() > 1) {
            let copies = copies.iter().map(|&place| open.deliveries[place].request);
            self.close_copies(key, open, copies.collect());
        }
    }

    /// Judges the copies of a tick that were delivered: all but the first are too many.
    fn close_copies(&mut self, key: Key, open: &Open, mut copies: Vec<Request>) {
        // What a scheduler that was killed did not write down comes last.
        let published = |copy: &Request| open.published(copy).unwrap_or((Time::MAX, Time::MAX));
        copies.sort_by_key(published);
        for pair in copies.windows(2) {
            let (first, copy) = (&pair[0], &pair[1]);
            self.figures.extra_copies += 1;
            let apart = open.published(copy).zip(open.published(first));
            // The longest that the broker may have seen between the two.
            let apart = apart.map(|(copy, first)| copy.1.saturating_sub(first.0));
            // What is farther apart than the window no broker is to drop.
            let explained = apart.is_some_and(|apart| apart >= nanos(self.workload.dedup_window))
                && self.workload.strategy == Strategy::DedupId;
            let example = format!(
                "{} was scheduled by scheduler {} (try {}) and again by scheduler {} (try {}), {}",
                self.name(key),
                first.scheduler,
                first.copy,
                copy.scheduler,
                copy.copy,
                match apart {
                    Some(apart) if explained =>
                        format!("{} apart: beyond the window", words(apart)),
                    Some(apart) => format!("{} apart", words(apart)),
                    None => "which was killed meanwhile".into(),
                }
            );
            self.of(Aspect::OncePerTick).anomaly(AnomalyKind::ScheduledTwice, || example.clone());
            match explained {
                true => self.figures.explained_copies += 1,
                false => self.of(Aspect::Skew).anomaly(AnomalyKind::ScheduledTwice, || example),
            }
        }
    }

    fn close_unexecuted(&mut self, key: Key, open: &Open) {
        // Nothing of it is to be counted as executed if it comes after all.
        self.unexecuted.insert(key);
        let (kind, why) = if open.deliveries.iter().any(|handed| handed.expired) {
            self.figures.expired_ticks += 1;
            (AnomalyKind::TickMissed, "it expired before an agent could execute it".to_string())
        } else if open.is_stored() || !open.deliveries.is_empty() {
            self.figures.lost += 1;
            let to = match open.deliveries.last() {
                Some(handed) => format!("agent {} was given it last", handed.agent),
                None => "no agent was given it".into(),
            };
            (AnomalyKind::TickLost, format!("it was stored, and {to}"))
        } else if open.publishes.is_empty() && self.left_out(open) {
            self.figures.left_out += 1;
            return; // As it was configured.
        } else {
            self.figures.missed += 1;
            let why = match open.publishes.first() {
                Some(sent) => format!(
                    "scheduler {} could not publish it ({:?})",
                    sent.request.scheduler, sent.fate
                ),
                None if open.came_too_late => {
                    "a scheduler came to it when its time had passed".into()
                }
                None if !self.any_ran(open.due) => "no scheduler was running".into(),
                None => "no scheduler published it".into(),
            };
            (AnomalyKind::TickMissed, why)
        };
        let margin = nanos(self.workload.clock_error() + self.workload.tolerance);
        // What was in flight when a scheduler went counts too.
        let after = |at: Time| open.due.saturating_add(margin) >= at;
        let gap = |h: &super::Handover| after(h.at) && open.due <= self.until(h);
        let in_gap = self.handovers.iter().any(|h| h.excuses && gap(h));
        let example = format!("{} was not executed: {why}", self.name(key));
        if kind == AnomalyKind::TickMissed && self.handovers.first().is_some_and(|h| after(h.at)) {
            match in_gap && self.workload.strategy.elects() {
                true => self.figures.missed_in_gap += 1,
                false => self.of(Aspect::Failover).anomaly(kind, || example.clone()),
            }
        }
        self.of(Aspect::EveryTick).anomaly(kind, || example);
    }

    /// Whether all that might have published a tick left it out on purpose.
    fn left_out(&self, open: &Open) -> bool {
        if open.skipped_by.is_empty() || self.workload.strategy.elects() {
            return !open.skipped_by.is_empty();
        }
        let margin = nanos(self.workload.clock_error() + self.workload.tolerance);
        let there = |scheduler: u16, at: Time| {
            self.state_at(scheduler, at)
                .is_some_and(|is| !matches!(is, SchedulerState::Killed | SchedulerState::Stopped))
        };
        self.schedulers.keys().all(|&scheduler| {
            open.skipped_by.contains(&scheduler)
                || !there(scheduler, open.due.saturating_sub(margin))
                || !there(scheduler, open.due.saturating_add(margin))
        })
    }

    /// Judges what an agent was at when it crashed.
    fn close_crashes(&mut self, key: Key, open: &Open) {
        let resolution = nanos(self.capabilities.limits.ack_timeout_resolution);
        let limit = (self.lock() + resolution).saturating_add(nanos(self.workload.tolerance));
        let broken_off = |handed: &&Handed| handed.executed == 0 && !handed.failed;
        for handed in open.deliveries.iter().filter(broken_off).filter(|h| !h.expired) {
            let Some(crashed) = handed.crashed else { continue };
            self.figures.broken_off += 1;
            if open.executions() == 0 && !open.deliveries.iter().any(|handed| handed.expired) {
                let example = format!(
                    "{} was not executed anywhere after agent {} had crashed at it",
                    self.name(key),
                    handed.agent
                );
                self.of(Aspect::AgentCrash).anomaly(AnomalyKind::TickLost, || example);
                continue;
            }
            let later = open.deliveries.iter().filter(|later| later.at.1 >= crashed);
            let Some(next) = later.min_by_key(|later| later.at.1) else { continue };
            let span = next.at.1 - crashed;
            self.figures.rescued.add(span);
            // Another one that went may have had it in its hands, unseen, until its own lock passed.
            let held = next.disturbed.map_or(crashed, |disturbed| disturbed.max(crashed));
            if next.at.1 <= held.saturating_add(limit) {
                continue;
            }
            let stalled = self.stalled(crashed, next.at.1);
            if next.at.1 <= held.saturating_add(limit).saturating_add(stalled)
                || next.full.is_some_and(|full| full >= crashed)
                || self.restarted_within(crashed, next.at.1)
            {
                self.of(Aspect::AgentCrash).undecided(
                    "agents were busy, or this program was held up, when something was to return",
                );
                continue;
            }
            let slow = stalled.saturating_add(self.figures.slowest_answer);
            if next.at.1 <= held.saturating_add(limit).saturating_add(slow) {
                self.of(Aspect::AgentCrash).undecided(SLOW_BROKER);
                continue;
            }
            let example = format!(
                "{} returned {} after agent {} had crashed at it; its lock lasts {}",
                self.name(key),
                words(span),
                handed.agent,
                words(self.lock())
            );
            self.of(Aspect::AgentCrash).anomaly(AnomalyKind::LateRedelivery, || example);
        }
    }

    fn close_broadcast(&mut self, key: Key, pool: u16, open: &Open) {
        self.figures.broadcasts += 1;
        let mut agents: Vec<_> = open.deliveries.iter().map(|handed| handed.agent).collect();
        agents.sort_unstable();
        agents.dedup();
        self.figures.broadcast_deliveries += agents.len() as u64;
        if !open.is_stored() && open.deliveries.is_empty() {
            return;
        }
        for agent in self.not_reached(pool, open) {
            let example = format!("agent {agent} was not given {}", self.name(key));
            self.of(Aspect::Broadcast).anomaly(AnomalyKind::MissedBroadcast, || example);
        }
    }

    /// The agents of a pool that were there all the time, and were not given a broadcast.
    fn not_reached(&self, pool: u16, open: &Open) -> Vec<u32> {
        let Some(first) = open.first_publish() else { return Vec::new() };
        let mut reached: Vec<_> = open.deliveries.iter().map(|handed| handed.agent).collect();
        reached.sort_unstable();
        let there = self.agents.iter().filter(|(_, agent)| {
            agent.shares.iter().any(|share| share.pool == pool) && agent.undisturbed_since(first.0)
        });
        there.map(|(agent, _)| agent).filter(|a| reached.binary_search(a).is_err()).collect()
    }

    /// What was delivered and nobody published so.
    fn close_phantoms(&mut self, key: Key, open: &Open) {
        for handed in &open.deliveries {
            let Request { scheduler, copy, .. } = handed.request;
            let sent = open.publishes.iter().find(|sent| sent.request == handed.request);
            let given = || format!("agent {} was given {}", handed.agent, self.name(key));
            let (kind, example) = match sent.map(|sent| sent.fate) {
                // What it had in flight when it was killed nobody wrote down.
                None if self.killed.get(&scheduler).is_some_and(|&at| {
                    open.due <= at.saturating_add(nanos(self.workload.clock_error() + EXACT))
                }) =>
                {
                    continue;
                }
                None | Some(Fate::NotStored) => (
                    AnomalyKind::Phantom,
                    format!(
                        "{} of scheduler {scheduler}, try {copy}, which did not publish it so",
                        given()
                    ),
                ),
                Some(Fate::Dropped) => (
                    AnomalyKind::ReceiptContradicted,
                    format!(
                        "{} of scheduler {scheduler}, try {copy}, whose receipt says that it was dropped as a duplicate",
                        given()
                    ),
                ),
                Some(Fate::Stored | Fate::Unknown) => continue,
            };
            self.general.anomaly(kind, || example);
        }
    }

    /// A tick that is closed was received again.
    pub(super) fn received_closed(
        &mut self,
        at: (Time, Time),
        agent: u32,
        key: Key,
        attempt: Option<u32>,
    ) {
        // It counts as missed or lost already; or the agent was away while others were given it.
        if self.unexecuted.contains(&key) || self.is_broadcast(key) {
            return;
        }
        if self.restarted_within(at.1.saturating_sub(self.horizon), at.1) {
            let why =
                "requests returned long after they were executed, since the broker was restarted";
            self.of(Aspect::OncePerTick).undecided(why);
            return;
        }
        let due = self.ticks[key.0 as usize].due(key.1).unwrap_or(0);
        let ago = at.1.saturating_sub(self.epoch.unwrap_or(0) + due);
        let example = format!(
            "{} was given to agent {agent} {} after it was due, long after it was executed",
            self.name(key),
            words(ago)
        );
        // Which copy it was is forgotten; the broker knows whether it delivered it before.
        if attempt.is_some_and(|attempt| attempt > 1) {
            self.figures.redelivered_without_cause += 1;
            self.of(Aspect::OncePerTick).anomaly(AnomalyKind::DeliveredTwice, || example);
            return;
        }
        self.figures.extra_copies += 1;
        for aspect in [Aspect::OncePerTick, Aspect::Skew] {
            self.of(aspect).anomaly(AnomalyKind::ScheduledTwice, || example.clone());
        }
    }
}
