//! One run of a workload on the ring: backends, agents, what happens to them, and the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Store, World, agent::Agent, backend::Backend, backend::Session};
use crate::{
    history::{Halt, nanos},
    scheduler::{
        Action, AgentState, BrokerControl, Event, SchedulerState,
        agenda::{Agenda, Happens, SAMPLE},
        control,
    },
};

/// How long an agent waits before it connects to another backend (sensu-agent's `--retry-min`).
pub const RECONNECT: Duration = Duration::from_secs(1);

/// How long tidying up may take.
const TIDY: Duration = Duration::from_secs(20);

/// How many agents join at the same time.
const JOINING: usize = 64;

/// How long to wait for agents that execute something, where some are to crash; how often to look.
const BUSY: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// How long nothing may have happened before a run counts as over.
const QUIET: Duration = Duration::from_secs(1);

/// The time between the beginning of the checks and the first firing, beside the interval.
const LEAD: Duration = Duration::from_millis(100);

/// Runs a workload to its end, on the etcd at an endpoint.
pub(super) async fn run(
    world: Arc<World>,
    endpoint: String,
    broker: Option<Arc<dyn BrokerControl>>,
    cancel: CancellationToken,
) -> Result<(), Halt> {
    let store = connect(&endpoint).await?;
    let mut engine = Engine {
        chance: StdRng::seed_from_u64(world.seed),
        endpoint,
        store,
        broker,
        agents: BTreeMap::new(),
        next: (0, 0),
        background: Vec::new(),
        world,
    };
    let ended = tokio::select! {
        ended = engine.play() => ended,
        () = cancel.cancelled() => Err(Halt::Broken("the run was interrupted".into())),
    };
    if tokio::time::timeout(TIDY, engine.strike()).await.is_err() {
        tracing::warn!("tidying up did not end within {TIDY:?}");
    }
    ended
}

async fn connect(endpoint: &str) -> Result<Store, Halt> {
    let store = Store::connect(endpoint).await;
    store.map_err(|error| Halt::Broken(format!("etcd at {endpoint} does not answer: {error}")))
}

/// A run that is under way.
struct Engine {
    world: Arc<World>,
    /// Where etcd is.
    endpoint: String,
    /// A connection of its own.
    store: Store,
    broker: Option<Arc<dyn BrokerControl>>,
    agents: BTreeMap<u32, Agent>,
    /// The numbers of the next scheduler and the next agent.
    next: (u16, u32),
    chance: StdRng,
    background: Vec<JoinHandle<()>>,
}

