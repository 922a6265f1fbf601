//! One scheduler: it computes every tick of every check from its own clock, and publishes a request
//! for each. It knows of no other scheduler.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use queueproof_backends::{
    Access, DedupKey, ErrorKind, Message, PublishError, PublishReceipt, Publisher,
    PublisherOptions, QueueBackend, RejectKind,
};
use tokio::{sync::watch, time::Instant};

use super::{
    Clock, Event, Flaw, Request, SchedulerState, Strategy, Tick, Ticks,
    envelope::Envelope,
    world::{Queue, World},
};
use crate::history::{Published, nanos};

/// What a scheduler is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Do your work.
    Work,
    /// Do nothing until then; your connection stays.
    PauseUntil(Instant),
    /// Confirm what is in flight, and end.
    Stop,
}

/// One scheduler.
pub(super) struct Replica {
    world: Arc<World>,
    id: u16,
    backend: Arc<dyn QueueBackend>,
    orders: watch::Receiver<Order>,
    clock: Clock,
    checks: Vec<Entry>,
    /// What is to be published next: by time on this scheduler's clock, then by check.
    agenda: BinaryHeap<Reverse<Due>>,
    /// Publishes without a confirmation.
    unconfirmed: FuturesUnordered<BoxFuture<'static, Fate>>,
    /// Not before this, since the broker could not be reached.
    not_before: Option<Instant>,
    /// Whether its place was taken by another one.
    deposed: bool,
    /// Whether it has published all there was.
    done: bool,
}

/// A check, with what is needed each time it is due.
struct Entry {
    namespace: String,
    name: String,
    ticks: Ticks,
    expires: u64,
    queue: Queue,
}

/// A tick on the agenda.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    /// When, on this scheduler's clock.
    at: u64,
    check: u32,
    tick: u64,
    copy: u16,
}

/// What became of a publish.
type Fate = (Due, u64, Result<PublishReceipt, PublishError>);

/// The publishers of all queues.
type Publishers = BTreeMap<Queue, Box<dyn Publisher>>;

/// How long to wait after the broker could not be reached, and between two tries for a name.
const RETRY: Duration = Duration::from_millis(100);

/// How far one that is elected goes back, where the broker drops what was published already: longer
/// than an election takes.
const HAND_OVER: Duration = Duration::from_secs(10);

/// The name that the schedulers share, where the broker deduplicates by names.
const NAME: &str = "scheduler";

impl Replica {
    /// A scheduler that begins with what is due from now on, or from the epoch on if it is one of
    /// the first.
    pub(super) fn new(
        world: Arc<World>,
        id: u16,
        backend: Arc<dyn QueueBackend>,
        orders: watch::Receiver<Order>,
        first: bool,
    ) -> Self {
        let workload = &world.workload;
        let clock = workload.clock(id);
        let entries = workload.all_checks().zip(&world.ticks).map(|(check, ticks)| Entry {
            namespace: check.group.namespace.clone(),
            name: check.name(),
            ticks: ticks.clone(),
            expires: nanos(check.group.expires),
            queue: Queue { pool: check.group.pool, broadcast: check.group.broadcast },
        });
        let checks: Vec<_> = entries.collect();
        let now = clock.shows(world.since_epoch());
        let mut replica = Replica {
            id,
            backend,
            orders,
            clock,
            checks,
            agenda: BinaryHeap::new(),
            unconfirmed: FuturesUnordered::new(),
            not_before: None,
            deposed: false,
            done: false,
            world,
        };
        replica.plan_from(if first { 0 } else { now });
        replica
    }

    /// Works until it is told to stop, or the workload's duration is over.
    pub(super) async fn run(mut self) {
        self.state(SchedulerState::Started);
        while let Some(mut publishers) = self.elected().await {
            self.publish_all(&mut publishers).await;
            for publisher in std::mem::take(&mut publishers).into_values() {
                publisher.close().await;
            }
            if !std::mem::take(&mut self.deposed) {
                break;
            }
            self.state(SchedulerState::Deposed);
        }
        self.state(SchedulerState::Stopped);
    }

