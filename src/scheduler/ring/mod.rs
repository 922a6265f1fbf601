//! Sensu Go's round robin in etcd, written afresh from its published algorithm
//! (`backend/ringv2/ringv2.go` of sensu-go 6, and its documentation): the baseline that a message
//! queue is measured against.
//!
//! - Each pool is a ring: a key for each agent, on a lease that the agent's keepalives extend.
//! - Each check has a trigger: a key on a lease of the check's interval, whose value is the agent
//!   whose turn is next. The lease is the clock: when it expires, etcd deletes the key.
//! - Each scheduler (a Sensu backend) watches the ring and the trigger of each check. At a deletion
//!   each of them looks up the agent that was next and the one after, grants a lease, and tries to
//!   put the trigger anew; one succeeds, the others revoke their leases. All of them emit the
//!   check's request all the same, and the one to which the agent is connected delivers it.
//! - Nothing is locked or acknowledged: what is emitted while its agent is away, or is broken off
//!   by a crash, is lost: at most once.
//!
//! The shortcomings are the algorithm's: a lease is whole seconds and no shorter than etcd allows
//! (2 s with its default election timeout, measured with 3.4.23), it expires up to half a second
//! late, and the next one begins only then.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Action, AgentState, BrokerControl, BrokerState, Event, Recorder, Request, SchedulerState,
    Ticks, Workload,
    agenda::{Agenda, Happens},
    cadence::Cadence,
};
use crate::history::{Halt, Published, nanos};

mod agent;
mod backend;

use agent::Agent;
use backend::Backend;

/// What a run of the baseline needs.
pub struct RingSetup {
    /// What is scheduled: at intervals of whole seconds, and to one agent each.
    pub workload: Workload,
    /// Where etcd is: `http://HOST:PORT`.
    pub endpoint: String,
    /// What all keys begin with.
    pub prefix: String,
    /// Where events go.
    pub recorder: Recorder,
    /// The seed of all random choices.
    pub seed: u64,
    /// The process of etcd, if it is ours.
    pub broker: Option<Arc<dyn BrokerControl>>,
    /// Ends the run early.
    pub cancel: CancellationToken,
}

/// Why the ring cannot run a workload; `None` if it can.
pub fn unfit(workload: &Workload) -> Option<String> {
    for group in &workload.checks {
        let name = &group.name;
        match &group.cadence {
            Cadence::Cron(_) => {
                return Some(format!("check {name}: the baseline runs at intervals, not by cron"));
            }
            Cadence::Interval { every, .. } if every.subsec_nanos() != 0 => {
                let every = humantime::format_duration(*every);
                return Some(format!(
                    "check {name}: an interval of {every}: a ring's clock are leases, of whole seconds"
                ));
            }
            Cadence::Interval { .. } if group.broadcast => {
                return Some(format!(
                    "check {name}: a ring hands a check to one agent, not to all"
                ));
            }
            Cadence::Interval { .. } => {}
        }
    }
    None
}

/// Runs a workload on the ring to its end.
///
/// # Errors
/// What kept it from its end.
pub async fn run(setup: RingSetup) -> Result<(), Halt> {
    if let Some(why) = unfit(&setup.workload) {
        return Err(Halt::Undecided(why));
    }
    let client = connect(&setup.endpoint).await?;
    let ticks = setup.workload.all_checks().map(|check| Ticks::of(&setup.workload, check));
    let ticks = ticks.collect::<Result<Vec<_>, _>>().map_err(Halt::Undecided)?;
    let world = Arc::new(World {
        ticks,
        names: setup.workload.all_checks().map(|check| check.name()).collect(),
        workload: setup.workload,
        prefix: setup.prefix,
        recorder: setup.recorder,
        seed: setup.seed,
        state: Mutex::default(),
    });
    let mut engine = Engine {
        chance: StdRng::seed_from_u64(setup.seed),
        endpoint: setup.endpoint,
        client,
        broker: setup.broker,
        backends: BTreeMap::new(),
        agents: BTreeMap::new(),
        next: (0, 0),
        background: Vec::new(),
        world,
    };
    let ended = tokio::select! {
        ended = engine.play() => ended,
        () = setup.cancel.cancelled() => Err(Halt::Broken("the run was interrupted".into())),
    };
    let tidy = engine.strike();
    if tokio::time::timeout(TIDY, tidy).await.is_err() {
        tracing::warn!("tidying up did not end within {TIDY:?}");
    }
    ended
}

