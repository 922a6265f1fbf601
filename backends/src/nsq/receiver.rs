//! The task of a consumer's socket.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    barrier::{self, Barrier, Batch, Item, Waits},
    connection::{Connection, Node, at, until_closed},
    consumer::{Command, Given, How, Inbox, gone},
    dial::{Backoff, Greeting},
    socket::Socket,
    wire::{self, Delivered, Frame, Id, Refusal, Verb},
};
use crate::{BackendError, ErrorKind, SettleError, Settled};

/// A consumer's socket to one nsqd: which channel, and on what terms.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) node: Node,
    pub(super) topic: String,
    pub(super) channel: String,
    /// `None` for nsqd's default.
    pub(super) ack_timeout: Option<Duration>,
    /// Whether nsqd deletes the channel with its last consumer, so that one that is not there is
    /// made again.
    pub(super) ephemeral: bool,
    /// Whether nsqlookupd knows it: then it may come and go.
    pub(super) found: bool,
}

/// Reads deliveries and writes settlements.
pub(super) struct Receiver {
    terms: Terms,
    inbox: Arc<Inbox>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For the deliveries, which keep the task alive; it does not keep itself.
    line: mpsc::WeakUnboundedSender<Command>,
    losses: Arc<AtomicU64>,
    closed: watch::Receiver<bool>,
    ready: u32,
    /// The highest `RDY` that nsqd takes.
    most_ready: u32,
    /// The number of the socket.
    session: u64,
    /// How long a delivery stays locked on this socket.
    lock: Duration,
    /// When no delivery of this socket is locked any more.
    locked_until: Instant,
    /// The last delivery of each message that somebody still has.
    known: HashMap<Id, Weak<Given>>,
    /// When to look through them for those that nobody has any more.
    tidy_at: usize,
    /// What waits for nsqd to have carried it out, in order.
    barriers: VecDeque<Barrier>,
    next_barrier: u32,
    /// Who wants to know whether nsqd answers, while it cannot be asked.
    probes: Vec<oneshot::Sender<()>>,
    leaving: Option<Leaving>,
    /// What came while leaving, to be given back.
    unwanted: Vec<Id>,
    /// Whether nobody is left who could tell it anything.
    orphaned: bool,
}

/// A consumer that takes no more.
struct Leaving {
    until: Instant,
    /// Who waits for it, until it is told.
    left: Option<oneshot::Sender<()>>,
    /// Whether the connection is closed too: then settlements are no longer waited for.
    at_once: bool,
}

/// How a socket ended.
enum End {
    Lost(String),
    Over,
}

/// How long closing a connection waits for nsqd to take what was sent.
const GOODBYE: Duration = Duration::from_secs(1);

impl Terms {
    /// Opens a socket and subscribes.
    pub(super) async fn open(&self) -> Result<(Socket, Greeting), BackendError> {
        let dialer = &self.node.dialer;
        let (mut socket, greeting) = dialer.open(self.ack_timeout).await?;
        // nsqd would make a channel that is not there.
        if !self.ephemeral && !self.found {
            let topic = self.node.admin.topic(&self.topic).await?;
            let mut channels = topic.into_iter().flat_map(|topic| topic.channels);
            if !channels.any(|channel| channel.channel_name == self.channel) {
                return Err(gone(&self.topic, &self.channel));
            }
        }
        wire::subscribe(&mut socket.out, &self.topic, &self.channel);
        let deadline = Instant::now() + dialer.limit;
        dialer.answer(&mut socket, deadline, "subscribing").await?;
        Ok((socket, greeting))
    }

    /// Opens a socket and subscribes, however often it takes, as long as there is the channel.
    async fn persist(&self) -> Result<(Socket, Greeting), BackendError> {
        let mut backoff = Backoff::default();
        loop {
            sleep(backoff.next()).await;
            match self.open().await {
                Err(error) if error.kind != ErrorKind::NotFound => {
                    tracing::debug!(%error, "nsqd was not reached again");
                }
                opened => return opened,
            }
        }
    }
}