    fn state(&self, is: SchedulerState) {
        match is {
            SchedulerState::Elected => self.world.set_leader(Some(self.id)),
            SchedulerState::Deposed => self.world.set_leader(None),
            _ => {}
        }
        let now = self.world.recorder.now();
        self.world.recorder.record(now, Event::Scheduler { scheduler: self.id, is });
    }

    /// Puts the first tick of each check on the agenda that is due at a time of this clock or later.
    fn plan_from(&mut self, time: u64) {
        let end = nanos(self.world.workload.duration);
        let firsts = self.checks.iter().zip(0..).filter_map(|(entry, check)| {
            let Tick { due, number } = entry.ticks.from(time)?;
            (due < end).then_some(())?;
            Some(Reverse(Due { at: due, check, tick: number, copy: 0 }))
        });
        self.agenda = firsts.collect();
    }

    /// Opens the publishers of all queues: at once where anybody may publish, else when this
    /// scheduler's turn has come. `None` if it is told to stop before.
    async fn elected(&mut self) -> Option<Publishers> {
        let strategy = self.world.workload.strategy;
        let mut publishers = Publishers::new();
        // All schedulers ask in the same order, so that one gets all.
        for queue in self.world.queues() {
            let publisher = loop {
                let open = Self::open(&self.world, &self.backend, strategy, queue);
                let opened = tokio::select! {
                    biased;
                    opened = open => opened,
                    () = told_to_stop(&mut self.orders) => return None,
                };
                match opened {
                    Ok(publisher) => break publisher,
                    Err(error) if error.kind != ErrorKind::Conflict => {
                        self.world.trouble(format!("scheduler {}: {error}", self.id));
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(RETRY) => {}
                    () = told_to_stop(&mut self.orders) => return None,
                }
            };
            publishers.insert(queue, publisher);
        }
        if strategy.elects() {
            self.state(SchedulerState::Elected);
        }
        if self.world.has_begun() {
            let now = self.clock.shows(self.world.since_epoch());
            match strategy {
                Strategy::DedupId | Strategy::Ring | Strategy::None => {}
                // What was due before its election another one has published, or nobody: there is
                // no telling, and publishing it again would be twice.
                Strategy::ExclusivePublisher => self.plan_from(now),
                // The broker drops the numbers that it has.
                Strategy::Sequence => self.plan_from(now.saturating_sub(nanos(HAND_OVER))),
            }
        }
        self.world.ready.add_permits(1);
        self.world.begun().await;
        Some(publishers)
    }

    async fn open(
        world: &World,
        backend: &Arc<dyn QueueBackend>,
        strategy: Strategy,
        queue: Queue,
    ) -> Result<Box<dyn Publisher>, queueproof_backends::BackendError> {
        let options = PublisherOptions {
            name: (strategy == Strategy::Sequence).then(|| NAME.into()),
            confirm_timeout: None,
            access: match strategy {
                Strategy::ExclusivePublisher => Access::WaitForExclusive,
                _ => Access::Shared,
            },
        };
        backend.publisher(&world.topic(queue), options).await
    }

    /// Publishes what falls due, until there is nothing more, it is told to stop, or its place was
    /// taken.
    async fn publish_all(&mut self, publishers: &mut Publishers) {
        loop {
            let order = *self.orders.borrow_and_update();
            let stopping = order == Order::Stop;
            match order {
                Order::Work => {}
                Order::PauseUntil(until) if Instant::now() < until => {
                    self.pause(until).await;
                    continue;
                }
                Order::PauseUntil(_) => {}
                Order::Stop => self.agenda.clear(),
            }
            let over = self.deposed || self.agenda.is_empty();
            if over && self.unconfirmed.is_empty() {
                if stopping || self.deposed {
                    return;
                }
                // It keeps its place, so that nobody takes over what is done.
                if !std::mem::replace(&mut self.done, true) {
                    self.world.done.add_permits(1);
                }
            }
            let room = self.unconfirmed.len() < self.world.workload.schedulers.in_flight as usize;
            let next = self.next().filter(|_| room && !over);
            tokio::select! {
                biased;
                Some(fate) = self.unconfirmed.next(), if !self.unconfirmed.is_empty() => self.learn(fate),
                () = sleep_until(next), if next.is_some() => self.publish_due(publishers).await,
                changed = self.orders.changed() => if changed.is_err() { return },
            }
        }
    }

    /// When the next tick is to be published.
    fn next(&self) -> Option<Instant> {
        let Reverse(due) = self.agenda.peek()?;
        let early = match self.world.flaw {
            Some(Flaw::EarlyTick) => nanos(self.world.workload.tolerance) * 2,
            _ => 0,
        };
        let at = self.world.instant(self.clock.when(due.at.saturating_sub(early)));
        Some(self.not_before.map_or(at, |not_before| not_before.max(at)))
    }

    /// Does nothing for a while, and then what it is configured to do with what was due.
    async fn pause(&mut self, until: Instant) {
        self.state(SchedulerState::Paused);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => {}
            () = told_to_stop(&mut self.orders) => return,
        }
        self.state(SchedulerState::Resumed);
        if !self.world.workload.schedulers.catch_up {
            let now = self.clock.shows(self.world.since_epoch());
            self.skip_until(now);
        }
    }

