//! One run of a workload on a backend: topics, schedulers, agents, what happens to them, and the end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use queueproof_backends::{
    BackendError, Capabilities, Capability, Connector, QueueBackend, Retention, Start,
    SubscriptionSpec, TopicSpec,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Action, BrokerControl, Event, Flaw, Recorder, SchedulerState, Workload,
    agenda::{Agenda, Happens, SAMPLE},
    agent::quiet,
    control,
    crew::{self, Crew, Employed},
    replica::{self, Replica},
    world::{Queue, SUBSCRIPTION, World, topics},
};
use crate::history::{Halt, nanos};

/// What a run needs.
pub struct Setup {
    /// What is scheduled.
    pub workload: Workload,
    /// The backend.
    pub connector: Arc<dyn Connector>,
    /// What it declares.
    pub capabilities: Capabilities,
    /// Where events go.
    pub recorder: Recorder,
    /// What the name of every topic begins with.
    pub prefix: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// A mistake to make on purpose.
    pub flaw: Option<Flaw>,
    /// The broker's process, if it is ours.
    pub broker: Option<Arc<dyn BrokerControl>>,
    /// Ends the run early.
    pub cancel: CancellationToken,
}

/// Runs a workload to its end.
///
/// # Errors
/// What kept it from its end.
pub async fn run(setup: Setup) -> Result<(), Halt> {
    let Setup { workload, connector, capabilities, recorder, prefix, seed, flaw, broker, cancel } =
        setup;
    let world = World::new(workload, capabilities, recorder, prefix, seed, flaw);
    let world = Arc::new(world.map_err(Halt::Undecided)?);
    let director = connect(&connector).await?;
    let mut engine = Engine {
        crew: Crew::new(Arc::clone(&world), Arc::clone(&connector)),
        schedulers: BTreeMap::new(),
        next_scheduler: 0,
        chance: StdRng::seed_from_u64(seed),
        world,
        connector,
        director,
        broker,
    };
    let ended = tokio::select! {
        biased;
        ended = engine.play() => ended,
        () = cancel.cancelled() => Err(Halt::Broken("the run was interrupted".into())),
    };
    let tidy = engine.strike(ended.is_ok());
    if tokio::time::timeout(TIDY, tidy).await.is_err() {
        tracing::warn!("tidying up did not end within {TIDY:?}");
    }
    ended
}

/// A run that is under way.
struct Engine {
    world: Arc<World>,
    connector: Arc<dyn Connector>,
    /// The connection that makes topics and asks whether the broker still answers.
    director: Arc<dyn QueueBackend>,
    crew: Crew,
    schedulers: BTreeMap<u16, Employed<replica::Order>>,
    next_scheduler: u16,
    chance: StdRng,
    broker: Option<Arc<dyn BrokerControl>>,
}

/// How long tidying up may take: some connections of thousands close slowly.
const TIDY: Duration = Duration::from_secs(60);

/// How long the first scheduler may take until it is ready to publish.
const READY: Duration = Duration::from_secs(30);

/// How long to wait for agents that execute something, where some are to crash.
const BUSY: Duration = Duration::from_secs(2);

/// How often to look for one.
const LOOK: Duration = Duration::from_millis(2);

impl Engine {
    async fn play(&mut self) -> Result<(), Halt> {
        self.sample().await;
        self.make_topics().await?;
        let count = self.world.workload.agent_count();
        self.join(count).await?;
        for _ in 0..self.world.workload.schedulers.count {
            self.add_scheduler().await?;
        }
        // Where the broker elects one, the others wait.
        let elects = self.world.workload.strategy.elects();
        let needed = if elects { 1 } else { u32::from(self.world.workload.schedulers.count) };
        let world = Arc::clone(&self.world);
        let ready = tokio::time::timeout(READY, world.ready.acquire_many(needed)).await;
        if ready.is_err() {
            return Err(Halt::Broken(format!("no scheduler was ready within {READY:?}")));
        }
        self.sample().await;
        self.world.begin();
        self.work().await?;
        // Clocks that are behind have some ticks left.
        let alive = u32::try_from(self.schedulers.len()).unwrap_or(u32::MAX);
        let needed = if elects { alive.min(1) } else { alive };
        let late = world.workload.clock_error() + READY;
        // Those that are not done by then are told to stop all the same, and their ticks are missed.
        let _ = tokio::time::timeout(late, world.done.acquire_many(needed)).await;
        self.end_schedulers().await;
        let now = self.world.recorder.now();
        self.world.recorder.record(now, Event::End);
        self.drain().await?;
        self.sample().await;
        Ok(())
    }