impl Receiver {
    /// The task for a socket that is subscribed, and how to tell it something.
    pub(super) fn new(
        connection: &Connection,
        terms: Terms,
        inbox: Arc<Inbox>,
        ready: u32,
    ) -> (Self, mpsc::UnboundedSender<Command>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let receiver = Receiver {
            terms,
            inbox,
            commands,
            line: sender.downgrade(),
            losses: connection.count_losses(),
            closed: connection.closed(),
            ready,
            most_ready: 0,
            session: 0,
            lock: Duration::ZERO,
            locked_until: Instant::now(),
            known: HashMap::new(),
            tidy_at: 1024,
            barriers: VecDeque::new(),
            next_barrier: 0,
            probes: Vec::new(),
            leaving: None,
            unwanted: Vec::new(),
            orphaned: false,
        };
        (receiver, sender)
    }

    /// Works until the consumer has left, or its connection is closed.
    pub(super) async fn run(mut self, opened: (Socket, Greeting)) {
        let mut opened = Some(opened);
        while let Some((socket, greeting)) = opened.take() {
            let End::Lost(why) = self.serve(socket, &greeting).await else { break };
            tracing::debug!(channel = self.terms.channel, why, "a consumer's connection was lost");
            self.losses.fetch_add(1, Ordering::AcqRel);
            self.lost(&why);
            if self.leaving.is_some() {
                break;
            }
            opened = self.redial().await;
        }
        self.lost("the consumer is closed");
        if let Some(left) = self.leaving.and_then(|leaving| leaving.left) {
            let _ = left.send(());
        }
    }

    /// Whatever came on the last socket is settled, or is nobody's any more.
    fn lost(&mut self, why: &str) {
        let session = self.session;
        // nsqd gives it to somebody else when its time is up.
        self.inbox.remove(|given| given.session == session && self.line.same(given));
        self.known.clear();
        for barrier in self.barriers.drain(..) {
            match barrier.what {
                Waits::Settlements(batch) => batch.answer_all(Err(SettleError::Indeterminate(
                    format!("{why}, before nsqd confirmed"),
                ))),
                Waits::Probe(probe) => self.probes.push(probe),
                Waits::Returned => {}
            }
        }
    }

    /// Connects again; `None` when there is no need any more.
    async fn redial(&mut self) -> Option<(Socket, Greeting)> {
        let terms = self.terms.clone();
        let dialing = terms.persist();
        tokio::pin!(dialing);
        loop {
            tokio::select! {
                opened = &mut dialing => match opened {
                    Ok(opened) => return Some(opened),
                    Err(error) => {
                        self.inbox.end(error);
                        return None;
                    }
                },
                command = self.commands.recv() => match command? {
                    Command::Settle { given, answer, .. } => {
                        let lost = given.iter().map(|_| Err(connection_lost())).collect();
                        let _ = answer.send(lost);
                    }
                    Command::Ready(ready) => self.ready = ready,
                    Command::Probe(probe) => self.probes.push(probe),
                    Command::Leave { .. } => return None,
                },
                () = until_closed(&mut self.closed) => return None,
            }
        }
    }

    /// Works on one socket.
    async fn serve(&mut self, mut socket: Socket, greeting: &Greeting) -> End {
        self.session += 1;
        self.lock = Duration::from_millis(greeting.msg_timeout);
        self.most_ready = greeting.max_rdy_count;
        wire::ready(&mut socket.out, self.ready.min(self.most_ready));
        for probe in std::mem::take(&mut self.probes) {
            self.barrier(&mut socket, Waits::Probe(probe));
        }
        loop {
            let until = self.leaving.as_ref().map(|leaving| match leaving.left {
                Some(_) => leaving.until,
                None => self.locked_until,
            });
            let gone = self.leaving.as_ref().is_some_and(|leaving| leaving.left.is_none());
            let closing = self.leaving.as_ref().is_some_and(|leaving| leaving.at_once);
            if self.orphaned && self.leaving.is_none() {
                let (left, _) = oneshot::channel();
                self.leave(&mut socket, GOODBYE, left, false);
            }
            if gone && (closing || self.orphaned) {
                return End::Over;
            }
            tokio::select! {
                frame = socket.next() => match frame {
                    Ok(frame) => if let Err(why) = self.take_in(frame, &mut socket) {
                        return End::Lost(why);
                    },
                    Err(lost) => return End::Lost(lost.to_string()),
                },
                command = self.commands.recv(), if !self.orphaned => {
                    // The consumer has left, and nobody has a delivery of it.
                    self.orphaned = command.is_none();
                    let mut next = command;
                    while let Some(command) = next {
                        self.obey(command, &mut socket);
                        next = self.commands.try_recv().ok();
                    }
                }
                () = at(until) => {
                    let Some(leaving) = &mut self.leaving else { continue };
                    match leaving.left.take() {
                        Some(left) => drop(left.send(())),
                        None => return End::Over,
                    }
                }
                () = until_closed(&mut self.closed), if !closing => {
                    let (left, _) = oneshot::channel();
                    self.leave(&mut socket, GOODBYE, left, true);
                }
            }
        }
    }

