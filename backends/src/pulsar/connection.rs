//! One socket to one broker: what waits for its answers, and what happens when it is lost.
//!
//! One task owns the socket. It dials again with bounded back-off until the connection is closed,
//! and each new socket is a new *generation*: what was opened on one is gone with it. When a
//! socket is lost, everything that waits for an answer fails at once; nothing is kept to be sent
//! later.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pulsar::message::proto::BaseCommand;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    dial::{Address, Dialer},
    wire::{self, Frame},
};
use crate::BackendError;

/// A connection to a broker, for as long as it is not closed.
pub(super) struct Connection {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) state: Mutex<State>,
    pub(super) status: watch::Sender<Status>,
    pub(super) closing: Notify,
    max_message: AtomicUsize,
}

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status {
    /// The number of the present socket, while there is one.
    pub(super) generation: Option<u64>,
    /// How many were lost.
    pub(super) losses: u64,
    pub(super) closed: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) up: Option<Up>,
    /// Who waits for the answer to a request, by its id.
    pending: HashMap<u64, Waiting>,
    /// Who waits for a `PONG`, in the order of the `PING`s; `None` for those that only look
    /// whether the broker is there.
    pub(super) pings: VecDeque<Option<oneshot::Sender<()>>>,
    pub(super) owners: HashMap<(Kind, u64), Arc<dyn Owner>>,
}

/// The present socket.
pub(super) struct Up {
    generation: u64,
    pub(super) outgoing: mpsc::UnboundedSender<Bytes>,
}

/// Who waits for an answer.
enum Waiting {
    /// Whoever asked.
    For(mpsc::UnboundedSender<BaseCommand>),
    /// Nobody: what was asked to close is forgotten then.
    ToForget(Kind, u64),
}

/// What an id of a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Producer,
    Consumer,
}

/// A producer or consumer, that the broker tells things. Both calls must not wait.
pub(super) trait Owner: Send + Sync {
    /// The broker sent it this.
    fn told(&self, frame: Frame);
    /// The socket on which it was opened by this id is lost.
    fn lost(&self, id: u64);
}

/// What became of a request without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was not sent.
    NotSent(String),
    /// It was sent.
    Unanswered(String),
    /// The connection is closed.
    Closed,
}

/// A request that was sent.
pub(super) struct Pending {
    answers: mpsc::UnboundedReceiver<BaseCommand>,
    id: u64,
    shared: Arc<Shared>,
}

/// How long what is left may take to be written when the connection is closed.
pub(super) const CLOSING: Duration = Duration::from_secs(2);

