//! A consumer's state: what the broker sent, what was handed out, and what is due to go back.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use pulsar::message::proto::CommandMessage;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    connection::{Connection, Kind, Lost, Owner, lock},
    given::{Given, Spot},
    pool::Pool,
    terms::Terms,
    wire::{self, Frame, Payload},
};
use crate::{BackendError, ErrorKind};

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
    pub(super) prefetch: u32,
    pub(super) state: Mutex<State>,
    /// There is something to receive.
    pub(super) arrived: Notify,
    /// Something has changed that the keeper must look at.
    pub(super) wake: Notify,
    pub(super) retired: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) open: Option<Open>,
    /// What came and was not handed out.
    buffer: VecDeque<Arc<Given>>,
    /// How many were handed out for which the broker may send others, and does not know it.
    pub(super) owed: u32,
    held: HashMap<Spot, Held>,
    /// When what is held is due to go back.
    pub(super) deadlines: BTreeMap<(Instant, u64), Spot>,
    locks: u64,
    /// What has used up its deliveries, to be moved away.
    pub(super) doomed: Vec<Arc<Given>>,
    /// An id that the broker closed, perhaps before its opening was taken in.
    pub(super) closed_id: Option<u64>,
    ended: Option<BackendError>,
    pub(super) closed: bool,
}

/// Where it is open.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) connection: Arc<Connection>,
    pub(super) generation: u64,
    pub(super) id: u64,
}

/// The lock of a delivery that was handed out.
struct Held {
    given: Arc<Given>,
    lock: u64,
    due: Option<Instant>,
}

/// A delivery that was taken out of what is held, to be put back if that was too early.
pub(super) struct Released(Option<Held>);

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

    pub(super) fn end(&self, error: BackendError) {
        lock(&self.state).ended.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Gives up the locks that have passed, and returns what has used up its deliveries.
    pub(super) fn expire(&self) -> Vec<Arc<Given>> {
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
        let (given, mut gone) = match Given::read(told, payload) {
            Ok(read) => read,
            Err(problem) => {
                return self.end(BackendError::new(
                    ErrorKind::Unsupported,
                    format!("a message of {} cannot be read: {problem}", self.topic),
                ));
            }
        };
        let mut state = lock(&self.state);
        if state.open.as_ref().is_none_or(|open| open.id != told.consumer_id) {
            return; // Of an earlier opening: it comes again.
        }
        for given in given {
            match self.terms.is_over(given.attempt) {
                true => {
                    gone += 1;
                    state.doomed.push(given);
                }
                false => state.buffer.push_back(given),
            }
        }
        if gone > 0 {
            // What nobody will be handed makes room as if it were.
            self.owe(&mut state, gone);
            self.wake.notify_one();
        }
        drop(state);
        self.arrived.notify_one();
    }
}

pub(super) const CLOSED: &str = "the connection is closed";

impl Open {
    /// Closes it at the broker without waiting.
    pub(super) fn abandon(&self) {
        self.connection.farewell(self.generation, Kind::Consumer, self.id);
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

    fn lost(&self, id: u64) {
        {
            let mut state = lock(&self.state);
            if state.open.as_ref().is_some_and(|open| open.id != id) {
                return; // It is open elsewhere by now.
            }
            state.open = None;
            state.forget();
        }
        self.wake.notify_one();
    }
}