async fn connect(endpoint: &str) -> Result<Client, Halt> {
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(5));
    let failed = |error| Halt::Broken(format!("etcd at {endpoint}: {error}"));
    let mut client = Client::connect([endpoint], Some(options)).await.map_err(failed)?;
    // Connecting asks nobody yet.
    client.get("queueproof", None).await.map_err(failed)?;
    Ok(client)
}

/// What backends and agents share: not what Sensu's do, but what the run must know of them.
pub(super) struct World {
    workload: Workload,
    ticks: Vec<Ticks>,
    names: Vec<String>,
    prefix: String,
    recorder: Recorder,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    epoch: Option<u64>,
    /// The number of the tick that a deletion of a trigger, known by its revision, stands for: all
    /// backends see the same deletion, at times that differ by little.
    fired: HashMap<(u32, i64), u64>,
    /// The last tick of each check that fired.
    last: HashMap<u32, u64>,
    deliveries: u64,
    active: u64,
    executing: u64,
    trouble: String,
}

impl World {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which tick a firing stands for: the one that was due last, if it has not fired yet, else the
    /// one after. A firing that comes later than the next tick has missed one. `None` where the
    /// workload's duration is over.
    fn tick(&self, check: u32, revision: i64) -> Option<u64> {
        let now = self.recorder.now();
        let mut state = self.state();
        if let Some(tick) = state.fired.get(&(check, revision)) {
            return Some(*tick);
        }
        let since = now.saturating_sub(state.epoch?);
        let ticks = &self.ticks[check as usize];
        let next = ticks.from(since + 1)?;
        let due = next.number.checked_sub(1).unwrap_or(next.number);
        let tick = match state.last.get(&check) {
            Some(last) if *last >= due => last + 1,
            _ => due,
        };
        (ticks.due(tick)? < nanos(self.workload.duration)).then_some(())?;
        state.fired.insert((check, revision), tick);
        state.last.insert(check, tick);
        Some(tick)
    }

    fn trouble(&self, words: String) {
        {
            let mut state = self.state();
            if state.trouble == words {
                return;
            }
            state.trouble.clone_from(&words);
        }
        tracing::warn!("{words}");
        self.recorder.record(self.recorder.now(), Event::Trouble(words));
    }

    fn ring(&self, pool: u16) -> String {
        let name = self.workload.pools.get(usize::from(pool)).map_or("", String::as_str);
        format!("{}/rings/{name}", self.prefix)
    }
}

/// A run that is under way.
struct Engine {
    world: Arc<World>,
    endpoint: String,
    client: Client,
    broker: Option<Arc<dyn BrokerControl>>,
    backends: BTreeMap<u16, Backend>,
    agents: BTreeMap<u32, Agent>,
    /// The numbers of the next scheduler and the next agent.
    next: (u16, u32),
    chance: StdRng,
    background: Vec<JoinHandle<()>>,
}

/// How long tidying up may take.
const TIDY: Duration = Duration::from_secs(20);

/// How long an agent waits before it connects to another backend (sensu-agent's `--retry-min`).
const RECONNECT: Duration = Duration::from_secs(1);

/// How long after the end something may still fire or be executed: the shortest lease, what it is
/// late, and some more.
const QUIET: Duration = Duration::from_secs(4);