const DOWN: &str = "the connection is down";
pub(super) const LOST: &str = "the connection was lost";

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Connects, once; from then on it reconnects by itself.
    pub(super) async fn open(dialer: Dialer) -> Result<Arc<Self>, BackendError> {
        let dialed = dialer.dial().await?;
        let shared = Arc::new(Shared {
            dialer,
            state: Mutex::default(),
            status: watch::Sender::new(Status::default()),
            closing: Notify::new(),
            max_message: AtomicUsize::new(dialed.max_message),
        });
        let outgoing = shared.rise(1, dialed.max_message);
        let task = tokio::spawn(Arc::clone(&shared).supervise(dialed, outgoing));
        Ok(Arc::new(Connection { shared, task: Mutex::new(Some(task)) }))
    }

    /// The broker's address.
    pub(super) fn address(&self) -> &Address {
        &self.shared.dialer.address
    }

    /// How to connect to another broker of the same cluster: at its own address, or by the proxy
    /// at this one's.
    pub(super) fn dialer_to(&self, broker: &Address, by_proxy: bool) -> Dialer {
        let here = &self.shared.dialer;
        let (address, through, proxy_to) = match by_proxy {
            true => (here.address.clone(), here.through, Some(broker.at())),
            false => (broker.clone(), None, None),
        };
        let (tls, credentials) = (Arc::clone(&here.tls), Arc::clone(&here.credentials));
        let connect_timeout = here.connect_timeout;
        Dialer { address, through, proxy_to, tls, credentials, connect_timeout }
    }

    /// The largest message that the broker takes, bytes.
    pub(super) fn max_message(&self) -> usize {
        self.shared.max_message.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    pub(super) fn now(&self) -> Status {
        *self.shared.status.borrow()
    }

    /// A number that no request, producer or consumer has, of this connection or any other.
    pub(super) fn id(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until there is a socket, and returns its generation.
    ///
    /// # Errors
    /// [`Lost::NotSent`] when none came within `limit`, [`Lost::Closed`].
    pub(super) async fn up(&self, limit: Duration) -> Result<u64, Lost> {
        let mut status = self.status();
        let up = status.wait_for(|s| s.generation.is_some() || s.closed);
        match timeout(limit, up).await {
            Ok(Ok(status)) if !status.closed => status.generation.ok_or(Lost::Closed),
            Ok(_) => Err(Lost::Closed),
            Err(_) => {
                Err(Lost::NotSent(format!("{DOWN}, and did not come back within {limit:.1?}")))
            }
        }
    }

    /// Sends a frame on the socket of this generation.
    pub(super) fn send(&self, generation: u64, frame: Frame) -> Result<(), Lost> {
        if self.now().closed {
            return Err(Lost::Closed);
        }
        let bytes = wire::encode(frame).map_err(Lost::NotSent)?;
        lock(&self.shared.state).send(generation, bytes)
    }

    /// Sends a request, with a new id, on the socket of this generation.
    pub(super) fn ask(
        &self,
        generation: u64,
        request: impl FnOnce(u64) -> Frame,
    ) -> Result<Pending, Lost> {
        if self.now().closed {
            return Err(Lost::Closed);
        }
        let id = self.id();
        let bytes = wire::encode(request(id)).map_err(Lost::NotSent)?;
        let (sender, answers) = mpsc::unbounded_channel();
        let mut state = lock(&self.shared.state);
        state.send(generation, bytes)?;
        state.pending.insert(id, Waiting::For(sender));
        Ok(Pending { answers, id, shared: Arc::clone(&self.shared) })
    }

    /// Makes sure, by a round trip, that the connection is up; waits for it to come back.
    pub(super) async fn round_trip(&self, limit: Duration) -> Result<(), Lost> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let generation = self.up(left).await?;
            let (sender, receiver) = oneshot::channel();
            let sent = {
                let mut state = lock(&self.shared.state);
                let bytes = wire::encode(wire::ping()).map_err(Lost::NotSent)?;
                let sent = state.send(generation, bytes);
                if sent.is_ok() {
                    state.pings.push_back(Some(sender));
                }
                sent
            };
            if sent.is_err() {
                continue; // It went down between the two.
            }
            match tokio::time::timeout_at(deadline, receiver).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => {} // Lost: the next one may be up in time.
                Err(_) => {
                    let why = format!("the broker did not answer a PING within {limit:?}");
                    return Err(Lost::Unanswered(why));
                }
            }
        }
    }

    /// Hands what the broker tells a producer or consumer to its owner. To be called before it is
    /// opened.
    pub(super) fn register(&self, kind: Kind, id: u64, owner: Arc<dyn Owner>) {
        lock(&self.shared.state).owners.insert((kind, id), owner);
    }

    pub(super) fn unregister(&self, kind: Kind, id: u64) {
        // The owner is dropped after the lock is released: it may come back here.
        let owner = lock(&self.shared.state).owners.remove(&(kind, id));
        drop(owner);
    }

    /// Closes a producer or consumer without waiting for the end of it: what the broker still
    /// tells it, until it says that it is closed, reaches its owner. Where the socket of this
    /// generation is gone, so is the producer or consumer.
    pub(super) fn farewell(&self, generation: u64, kind: Kind, id: u64) {
        let request = self.id();
        let frame = match kind {
            Kind::Producer => wire::close_producer(id, request),
            Kind::Consumer => wire::close_consumer(id, request),
        };
        let Ok(bytes) = wire::encode(frame) else { return };
        let mut state = lock(&self.shared.state);
        let gone = match state.send(generation, bytes) {
            Ok(()) => {
                state.pending.insert(request, Waiting::ToForget(kind, id));
                None
            }
            Err(_) => state.owners.remove(&(kind, id)),
        };
        drop(state);
        drop(gone); // Without the lock: it may come back here.
    }

    /// Closes without waiting for the end of it.
    pub(super) fn shut(&self) {
        self.shared.status.send_modify(|status| status.closed = true);
        self.shared.closing.notify_one();
    }

    /// Closes, and waits until its task has ended.
    pub(super) async fn close(&self) {
        self.shut();
        let task = lock(&self.task).take();
        if let Some(mut task) = task
            && timeout(CLOSING * 2, &mut task).await.is_err()
        {
            task.abort();
            let _ = task.await;
            self.shared.fall();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl Pending {
    /// Waits for the answer; it may be called again where a request has several.
    pub(super) async fn wait(&mut self, limit: Duration) -> Result<BaseCommand, Lost> {
        match timeout(limit, self.answer()).await {
            Ok(answer) => answer,
            Err(_) => Err(Lost::Unanswered(format!("no answer came within {limit:.1?}"))),
        }
    }

    /// Waits for the answer for as long as it takes.
    pub(super) async fn answer(&mut self) -> Result<BaseCommand, Lost> {
        self.answers.recv().await.ok_or_else(|| Lost::Unanswered(LOST.into()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.shared.state).pending.remove(&self.id);
    }
}

impl State {
    fn send(&self, generation: u64, bytes: Bytes) -> Result<(), Lost> {
        let up = self.up.as_ref().filter(|up| up.generation == generation);
        let sent = up.map(|up| up.outgoing.send(bytes));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Lost::NotSent(DOWN.into())),
        }
    }

    /// Answers a request; one that has another answer to come stays. Returns who is forgotten by
    /// that, to be dropped without the lock.
    pub(super) fn answer(
        &mut self,
        id: u64,
        command: BaseCommand,
        last: bool,
    ) -> Option<Arc<dyn Owner>> {
        match self.pending.get(&id) {
            // Nobody may wait for it any more.
            Some(Waiting::For(waiting)) => drop(waiting.send(command)),
            Some(&Waiting::ToForget(kind, owner)) => {
                self.pending.remove(&id);
                return self.owners.remove(&(kind, owner));
            }
            None => tracing::debug!(id, "an answer that nobody waits for"),
        }
        if last {
            self.pending.remove(&id);
        }
        None
    }
}

impl Shared {
    /// A new socket is there.
    pub(super) fn rise(
        &self,
        generation: u64,
        max_message: usize,
    ) -> mpsc::UnboundedReceiver<Bytes> {
        let (outgoing, queue) = mpsc::unbounded_channel();
        lock(&self.state).up = Some(Up { generation, outgoing });
        self.max_message.store(max_message, Ordering::Relaxed);
        self.status.send_modify(|status| status.generation = Some(generation));
        queue
    }

    /// The socket is gone: everything that waits is told.
    pub(super) fn fall(&self) {
        let (up, pending, pings, owners) = {
            let mut state = lock(&self.state);
            let up = state.up.take();
            let pending = std::mem::take(&mut state.pending);
            let pings = std::mem::take(&mut state.pings);
            (up, pending, pings, std::mem::take(&mut state.owners))
        };
        self.status.send_modify(|status| {
            status.generation = None;
            status.losses += u64::from(up.is_some() && !status.closed);
        });
        drop((pending, pings));
        for ((_, id), owner) in owners {
            owner.lost(id);
        }
    }
}
