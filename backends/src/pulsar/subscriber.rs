//! A consumer's state: what the broker sent, what was handed out, and what is due to go back.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pulsar::message::proto::{
    self, CommandMessage, KeySharedMeta, KeySharedMode, MessageIdData, ServerError,
    base_command::Type, command_subscribe::SubType,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, sleep_until},
};

use super::{
    batch,
    connection::{Connection, Kind, Lost, Owner, lock},
    pool::{Fault, PAUSE, Pool, is_passing, refused},
    terms::Terms,
    wire::{self, Frame, Payload},
};
use crate::{BackendError, ErrorKind, Message};

/// A consumer of one subscription.
pub(super) struct Subscriber {
    pub(super) topic: String,
    pub(super) subscription: String,
    pub(super) terms: Terms,
    pub(super) confirm: bool,
    /// How long an answer may take.
    pub(super) limit: Duration,
    pub(super) pool: Weak<Pool>,
    /// How many messages are moved to the dead-letter topic at a time.
    pub(super) burying: Semaphore,
    prefetch: u32,
    state: Mutex<State>,
    /// There is something to receive.
    pub(super) arrived: Notify,
    /// Something has changed that the keeper must look at.
    wake: Notify,
    retired: Notify,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// What came and was not handed out.
    buffer: VecDeque<Arc<Given>>,
    /// How many were handed out for which the broker may send others, and does not know it.
    owed: u32,
    held: HashMap<Spot, Held>,
    /// When what is held is due to go back.
    deadlines: BTreeMap<(Instant, u64), Spot>,
    locks: u64,
    /// What has used up its deliveries, to be moved away.
    doomed: Vec<Arc<Given>>,
    /// An id that the broker closed, perhaps before its opening was taken in.
    closed_id: Option<u64>,
    ended: Option<BackendError>,
    closed: bool,
}

/// Where it is open.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) connection: Arc<Connection>,
    pub(super) generation: u64,
    pub(super) id: u64,
}

/// Where a message is: its entry, and its place in it or -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    pub(super) ledger: u64,
    pub(super) entry: u64,
    pub(super) index: i32,
}

/// A message that the broker sent.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) spot: Spot,
    pub(super) message: Message,
    pub(super) attempt: u32,
    /// How many of its entry's messages are not acknowledged, where there are several.
    pub(super) unacked: Option<Arc<AtomicUsize>>,
    acked: AtomicUsize,
}

/// The lock of a delivery that was handed out.
struct Held {
    given: Arc<Given>,
    lock: u64,
    due: Option<Instant>,
}

/// A delivery that was taken out of what is held, to be put back if that was too early.
pub(super) struct Released(Option<Held>);

impl Spot {
    /// As the broker names its entry.
    pub(super) fn entry_id(&self) -> MessageIdData {
        MessageIdData { ledger_id: self.ledger, entry_id: self.entry, ..MessageIdData::default() }
    }
}

impl Given {
    /// Counts an acknowledgement; whether the entry as a whole is acknowledged now. Once is
    /// enough.
    pub(super) fn acknowledge(&self) -> bool {
        match &self.unacked {
            None => true,
            Some(unacked) => match self.acked.swap(1, Ordering::AcqRel) {
                0 => unacked.fetch_sub(1, Ordering::AcqRel) == 1,
                _ => unacked.load(Ordering::Acquire) == 0,
            },
        }
    }
}

impl Subscriber {
    pub(super) fn new(
        pool: &Arc<Pool>,
        topic: &str,
        subscription: &str,
        terms: Terms,
        (prefetch, confirm): (u32, bool),
    ) -> Arc<Self> {
        Arc::new(Subscriber {
            topic: topic.into(),
            subscription: subscription.into(),
            terms,
            confirm,
            limit: pool.settings.request_timeout,
            pool: Arc::downgrade(pool),
            burying: Semaphore::new(8),
            prefetch,
            state: Mutex::default(),
            arrived: Notify::new(),
            wake: Notify::new(),
            retired: Notify::new(),
        })
    }