    /// Does what it is told.
    fn obey(&mut self, command: Command, socket: &mut Socket) {
        match command {
            Command::Settle { given, how, confirm, answer } => {
                self.settle(socket, given, how, confirm, answer);
            }
            Command::Ready(ready) => {
                self.ready = ready;
                if self.leaving.is_none() {
                    wire::ready(&mut socket.out, ready.min(self.most_ready));
                }
            }
            Command::Probe(probe) => self.barrier(socket, Waits::Probe(probe)),
            Command::Leave { grace, left } => self.leave(socket, grace, left, false),
        }
    }

    /// Begins to leave, or goes on in a hurry.
    fn leave(
        &mut self,
        socket: &mut Socket,
        grace: Duration,
        left: oneshot::Sender<()>,
        at_once: bool,
    ) {
        match &mut self.leaving {
            None => {
                wire::close(&mut socket.out);
                let until = Instant::now() + grace;
                self.leaving = Some(Leaving { until, left: Some(left), at_once });
            }
            Some(leaving) => {
                leaving.at_once |= at_once;
                leaving.until = leaving.until.min(Instant::now() + grace);
            }
        }
    }

    /// Writes settlements.
    fn settle(
        &mut self,
        socket: &mut Socket,
        given: Vec<Arc<Given>>,
        how: How,
        confirm: bool,
        answer: oneshot::Sender<Vec<Result<Settled, SettleError>>>,
    ) {
        let mut items = Vec::with_capacity(given.len());
        for given in given {
            let failed = if given.session != self.session {
                Some(connection_lost())
            } else if given.is_superseded() {
                let why = "nsqd has delivered the message again since, to the same consumer";
                Some(SettleError::LeaseLost(why.into()))
            } else {
                match how {
                    How::Finish => wire::finish(&mut socket.out, given.id),
                    How::Requeue(delay) => wire::requeue(&mut socket.out, given.id, delay),
                    How::Touch => {
                        wire::touch(&mut socket.out, given.id);
                        self.locked_until = self.locked_until.max(Instant::now() + self.lock);
                    }
                }
                None
            };
            items.push(Item { given, failed });
        }
        let batch = Batch { how, items, answer };
        match confirm && batch.items.iter().any(|item| item.failed.is_none()) {
            true => self.barrier(socket, Waits::Settlements(batch)),
            false => batch.answer_all(Ok(if confirm { Settled::Confirmed } else { Settled::Sent })),
        }
    }

    /// Writes a command that fails for certain, to see when nsqd has come so far.
    fn barrier(&mut self, socket: &mut Socket, what: Waits) {
        self.next_barrier = (self.next_barrier + 1) % barrier::NUMBERS;
        let barrier = Barrier::new(self.next_barrier, what);
        wire::touch(&mut socket.out, barrier.nonce);
        self.barriers.push_back(barrier);
    }