impl Engine {
    async fn play(&mut self) -> Result<(), Halt> {
        self.sample().await;
        for _ in 0..self.world.workload.schedulers.count {
            self.add_backend().await?;
        }
        for _ in 0..self.world.workload.agent_count() {
            self.join().await?;
        }
        self.sample().await;
        self.begin().await;
        let mut agenda = Agenda::new(&self.world.workload, self.broker.is_some());
        while let Some((at, what)) = agenda.next() {
            tokio::time::sleep_until(self.instant(at)).await;
            match what {
                Happens::Action(action) => self.act(action).await?,
                Happens::Sample => self.sample().await,
                Happens::Go(count, crash) => {
                    for agent in self.choose(count) {
                        let crashes = rand::RngExt::random_bool(&mut self.chance, crash);
                        let is = if crashes { AgentState::Crashed } else { AgentState::Left };
                        self.leave(agent, is).await;
                    }
                }
                Happens::Come(count) => {
                    for _ in 0..count {
                        self.join().await?;
                    }
                }
            }
        }
        let end = nanos(self.world.workload.duration);
        tokio::time::sleep_until(self.instant(end)).await;
        let now = self.world.recorder.now();
        self.world.recorder.record(now, Event::End);
        self.drain().await?;
        self.sample().await;
        Ok(())
    }

    /// Sets the epoch, and the checks going so that each fires first when its first tick is due, as
    /// well as a lease can: one interval before that its trigger is put.
    async fn begin(&mut self) {
        let longest = self.world.workload.checks.iter().map(|group| match group.cadence {
            Cadence::Interval { every, .. } => every,
            Cadence::Cron(_) => Duration::ZERO,
        });
        let lead = nanos(longest.max().unwrap_or_default()) + nanos(Duration::from_millis(100));
        let start = self.world.recorder.now();
        let epoch = start + lead;
        self.world.state().epoch = Some(epoch);
        let mut starts: Vec<_> = self
            .world
            .workload
            .all_checks()
            .filter_map(|check| {
                let first = self.world.ticks[check.id as usize].from(0)?;
                let Cadence::Interval { every, .. } = check.group.cadence else { return None };
                Some(((epoch + first.due).saturating_sub(nanos(every)), check.id))
            })
            .collect();
        starts.sort_unstable();
        let backends: Vec<_> = self.backends.values().map(Backend::starter).collect();
        let world = Arc::clone(&self.world);
        self.background.push(tokio::spawn(async move {
            for (at, check) in starts {
                tokio::time::sleep_until(world.recorder.instant(at)).await;
                for backend in &backends {
                    backend.ensure_trigger(check);
                }
            }
        }));
        tokio::time::sleep_until(self.world.recorder.instant(epoch)).await;
        self.world.recorder.record_at((epoch, epoch), Event::Begin);
    }

    fn instant(&self, since: u64) -> Instant {
        let epoch = self.world.state().epoch.unwrap_or(0);
        self.world.recorder.instant(epoch + since)
    }

    async fn act(&mut self, action: Action) -> Result<(), Halt> {
        match action {
            Action::StopSchedulers(n) => self.lose_backends(n, SchedulerState::Stopped).await,
            Action::KillSchedulers(n) => self.lose_backends(n, SchedulerState::Killed).await,
            Action::PauseSchedulers(n, span) => {
                let until = Instant::now() + span;
                for backend in self.backends.values().take(n as usize) {
                    self.background.push(backend.pause(until));
                }
            }
            Action::AddSchedulers(n) => {
                for _ in 0..n {
                    self.add_backend().await?;
                }
            }
            Action::JoinAgents(n) => {
                for _ in 0..n {
                    self.join().await?;
                }
            }
            Action::LeaveAgents(n) => {
                for agent in self.choose(n) {
                    self.leave(agent, AgentState::Left).await;
                }
            }
            Action::CrashAgents(n) => {
                for _ in 0..n {
                    let agent = self.choose_busy().await;
                    self.leave(agent, AgentState::Crashed).await;
                }
            }
            Action::CutAgents(n, span) => {
                for agent in self.choose(n) {
                    self.disconnect(agent, span, AgentState::Cut).await;
                }
            }
            Action::StallAgents(n, span) => {
                let until = Instant::now() + span;
                for id in self.choose(n) {
                    if let Some(agent) = self.agents.get(&id) {
                        self.background.push(agent.stall(until));
                    }
                }
            }
            Action::RestartBroker => self.restart().await?,
        }
        Ok(())
    }

