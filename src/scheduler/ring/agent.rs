//! An agent of the baseline: it executes what its backend sends it, all at the same time, except a
//! check that it is still at, as Sensu's agents do.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{World, backend::Session};
use crate::scheduler::{AgentState, Event, Request, chance::unit};

/// An agent that is there.
pub(super) struct Agent {
    inbox: mpsc::UnboundedSender<Request>,
    hangs: watch::Sender<Option<Instant>>,
    holds: Arc<AtomicU32>,
    task: JoinHandle<()>,
    /// What connects it again, if it is not connected.
    pub(super) connecting: Option<JoinHandle<()>>,
}

/// How often to look whether an agent is done.
const LOOK: Duration = Duration::from_millis(10);

impl Agent {
    pub(super) fn start(world: Arc<World>, id: u32) -> Self {
        let (inbox, requests) = mpsc::unbounded_channel();
        let hangs = watch::Sender::new(None);
        let holds = Arc::new(AtomicU32::new(0));
        let work = Work {
            world,
            agent: id,
            requests,
            hangs: hangs.subscribe(),
            holds: Arc::clone(&holds),
            executing: HashSet::new(),
        };
        let task = tokio::spawn(work.run());
        Agent { inbox, hangs, holds, task, connecting: None }
    }

    /// Its side of a session.
    pub(super) fn session(&self) -> Session {
        Session { inbox: self.inbox.clone(), hangs: self.hangs.subscribe() }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    pub(super) fn hang(&self, until: Instant) {
        self.hangs.send_replace(Some(until));
    }

    /// Waits until it has executed what it holds, and ends it.
    pub(super) async fn finish(self) {
        while self.is_busy() {
            tokio::time::sleep(LOOK).await;
        }
        self.abort();
    }

    /// Ends it at once.
    pub(super) fn abort(&self) {
        self.task.abort();
        if let Some(connecting) = &self.connecting {
            connecting.abort();
        }
    }
}

/// What an agent does.
struct Work {
    world: Arc<World>,
    agent: u32,
    requests: mpsc::UnboundedReceiver<Request>,
    hangs: watch::Receiver<Option<Instant>>,
    holds: Arc<AtomicU32>,
    /// The checks that it is at.
    executing: HashSet<u32>,
}

impl Work {
    async fn run(mut self) {
        let mut running: FuturesUnordered<BoxFuture<'static, u32>> = FuturesUnordered::new();
        loop {
            let hangs = *self.hangs.borrow_and_update();
            if let Some(until) = hangs.filter(|until| Instant::now() < *until) {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => self.record(Event::Agent {
                        agent: self.agent,
                        is: AgentState::Resumed,
                    }),
                    // It hangs for longer.
                    changed = self.hangs.changed() => if changed.is_err() { return },
                }
                continue;
            }
            tokio::select! {
                biased;
                changed = self.hangs.changed() => if changed.is_err() { return },
                Some(check) = running.next(), if !running.is_empty() => {
                    self.executing.remove(&check);
                }
                request = self.requests.recv() => {
                    let Some(request) = request else { return };
                    let delivery = self.world.next_delivery();
                    self.record(Event::Receive {
                        agent: self.agent,
                        delivery,
                        request,
                        attempt: None,
                    });
                    if self.executing.insert(request.check) {
                        running.push(Box::pin(self.execute(delivery, request)));
                    } else {
                        // What it is still at it refuses, and nobody hears of that.
                        let (agent, ok) = (self.agent, false);
                        self.record(Event::Execute { agent, delivery, ok });
                    }
                }
            }
        }
    }

    fn record(&self, event: Event) {
        self.world.recorder.record(self.world.recorder.now(), event);
    }

    /// Executes a check; it is broken off where this is dropped.
    fn execute(&self, delivery: u64, request: Request) -> impl Future<Output = u32> + use<> {
        let (world, agent) = (Arc::clone(&self.world), self.agent);
        let held = Held::new(Arc::clone(&world), Arc::clone(&self.holds));
        async move {
            let Request { check, tick, .. } = request;
            // The same chance as that of an agent of a broker's at its first attempt.
            let who = u64::from(agent) << 32 | 1;
            let chance = |what| unit(world.seed ^ what, [who, u64::from(check), tick]);
            let group = world.workload.agent_group(agent);
            let timeout = world.workload.check(check).map(|check| check.group.timeout);
            let span = group.execution.at(chance(1)).min(timeout.unwrap_or(Duration::MAX));
            let begun = world.recorder.now();
            tokio::time::sleep(span).await;
            let ok = chance(2) >= group.fails;
            world.recorder.record(begun, Event::Execute { agent, delivery, ok });
            drop(held);
            check
        }
    }
}

/// Counts an execution as under way as long as it lives: also one that is broken off ends.
struct Held(Arc<World>, Arc<AtomicU32>);

impl Held {
    fn new(world: Arc<World>, holds: Arc<AtomicU32>) -> Self {
        holds.fetch_add(1, Ordering::Relaxed);
        world.executing.fetch_add(1, Ordering::Relaxed);
        world.is_active();
        Held(world, holds)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
        self.0.executing.fetch_sub(1, Ordering::Relaxed);
        self.0.is_active();
    }
}
