//! One agent's work on one queue: it takes requests, executes them and settles them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use queueproof_backends::{Capability, Consumer, Delivery, ErrorKind, Settlement};
use tokio::{sync::watch, time::Instant};

use super::{
    AgentGroup, AgentState, Event, Flaw,
    chance::unit,
    envelope::{self, Envelope},
    world::World,
};
use crate::history::nanos;

/// What an agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Do your work.
    Work,
    /// Hang until then: hold what you have, settle nothing, take nothing.
    HangUntil(Instant),
    /// End what you are at, and leave.
    Leave,
}

/// An agent on one queue.
pub(super) struct Agent {
    pub(super) job: Arc<Job>,
    pub(super) consumer: Box<dyn Consumer>,
    pub(super) orders: watch::Receiver<Order>,
    /// Whether it writes down what it hangs: an agent on several queues does so once.
    pub(super) first: bool,
}

/// What all executions of an agent need.
pub(super) struct Job {
    pub(super) world: Arc<World>,
    pub(super) agent: u32,
    pub(super) group: AgentGroup,
    /// How many deliveries the agent holds.
    pub(super) holds: Arc<AtomicU32>,
}

/// How long to wait for a request at a time: the longer, the less an idle agent costs.
const LINGER: Duration = Duration::from_secs(3600);

/// How long to wait after an error before asking again.
const RETRY: Duration = Duration::from_millis(200);

/// How long leaving may take.
const GRACE: Duration = Duration::from_secs(2);

impl Agent {
    /// Works until it is told to leave.
    pub(super) async fn run(mut self) {
        let concurrency = usize::from(self.job.group.concurrency.max(1));
        let mut running: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        loop {
            let order = *self.orders.borrow_and_update();
            match order {
                Order::Leave => break,
                Order::HangUntil(until) if Instant::now() < until => {
                    self.hang(until).await;
                    continue;
                }
                Order::Work | Order::HangUntil(_) => {}
            }
            let room = concurrency - running.len();
            let asked = self.job.world.recorder.now();
            tokio::select! {
                biased;
                changed = self.orders.changed() => if changed.is_err() { break },
                Some(()) = running.next(), if !running.is_empty() => {}
                received = self.consumer.receive(room, LINGER), if room > 0 => match received {
                    Ok(deliveries) => running.extend(deliveries.into_iter().map(|delivery| {
                        Box::pin(Arc::clone(&self.job).handle(delivery, asked)) as BoxFuture<'_, _>
                    })),
                    Err(error) if error.kind == ErrorKind::Closed => break,
                    Err(error) => {
                        self.job.world.trouble(format!("an agent's receiving: {error}"));
                        tokio::time::sleep(RETRY).await;
                    }
                },
            }
        }
        while running.next().await.is_some() {}
        if let Err(error) = self.consumer.close(GRACE).await
            && error.kind != ErrorKind::Closed
        {
            self.job.world.trouble(format!("an agent's leaving: {error}"));
        }
    }

    async fn hang(&mut self, until: Instant) {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => {}
            _ = self.orders.wait_for(|order| *order == Order::Leave) => {}
        }
        if self.first {
            let event = Event::Agent { agent: self.job.agent, is: AgentState::Resumed };
            self.job.world.recorder.record(self.job.world.recorder.now(), event);
        }
    }
}

impl Job {
    /// Does what is to be done with a delivery, asked for at that time.
    async fn handle(self: Arc<Self>, delivery: Delivery, asked: u64) {
        let world = &self.world;
        let number = world.next_delivery();
        world.is_active();
        world.executing.fetch_add(1, Ordering::Relaxed);
        let _held = Held::new(Arc::clone(&self));
        match Envelope::decode(&delivery.message.payload, world.run) {
            Ok(order) => {
                let event = Event::Receive {
                    agent: self.agent,
                    delivery: number,
                    request: order.request,
                    attempt: delivery.attempt,
                };
                world.recorder.record(asked, event);
                self.work(&delivery, number, order).await;
            }
            Err(problem) => {
                let event = Event::Unreadable { agent: self.agent, delivery: number, problem };
                world.recorder.record(asked, event);
                self.settle(&delivery, number, Settlement::Ack).await;
            }
        }
        world.is_active();
    }

