//! What each event changes.

use super::{
    Aspect, EXACT, Handover, Key, Open, Watch,
    tick::{Fate, Handed, Sent, Settled},
};
use crate::{
    checker::{AnomalyKind, evidence::Time, words},
    history::{How, Published, SettleOutcome, nanos},
    scheduler::{AgentState, Request, SchedulerState},
};
use queueproof_backends::RejectKind;

impl Watch {
    pub(super) fn scheduler(&mut self, scheduler: u16, is: SchedulerState, at: Time) {
        use SchedulerState::{Deposed, Elected, Killed, Paused, Resumed, Started, Stopped};
        let elects = self.workload.strategy.elects();
        let ahead = match elects {
            true => self.leader == Some(scheduler),
            false => self.state_at(scheduler, at).is_some_and(runs),
        };
        let others = self
            .schedulers
            .keys()
            .any(|&o| o != scheduler && self.state_at(o, at).is_some_and(runs));
        self.schedulers.entry(scheduler).or_default().push((at, is));
        match is {
            Killed | Stopped | Paused => {
                if is == Killed {
                    self.killed.insert(scheduler, at);
                }
                if ahead && self.is_running(at) {
                    let until = at.saturating_add(nanos(self.workload.hand_over_limit()));
                    self.handovers.push(Handover {
                        at,
                        until,
                        pause: is == Paused,
                        excuses: elects || !others,
                        replaced: None,
                        gap: 0,
                    });
                }
                if is != Paused && self.leader == Some(scheduler) {
                    self.leader = None;
                }
            }
            Elected => self.leader = Some(scheduler),
            Deposed if self.leader == Some(scheduler) => self.leader = None,
            Deposed | Started | Resumed => {}
        }
        let replaces = match is {
            Elected => true,
            Resumed => !elects || self.leader == Some(scheduler),
            Started => !elects,
            _ => false,
        };
        if replaces {
            for handover in self.handovers.iter_mut().filter(|h| h.replaced.is_none()) {
                handover.replaced = Some(at);
            }
        }
    }

    /// Whether ticks fall due at a time.
    fn is_running(&self, at: Time) -> bool {
        let over = |epoch: Time| epoch.saturating_add(nanos(self.workload.duration));
        self.epoch.is_some_and(|epoch| at < over(epoch)) && self.ended.is_none()
    }

    fn key(&self, request: &Request) -> Result<Key, String> {
        let check = self.ticks.get(request.check as usize);
        check
            .map(|_| (request.check, request.tick))
            .ok_or_else(|| format!("check {}, where there are {}", request.check, self.ticks.len()))
    }

    /// The tick, if it is open. One that comes before its time is opened for that.
    fn open(&mut self, key: Key) -> Option<&mut Open> {
        if !self.open.contains_key(&key) {
            let due = self.due(key)?;
            if due <= self.opened {
                return None; // It is closed.
            }
            self.open.insert(key, Open::new(due));
        }
        let open = self.open.get_mut(&key)?;
        open.last = self.last;
        Some(open)
    }

    /// When a tick is due, on the history's clock; `None` if there is no such tick.
    fn due(&self, key: Key) -> Option<Time> {
        let due = self.ticks.get(key.0 as usize)?.due(key.1)?;
        (due < nanos(self.workload.duration)).then_some(self.epoch?.saturating_add(due))
    }

    pub(super) fn publish(
        &mut self,
        at: (Time, Time),
        request: Request,
        outcome: &Published,
    ) -> Result<(), String> {
        let key = self.key(&request)?;
        let fate = Fate::from(outcome);
        self.figures.published(fate);
        if matches!(fate, Fate::Stored | Fate::Dropped) && !self.restarted_within(at.0, at.1) {
            let took = at.1.saturating_sub(at.0);
            self.figures.slowest_answer = self.figures.slowest_answer.max(took);
        }
        self.refused(key, outcome);
        if let Some(open) = self.open(key) {
            open.publishes.push(Sent { request, at, fate });
            let due = open.due;
            self.early(key, at.0, due, request.scheduler);
        } else if self.due(key).is_none() && fate != Fate::NotStored {
            let name = self.name(key);
            self.general.anomaly(AnomalyKind::Phantom, || {
                format!("scheduler {} published {name}, which there is not", request.scheduler)
            });
        }
        Ok(())
    }

    /// Judges whether a scheduler published before its own clock showed the due time.
    fn early(&mut self, key: Key, at: Time, due: Time, scheduler: u16) {
        let Some(epoch) = self.epoch else { return };
        let shown = self.workload.clock(scheduler).shows(at.saturating_sub(epoch));
        if shown.saturating_add(nanos(EXACT)) >= due - epoch {
            return;
        }
        let example = format!(
            "{} was published by scheduler {scheduler} at {} since the epoch, before its clock showed the due time",
            self.name(key),
            words(at.saturating_sub(epoch))
        );
        for aspect in [Aspect::Lateness, Aspect::Skew] {
            self.of(aspect).anomaly(AnomalyKind::EarlyTick, || example.clone());
        }
    }

