//! Judges of a scheduler's workload. They see its events one by one, in the order of their
//! completion, and keep only what is still open: a day of events needs no more memory than an hour.
//!
//! A tick is open from the time it is due until nothing of it can be due any more; then it is
//! judged for every aspect at once, and forgotten.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque},
};

use queueproof_backends::Capabilities;

use super::{AnomalyKind, Findings, evidence::Time, words};
use crate::{
    history::{How, Op, What, nanos},
    scheduler::{AgentState, BrokerState, Event, Request, SchedulerState, Tick, Ticks, Workload},
};

mod aspect;
mod close;
mod coverage;
mod crew;
mod figures;
mod tick;

pub use aspect::{Aspect, exercised};
use crew::Agents;
use figures::Figures;
use tick::{Cause, Fate, Handed, Open, Sent, Settled};

/// A tick of a check.
type Key = (u32, u64);

/// Watches a workload's events.
#[derive(Debug)]
pub struct Watch {
    workload: Workload,
    capabilities: Capabilities,
    ticks: Vec<Ticks>,
    /// The names of the checks, for examples.
    names: Vec<String>,
    epoch: Option<Time>,
    ended: Option<Time>,
    drained: Option<Time>,
    last: Time,
    /// The next tick of each check that is not open yet: when it is due since the epoch, which.
    coming: BinaryHeap<Reverse<(u64, u32, u64)>>,
    open: HashMap<Key, Open>,
    /// The open ticks by the time they were due.
    closing: VecDeque<(Time, Key)>,
    /// How long a tick stays open after it was due.
    horizon: Time,
    /// Which tick a delivery is of, while that is open.
    deliveries: HashMap<u64, Key>,
    next_delivery: u64,
    /// Ticks that were closed as missed or lost: all others that are closed were executed.
    unexecuted: HashSet<Key>,
    agents: Agents,
    /// What agents that are there hold: to know what a crash broke off.
    held: HashMap<u32, Vec<u64>>,
    schedulers: BTreeMap<u16, SchedulerState>,
    /// Schedulers that were killed: what they had in flight nobody wrote down.
    killed: HashSet<u16>,
    /// When schedulers were stopped, killed or paused, and when another one was elected after it.
    handovers: Vec<Handover>,
    /// When the broker was stopped, and started again.
    restarts: Vec<(Time, Option<Time>)>,
    /// Spans in which this program did not run.
    stalls: Vec<(Time, Time)>,
    lost_connections: u64,
    figures: Figures,
    /// What was found of each aspect.
    found: BTreeMap<Aspect, Findings>,
    /// What concerns all of them.
    general: Findings,
}

/// A moment at which a scheduler stopped publishing, though not for good reason.
#[derive(Debug, Clone, Copy)]
struct Handover {
    at: Time,
    /// Until when what it does not publish is explained by it.
    until: Time,
    elected: Option<Time>,
    /// The longest that a tick that was due after it waited for its first publish.
    gap: Time,
}

impl Watch {
    /// For a workload on a backend.
    ///
    /// # Errors
    /// What the workload says that cannot be.
    pub fn new(
        workload: &Workload,
        capabilities: &Capabilities,
        virtual_time: bool,
    ) -> Result<Self, String> {
        // A simulated clock is as exact as any: it needs no other rules.
        let _ = virtual_time;
        if workload.agents.is_empty() || workload.agents.iter().any(|group| group.pools.is_empty())
        {
            return Err("a workload without agents, or with agents of no pool".into());
        }
        let ticks = workload.all_checks().map(|check| Ticks::of(workload, check));
        let ticks = ticks.collect::<Result<Vec<_>, _>>()?;
        let limits = &capabilities.limits;
        let lock = workload.ack_timeout + limits.ack_timeout_resolution;
        let horizon = nanos(workload.longest_expiry())
            .saturating_add(nanos(lock + workload.tolerance) * 3)
            .saturating_add(nanos(workload.longest_execution() + workload.longest_disturbance()))
            .saturating_add(nanos(workload.clock_error() * 2));
        Ok(Watch {
            names: workload.all_checks().map(|check| check.name()).collect(),
            agents: Agents::new(workload),
            figures: Figures::new(),
            workload: workload.clone(),
            capabilities: capabilities.clone(),
            ticks,
            epoch: None,
            ended: None,
            drained: None,
            last: 0,
            coming: BinaryHeap::new(),
            open: HashMap::new(),
            closing: VecDeque::new(),
            horizon,
            deliveries: HashMap::new(),
            next_delivery: 0,
            unexecuted: HashSet::new(),
            held: HashMap::new(),
            schedulers: BTreeMap::new(),
            killed: HashSet::new(),
            handovers: Vec::new(),
            restarts: Vec::new(),
            stalls: Vec::new(),
            lost_connections: 0,
            found: BTreeMap::new(),
            general: Findings::default(),
        })
    }

