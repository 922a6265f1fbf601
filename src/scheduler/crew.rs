//! The agents of a run: they join, leave, crash, hang, and lose their connections.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use queueproof_backends::{
    BackendError, Capability, Connector, Consumer, ConsumerOptions, Link, QueueBackend, Start,
    SubscriptionSpec,
};
use rand::{rngs::StdRng, seq::SliceRandom};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    AgentState, Event, Flaw,
    agent::{Agent, Job, Order},
    world::{Queue, SUBSCRIPTION, World},
};

/// All agents.
pub(super) struct Crew {
    world: Arc<World>,
    connector: Arc<dyn Connector>,
    agents: BTreeMap<u32, Member>,
    next: u32,
    /// The connections that agents share, each for some of them.
    shared: Vec<Arc<dyn QueueBackend>>,
    /// Those who are leaving, and links that are to be healed.
    background: Vec<JoinHandle<()>>,
}

/// An agent that is there.
pub(super) struct Member {
    employed: Employed<Order>,
    /// How many deliveries it holds.
    holds: Arc<AtomicU32>,
    cuts: u64,
}

/// Somebody who works, and how to tell them something.
pub(super) struct Employed<O> {
    pub(super) orders: Vec<watch::Sender<O>>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    /// A connection of their own.
    pub(super) backend: Option<Arc<dyn QueueBackend>>,
    pub(super) link: Option<Arc<dyn Link>>,
}

/// How many agents join at the same time: with more, a NATS server that has thousands of waiting
/// consumers answers the last later than a request may take (measured at 256).
const JOINING: usize = 64;

impl Crew {
    pub(super) fn new(world: Arc<World>, connector: Arc<dyn Connector>) -> Self {
        Crew {
            world,
            connector,
            agents: BTreeMap::new(),
            next: 0,
            shared: Vec::new(),
            background: Vec::new(),
        }
    }

    /// Some more agents connect and begin to consume.
    ///
    /// # Errors
    /// The first that cannot.
    pub(super) async fn join(&mut self, count: u32) -> Result<(), BackendError> {
        let workload = &self.world.workload;
        if self.shared.is_empty() && !workload.connection_per_agent {
            let needed = workload.agent_count().div_ceil(workload.agents_per_connection.max(1));
            for _ in 0..needed.max(1) {
                self.shared.push(self.connector.connect(None).await?);
            }
        }
        let ids = self.next..self.next + count;
        self.next += count;
        let this = &*self;
        let members: Vec<_> =
            stream::iter(ids.map(|id| this.employ(id))).buffered(JOINING).try_collect().await?;
        self.agents.extend(members);
        Ok(())
    }

    async fn employ(&self, id: u32) -> Result<(u32, Member), BackendError> {
        let workload = &self.world.workload;
        let invoked = self.world.recorder.now();
        // What is to be cut must have a connection of its own.
        let link = match id < workload.cut_agents() {
            true => Some(self.connector.link().await?),
            false => None,
        };
        let own = match workload.connection_per_agent || link.is_some() {
            true => Some(self.connector.connect(link.clone()).await?),
            false => None,
        };
        let shared = self.shared.get(id as usize % self.shared.len().max(1));
        let group = workload.agent_group(id);
        let mut consumers = Vec::new();
        if let Some(backend) = own.as_ref().or(shared) {
            for queue in self.queues(id, &group.pools) {
                consumers.push(self.consumer(backend, id, queue, group.concurrency).await?);
            }
        }
        let holds = Arc::new(AtomicU32::new(0));
        let joined = Event::Agent { agent: id, is: AgentState::Joined };
        self.world.recorder.record(invoked, joined);
        let mut orders = Vec::new();
        let tasks = (0..).zip(consumers).map(|(nth, consumer)| {
            // One each: a `watch` wakes several in no certain order.
            let (order, receiver) = watch::channel(Order::Work);
            orders.push(order);
            let job = Arc::new(Job {
                world: Arc::clone(&self.world),
                agent: id,
                group: group.clone(),
                holds: Arc::clone(&holds),
            });
            let agent = Agent { job, consumer, orders: receiver, first: nth == 0 };
            tokio::spawn(agent.run())
        });
        let tasks = tasks.collect();
        let employed = Employed { orders, tasks, backend: own, link };
        Ok((id, Member { employed, holds, cuts: 0 }))
    }

    /// The queues that an agent of these pools consumes.
    fn queues(&self, id: u32, pools: &[u16]) -> Vec<Queue> {
        let all = self.world.queues();
        let flawed = |queue: &Queue| match self.world.flaw {
            Some(Flaw::IdleAgent) => id == 0 && !queue.broadcast,
            Some(Flaw::DeafAgent) => id == 0 && queue.broadcast,
            _ => false,
        };
        all.into_iter().filter(|queue| pools.contains(&queue.pool) && !flawed(queue)).collect()
    }

    async fn consumer(
        &self,
        backend: &Arc<dyn QueueBackend>,
        id: u32,
        queue: Queue,
        concurrency: u16,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        let world = &self.world;
        let topic = world.topic(queue);
        let subscription = match queue.broadcast {
            false => SUBSCRIPTION.to_string(),
            true => {
                let spec = SubscriptionSpec {
                    topic: topic.clone(),
                    name: format!("agent-{id}"),
                    start: Start::Latest,
                    ack_timeout: world.workload.ack_timeout,
                    dead_letter: None,
                    ordered_by_key: false,
                };
                backend.create_subscription(&spec).await?;
                spec.name
            }
        };
        // Not more than it can begin with: what waits at a busy agent is late.
        let limits = &world.capabilities.limits;
        let prefetch = if limits.prefetch_counts_unsettled { concurrency.max(1) } else { 1 };
        let confirm_acks = world.capabilities.has(Capability::ConfirmedAck);
        let options = ConsumerOptions { prefetch: prefetch.into(), confirm_acks };
        backend.consumer(&topic, &subscription, options).await
    }