    /// Leaves out what is due before a time of this clock, and says so.
    fn skip_until(&mut self, time: u64) {
        let mut kept = BinaryHeap::with_capacity(self.agenda.len());
        for Reverse(mut due) in std::mem::take(&mut self.agenda).into_vec() {
            let entry = &self.checks[due.check as usize];
            let mut skipped: Option<(u64, u64)> = None;
            while due.at < time {
                skipped = Some((skipped.map_or(due.tick, |(first, _)| first), due.tick));
                let tick = Tick { due: due.at, number: due.tick };
                let Some(next) = entry.ticks.after(tick) else { break };
                due = Due { at: next.due, tick: next.number, copy: 0, ..due };
            }
            if let Some(ticks) = skipped {
                self.skipped(due.check, ticks, false);
            }
            if due.at < nanos(self.world.workload.duration) {
                kept.push(Reverse(due));
            }
        }
        self.agenda = kept;
    }

    fn skipped(&self, check: u32, ticks: (u64, u64), expired: bool) {
        let event = Event::Skip { scheduler: self.id, check, ticks, expired };
        self.world.recorder.record(self.world.recorder.now(), event);
    }

    /// Publishes everything that is due by now, as far as there is room.
    async fn publish_due(&mut self, publishers: &mut Publishers) {
        let room = self.world.workload.schedulers.in_flight as usize;
        while self.unconfirmed.len() < room
            && !self.deposed
            && self.next().is_some_and(|next| next <= Instant::now())
        {
            let Some(Reverse(due)) = self.agenda.pop() else { return };
            if due.copy == 0 {
                self.plan_next(due);
            }
            let entry = &self.checks[due.check as usize];
            let now = self.clock.shows(self.world.since_epoch());
            if now > due.at.saturating_add(entry.expires) {
                self.skipped(due.check, (due.tick, due.tick), true);
                continue;
            }
            match self.world.flaw {
                Some(Flaw::SkipTick) if (due.tick + u64::from(due.check)) % 3 == 2 => continue,
                Some(Flaw::PublishTwice) if due.tick % 3 == 2 => {
                    let again = Due { copy: due.copy + 1, ..due };
                    self.hand_over(publishers, again, "-again").await;
                }
                _ => {}
            }
            self.hand_over(publishers, due, "").await;
            // Others want to run too.
            tokio::task::consume_budget().await;
        }
    }