    /// Opens it, and lets the broker send as much as the prefetch holds.
    pub(super) async fn open(
        self: &Arc<Self>,
        pool: &Pool,
        deadline: Instant,
    ) -> Result<(), Fault> {
        loop {
            match self.try_open(pool, deadline).await {
                Err(Fault::Refused(code, words)) if is_passing(code) => {
                    if Instant::now() + PAUSE >= deadline {
                        return Err(Fault::Refused(code, words));
                    }
                    sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    async fn try_open(self: &Arc<Self>, pool: &Pool, deadline: Instant) -> Result<(), Fault> {
        let (connection, generation) = pool.owner(&self.topic, deadline).await?;
        let open = Open { id: connection.id(), connection, generation };
        open.connection.register(Kind::Consumer, open.id, Arc::clone(self) as Arc<dyn Owner>);
        let opening = Opening(Some(open.clone()));
        let command = self.command(pool, open.id);
        let mut pending = open.connection.ask(generation, |request_id| {
            wire::command(Type::Subscribe, |c| {
                c.subscribe = Some(proto::CommandSubscribe { request_id, ..command });
            })
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(error) = pending.wait(left).await?.error {
            return Err(refused(error.error, error.message));
        }
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Lost::Closed.into()); // Given up meanwhile: what is open is closed again.
        }
        if state.closed_id == Some(open.id) {
            let words = "the broker closed the consumer as soon as it was open".into();
            return Err(Fault::Refused(ServerError::ServiceNotReady, words));
        }
        open.connection.send(generation, wire::flow(open.id, self.prefetch))?;
        state.owed = 0;
        state.open = Some(open);
        drop(state);
        opening.done();
        Ok(())
    }

    fn command(&self, pool: &Pool, consumer_id: u64) -> proto::CommandSubscribe {
        let sub_type = match self.terms.by_key {
            true => SubType::KeyShared,
            false => SubType::Shared,
        };
        proto::CommandSubscribe {
            topic: pool.full_name(&self.topic),
            subscription: self.subscription.clone(),
            sub_type: sub_type as i32,
            consumer_id,
            durable: Some(true),
            // It exists: where it does not, nothing is to come into being by the way.
            force_topic_creation: Some(false),
            key_shared_meta: self.terms.by_key.then(|| KeySharedMeta {
                key_shared_mode: KeySharedMode::AutoSplit as i32,
                ..KeySharedMeta::default()
            }),
            ..proto::CommandSubscribe::default()
        }
    }

    /// Opens it again whenever it is lost, and takes back what was held for too long, until it is
    /// closed or cannot be opened any more.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let next = lock(&self.state).deadlines.first_key_value().map(|((due, _), _)| *due);
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.retired.notified() => return,
                () = at(next) => {}
            }
            for given in self.expire() {
                self.bury_in_background(given);
            }
            let doomed = std::mem::take(&mut lock(&self.state).doomed);
            for given in doomed {
                self.bury_in_background(given);
            }
            let mut pause = Duration::ZERO;
            while lock(&self.state).open.is_none() {
                let Some(pool) = self.pool.upgrade().filter(|pool| !pool.is_closed()) else {
                    return self.end(BackendError::new(ErrorKind::Closed, CLOSED));
                };
                let again = async {
                    sleep(pause).await;
                    self.open_again(&pool).await
                };
                let opened = tokio::select! {
                    () = self.retired.notified() => return,
                    opened = again => opened,
                };
                if let Err(error) = opened {
                    tracing::debug!(topic = self.topic, %error, "opening a consumer again");
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Closed) {
                        return self.end(error);
                    }
                    pause = (pause * 2).clamp(PAUSE, Duration::from_secs(1));
                }
            }
        }
    }

    async fn open_again(self: &Arc<Self>, pool: &Pool) -> Result<(), BackendError> {
        let doing = format!("opening a consumer of {} of {}", self.subscription, self.topic);
        pool.base().up(self.limit).await.map_err(|lost| Fault::from(lost).explain(&doing))?;
        // Where subscriptions come into being by the way, one that is gone would come back empty.
        pool.admin.subscription_properties(&self.topic, &self.subscription).await?;
        let opened = self.open(pool, Instant::now() + self.limit).await;
        opened.map_err(|fault| fault.explain(&doing))
    }