    /// Lets the workload's duration pass, with what happens meanwhile.
    async fn work(&mut self) -> Result<(), Halt> {
        let mut agenda = Agenda::new(&self.world.workload, self.broker.is_some());
        while let Some((at, what)) = agenda.next() {
            tokio::time::sleep_until(self.world.instant(at)).await;
            match what {
                Happens::Action(action) => self.act(action).await?,
                Happens::Sample => self.sample().await,
                Happens::Go(count, crash) => self.churn(count, crash).await,
                Happens::Come(count) => self.join(count).await?,
            }
        }
        let duration = nanos(self.world.workload.duration);
        tokio::time::sleep_until(self.world.instant(duration)).await;
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<(), Halt> {
        let now = Instant::now();
        match action {
            Action::StopSchedulers(count) => {
                for scheduler in self.ahead(count) {
                    self.stop_scheduler(scheduler).await;
                }
            }
            Action::KillSchedulers(count) => {
                for scheduler in self.ahead(count) {
                    self.kill_scheduler(scheduler).await;
                    if self.world.flaw == Some(Flaw::StopWithFirst) {
                        self.end_schedulers().await;
                    }
                }
            }
            Action::PauseSchedulers(count, span) => {
                for scheduler in self.ahead(count) {
                    if let Some(employed) = self.schedulers.get(&scheduler) {
                        employed.tell(replica::Order::PauseUntil(now + span));
                    }
                }
            }
            Action::AddSchedulers(count) => {
                for _ in 0..count {
                    self.add_scheduler().await?;
                }
            }
            Action::JoinAgents(count) => self.join(count).await?,
            Action::LeaveAgents(count) => {
                let chosen = self.crew.choose(count, &mut self.chance, |_| true);
                self.crew.leave(&chosen);
            }
            Action::CrashAgents(count) => {
                self.crash(count).await;
            }
            Action::StallAgents(count, span) => {
                for agent in self.crew.choose(count, &mut self.chance, |_| true) {
                    self.crew.stall(agent, now + span);
                }
            }
            Action::CutAgents(count, span) => {
                let chosen = self.crew.choose(count, &mut self.chance, |agent| agent.has_link());
                self.crew.cut(&chosen, span);
            }
            Action::RestartBroker => self.restart_broker().await?,
        }
        Ok(())
    }

    /// Some agents go, each by crashing with this chance.
    async fn churn(&mut self, count: u32, crash: f64) {
        let chosen = self.crew.choose(count, &mut self.chance, |_| true);
        let (crashing, leaving): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|_| rand::RngExt::random_bool(&mut self.chance, crash));
        for agent in crashing {
            self.crew.crash(agent).await;
        }
        self.crew.leave(&leaving);
    }

    /// Agents crash while they execute something: one that does is waited for.
    async fn crash(&mut self, count: u32) {
        let limit = Instant::now() + BUSY;
        for _ in 0..count {
            let agent = loop {
                let busy = self.crew.choose(1, &mut self.chance, crew::Member::is_busy);
                match busy.first() {
                    Some(agent) => break Some(*agent),
                    None if Instant::now() < limit => tokio::time::sleep(LOOK).await,
                    None => break self.crew.choose(1, &mut self.chance, |_| true).first().copied(),
                }
            };
            if let Some(agent) = agent {
                self.crew.crash(agent).await;
            }
        }
    }

    async fn join(&mut self, count: u32) -> Result<(), Halt> {
        self.crew.join(count).await.map_err(|error| broken("an agent's joining", &error))
    }

    async fn make_topics(&self) -> Result<(), Halt> {
        let world = &self.world;
        let workload = &world.workload;
        let mut queues = world.queues();
        // An agent of a pool without checks finds its queue all the same.
        queues
            .extend((0..).take(workload.pools.len()).map(|pool| Queue { pool, broadcast: false }));
        queues.sort_unstable();
        queues.dedup();
        let window = world.capabilities.has(Capability::DedupWindow);
        for queue in queues {
            let retention = if queue.broadcast { Retention::Keep } else { Retention::UntilAcked };
            let spec = TopicSpec {
                name: world.topic(queue),
                retention,
                dedup_window: window.then_some(workload.dedup_window),
                max_messages: None,
            };
            let created = self.director.create_topic(&spec).await;
            created.map_err(|error| broken("creating a topic", &error))?;
            if queue.broadcast {
                continue; // Each agent has a subscription of its own.
            }
            let spec = SubscriptionSpec {
                topic: spec.name,
                name: SUBSCRIPTION.into(),
                start: Start::Earliest,
                ack_timeout: workload.ack_timeout,
                dead_letter: None,
                ordered_by_key: false,
            };
            let created = self.director.create_subscription(&spec).await;
            created.map_err(|error| broken("creating a subscription", &error))?;
        }
        Ok(())
    }

    async fn add_scheduler(&mut self) -> Result<(), Halt> {
        // One that is killed says no goodbye: its link is cut.
        let link = match self.world.workload.kills_schedulers() {
            true => Some(self.connector.link().await.map_err(|e| broken("opening a link", &e))?),
            false => None,
        };
        let backend = self.connector.connect(link.clone()).await;
        let backend = backend.map_err(|error| broken("a scheduler's connecting", &error))?;
        let id = self.next_scheduler;
        self.next_scheduler += 1;
        let (orders, receiver) = tokio::sync::watch::channel(replica::Order::Work);
        let first = !self.world.has_begun();
        let replica =
            Replica::new(Arc::clone(&self.world), id, Arc::clone(&backend), receiver, first);
        let task = tokio::spawn(replica.run());
        let employed =
            Employed { orders: vec![orders], tasks: vec![task], backend: Some(backend), link };
        self.schedulers.insert(id, employed);
        Ok(())
    }