    /// Puts the tick after one on the agenda, if it is within the workload's duration.
    fn plan_next(&mut self, due: Due) {
        let entry = &self.checks[due.check as usize];
        let this = Tick { due: entry.ticks.due(due.tick).unwrap_or(due.at), number: due.tick };
        let Some(next) = entry.ticks.after(this) else { return };
        if next.due >= nanos(self.world.workload.duration) {
            return;
        }
        let at = match self.world.flaw {
            // Half as long again each time, counted from now.
            Some(Flaw::Drift) => {
                let interval = next.due - this.due;
                self.clock.shows(self.world.since_epoch()) + interval + interval / 2
            }
            _ => next.due,
        };
        self.agenda.push(Reverse(Due { at, check: due.check, tick: next.number, copy: 0 }));
    }

    /// Hands a request over to the connection; its fate is learned at once, or later.
    async fn hand_over(&mut self, publishers: &mut Publishers, due: Due, suffix: &str) {
        let entry = &self.checks[due.check as usize];
        let Some(publisher) = publishers.get_mut(&entry.queue) else { return };
        let request =
            Request { check: due.check, tick: due.tick, scheduler: self.id, copy: due.copy };
        let issued = self.clock.shows(self.world.since_epoch());
        let names = (entry.namespace.as_str(), entry.name.as_str());
        let expires = due.at.saturating_add(entry.expires);
        let envelope = Envelope::new(self.world.run, names, request, (issued, expires));
        let dedup = match self.world.workload.strategy {
            Strategy::DedupId => {
                let own = match self.world.flaw {
                    Some(Flaw::OwnKeys) => format!("-{}", self.id),
                    _ => String::new(),
                };
                let (namespace, name) = names;
                Some(DedupKey::Id(format!("{namespace}/{name}/{}{suffix}{own}", due.tick)))
            }
            Strategy::Sequence => {
                let checks = self.checks.len() as u64;
                // In the order of the agenda, which is that of all schedulers.
                Some(DedupKey::Sequence(due.at / 1000 * checks + u64::from(due.check)))
            }
            Strategy::ExclusivePublisher | Strategy::Ring | Strategy::None => None,
        };
        let message = Message { dedup, ..Message::new(envelope.encode()) };
        let invoked = self.world.recorder.now();
        match publisher.publish(message).await {
            Err(error) => self.learn((due, invoked, Err(error))),
            Ok(mut confirmation) => match (&mut confirmation).now_or_never() {
                Some(result) => self.learn((due, invoked, result)),
                None => self
                    .unconfirmed
                    .push(Box::pin(async move { (due, invoked, confirmation.await) })),
            },
        }
    }

    /// Takes in what became of a publish; one that may not have been stored is tried again, under
    /// the same key.
    fn learn(&mut self, (due, invoked, result): Fate) {
        let retry = match &result {
            // It is nowhere for certain: as long as the request has not expired.
            Err(PublishError::NotSent(_)) => due.copy < u16::MAX,
            Err(PublishError::Indeterminate(_)) => {
                due.copy < self.world.workload.schedulers.retries
            }
            Err(PublishError::Rejected { kind: RejectKind::NotAllowed, .. }) => {
                self.deposed = self.world.workload.strategy.elects();
                self.deposed
            }
            _ => false,
        };
        if matches!(result, Err(PublishError::NotSent(_))) {
            self.not_before = Some(Instant::now() + RETRY);
        }
        let request =
            Request { check: due.check, tick: due.tick, scheduler: self.id, copy: due.copy };
        let event = Event::Publish { request, outcome: Published::from(result) };
        self.world.recorder.record(invoked, event);
        if retry {
            self.agenda.push(Reverse(Due { copy: due.copy + 1, ..due }));
        }
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the order is to stop, or nobody is there any more to give one.
async fn told_to_stop(orders: &mut watch::Receiver<Order>) {
    // An error means that nobody is.
    let _ = orders.wait_for(|order| *order == Order::Stop).await;
}