    fn end(&self, error: BackendError) {
        lock(&self.state).ended.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Gives up the locks that have passed, and returns what has used up its deliveries.
    fn expire(&self) -> Vec<Arc<Given>> {
        let now = Instant::now();
        let mut back = Vec::new();
        let mut used_up = Vec::new();
        let mut state = lock(&self.state);
        while let Some(entry) = state.deadlines.first_entry()
            && entry.key().0 <= now
        {
            let spot = entry.remove();
            let Some(held) = state.held.remove(&spot) else { continue };
            match self.terms.used_up(held.given.attempt) {
                true => used_up.push(held.given),
                false => back.push(spot),
            }
        }
        let open = state.open.clone();
        drop(state);
        if let Some(open) = open {
            // Where the socket is lost, all comes back without asking.
            let _ = open.redeliver(&back);
        }
        used_up
    }

    /// What is there, at most `max`; each is locked from now on for the ack timeout.
    pub(super) fn hand_out(&self, max: usize) -> Result<Vec<Arc<Given>>, BackendError> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        if state.closed {
            return Err(BackendError::new(ErrorKind::Closed, "the consumer is closed"));
        }
        let count = state.buffer.len().min(max);
        if count == 0 {
            return state.ended.clone().map_or(Ok(Vec::new()), Err);
        }
        let out: Vec<_> = state.buffer.drain(..count).collect();
        let due = self.terms.ack_timeout.map(|timeout| now + timeout);
        let idle = state.deadlines.is_empty();
        for given in &out {
            state.locks += 1;
            let held = Held { given: Arc::clone(given), lock: state.locks, due };
            state.hold(held);
        }
        if idle && due.is_some() {
            self.wake.notify_one();
        }
        let owed = u32::try_from(count).unwrap_or(u32::MAX);
        self.owe(&mut state, owed);
        Ok(out)
    }

    /// Tells the broker that it may send more: not for every single message, unless it may be
    /// waiting for that.
    fn owe(&self, state: &mut State, more: u32) {
        state.owed = state.owed.saturating_add(more);
        let enough = state.owed.saturating_mul(2) >= self.prefetch || state.buffer.is_empty();
        if let Some(open) = state.open.as_ref().filter(|_| enough) {
            // Where the socket is lost, all begins anew.
            let _ = open.connection.send(open.generation, wire::flow(open.id, state.owed));
            state.owed = 0;
        }
    }

    /// Where it is open; `Err` once it is closed.
    pub(super) fn opened(&self) -> Result<Option<Open>, ()> {
        let state = lock(&self.state);
        match state.closed {
            true => Err(()),
            false => Ok(state.open.clone()),
        }
    }

    /// Ends the lock at this spot, whoever holds it.
    pub(super) fn release(&self, spot: &Spot) -> Released {
        let mut state = lock(&self.state);
        let held = state.held.remove(spot);
        if let Some(Held { due: Some(due), lock, .. }) = &held {
            state.deadlines.remove(&(*due, *lock));
        }
        Released(held)
    }

    /// Ends the lock of this very delivery; `None` if it had passed.
    pub(super) fn release_own(&self, given: &Arc<Given>) -> Option<Released> {
        {
            let state = lock(&self.state);
            state.held.get(&given.spot).filter(|held| Arc::ptr_eq(&held.given, given))?;
        }
        Some(self.release(&given.spot))
    }

    /// Puts a lock back that was ended too early. Where it is lost by now, or somebody else's, it
    /// stays so.
    pub(super) fn put_back(&self, released: Released) {
        let Some(held) = released.0 else { return };
        let mut state = lock(&self.state);
        if state.open.is_some() && !state.held.contains_key(&held.given.spot) {
            state.hold(held);
            self.wake.notify_one();
        }
    }

