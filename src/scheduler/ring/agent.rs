//! An agent of the baseline: it executes what its backend sends it, all at the same time, as
//! Sensu's agents do.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::World;
use crate::scheduler::{AgentState, Event, Request, chance::unit};

/// An agent that is there.
pub(super) struct Agent {
    world: Arc<World>,
    id: u32,
    /// The backend that it is connected to.
    pub(super) backend: Option<u16>,
    inbox: mpsc::UnboundedSender<Request>,
    hangs: Arc<watch::Sender<Option<Instant>>>,
    holds: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Agent {
    /// An agent that will be connected to a backend.
    pub(super) fn start(world: Arc<World>, id: u32, backend: u16) -> Self {
        let (inbox, requests) = mpsc::unbounded_channel();
        let (hangs, hanging) = watch::channel(None);
        let holds = Arc::new(AtomicU32::new(0));
        let work = work(Arc::clone(&world), id, requests, hanging, Arc::clone(&holds));
        let task = tokio::spawn(work);
        let hangs = Arc::new(hangs);
        Agent { world, id, backend: Some(backend), inbox, hangs, holds, task }
    }

    /// Where its backend puts requests.
    pub(super) fn inbox(&self) -> mpsc::UnboundedSender<Request> {
        self.inbox.clone()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    /// Hangs until then; the task that ends it.
    pub(super) fn stall(&self, until: Instant) -> JoinHandle<()> {
        let (world, agent) = (Arc::clone(&self.world), self.id);
        let hangs = Arc::clone(&self.hangs);
        let record = move |is| {
            world.recorder.record(world.recorder.now(), Event::Agent { agent, is });
        };
        hangs.send_replace(Some(until));
        record(AgentState::Stalled);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            hangs.send_replace(None);
            record(AgentState::Resumed);
        })
    }

    /// Waits until it has executed what it holds, and ends it.
    pub(super) async fn finish(&self) {
        while self.is_busy() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        self.abort();
    }

    /// Ends it at once.
    pub(super) fn abort(&self) {
        self.task.abort();
    }
}

async fn work(
    world: Arc<World>,
    id: u32,
    mut requests: mpsc::UnboundedReceiver<Request>,
    mut hanging: watch::Receiver<Option<Instant>>,
    holds: Arc<AtomicU32>,
) {
    let mut running: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let hangs = *hanging.borrow_and_update();
        if hangs.is_some_and(|until| Instant::now() < until) {
            if hanging.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            biased;
            changed = hanging.changed() => if changed.is_err() { return },
            Some(()) = running.next(), if !running.is_empty() => {}
            request = requests.recv() => {
                let Some(request) = request else { return };
                let held = Held::new(Arc::clone(&world), Arc::clone(&holds));
                running.push(Box::pin(execute(Arc::clone(&world), id, request, held)));
            }
        }
    }
}

async fn execute(world: Arc<World>, agent: u32, request: Request, _held: Held) {
    let received = world.recorder.now();
    let delivery = {
        let mut state = world.state();
        state.deliveries += 1;
        state.deliveries - 1
    };
    world.recorder.record(received, Event::Receive { agent, delivery, request, attempt: None });
    let check = world.workload.check(request.check).map(|check| check.group.timeout);
    let places = [u64::from(agent) << 32 | 1, u64::from(request.check), request.tick];
    let span = world.workload.agent_group(agent).execution.at(unit(world.seed ^ 1, places));
    tokio::time::sleep(span.min(check.unwrap_or(span))).await;
    world.recorder.record(received, Event::Execute { agent, delivery, ok: true });
}

/// Counts an execution as under way as long as it lives: also one that is broken off ends.
struct Held(Arc<World>, Arc<AtomicU32>);

impl Held {
    fn new(world: Arc<World>, holds: Arc<AtomicU32>) -> Self {
        holds.fetch_add(1, Ordering::Relaxed);
        let now = world.recorder.now();
        {
            let mut state = world.state();
            state.executing += 1;
            state.active = now;
        }
        Held(world, holds)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
        let now = self.0.recorder.now();
        let mut state = self.0.state();
        state.executing = state.executing.saturating_sub(1);
        state.active = now;
    }
}
