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
use futures::StreamExt;
use pulsar::message::proto::BaseCommand;
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    dial::{Address, Dialed, Dialer, challenged},
    wire::{self, Frame},
};
use crate::BackendError;

/// A connection to a broker, for as long as it is not closed.
pub(super) struct Connection {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    dialer: Dialer,
    state: Mutex<State>,
    status: watch::Sender<Status>,
    closing: Notify,
    next_id: AtomicU64,
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
struct State {
    up: Option<Up>,
    /// Who waits for the answer to a request, by its id.
    pending: HashMap<u64, mpsc::UnboundedSender<BaseCommand>>,
    /// Who waits for a `PONG`, in the order of the `PING`s; `None` for those that only look
    /// whether the broker is there.
    pings: VecDeque<Option<oneshot::Sender<()>>>,
    owners: HashMap<(Kind, u64), Arc<dyn Owner>>,
}

/// The present socket.
struct Up {
    generation: u64,
    outgoing: mpsc::UnboundedSender<Bytes>,
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
    /// The socket that it was opened on is lost.
    fn lost(&self);
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

/// After how long without a word from the broker it is asked whether it is there, and after how
/// long it is taken for lost. (A broker asks every 30 s by itself.)
const QUIET: Duration = Duration::from_secs(10);
const DEAD: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to connect again.
const BACK_OFF: Duration = Duration::from_secs(1);

/// How long what is left may take to be written when the connection is closed.
const CLOSING: Duration = Duration::from_secs(2);

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
            next_id: AtomicU64::new(1),
            max_message: AtomicUsize::new(dialed.max_message),
        });
        let outgoing = shared.rise(1, dialed.max_message);
        let task = tokio::spawn(Arc::clone(&shared).supervise(dialed, outgoing));
        Ok(Arc::new(Connection { shared, task: Mutex::new(Some(task)) }))
    }

    /// How to connect to another broker of the same cluster.
    pub(super) fn dialer_to(&self, address: Address, proxy_to: Option<String>) -> Dialer {
        let dialer = &self.shared.dialer;
        Dialer {
            address,
            through: None,
            proxy_to,
            tls: Arc::clone(&dialer.tls),
            credentials: Arc::clone(&dialer.credentials),
            connect_timeout: dialer.connect_timeout,
        }
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

    /// A number that no request, producer or consumer of this connection has.
    pub(super) fn id(&self) -> u64 {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
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
            Err(_) => Err(Lost::NotSent(format!("{DOWN}, and did not come back within {limit:?}"))),
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
        state.pending.insert(id, sender);
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
            Err(_) => Err(Lost::Unanswered(format!("no answer came within {limit:?}"))),
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

    /// Answers a request; one that has another answer to come stays.
    fn answer(&mut self, id: u64, command: BaseCommand, last: bool) {
        let waiting = match last {
            true => self.pending.remove(&id),
            false => self.pending.get(&id).cloned(),
        };
        match waiting {
            // Nobody may wait for it any more.
            Some(waiting) => drop(waiting.send(command)),
            None => tracing::debug!(id, "an answer that nobody waits for"),
        }
    }
}

impl Shared {
    /// A new socket is there.
    fn rise(&self, generation: u64, max_message: usize) -> mpsc::UnboundedReceiver<Bytes> {
        let (outgoing, queue) = mpsc::unbounded_channel();
        lock(&self.state).up = Some(Up { generation, outgoing });
        self.max_message.store(max_message, Ordering::Relaxed);
        self.status.send_modify(|status| status.generation = Some(generation));
        queue
    }

    /// The socket is gone: everything that waits is told.
    fn fall(&self) {
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
        for owner in owners.into_values() {
            owner.lost();
        }
    }

    async fn supervise(self: Arc<Self>, first: Dialed, queue: mpsc::UnboundedReceiver<Bytes>) {
        let mut generation = 1;
        let mut socket = Some((first, queue));
        let mut pause = Duration::ZERO;
        loop {
            if let Some((dialed, queue)) = socket.take() {
                let why = self.drive(dialed, queue).await;
                self.fall();
                if self.status.borrow().closed {
                    return;
                }
                tracing::debug!(at = self.dialer.address.at(), why, "a Pulsar connection is lost");
                pause = Duration::ZERO;
            }
            tokio::select! {
                () = self.closing.notified() => return self.fall(),
                () = sleep(pause) => {}
            }
            let dialed = tokio::select! {
                () = self.closing.notified() => return self.fall(),
                dialed = self.dialer.dial() => dialed,
            };
            match dialed {
                Ok(dialed) => {
                    generation += 1;
                    let queue = self.rise(generation, dialed.max_message);
                    socket = Some((dialed, queue));
                }
                Err(error) => {
                    tracing::debug!(%error, "connecting to Pulsar again");
                    pause = (pause * 2).clamp(Duration::from_millis(50), BACK_OFF);
                }
            }
        }
    }

    /// Reads and writes until the socket is lost or the connection closed; returns why.
    async fn drive(&self, dialed: Dialed, mut queue: mpsc::UnboundedReceiver<Bytes>) -> String {
        let Dialed { mut reader, writer, .. } = dialed;
        let (challenge, mut challenges) = mpsc::unbounded_channel();
        let reading = async {
            let mut heard = Instant::now();
            let mut asked = false;
            let mut look = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    biased;
                    frame = reader.next() => match frame {
                        Some(Ok(frame)) => {
                            (heard, asked) = (Instant::now(), false);
                            self.hear(frame, &challenge);
                        }
                        Some(Err(error)) => return error.to_string(),
                        None => return "the broker closed it".into(),
                    },
                    _ = look.tick() => match heard.elapsed() {
                        silent if silent >= DEAD => {
                            return format!("the broker was silent for {silent:?}");
                        }
                        silent if silent >= QUIET && !asked => {
                            asked = true;
                            self.ping();
                        }
                        _ => {}
                    },
                }
            }
        };
        let writing = async {
            let mut writer = BufWriter::with_capacity(128 << 10, writer);
            while let Some(bytes) = queue.recv().await {
                writer.write_all(&bytes).await?;
                // Whatever else waits goes in the same write.
                while let Ok(bytes) = queue.try_recv() {
                    writer.write_all(&bytes).await?;
                }
                writer.flush().await?;
            }
            writer.shutdown().await
        };
        let authenticating = async {
            while challenges.recv().await.is_some() {
                let limit = self.dialer.connect_timeout;
                match challenged(&self.dialer.credentials, limit).await {
                    Ok(answer) => self.say(answer),
                    Err(error) => return format!("no new credentials for the broker: {error}"),
                }
            }
            std::future::pending().await
        };
        let closing = async {
            self.closing.notified().await;
            // Without a sender the writer ends when the queue is empty.
            lock(&self.state).up = None;
            sleep(CLOSING).await;
        };
        tokio::select! {
            why = reading => why,
            why = authenticating => why,
            written = writing => match written {
                Ok(()) => "closed".into(),
                Err(error) => error.to_string(),
            },
            () = closing => "closed".into(),
        }
    }

    /// Says something on the present socket, if there is one.
    fn say(&self, frame: Frame) {
        let state = lock(&self.state);
        if let (Some(up), Ok(bytes)) = (&state.up, wire::encode(frame)) {
            // One that is being lost needs no answer.
            let _ = up.outgoing.send(bytes);
        }
    }

    /// Asks whether the broker is there.
    fn ping(&self) {
        let mut state = lock(&self.state);
        if let (Some(up), Ok(bytes)) = (&state.up, wire::encode(wire::ping()))
            && up.outgoing.send(bytes).is_ok()
        {
            state.pings.push_back(None);
        }
    }

    /// Takes in what the broker says.
    fn hear(&self, frame: Frame, challenge: &mpsc::UnboundedSender<()>) {
        let command = &frame.command;
        if command.ping.is_some() {
            return self.say(wire::pong());
        }
        if command.pong.is_some() {
            let waiting = lock(&self.state).pings.pop_front();
            if let Some(Some(waiting)) = waiting {
                // Nobody may wait for it any more.
                let _ = waiting.send(());
            }
            return;
        }
        if command.auth_challenge.is_some() {
            // The receiver lives as long as the socket.
            let _ = challenge.send(());
            return;
        }
        if let Some(id) = owner_of(command) {
            let owner = lock(&self.state).owners.get(&id).cloned();
            match owner {
                Some(owner) => owner.told(frame),
                None => tracing::debug!(?id, "something for nobody"),
            }
            return;
        }
        let (id, last) = match command {
            BaseCommand { success: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { error: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { producer_success: Some(c), .. } => {
                (Some(c.request_id), c.producer_ready.unwrap_or(true))
            }
            BaseCommand { lookup_topic_response: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { ack_response: Some(c), .. } => (c.request_id, true),
            _ => (None, true),
        };
        match id {
            Some(id) => lock(&self.state).answer(id, frame.command, last),
            None => tracing::debug!(kind = command.r#type, "a command that is not expected"),
        }
    }
}

/// The producer or consumer that a command is for.
fn owner_of(command: &BaseCommand) -> Option<(Kind, u64)> {
    Some(match command {
        BaseCommand { send_receipt: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { message: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { send_error: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { close_producer: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { close_consumer: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { active_consumer_change: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { reached_end_of_topic: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        _ => return None,
    })
}