    /// Closes it for good; returns where it was open.
    pub(super) fn retire(&self) -> Option<Open> {
        let open = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.forget();
            state.open.take()
        };
        self.retired.notify_one();
        open
    }

    fn take_in(&self, told: &CommandMessage, payload: Payload) {
        let spot = |index| Spot {
            ledger: told.message_id.ledger_id,
            entry: told.message_id.entry_id,
            index,
        };
        let batched = payload.metadata.num_messages_in_batch.is_some();
        let messages = match batch::unpack(payload.metadata, payload.data) {
            Ok(messages) => messages,
            Err(problem) => {
                return self.end(BackendError::new(
                    ErrorKind::Unsupported,
                    format!("a message of {} cannot be read: {problem}", self.topic),
                ));
            }
        };
        let attempt = told.redelivery_count.unwrap_or(0).saturating_add(1);
        let unacked = batched.then(|| Arc::new(AtomicUsize::new(0)));
        let mut state = lock(&self.state);
        if state.open.as_ref().is_none_or(|open| open.id != told.consumer_id) {
            return; // Of an earlier opening: it comes again.
        }
        let mut gone = 0;
        for (index, message) in (0..).zip(messages) {
            if batched && is_acked(&told.ack_set, index) {
                gone += 1;
                continue;
            }
            if let Some(unacked) = &unacked {
                unacked.fetch_add(1, Ordering::AcqRel);
            }
            let given = Arc::new(Given {
                spot: spot(if batched { index } else { -1 }),
                message,
                attempt,
                unacked: unacked.clone(),
                acked: AtomicUsize::new(0),
            });
            match self.terms.is_over(attempt) {
                true => {
                    gone += 1;
                    state.doomed.push(given);
                }
                false => state.buffer.push_back(given),
            }
        }
        if gone > 0 {
            self.owe(&mut state, gone);
            self.wake.notify_one();
        }
        drop(state);
        self.arrived.notify_one();
    }
}

pub(super) const CLOSED: &str = "the connection is closed";

/// Undoes an opening that was given up.
struct Opening(Option<Open>);

impl Opening {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            open.abandon();
        }
    }
}

impl Open {
    /// Closes it at the broker without waiting.
    pub(super) fn abandon(&self) {
        self.connection.unregister(Kind::Consumer, self.id);
        let request = self.connection.id();
        // Where the socket is gone, so is the consumer.
        let _ = self.connection.send(self.generation, wire::close_consumer(self.id, request));
    }

    /// Hands entries back to the broker.
    pub(super) fn redeliver(&self, spots: &[Spot]) -> Result<(), Lost> {
        if spots.is_empty() {
            return Ok(());
        }
        // Messages of one entry go back together; naming it once is enough.
        let mut ids: Vec<_> = spots.iter().map(Spot::entry_id).collect();
        ids.dedup();
        self.connection.send(self.generation, wire::redeliver(self.id, ids))
    }
}

impl State {
    fn hold(&mut self, held: Held) {
        if let Some(due) = held.due {
            self.deadlines.insert((due, held.lock), held.given.spot);
        }
        self.held.insert(held.given.spot, held);
    }

    /// What came, and what is held, is the broker's again.
    fn forget(&mut self) {
        self.buffer.clear();
        self.held.clear();
        self.deadlines.clear();
        self.doomed.clear();
    }
}

impl Owner for Subscriber {
    fn told(&self, frame: Frame) {
        let Frame { command, payload } = frame;
        if let (Some(told), Some(payload)) = (&command.message, payload) {
            self.take_in(told, payload);
        } else if let Some(closed) = &command.close_consumer {
            let open = {
                let mut state = lock(&self.state);
                state.closed_id = Some(closed.consumer_id);
                let open = state.open.take_if(|open| open.id == closed.consumer_id);
                if open.is_some() {
                    state.forget();
                }
                open
            };
            if let Some(open) = open {
                open.connection.unregister(Kind::Consumer, open.id);
                self.wake.notify_one();
            }
        }
    }

    fn lost(&self) {
        {
            let mut state = lock(&self.state);
            state.open = None;
            state.forget();
        }
        self.wake.notify_one();
    }
}

/// Whether the broker says that the message at this place of an entry is acknowledged. It counts
/// those that are not, in words of 64 bits; without words all are unacknowledged.
fn is_acked(unacked: &[i64], index: i32) -> bool {
    let index = usize::try_from(index).unwrap_or(0);
    !unacked.is_empty() && unacked.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 0)
}

/// Until a time, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