    /// Takes in an operation of a history: what is not of the workload is none of it.
    ///
    /// # Errors
    /// What it refers to that is not there.
    pub fn see_op(&mut self, op: &Op) -> Result<(), String> {
        match &op.what {
            What::Schedule(event) => self.see(op.at, event),
            What::Stall => {
                self.stalls.push(op.at);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// How long the workload took, milliseconds.
    pub fn duration_ms(&self) -> u64 {
        self.last / 1_000_000
    }

    /// Takes in an event, with the times at which it was invoked and completed.
    ///
    /// # Errors
    /// What it refers to that is not there.
    pub fn see(&mut self, at: (Time, Time), event: &Event) -> Result<(), String> {
        self.last = self.last.max(at.1);
        self.open_until(at.1);
        self.close_until(at.1);
        match event {
            Event::Begin => self.begin(at.1),
            Event::End => {
                self.ended = Some(at.1);
                self.agents.end(at.1);
            }
            Event::Drained => {
                self.drained = Some(at.1);
                self.close_all();
            }
            Event::Scheduler { scheduler, is } => self.scheduler(*scheduler, *is, at.1),
            Event::Publish { request, outcome } => {
                self.publish(at, *request, Fate::from(outcome))?;
                self.refused(request, outcome);
            }
            Event::Skip { check, ticks, expired, .. } => self.skip(*check, *ticks, *expired)?,
            Event::Agent { agent, is } => self.agent(*agent, *is, at)?,
            Event::Receive { agent, delivery, request, .. } => {
                self.receive(at, *agent, *delivery, *request)?;
            }
            Event::Unreadable { agent, delivery, problem } => {
                self.next_delivery = self.next_delivery.max(delivery + 1);
                let kind = match problem.contains("another run") {
                    true => AnomalyKind::Phantom,
                    false => AnomalyKind::Corrupt,
                };
                self.general.anomaly(kind, || format!("agent {agent} was given {problem}"));
            }
            Event::Expire { agent, delivery } => self.expire(at, *agent, *delivery)?,
            Event::Execute { agent, delivery, ok } => self.execute(at, *agent, *delivery, *ok)?,
            Event::Settle { agent, delivery, how, outcome } => {
                self.settle(*agent, *delivery, Settled::new(*how, at, outcome))?;
            }
            Event::Broker(BrokerState::Stopped) => self.restarts.push((at.1, None)),
            Event::Broker(BrokerState::Started) => {
                if let Some(restart) = self.restarts.last_mut() {
                    restart.1 = Some(at.1);
                }
            }
            Event::Lost { times } => self.lost_connections += times,
            Event::Load(_) => {}
            Event::Trouble(words) => self.trouble(words),
        }
        Ok(())
    }

    fn of(&mut self, aspect: Aspect) -> &mut Findings {
        self.found.entry(aspect).or_default()
    }

    fn begin(&mut self, at: Time) {
        self.epoch = Some(at);
        self.agents.begin(at);
        let end = nanos(self.workload.duration);
        let firsts = (0..).zip(&self.ticks).filter_map(|(check, ticks)| {
            let Tick { due, number } = ticks.from(0)?;
            (due < end).then_some(Reverse((due, check, number)))
        });
        self.coming = firsts.collect();
    }

    /// Opens the ticks that are due by now, those of clocks that are ahead included.
    fn open_until(&mut self, now: Time) {
        let Some(epoch) = self.epoch else { return };
        let ahead = nanos(self.workload.clock_error() + self.workload.tolerance * 3);
        let end = nanos(self.workload.duration);
        while let Some(Reverse((due, check, number))) = self.coming.peek().copied()
            && epoch.saturating_add(due) <= now.saturating_add(ahead)
        {
            self.coming.pop();
            if let Some(next) = self.ticks[check as usize].after(Tick { due, number })
                && next.due < end
            {
                self.coming.push(Reverse((next.due, check, next.number)));
            }
            let key = (check, number);
            self.open.insert(key, Open::new(epoch + due));
            self.closing.push_back((epoch + due, key));
        }
    }

    fn close_until(&mut self, now: Time) {
        while let Some((due, key)) = self.closing.front().copied()
            && due.saturating_add(self.horizon) < now
        {
            self.closing.pop_front();
            self.close(key);
        }
    }

    fn close_all(&mut self) {
        while let Some((_, key)) = self.closing.pop_front() {
            self.close(key);
        }
    }

    fn scheduler(&mut self, scheduler: u16, is: SchedulerState, at: Time) {
        let before = self.schedulers.insert(scheduler, is);
        let running = self.epoch.is_some() && self.ended.is_none();
        let over = self
            .epoch
            .is_some_and(|epoch| at >= epoch.saturating_add(nanos(self.workload.duration)));
        match is {
            SchedulerState::Killed | SchedulerState::Stopped | SchedulerState::Paused
                if running && !over =>
            {
                let stood_by = self.workload.strategy.elects()
                    && !matches!(before, Some(SchedulerState::Elected | SchedulerState::Resumed));
                if is == SchedulerState::Killed {
                    self.killed.insert(scheduler);
                }
                if !stood_by {
                    let until = at.saturating_add(nanos(self.workload.hand_over_limit()));
                    self.handovers.push(Handover { at, until, elected: None, gap: 0 });
                }
            }
            SchedulerState::Elected | SchedulerState::Resumed => {
                if let Some(handover) = self.handovers.last_mut() {
                    handover.elected.get_or_insert(at);
                }
            }
            _ => {}
        }
    }

    fn key(&self, request: &Request) -> Result<Key, String> {
        let check = self.ticks.get(request.check as usize);
        check
            .map(|_| (request.check, request.tick))
            .ok_or_else(|| format!("check {}, where there are {}", request.check, self.ticks.len()))
    }

    fn publish(&mut self, at: (Time, Time), request: Request, fate: Fate) -> Result<(), String> {
        let key = self.key(&request)?;
        self.figures.published(fate);
        if let Some(epoch) = self.epoch
            && self.workload.clock(request.scheduler).shows(at.0.saturating_sub(epoch))
                + nanos(EXACT)
                < self.ticks[key.0 as usize].due(key.1).unwrap_or(0)
        {
            let example = || {
                format!(
                    "{} was published by scheduler {} at {}, before its clock showed the due time",
                    self.name(key),
                    request.scheduler,
                    words(at.0.saturating_sub(epoch))
                )
            };
            let example = example();
            for aspect in [Aspect::Lateness, Aspect::Skew] {
                self.of(aspect).anomaly(AnomalyKind::EarlyTick, || example.clone());
            }
        }
        if let Some(open) = self.open.get_mut(&key) {
            open.publishes.push(Sent { request, at, fate });
        }
        Ok(())
    }

    fn skip(&mut self, check: u32, ticks: (u64, u64), expired: bool) -> Result<(), String> {
        let rule = self.ticks.get(check as usize).ok_or_else(|| format!("check {check}"))?;
        let Some(mut due) = rule.due(ticks.0) else { return Ok(()) };
        // What is long closed was judged without; what is open are few.
        let oldest = self.closing.front().map_or(0, |(due, _)| *due);
        due = due.max(oldest.saturating_sub(self.epoch.unwrap_or(0)));
        while let Some(tick) = rule.from(due).filter(|tick| tick.number <= ticks.1) {
            if let Some(open) = self.open.get_mut(&(check, tick.number)) {
                open.skipped |= !expired;
                open.came_too_late |= expired;
            }
            due = tick.due + 1;
        }
        Ok(())
    }

    fn agent(&mut self, agent: u32, is: AgentState, at: (Time, Time)) -> Result<(), String> {
        self.agents.change(&self.workload, agent, is, at)?;
        match is {
            AgentState::Joined => self.figures.joined(at, self.epoch.is_none()),
            AgentState::Crashed => {
                for delivery in self.held.remove(&agent).unwrap_or_default() {
                    let open =
                        self.deliveries.get(&delivery).and_then(|key| self.open.get_mut(key));
                    if let Some(handed) = open.and_then(|open| open.handed(delivery)) {
                        handed.crashed = Some(at.1);
                        self.figures.broken_off += 1;
                    }
                }
            }
            AgentState::Left => drop(self.held.remove(&agent)),
            _ => {}
        }
        Ok(())
    }

    fn receive(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
        request: Request,
    ) -> Result<(), String> {
        let key = self.key(&request)?;
        self.next_delivery = self.next_delivery.max(delivery + 1);
        let Some(group) = self.workload.check(request.check).map(|check| check.group) else {
            return Err(format!("check {}", request.check));
        };
        let (pool, broadcast) = (group.pool, group.broadcast);
        self.figures.received += 1;
        let behind = self.agents.get(agent).and_then(|agent| agent.busy);
        self.agents.took(&self.workload, agent, pool, broadcast, at.1)?;
        let Some(open) = self.open.get(&key) else {
            self.received_closed(at, agent, key);
            return Ok(());
        };
        let first = open.deliveries.is_empty();
        let cause = self.cause(open, agent, broadcast, &request, at);
        if let Some(cause) = cause {
            match cause {
                Ok(cause) => self.figures.redelivered(cause),
                Err(ago) => {
                    let example = format!(
                        "{} was given to agent {agent} {} after the request had been given to agent {}",
                        self.name(key),
                        words(ago.0),
                        ago.1
                    );
                    self.of(Aspect::OncePerTick).anomaly(AnomalyKind::DeliveredTwice, || example);
                }
            }
        }
        if first && !broadcast {
            self.first_received(key, pool, agent, at, behind);
        }
        if let Some(open) = self.open.get_mut(&key) {
            open.deliveries.push(Handed {
                delivery,
                agent,
                request,
                at,
                touched: None,
                executed: 0,
                executed_at: None,
                failed: false,
                expired: false,
                settled: None,
                crashed: None,
            });
        }
        self.deliveries.insert(delivery, key);
        self.held.entry(agent).or_default().push(delivery);
        Ok(())
    }

    /// The delivery of that number, while its tick is open.
    fn handed(&mut self, delivery: u64) -> Result<Option<(Key, &mut Handed)>, String> {
        if delivery >= self.next_delivery {
            return Err(format!("delivery {delivery}, which was not made"));
        }
        let Some(&key) = self.deliveries.get(&delivery) else { return Ok(None) };
        let open = self.open.get_mut(&key);
        Ok(open.and_then(|open| open.handed(delivery)).map(|handed| (key, handed)))
    }

    fn expire(&mut self, at: (Time, Time), agent: u32, delivery: u64) -> Result<(), String> {
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

    fn execute(
        &mut self,
        at: (Time, Time),
        agent: u32,
        delivery: u64,
        ok: bool,
    ) -> Result<(), String> {
        self.figures.executed(ok);
        let Some((key, handed)) = self.handed(delivery)? else { return Ok(()) };
        let received = handed.at;
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
        if received.1 > expiry {
            let example = format!(
                "{} was executed by agent {agent}, which was given it {} after its time had passed",
                self.name(key),
                words(received.1 - expiry)
            );
            self.of(Aspect::Expired).anomaly(AnomalyKind::ExecutedExpired, || example);
        }
        self.executed_tick(key, at, ok);
        if !self.workload.strategy.acknowledges() {
            self.done(agent, key, (received.1, at.1));
        }
        self.release(agent, delivery);
        Ok(())
    }

    fn settle(&mut self, agent: u32, delivery: u64, settled: Settled) -> Result<(), String> {
        let Some((key, handed)) = self.handed(delivery)? else { return Ok(()) };
        if settled.how == How::Touch {
            if settled.accepted {
                handed.touched = Some(settled.at.1);
            }
            return Ok(());
        }
        handed.settled = Some(settled);
        let work = (handed.at.1, settled.at.1);
        let crashed = handed.crashed.is_some();
        if !crashed {
            self.done(agent, key, work);
        }
        self.release(agent, delivery);
        Ok(())
    }

    /// An agent is done with a request, at which it was for that time.
    fn done(&mut self, agent: u32, key: Key, work: (Time, Time)) {
        if let Some(check) = self.workload.check(key.0) {
            self.agents.done(agent, check.group.pool, check.group.broadcast, work);
        }
    }

    /// An agent holds a delivery no more when it is settled and executed, or dropped.
    fn release(&mut self, agent: u32, delivery: u64) {
        let acknowledges = self.workload.strategy.acknowledges();
        let done = |handed: &Handed| {
            (handed.settled.is_some() || !acknowledges)
                && (handed.executed > 0 || handed.failed || handed.expired)
        };
        if self.handed(delivery).ok().flatten().is_some_and(|(_, handed)| done(handed))
            && let Some(held) = self.held.get_mut(&agent)
        {
            held.retain(|held| *held != delivery);
        }
    }

    /// A tick's name in examples.
    fn name(&self, (check, tick): Key) -> String {
        let name = self.names.get(check as usize).map_or("?", String::as_str);
        let due = self.ticks.get(check as usize).and_then(|ticks| ticks.due(tick));
        match due {
            Some(due) => format!("tick {tick} of {name} (due at {})", words(due)),
            None => format!("tick {tick} of {name}"),
        }
    }
}

/// How exact timers are: they have a resolution of a millisecond, and never fire early; clocks are
/// computed in whole nanoseconds.
const EXACT: std::time::Duration = std::time::Duration::from_millis(1);

impl Cause {
    /// All of them.
    const ALL: [Cause; 6] = [
        Cause::HandedOn,
        Cause::Crash,
        Cause::Disturbed,
        Cause::LockPassed,
        Cause::Restart,
        Cause::AckUncertain,
    ];
}