impl Engine {
    async fn play(&mut self) -> Result<(), Halt> {
        self.sample().await;
        self.tell_short_intervals().await?;
        for _ in 0..self.world.workload.schedulers.count {
            self.add_backend(true).await?;
        }
        self.join(self.world.workload.agent_count()).await;
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
                        match self.chance.random_bool(crash) {
                            true => self.crash(agent),
                            false => self.leave(agent),
                        }
                    }
                }
                Happens::Come(count) => self.join(count).await,
            }
            self.background.retain(|task| !task.is_finished());
        }
        let end = nanos(self.world.workload.duration);
        tokio::time::sleep_until(self.instant(end)).await;
        let now = self.world.recorder.now();
        self.world.recorder.record(now, Event::End);
        self.drain(end + nanos(self.longest_interval())).await?;
        self.sample().await;
        Ok(())
    }

    fn longest_interval(&self) -> Duration {
        let longest = self.world.triggers.iter().map(|trigger| trigger.seconds).max();
        Duration::from_secs(longest.unwrap_or_default().unsigned_abs())
    }

    /// Tells which intervals etcd has no leases for.
    async fn tell_short_intervals(&self) -> Result<(), Halt> {
        let mut all: Vec<_> = self.world.triggers.iter().map(|trigger| trigger.seconds).collect();
        all.sort_unstable();
        all.dedup();
        for seconds in all {
            let granted = self.store.shortest(seconds).await;
            let granted = granted.map_err(|e| Halt::Broken(format!("a lease from etcd: {e}")))?;
            if granted > seconds {
                tracing::warn!(
                    "this etcd makes leases of {granted} s of those of {seconds} s: checks at that \
                     interval are scheduled as seldom"
                );
            }
        }
        Ok(())
    }

    /// Sets the epoch, and has the checks begin so that each fires first when its first tick is
    /// due, as well as a lease can: one interval before that its trigger is put.
    async fn begin(&mut self) {
        let lead = nanos(self.longest_interval() + LEAD);
        let epoch = self.world.recorder.now() + lead;
        self.world.epoch.store(epoch, Ordering::Relaxed);
        let starts = (0..).zip(&self.world.ticks).zip(&self.world.triggers);
        let mut starts: Vec<(u64, u32)> = starts
            .filter_map(|((check, ticks), trigger)| {
                let every = Duration::from_secs(trigger.seconds.unsigned_abs());
                Some(((epoch + ticks.from(0)?.due).saturating_sub(nanos(every)), check))
            })
            .collect();
        starts.sort_unstable();
        let world = Arc::clone(&self.world);
        self.background.push(tokio::spawn(async move {
            for (at, check) in starts {
                tokio::time::sleep_until(world.recorder.instant(at)).await;
                world.begun[check as usize].store(true, Ordering::Relaxed);
                for backend in world.backends().values() {
                    backend.ensure(check);
                }
            }
        }));
        tokio::time::sleep_until(self.world.recorder.instant(epoch)).await;
        self.world.recorder.record_at((epoch, epoch), Event::Begin);
    }

    fn instant(&self, since: u64) -> Instant {
        self.world.recorder.instant(self.world.epoch.load(Ordering::Relaxed) + since)
    }

    async fn act(&mut self, action: Action) -> Result<(), Halt> {
        match action {
            Action::StopSchedulers(n) => self.lose_backends(n, SchedulerState::Stopped),
            Action::KillSchedulers(n) => self.lose_backends(n, SchedulerState::Killed),
            Action::PauseSchedulers(n, span) => {
                for backend in self.world.backends().values().take(n as usize) {
                    backend.pause(Instant::now() + span);
                }
            }
            Action::AddSchedulers(n) => {
                for _ in 0..n {
                    self.add_backend(false).await?;
                }
            }
            Action::JoinAgents(n) => self.join(n).await,
            Action::LeaveAgents(n) => {
                for agent in self.choose(n) {
                    self.leave(agent);
                }
            }
            Action::CrashAgents(n) => {
                let limit = Instant::now() + BUSY;
                for _ in 0..n {
                    if let Some(agent) = self.choose_busy(limit).await {
                        self.crash(agent);
                    }
                }
            }
            Action::CutAgents(n, span) => {
                for agent in self.choose(n) {
                    self.cut(agent, span);
                }
            }
            Action::StallAgents(n, span) => {
                for id in self.choose(n) {
                    if let Some(agent) = self.agents.get(&id) {
                        agent.hang(Instant::now() + span);
                        self.record(id, AgentState::Stalled);
                    }
                }
            }
            Action::RestartBroker => self.restart().await?,
        }
        Ok(())
    }

    fn record(&self, agent: u32, is: AgentState) {
        let recorder = &self.world.recorder;
        recorder.record(recorder.now(), Event::Agent { agent, is });
    }

    async fn add_backend(&mut self, at_once: bool) -> Result<(), Halt> {
        let id = self.next.0;
        self.next.0 += 1;
        let store = connect(&self.endpoint).await?;
        let backend = Backend::start(Arc::clone(&self.world), id, store, at_once).await;
        let backend = backend.map_err(|e| Halt::Broken(format!("watching in etcd: {e}")))?;
        self.world.backends().insert(id, backend);
        Ok(())
    }

    /// Backends are gone; their agents go to others.
    fn lose_backends(&mut self, count: u32, is: SchedulerState) {
        for _ in 0..count {
            let Some((_, backend)) = self.world.backends().pop_first() else { return };
            for (agent, session) in backend.end(is) {
                self.connect_after(agent, session, RECONNECT);
            }
        }
    }

    /// Has an agent connect to a backend that is there by then.
    fn connect_after(&mut self, id: u32, session: Session, after: Duration) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        let world = Arc::clone(&self.world);
        let connecting = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            while !link(&world, id, session.clone()).await && !session.inbox.is_closed() {
                tokio::time::sleep(RECONNECT).await;
            }
        });
        if let Some(before) = agent.connecting.replace(connecting) {
            before.abort();
        }
    }

    async fn join(&mut self, count: u32) {
        let ids = self.next.1..self.next.1 + count;
        self.next.1 += count;
        let world = &self.world;
        let join = |id| async move {
            let invoked = world.recorder.now();
            let agent = Agent::start(Arc::clone(world), id);
            let linked = link(world, id, agent.session()).await;
            world.recorder.record(invoked, Event::Agent { agent: id, is: AgentState::Joined });
            (id, agent, linked)
        };
        let joined: Vec<_> = stream::iter(ids).map(join).buffer_unordered(JOINING).collect().await;
        for (id, agent, linked) in joined {
            let session = agent.session();
            self.agents.insert(id, agent);
            if !linked {
                self.connect_after(id, session, RECONNECT);
            }
        }
    }

    /// An agent leaves: its connection ends, and it executes what it has.
    fn leave(&mut self, id: u32) {
        let Some(agent) = self.agents.remove(&id) else { return };
        self.unlink(id);
        let recorder = self.world.recorder.clone();
        let invoked = recorder.now();
        self.background.push(tokio::spawn(async move {
            agent.finish().await;
            recorder.record(invoked, Event::Agent { agent: id, is: AgentState::Left });
        }));
    }

    /// An agent is gone. Its machine is still there, so that its backend sees its connection end.
    fn crash(&mut self, id: u32) {
        let Some(agent) = self.agents.remove(&id) else { return };
        agent.abort();
        self.record(id, AgentState::Crashed);
        self.unlink(id);
    }

    /// An agent's connection is lost for a while, which both sides see.
    fn cut(&mut self, id: u32, span: Duration) {
        let Some(session) = self.agents.get(&id).map(Agent::session) else { return };
        self.record(id, AgentState::Cut);
        self.unlink(id);
        self.connect_after(id, session, span);
        let recorder = self.world.recorder.clone();
        self.background.push(tokio::spawn(async move {
            tokio::time::sleep(span).await;
            recorder.record(recorder.now(), Event::Agent { agent: id, is: AgentState::Healed });
        }));
    }

    /// The connection of an agent ends.
    fn unlink(&self, id: u32) {
        // It has one at most.
        let _ = self.world.backends().values().any(|backend| backend.disconnect(id));
    }

    fn choose(&mut self, count: u32) -> Vec<u32> {
        let mut chosen: Vec<_> = self.agents.keys().copied().collect();
        chosen.shuffle(&mut self.chance);
        chosen.sort_by_key(|id| !self.agents[id].is_busy());
        chosen.truncate(count as usize);
        chosen
    }

    /// An agent that executes something, if one does so before a time; else any.
    async fn choose_busy(&mut self, limit: Instant) -> Option<u32> {
        loop {
            let chosen = *self.choose(1).first()?;
            if self.agents[&chosen].is_busy() || Instant::now() >= limit {
                return Some(chosen);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn restart(&mut self) -> Result<(), Halt> {
        control::restart(self.broker.as_ref(), &self.world.recorder).await
    }

    async fn sample(&self) {
        control::sample(self.broker.as_ref(), &self.world.recorder).await;
    }

    /// Waits until no tick can have a firing any more (a time since the epoch) and nothing is
    /// executed, and makes sure that etcd still answers.
    async fn drain(&mut self, last: u64) -> Result<(), Halt> {
        let world = Arc::clone(&self.world);
        let last = world.epoch.load(Ordering::Relaxed) + last;
        let limit = last
            + nanos(world.workload.longest_execution() + QUIET * 5)
            + nanos(world.workload.longest_disturbance());
        loop {
            let now = world.recorder.now();
            let still = world.active.load(Ordering::Relaxed);
            let busy = world.executing.load(Ordering::Relaxed) > 0;
            if !busy && now >= last && now >= still + nanos(QUIET) {
                let answered = self.store.answers().await;
                answered.map_err(|e| Halt::Broken(format!("etcd does not answer: {e}")))?;
                world.recorder.record(still.max(last), Event::Drained);
                return Ok(());
            }
            if now > limit {
                let why = "checks were still executed long after the end";
                return Err(Halt::Undecided(why.into()));
            }
            let next = tokio::time::sleep(SAMPLE);
            self.sample().await;
            next.await;
        }
    }

    /// Ends what is still there, and deletes the rings.
    async fn strike(&mut self) {
        for (_, backend) in std::mem::take(&mut *self.world.backends()) {
            backend.end(SchedulerState::Stopped);
        }
        for (id, agent) in std::mem::take(&mut self.agents) {
            agent.abort();
            self.record(id, AgentState::Left);
        }
        for task in self.background.drain(..) {
            task.abort();
        }
        // What is left has leases, and ends with them.
        if let Err(error) = self.store.clear(&self.world.prefix).await {
            tracing::warn!("the rings were not deleted: {error}");
        }
    }
}

/// Connects an agent to a backend, each to another one in turn; whether there was one.
async fn link(world: &Arc<World>, id: u32, session: Session) -> bool {
    let backend = {
        let backends = world.backends();
        let place = (id as usize).checked_rem(backends.len());
        place.and_then(|place| backends.values().nth(place).cloned())
    };
    match backend {
        Some(backend) => backend.connect(id, session).await,
        None => false,
    }
}