    async fn add_backend(&mut self) -> Result<(), Halt> {
        let id = self.next.0;
        self.next.0 += 1;
        let client = connect(&self.endpoint).await?;
        let backend = Backend::start(Arc::clone(&self.world), id, client).await?;
        if self.world.state().epoch.is_some() {
            for check in 0..self.world.workload.check_count() {
                backend.starter().ensure_trigger(check);
            }
        }
        self.backends.insert(id, backend);
        Ok(())
    }

    /// Backends are gone; their agents go to others.
    async fn lose_backends(&mut self, count: u32, is: SchedulerState) {
        for _ in 0..count {
            let Some((id, backend)) = self.backends.pop_first() else { return };
            backend.end();
            let now = self.world.recorder.now();
            self.world.recorder.record(now, Event::Scheduler { scheduler: id, is });
            let orphans: Vec<_> = self
                .agents
                .iter()
                .filter(|(_, a)| a.backend == Some(id))
                .map(|(id, _)| *id)
                .collect();
            let targets: Vec<_> = self.backends.keys().copied().collect();
            for (nth, agent) in orphans.into_iter().enumerate() {
                let to = targets.get(nth % targets.len().max(1)).copied();
                let Some(member) = self.agents.get_mut(&agent) else { continue };
                member.backend = to;
                let Some(starter) = to.and_then(|to| self.backends.get(&to)).map(Backend::starter)
                else {
                    continue;
                };
                let inbox = member.inbox();
                self.background.push(tokio::spawn(async move {
                    tokio::time::sleep(RECONNECT).await;
                    starter.connect(agent, inbox).await;
                }));
            }
        }
    }

    async fn join(&mut self) -> Result<(), Halt> {
        let id = self.next.1;
        self.next.1 += 1;
        let places: Vec<_> = self.backends.keys().copied().collect();
        let Some(to) = places.get(id as usize % places.len().max(1)).copied() else {
            return Err(Halt::Undecided("no scheduler is there for an agent to connect to".into()));
        };
        let invoked = self.world.recorder.now();
        let agent = Agent::start(Arc::clone(&self.world), id, to);
        if let Some(backend) = self.backends.get(&to) {
            backend.starter().connect(id, agent.inbox()).await;
        }
        let event = Event::Agent { agent: id, is: AgentState::Joined };
        self.world.recorder.record(invoked, event);
        self.agents.insert(id, agent);
        Ok(())
    }

    /// An agent is gone. Its backend sees its connection end, and takes it out of its rings.
    async fn leave(&mut self, id: u32, is: AgentState) {
        let Some(agent) = self.agents.remove(&id) else { return };
        if is == AgentState::Left {
            agent.finish().await;
        } else {
            agent.abort();
        }
        let now = self.world.recorder.now();
        self.world.recorder.record(now, Event::Agent { agent: id, is });
        if let Some(backend) = agent.backend.and_then(|backend| self.backends.get(&backend)) {
            self.background.push(backend.starter().disconnected(id));
        }
    }