    /// A publish was refused.
    fn refused(&mut self, key: Key, outcome: &Published) {
        match outcome {
            // Who lost its election is refused: that is how it learns of it.
            Published::Rejected(RejectKind::NotAllowed, _) if self.workload.strategy.elects() => {}
            Published::Rejected(_, why) => {
                let name = self.name(key);
                self.general.disturbed(format!("the broker refused {name}: {why}"));
            }
            Published::Failed(why) => {
                self.general.disturbed(format!("a scheduler cannot publish: {why}"));
            }
            Published::Confirmed { .. } | Published::NotSent(_) | Published::Indeterminate(_) => {}
        }
    }

    pub(super) fn skip(
        &mut self,
        scheduler: u16,
        check: u32,
        ticks: (u64, u64),
        expired: bool,
    ) -> Result<(), String> {
        let rule = self.ticks.get(check as usize).ok_or_else(|| format!("check {check}"))?;
        let Some(due) = rule.due(ticks.0) else { return Ok(()) };
        // What is long closed was judged without; what is open are few.
        let epoch = self.epoch.unwrap_or(0);
        let oldest = self.last.saturating_sub(epoch).saturating_sub(self.horizon);
        let mut due = due.max(oldest);
        while let Some(tick) = rule.from(due).filter(|tick| tick.number <= ticks.1) {
            if let Some(open) = self.open.get_mut(&(check, tick.number)) {
                open.came_too_late |= expired;
                if !expired {
                    open.skipped_by.push(scheduler);
                }
            }
            due = tick.due + 1;
        }
        Ok(())
    }