    /// Chooses agents by chance, those that hold something first.
    pub(super) fn choose(
        &self,
        count: u32,
        chance: &mut StdRng,
        of: impl Fn(&Member) -> bool,
    ) -> Vec<u32> {
        let there = self.agents.iter().filter(|(_, member)| of(member));
        let (mut chosen, mut others): (Vec<_>, Vec<_>) = there.partition(|(_, m)| m.is_busy());
        chosen.shuffle(chance);
        chosen.truncate(count as usize);
        // Of thousands only those that are needed.
        let (further, _) = others.partial_shuffle(chance, count as usize - chosen.len());
        chosen.extend_from_slice(further);
        chosen.into_iter().map(|(&id, _)| id).collect()
    }

    /// All that are there.
    pub(super) fn everybody(&self) -> Vec<u32> {
        self.agents.keys().copied().collect()
    }

    fn record(&self, agent: u32, is: AgentState) {
        let recorder = &self.world.recorder;
        recorder.record(recorder.now(), Event::Agent { agent, is });
    }

    /// Has agents end what they are at, and leave; they do so in the background.
    pub(super) fn leave(&mut self, agents: &[u32]) {
        for agent in agents {
            let Some(mut member) = self.agents.remove(agent) else { continue };
            let (world, agent) = (Arc::clone(&self.world), *agent);
            let invoked = world.recorder.now();
            self.background.push(tokio::spawn(async move {
                member.employed.tell(Order::Leave);
                member.employed.ended().await;
                let event = Event::Agent { agent, is: AgentState::Left };
                world.recorder.record(invoked, event);
                if let Some(backend) = &member.employed.backend {
                    farewell(&world, backend, member.cuts).await;
                }
            }));
        }
        self.background.retain(|task| !task.is_finished());
    }

    /// An agent is gone from one moment to the next.
    pub(super) async fn crash(&mut self, agent: u32) {
        let Some(member) = self.agents.remove(&agent) else { return };
        member.employed.abort();
        self.record(agent, AgentState::Crashed);
        if let Some(link) = &member.employed.link {
            link.cut();
        }
        if let Some(backend) = &member.employed.backend {
            backend.close().await;
        }
    }

    /// An agent hangs until then.
    pub(super) fn stall(&mut self, agent: u32, until: Instant) {
        if let Some(member) = self.agents.get(&agent) {
            member.employed.tell(Order::HangUntil(until));
            self.record(agent, AgentState::Stalled);
        }
    }

    /// The connections of agents are cut for a while.
    pub(super) fn cut(&mut self, agents: &[u32], span: Duration) {
        for &agent in agents {
            let Some(member) = self.agents.get_mut(&agent) else { continue };
            let Some(link) = member.employed.link.clone() else { continue };
            link.cut();
            member.cuts += 1;
            self.record(agent, AgentState::Cut);
            let world = Arc::clone(&self.world);
            self.background.push(tokio::spawn(async move {
                tokio::time::sleep(span).await;
                link.heal();
                let event = Event::Agent { agent, is: AgentState::Healed };
                world.recorder.record(world.recorder.now(), event);
            }));
        }
    }

    /// Ends all at once.
    pub(super) fn abort(&mut self) {
        for member in self.agents.values() {
            member.employed.abort();
        }
        for task in self.background.drain(..) {
            task.abort();
        }
    }

    /// Waits for those who are leaving, and closes all connections.
    pub(super) async fn close(&mut self) {
        for task in self.background.drain(..) {
            // One that panicked has ended too.
            let _ = task.await;
        }
        let own = self
            .agents
            .values()
            .filter_map(|member| Some((member.employed.backend.as_ref()?, member.cuts)));
        let all = self.shared.iter().map(|backend| (backend, 0)).chain(own);
        stream::iter(all.map(|(backend, cuts)| farewell(&self.world, backend, cuts)))
            .buffer_unordered(JOINING)
            .collect::<()>()
            .await;
    }
}

impl Member {
    /// Whether it executes something.
    pub(super) fn is_busy(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    /// Whether its connection can be cut.
    pub(super) fn has_link(&self) -> bool {
        self.employed.link.is_some()
    }
}

/// Closes a connection, and tells how often it was lost beside being cut.
async fn farewell(world: &World, backend: &Arc<dyn QueueBackend>, cuts: u64) {
    let times = backend.disconnects().saturating_sub(cuts);
    if times > 0 {
        world.recorder.record(world.recorder.now(), Event::Lost { times });
    }
    backend.close().await;
}

impl<O: Copy> Employed<O> {
    /// Tells them something.
    pub(super) fn tell(&self, order: O) {
        for orders in &self.orders {
            orders.send_replace(order);
        }
    }

    /// Waits until they have ended by themselves.
    pub(super) async fn ended(&mut self) {
        for task in self.tasks.drain(..) {
            // One that panicked has ended too, and its history shows that it did nothing more.
            let _ = task.await;
        }
    }

    /// Ends them at once.
    pub(super) fn abort(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