    async fn work(&self, delivery: &Delivery, number: u64, order: envelope::Order) {
        let world = &self.world;
        let nth = order.request.tick + u64::from(order.request.check);
        let now = world.recorder.now();
        let passed = world.since_epoch() > order.expires_at;
        let expired = match world.flaw {
            Some(Flaw::ExecuteExpired) => false,
            Some(Flaw::DropFresh) => passed || nth % 3 == 2,
            _ => passed,
        };
        if expired {
            world.recorder.record(now, Event::Expire { agent: self.agent, delivery: number });
            self.settle(delivery, number, Settlement::Ack).await;
            return;
        }
        if world.flaw == Some(Flaw::AckWithoutExecuting) && nth % 3 == 2 {
            self.settle(delivery, number, Settlement::Ack).await;
            return;
        }
        let early = world.flaw == Some(Flaw::AckFirst);
        if early {
            self.settle(delivery, number, Settlement::Ack).await;
        }
        let again = world.flaw == Some(Flaw::ExecuteTwice) && nth % 3 == 2;
        let mut ok = true;
        for _ in 0..1 + u8::from(again) {
            ok = self.execute(delivery, number, order).await;
        }
        if !early {
            let how = if ok { Settlement::Ack } else { Settlement::Nack { delay: None } };
            self.settle(delivery, number, how).await;
        }
    }

    /// Executes a check, extending its lock as long as that lasts; whether it could be executed.
    async fn execute(&self, delivery: &Delivery, number: u64, order: envelope::Order) -> bool {
        let world = &self.world;
        let request = order.request;
        let who = u64::from(self.agent) << 32 | u64::from(delivery.attempt.unwrap_or(1));
        let chance = |what| unit(world.seed ^ what, [who, u64::from(request.check), request.tick]);
        let timeout = world.workload.check(request.check).map(|check| check.group.timeout);
        let span = self.group.execution.at(chance(1)).min(timeout.unwrap_or(Duration::MAX));
        let begun = world.recorder.now();
        let until = Instant::now() + span;
        let extend = world.workload.ack_timeout / 2;
        if span > extend && world.capabilities.has(Capability::Touch) {
            while Instant::now() + extend < until {
                tokio::time::sleep(extend).await;
                self.settle(delivery, number, Settlement::Touch).await;
            }
        }
        tokio::time::sleep_until(until).await;
        let ok = chance(2) >= self.group.fails;
        let event = Event::Execute { agent: self.agent, delivery: number, ok };
        world.recorder.record(begun, event);
        ok
    }

    async fn settle(&self, delivery: &Delivery, number: u64, how: Settlement) {
        let invoked = self.world.recorder.now();
        let recorded = (&how).into();
        let outcome = delivery.settle(how).await.into();
        let event = Event::Settle { agent: self.agent, delivery: number, how: recorded, outcome };
        self.world.recorder.record(invoked, event);
    }
}

/// Counts a delivery as held as long as it lives: also an execution that is broken off ends.
struct Held(Arc<Job>);

impl Held {
    fn new(job: Arc<Job>) -> Self {
        job.holds.fetch_add(1, Ordering::Relaxed);
        Held(job)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Relaxed);
        self.0.world.executing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The longest quiet time that something due may still end: a lock that passes, with the broker's
/// resolution.
pub(super) fn quiet(world: &World) -> u64 {
    let limits = &world.capabilities.limits;
    let lock = world.workload.ack_timeout + limits.ack_timeout_resolution;
    nanos(lock + limits.nack_delay_resolution + world.workload.tolerance)
}