    pub(super) fn agent(
        &mut self,
        agent: u32,
        is: AgentState,
        at: (Time, Time),
    ) -> Result<(), String> {
        self.agents.change(&self.workload, agent, is, at)?;
        match is {
            AgentState::Joined => self.figures.joined(at, self.epoch.is_none()),
            AgentState::Crashed => {
                for delivery in self.held.remove(&agent).unwrap_or_default() {
                    if let Some((_, handed)) = self.handed(delivery)? {
                        handed.crashed = Some(at.1);
                    }
                }
            }
            AgentState::Left => drop(self.held.remove(&agent)),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn is_broadcast(&self, key: Key) -> bool {
        self.workload.check(key.0).is_some_and(|check| check.group.broadcast)
    }

    pub(super) fn receive(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
        request: Request,
        attempt: Option<u32>,
    ) -> Result<(), String> {
        let key = self.key(&request)?;
        self.next_delivery = self.next_delivery.max(delivery + 1);
        self.figures.received += 1;
        let group =
            self.workload.check(key.0).map(|check| (check.group.pool, check.group.broadcast));
        let (pool, broadcast) = group.unwrap_or_default();
        let behind = self.agents.get(agent).and_then(|agent| agent.busy);
        if !broadcast {
            self.agents.took(agent, pool, at.1)?;
        }
        let room = self.agents.room(pool).map(|room| (room.full, room.disturbed));
        let (full, disturbed) = room.unwrap_or_default();
        let Some(open) = self.open(key) else {
            if self.due(key).is_some() {
                self.received_closed(at, agent, key, attempt);
                return Ok(());
            }
            let name = self.name(key);
            self.general.anomaly(AnomalyKind::Phantom, || {
                format!("agent {agent} was given {name}, which there is not")
            });
            return Ok(());
        };
        let place = open.deliveries.len();
        let handed = Handed::new(delivery, agent, request, at);
        open.deliveries.push(Handed { behind, full, disturbed, ..handed });
        let after = at.1.saturating_sub(open.due);
        self.deliveries.insert(delivery, (key, place));
        self.held.entry(agent).or_default().push(delivery);
        if place == 0 && !broadcast {
            self.figures.received_after.add(after);
            if self.agents.get(agent).is_some_and(|agent| !agent.slow) {
                self.figures.received_after_by_fast.add(after);
            }
        }
        Ok(())
    }

    /// The delivery of that number, while its tick is open.
    fn handed(&mut self, delivery: u64) -> Result<Option<(Key, &mut Handed)>, String> {
        if delivery >= self.next_delivery {
            return Err(format!("delivery {delivery}, which was not made"));
        }
        let Some(&(key, place)) = self.deliveries.get(&delivery) else { return Ok(None) };
        let handed = self.open(key).and_then(|open| open.deliveries.get_mut(place));
        Ok(handed.map(|handed| (key, handed)))
    }

    pub(super) fn expire(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
    ) -> Result<(), String> {
        let Some((key, handed)) = self.handed(delivery)? else { return Ok(()) };
        handed.expired = true;
        self.figures.expired += 1;
        let expiry = self.expiry(key);
        if at.1 < expiry {
            let example = format!(
                "{} was dropped by agent {agent} as expired, {} before its time had passed",
                self.name(key),
                words(expiry - at.1)
            );
            self.of(Aspect::Expired).anomaly(AnomalyKind::DroppedFresh, || example);
        }
        Ok(())
    }

    /// When a tick is not worth executing any more.
    fn expiry(&self, key: Key) -> Time {
        let due = self.open.get(&key).map_or(0, |open| open.due);
        let expires = self.workload.check(key.0).map(|check| check.group.expires);
        due.saturating_add(nanos(expires.unwrap_or_default()))
    }

    pub(super) fn execute(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
        ok: bool,
    ) -> Result<(), String> {
        self.figures.executed(ok);
        let settles = self.settles;
        let Some((key, handed)) = self.handed(delivery)? else { return Ok(()) };
        let received = handed.at.1;
        handed.failed |= !ok;
        if ok {
            handed.executed += 1;
            handed.executed_at.get_or_insert(at);
        }
        let times = handed.executed;
        if times > 1 {
            let example = format!("{} was executed {times} times by agent {agent}", self.name(key));
            self.of(Aspect::OncePerTick).anomaly(AnomalyKind::ExecutedTwice, || example);
        }
        let expiry = self.expiry(key);
        if received > expiry {
            let example = format!(
                "{} was executed by agent {agent}, which was given it {} after its time had passed",
                self.name(key),
                words(received - expiry)
            );
            self.of(Aspect::Expired).anomaly(AnomalyKind::ExecutedExpired, || example);
        }
        self.executed_tick(key, at, agent, ok);
        // Where nothing is acknowledged, this is the end of it.
        if !settles {
            self.done(agent, delivery, at.1)?;
        }
        self.release(agent, delivery)
    }

    /// A tick was executed to its end.
    fn executed_tick(&mut self, key: Key, at: (Time, Time), agent: u32, ok: bool) {
        let Some(open) = self.open.get(&key) else { return };
        if !ok || self.is_broadcast(key) || open.executions() != 1 {
            return;
        }
        self.figures.begun_after.add(at.0.saturating_sub(open.due));
        self.figures.ended_after.add(at.1.saturating_sub(open.due));
        match self.agents.get(agent).is_some_and(|agent| agent.slow) {
            true => self.figures.by_slow += 1,
            false => self.figures.by_fast += 1,
        }
    }

    pub(super) fn settle(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
        (how, outcome): (How, &SettleOutcome),
    ) -> Result<(), String> {
        self.settles = true;
        let settled = Settled::new(how, at, outcome);
        let sent = nanos(self.workload.tolerance);
        let lock = self.lock();
        let Some((key, _)) = self.handed(delivery)? else { return Ok(()) };
        let Some(&(_, place)) = self.deliveries.get(&delivery) else { return Ok(()) };
        let Some(open) = self.open.get(&key) else { return Ok(()) };
        let passes = self.locked_from(open, &open.deliveries[place]).saturating_add(lock);
        let Some((_, handed)) = self.handed(delivery)? else { return Ok(()) };
        // What was merely sent has arrived after the tolerance.
        let arrived = if settled.confirmed { at.1 } else { at.1.saturating_add(sent) };
        if arrived >= passes {
            handed.lapsed.get_or_insert(passes);
        }
        if how == How::Touch {
            if settled.accepted {
                handed.touched = Some(at.0);
            }
            return Ok(());
        }
        if matches!(how, How::Nack(_)) && !matches!(outcome, SettleOutcome::NotSent(_)) {
            handed.nacked.get_or_insert(at);
        }
        handed.settled = Some(settled);
        self.done(agent, delivery, at.1)?;
        self.release(agent, delivery)
    }

    /// An agent has room for something else.
    fn done(&mut self, agent: u32, delivery: u64, at: Time) -> Result<(), String> {
        let Some((key, handed)) = self.handed(delivery)? else { return Ok(()) };
        if handed.crashed.is_some() || std::mem::replace(&mut handed.done, true) {
            return Ok(());
        }
        let span = (handed.at.1, at);
        if let Some(check) = self.workload.check(key.0) {
            let group = check.group;
            self.agents.done(agent, group.pool, group.broadcast, span);
        }
        Ok(())
    }

    /// An agent holds a delivery no more when it is settled and executed, or dropped.
    fn release(&mut self, agent: u32, delivery: u64) -> Result<(), String> {
        let settles = self.settles;
        let done = |handed: &Handed| {
            (handed.settled.is_some() || !settles)
                && (handed.executed > 0 || handed.failed || handed.expired)
        };
        if self.handed(delivery)?.is_some_and(|(_, handed)| done(handed))
            && let Some(held) = self.held.get_mut(&agent)
        {
            held.retain(|held| *held != delivery);
        }
        Ok(())
    }

    /// What a scheduler was at a time; `None` before it started.
    pub(super) fn state_at(&self, scheduler: u16, at: Time) -> Option<SchedulerState> {
        let states = self.schedulers.get(&scheduler)?;
        states.iter().rev().find(|(since, _)| *since <= at).map(|(_, is)| *is)
    }

    /// Whether any scheduler ran at a time.
    pub(super) fn any_ran(&self, at: Time) -> bool {
        self.schedulers.keys().any(|&scheduler| self.state_at(scheduler, at).is_some_and(runs))
    }
}

/// Whether a scheduler that is this computes its ticks.
fn runs(is: SchedulerState) -> bool {
    use SchedulerState::{Deposed, Elected, Resumed, Started};
    matches!(is, Started | Elected | Deposed | Resumed)
}
