//! Judges of a scheduler's workload. They see its events one by one, in the order of their
//! completion, and keep only what is still open: a day of events needs no more memory than an hour.
//!
//! A tick is open from the time it is due until nothing of it can be due any more; then it is
//! judged for every aspect at once, and forgotten.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet},
};

use queueproof_backends::Capabilities;

use super::{AnomalyKind, Findings, evidence::Time, words};
use crate::{
    history::{Op, What, nanos},
    scheduler::{BrokerState, Event, SchedulerState, Tick, Ticks, Workload},
};

mod again;
mod aspect;
mod close;
mod coverage;
mod crew;
mod figures;
mod intake;
mod late;
#[cfg(test)]
mod tests;
mod tick;

pub use aspect::{Aspect, exercised};
use close::Ending;
use crew::Agents;
use figures::Figures;
use tick::{Handed, Open};

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
    /// Up to which due time ticks were opened.
    opened: Time,
    /// The open ticks by the time at which they are to be closed.
    closing: BinaryHeap<Reverse<(Time, Key)>>,
    /// How long a tick stays open after it was due.
    horizon: Time,
    /// How long something may still happen to what was delivered after the last that did.
    quiet: Time,
    /// Which tick a delivery is of, while that is open, and which of its deliveries it is.
    deliveries: HashMap<u64, (Key, usize)>,
    next_delivery: u64,
    /// Ticks that were closed as missed or lost: all others that are closed were executed.
    unexecuted: HashSet<Key>,
    agents: Agents,
    /// What agents that are there hold: to know what a crash broke off.
    held: HashMap<u32, Vec<u64>>,
    /// Whether anybody settles anything: not where nothing is acknowledged.
    settles: bool,
    /// What each scheduler was, since when.
    schedulers: BTreeMap<u16, Vec<(Time, SchedulerState)>>,
    /// The one that the broker elected.
    leader: Option<u16>,
    /// Schedulers that were killed: what they had in flight nobody wrote down.
    killed: BTreeMap<u16, Time>,
    /// When schedulers that published were stopped, killed or paused.
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

/// A moment at which a scheduler that published went, or was paused.
#[derive(Debug, Clone, Copy)]
struct Handover {
    at: Time,
    /// Until when it is looked at what became of the ticks.
    until: Time,
    /// Whether it was paused, and keeps its place.
    pause: bool,
    /// Whether nobody else published then: the broker elects one, or there was no other.
    excuses: bool,
    /// When another one was elected or started, or it went on itself.
    replaced: Option<Time>,
    /// The longest that a tick that was due after it waited until it was stored.
    gap: Time,
}

impl Watch {
    /// For a workload on a backend.
    ///
    /// # Errors
    /// What the workload says that cannot be.
    pub fn new(workload: &Workload, capabilities: &Capabilities) -> Result<Self, String> {
        if workload.agents.is_empty() || workload.agents.iter().any(|group| group.pools.is_empty())
        {
            return Err("a workload without agents, or with agents of no pool".into());
        }
        let ticks = workload.all_checks().map(|check| Ticks::of(workload, check));
        let ticks = ticks.collect::<Result<Vec<_>, _>>()?;
        let limits = &capabilities.limits;
        let lock = workload.ack_timeout + limits.ack_timeout_resolution;
        let quiet = nanos(lock + workload.tolerance * 2 + workload.longest_execution());
        let horizon = nanos(workload.longest_expiry())
            .saturating_add(nanos(lock + workload.tolerance) * 3)
            .saturating_add(nanos(workload.longest_execution() + workload.longest_disturbance()))
            .saturating_add(nanos(workload.clock_error() * 2));
        Ok(Watch {
            names: workload.all_checks().map(|check| check.name()).collect(),
            agents: Agents::new(workload),
            figures: Figures::new(workload.pools.len()),
            workload: workload.clone(),
            capabilities: capabilities.clone(),
            ticks,
            epoch: None,
            ended: None,
            drained: None,
            last: 0,
            coming: BinaryHeap::new(),
            open: HashMap::new(),
            opened: 0,
            closing: BinaryHeap::new(),
            horizon,
            quiet,
            deliveries: HashMap::new(),
            next_delivery: 0,
            unexecuted: HashSet::new(),
            held: HashMap::new(),
            schedulers: BTreeMap::new(),
            leader: None,
            settles: false,
            killed: BTreeMap::new(),
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
                self.close_all(Ending::Final);
            }
            Event::Scheduler { scheduler, is } => self.scheduler(*scheduler, *is, at.1),
            Event::Publish { request, outcome } => self.publish(at, *request, outcome)?,
            Event::Skip { scheduler, check, ticks, expired } => {
                self.skip(*scheduler, *check, *ticks, *expired)?;
            }
            Event::Agent { agent, is } => self.agent(*agent, *is, at)?,
            Event::Receive { agent, delivery, request, attempt } => {
                self.receive(at, *agent, *delivery, *request, *attempt)?;
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
                self.settle(at, *agent, *delivery, (*how, outcome))?;
            }
            Event::Broker(BrokerState::Stopped) => self.restarts.push((at.1, None)),
            Event::Broker(BrokerState::Started) => {
                if let Some(restart) = self.restarts.last_mut() {
                    restart.1 = Some(at.1);
                }
            }
            Event::Lost { times } => self.lost_connections += times,
            Event::Load(_) => {}
            Event::Trouble(words) => {
                if !self.restarted_within(at.0, at.1) {
                    self.general.disturbed(words.as_str());
                }
            }
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
            let (key, due) = ((check, number), epoch + due);
            // One that came before its time is open already.
            self.open.entry(key).or_insert_with(|| Open::new(due));
            self.opened = self.opened.max(due);
            self.closing.push(Reverse((due.saturating_add(self.horizon), key)));
        }
    }

    /// Closes what has been open for long enough, and of which nothing can come any more.
    fn close_until(&mut self, now: Time) {
        while let Some(&Reverse((at, key))) = self.closing.peek()
            && at < now
        {
            self.closing.pop();
            let Some(open) = self.open.get(&key) else { continue };
            let quiet = open.last.saturating_add(self.quiet);
            if quiet >= now {
                self.closing.push(Reverse((quiet, key)));
            } else if self.may_come(key, open) {
                self.closing.push(Reverse((now.saturating_add(self.horizon), key)));
            } else {
                self.close(key, Ending::Final);
            }
        }
    }

    /// Closes all ticks, in the order of their due times.
    fn close_all(&mut self, ending: Ending) {
        self.closing.clear();
        let mut keys: Vec<_> = self.open.iter().map(|(key, open)| (open.due, *key)).collect();
        keys.sort_unstable();
        for (_, key) in keys {
            self.close(key, ending);
        }
    }

    /// Until when what schedulers did not publish in time is explained by one that went.
    fn until(&self, handover: &Handover) -> Time {
        let replaced =
            handover.replaced.map(|at| at.saturating_add(nanos(self.workload.tolerance)));
        replaced.unwrap_or(handover.until)
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