    /// The schedulers that are ahead of the others: the one elected, then by their clocks.
    fn ahead(&self, count: u32) -> Vec<u16> {
        let mut alive: Vec<_> = self.schedulers.keys().copied().collect();
        let leader = self.world.leader();
        alive.sort_by_key(|&id| (Some(id) != leader, -self.world.workload.skew(id)));
        alive.truncate(count as usize);
        alive
    }

    async fn stop_scheduler(&mut self, id: u16) {
        let Some(mut employed) = self.schedulers.remove(&id) else { return };
        employed.tell(replica::Order::Stop);
        employed.ended().await;
        if let Some(backend) = &employed.backend {
            backend.close().await;
        }
    }

    async fn kill_scheduler(&mut self, id: u16) {
        let Some(employed) = self.schedulers.remove(&id) else { return };
        if let Some(link) = &employed.link {
            link.cut();
        }
        employed.abort();
        let now = self.world.recorder.now();
        let event = Event::Scheduler { scheduler: id, is: SchedulerState::Killed };
        self.world.recorder.record(now, event);
        if let Some(backend) = &employed.backend {
            backend.close().await;
        }
    }

    /// Has all schedulers confirm what is in flight, and end.
    async fn end_schedulers(&mut self) {
        let ids: Vec<_> = self.schedulers.keys().copied().collect();
        for employed in self.schedulers.values() {
            employed.tell(replica::Order::Stop);
        }
        for id in ids {
            self.stop_scheduler(id).await;
        }
    }

    async fn restart_broker(&mut self) -> Result<(), Halt> {
        control::restart(self.broker.as_ref(), &self.world.recorder).await
    }

    async fn sample(&self) {
        control::sample(self.broker.as_ref(), &self.world.recorder).await;
    }

    /// Waits until nothing has happened to any request for a time in which everything that is due
    /// would have, and makes sure that the broker still answers.
    async fn drain(&mut self) -> Result<(), Halt> {
        let world = Arc::clone(&self.world);
        let quiet = quiet(&world);
        let began = world.recorder.now();
        let longest = world.workload.longest_execution();
        let limit = began + nanos(longest) + quiet * 4 + nanos(world.workload.longest_expiry());
        let mut next_sample = Instant::now() + SAMPLE;
        loop {
            let now = world.recorder.now();
            let still = world.last_active().max(began);
            let busy = world.executing.load(std::sync::atomic::Ordering::Relaxed) > 0;
            if !busy && now >= still + quiet {
                break;
            }
            if now > limit {
                return Err(Halt::Undecided(
                    "requests were still coming long after the end".into(),
                ));
            }
            let until = if busy { now + nanos(SAMPLE) } else { still + quiet };
            let until = world.recorder.instant(until);
            if self.broker.is_some() {
                tokio::time::sleep_until(until.min(next_sample)).await;
                if Instant::now() >= next_sample {
                    self.sample().await;
                    next_sample = Instant::now() + SAMPLE;
                }
            } else {
                tokio::time::sleep_until(until).await;
            }
        }
        let since = world.last_active().max(began);
        let answered =
            self.director.topics(&world.topic(Queue { pool: 0, broadcast: false })).await;
        answered.map_err(|error| broken("asking whether the broker still answers", &error))?;
        world.recorder.record(since, Event::Drained);
        Ok(())
    }

    /// Ends what is still there, tells of lost connections, and deletes the topics.
    async fn strike(&mut self, gracefully: bool) {
        if gracefully {
            self.end_schedulers().await;
            let all = self.crew.everybody();
            self.crew.leave(&all);
        } else {
            for employed in std::mem::take(&mut self.schedulers).into_values() {
                employed.abort();
                if let Some(backend) = &employed.backend {
                    backend.close().await;
                }
            }
            self.crew.abort();
        }
        self.crew.close().await;
        self.director.close().await;
        let Ok(director) = self.connector.connect(None).await else { return };
        for topic in topics(&self.world.prefix, &self.world.workload) {
            // What cannot be deleted now is found by `queueproof clean` later.
            if let Err(error) = director.delete_topic(&topic).await {
                tracing::warn!("{topic} was not deleted: {error}");
            }
        }
        director.close().await;
    }
}

async fn connect(connector: &Arc<dyn Connector>) -> Result<Arc<dyn QueueBackend>, Halt> {
    connector.connect(None).await.map_err(|error| broken("connecting", &error))
}

pub(super) fn broken(doing: &str, error: &BackendError) -> Halt {
    Halt::Broken(format!("{doing}: {error}"))
}