    /// An agent's connection is lost for a while.
    async fn disconnect(&mut self, id: u32, span: Duration, is: AgentState) {
        let Some(agent) = self.agents.get(&id) else { return };
        let Some(backend) = agent.backend.and_then(|backend| self.backends.get(&backend)) else {
            return;
        };
        let (starter, inbox, world) = (backend.starter(), agent.inbox(), Arc::clone(&self.world));
        self.world.recorder.record(self.world.recorder.now(), Event::Agent { agent: id, is });
        let gone = starter.disconnected(id);
        self.background.push(tokio::spawn(async move {
            let _ = gone.await;
            tokio::time::sleep(span).await;
            starter.connect(id, inbox).await;
            let event = Event::Agent { agent: id, is: AgentState::Healed };
            world.recorder.record(world.recorder.now(), event);
        }));
    }

    fn choose(&mut self, count: u32) -> Vec<u32> {
        let mut chosen: Vec<_> = self.agents.keys().copied().collect();
        chosen.shuffle(&mut self.chance);
        chosen.sort_by_key(|id| !self.agents[id].is_busy());
        chosen.truncate(count as usize);
        chosen
    }

    /// An agent that executes something, if one does so within two seconds.
    async fn choose_busy(&mut self) -> u32 {
        let limit = Instant::now() + Duration::from_secs(2);
        loop {
            let chosen = self.choose(1).first().copied().unwrap_or_default();
            let busy = self.agents.get(&chosen).is_some_and(Agent::is_busy);
            if busy || Instant::now() >= limit {
                return chosen;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn restart(&mut self) -> Result<(), Halt> {
        let Some(broker) = self.broker.clone() else {
            return Err(Halt::Undecided("etcd is not ours to restart".into()));
        };
        let now = self.world.recorder.now();
        self.world.recorder.record_at((now, now), Event::Broker(BrokerState::Stopped));
        match tokio::task::spawn_blocking(move || broker.restart()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(Halt::Broken(format!("restarting etcd: {why}"))),
            Err(error) => return Err(Halt::Broken(format!("restarting etcd: {error}"))),
        }
        self.world.recorder.record(now, Event::Broker(BrokerState::Started));
        Ok(())
    }

    async fn sample(&self) {
        let Some(broker) = self.broker.clone() else { return };
        let now = self.world.recorder.now();
        if let Ok(load) = tokio::task::spawn_blocking(move || broker.load()).await {
            self.world.recorder.record(now, Event::Load(load));
        }
    }

    /// Waits until nothing is executed any more, and etcd still answers.
    async fn drain(&mut self) -> Result<(), Halt> {
        let began = self.world.recorder.now();
        let limit = began + nanos(self.world.workload.longest_execution() + QUIET * 5);
        loop {
            let (active, executing) = {
                let state = self.world.state();
                (state.active.max(began), state.executing)
            };
            let now = self.world.recorder.now();
            if executing == 0 && now >= active + nanos(QUIET) {
                break;
            }
            if now > limit {
                return Err(Halt::Undecided(
                    "checks were still executed long after the end".into(),
                ));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.client
            .get("queueproof", None)
            .await
            .map_err(|error| Halt::Broken(format!("asking whether etcd still answers: {error}")))?;
        self.world.recorder.record(began, Event::Drained);
        Ok(())
    }

    async fn strike(&mut self) {
        for backend in std::mem::take(&mut self.backends).into_values() {
            backend.end();
        }
        for (id, agent) in std::mem::take(&mut self.agents) {
            agent.abort();
            let event = Event::Agent { agent: id, is: AgentState::Left };
            self.world.recorder.record(self.world.recorder.now(), event);
        }
        for task in self.background.drain(..) {
            task.abort();
        }
        let all = etcd_client::DeleteOptions::new().with_prefix();
        // What is left has leases, and ends with them.
        if let Err(error) = self.client.delete(self.world.prefix.clone(), Some(all)).await {
            tracing::warn!("the ring's keys were not deleted: {error}");
        }
    }
}

/// The record of a request that a backend emits: the one that put the trigger anew scheduled it,
/// the others repeat what it did.
fn emitted(request: Request, won: bool) -> Event {
    let outcome = Published::Confirmed { duplicate: Some(!won), position: None };
    Event::Publish { request, outcome }
}