    /// Takes in what nsqd sent, or says why the socket is of no more use.
    fn take_in(&mut self, frame: Frame, socket: &mut Socket) -> Result<(), String> {
        match frame {
            Frame::Message(delivered) => {
                self.deliver(delivered);
                Ok(())
            }
            Frame::Response(body) if body == "CLOSE_WAIT" && self.leaving.is_some() => {
                let (line, session) = (&self.line, self.session);
                let kept = self.inbox.remove(|given| given.session == session && line.same(given));
                let kept = kept.iter().map(|given| given.id).chain(self.unwanted.drain(..));
                kept.for_each(|id| wire::requeue(&mut socket.out, id, 0));
                self.barrier(socket, Waits::Returned);
                Ok(())
            }
            Frame::Response(body) => Err(format!("nsqd sent the answer {body:?} to no question")),
            Frame::Error(words) => match Refusal::parse(&words) {
                Some(refusal) => self.refused(&refusal),
                // nsqd closes the connection.
                None => Err(format!("nsqd closed the connection: {words}")),
            },
        }
    }

    /// Takes in a delivery.
    fn deliver(&mut self, delivered: Delivered) {
        let line = self.line.upgrade().filter(|_| self.leaving.is_none());
        let Some(line) = line else { return self.unwanted.push(delivered.id) };
        let now = Instant::now();
        self.locked_until = self.locked_until.max(now + self.lock);
        let given = Arc::new(Given {
            body: delivered.body,
            attempt: delivered.attempt,
            id: delivered.id,
            session: self.session,
            expires: now + self.lock,
            superseded: AtomicBool::new(false),
            line,
        });
        let before = self.known.insert(given.id, Arc::downgrade(&given));
        if let Some(before) = before.and_then(|before| before.upgrade()) {
            before.superseded.store(true, Ordering::Release);
            self.inbox.remove(|given| std::ptr::eq(given, &*before));
        }
        if self.known.len() >= self.tidy_at {
            self.known.retain(|_, given| given.strong_count() > 0);
            self.tidy_at = 1024 + self.known.len() * 2;
        }
        self.inbox.put(given);
    }

    /// Takes in that a settlement failed, or that nsqd has come to a barrier.
    fn refused(&mut self, refusal: &Refusal) -> Result<(), String> {
        let Some(first) = self.barriers.front_mut() else {
            // One that nobody waits for a confirmation of.
            tracing::debug!(?refusal, "nsqd refused a settlement");
            return Ok(());
        };
        if refusal.verb == Verb::Touch && refusal.id == first.nonce {
            if let Some(passed) = self.barriers.pop_front() {
                self.passed(passed);
            }
            return Ok(());
        }
        if self.barriers.iter().any(|barrier| barrier.nonce == refusal.id) {
            return Err("nsqd answers out of order".into());
        }
        if let Some(Barrier { what: Waits::Settlements(batch), .. }) = self.barriers.front_mut() {
            batch.refused(refusal);
        }
        Ok(())
    }

    /// nsqd has carried out everything before this barrier.
    fn passed(&mut self, barrier: Barrier) {
        match barrier.what {
            Waits::Settlements(batch) => {
                if batch.how == How::Finish {
                    self.finished(&batch);
                }
                batch.answer_all(Ok(Settled::Confirmed));
            }
            Waits::Probe(probe) => drop(probe.send(())),
            Waits::Returned => {
                if let Some(left) = self.leaving.as_mut().and_then(|leaving| leaving.left.take()) {
                    let _ = left.send(());
                }
            }
        }
    }

    /// A message that was delivered again while its acknowledgement was on the way is done, and
    /// is not handed out again.
    fn finished(&self, batch: &Batch) {
        let done = batch.items.iter().filter(|item| item.failed.is_none());
        for Item { given, .. } in done.filter(|item| item.given.is_superseded()) {
            let (id, session) = (given.id, self.session);
            let line = &self.line;
            self.inbox
                .remove(|given| given.id == id && given.session == session && line.same(given));
        }
    }
}

/// Whether a delivery came on this line.
trait Same {
    fn same(&self, given: &Given) -> bool;
}

impl Same for mpsc::WeakUnboundedSender<Command> {
    fn same(&self, given: &Given) -> bool {
        self.upgrade().is_some_and(|line| line.same_channel(&given.line))
    }
}

/// What came on a socket cannot be settled on another.
fn connection_lost() -> SettleError {
    let why = "its connection was lost; nsqd gives the message to somebody when its time is up";
    SettleError::LeaseLost(why.into())
}
