//! A consumer: what its sockets were given, and how it is settled.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{connection::Connection, roster::Lines, wire, wire::Id};
use crate::{
    BackendError, BoxFuture, Consumer, Delivery, ErrorKind, Message, SettleError, Settled,
    Settlement, Settler, Token,
};

/// A consumer of one channel.
pub(super) struct NsqConsumer {
    connection: Arc<Connection>,
    inbox: Arc<Inbox>,
    lines: Lines,
    settler: Arc<NsqSettler>,
}

/// A delivery of nsqd.
pub(super) struct Given {
    pub(super) body: Bytes,
    pub(super) attempt: u16,
    pub(super) id: Id,
    /// Which of its line's sockets it came on: no other can settle it.
    pub(super) session: u64,
    /// When nsqd has timed it out for certain, unless it was touched.
    pub(super) expires: Instant,
    /// Whether the same message was delivered again on the same socket: then nsqd would take a
    /// settlement of this delivery for one of the other.
    pub(super) superseded: AtomicBool,
    /// Who settles it. While there is one, its socket stays.
    pub(super) line: mpsc::UnboundedSender<Command>,
}

/// What the task of a consumer's socket is told.
pub(super) enum Command {
    Settle {
        given: Vec<Arc<Given>>,
        how: How,
        confirm: bool,
        answer: oneshot::Sender<Vec<Result<Settled, SettleError>>>,
    },
    /// How many deliveries may be unsettled from now on.
    Ready(u32),
    /// Take no more, and give back what was never handed out; said when it is done, or `grace` has
    /// passed.
    Leave { grace: Duration, left: oneshot::Sender<()> },
    /// Make sure that nsqd answers.
    Probe(oneshot::Sender<()>),
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Finish,
    /// After so many milliseconds.
    Requeue(u64),
    Touch,
}

/// What came and was not handed out.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Given>>,
    /// Why nothing will come any more.
    over: Option<BackendError>,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, given: Arc<Given>) {
        self.state().waiting.push_back(given);
        self.came.notify_one();
    }

    /// Takes out those that match.
    pub(super) fn remove(&self, matches: impl Fn(&Given) -> bool) -> Vec<Arc<Given>> {
        let mut state = self.state();
        let (out, waiting) = state.waiting.drain(..).partition(|given| matches(given));
        state.waiting = waiting;
        Vec::from(out)
    }

    /// Nothing will come any more.
    pub(super) fn end(&self, why: BackendError) {
        self.state().over.get_or_insert(why);
        self.came.notify_one();
    }

    /// Takes what is to be handed out. What nsqd has timed out while it waited here belongs to
    /// somebody else by now.
    fn take(&self, max: usize) -> Result<Vec<Arc<Given>>, BackendError> {
        let mut state = self.state();
        let now = Instant::now();
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(given) = state.waiting.pop_front()
        {
            if given.expires > now {
                taken.push(given);
            }
        }
        match &state.over {
            Some(why) if taken.is_empty() => Err(why.clone()),
            _ => Ok(taken),
        }
    }
}

impl NsqConsumer {
    pub(super) fn new(
        connection: Arc<Connection>,
        inbox: Arc<Inbox>,
        lines: Lines,
        confirm: bool,
        longest_delay: Duration,
    ) -> Self {
        let settler =
            Arc::new(NsqSettler { connection: Arc::clone(&connection), confirm, longest_delay });
        NsqConsumer { connection, inbox, lines, settler }
    }

    /// Tells all sockets to leave.
    fn leave(&self, grace: Duration) -> Vec<oneshot::Receiver<()>> {
        let mut leaving = Vec::new();
        for line in self.lines.close() {
            let (left, done) = oneshot::channel();
            if line.send(Command::Leave { grace, left }).is_ok() {
                leaving.push(done);
            }
        }
        leaving
    }

    fn delivery(&self, given: Arc<Given>) -> Delivery {
        Delivery {
            message: Message::new(given.body.clone()),
            attempt: Some(u32::from(given.attempt)),
            position: None,
            token: Token::Object(given),
            settler: Arc::clone(&self.settler) as Arc<dyn Settler>,
        }
    }
}

impl Consumer for NsqConsumer {
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>> {
        Box::pin(async move {
            let deadline = Instant::now() + linger;
            let mut closed = self.connection.closed();
            loop {
                self.connection.require_open()?;
                let taken = self.inbox.take(max)?;
                if !taken.is_empty() || Instant::now() >= deadline {
                    return Ok(taken.into_iter().map(|given| self.delivery(given)).collect());
                }
                tokio::select! {
                    () = self.inbox.came.notified() => {}
                    _ = closed.changed() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                }
            }
        })
    }

    fn close(self: Box<Self>, grace: Duration) -> BoxFuture<'static, Result<(), BackendError>> {
        Box::pin(async move {
            let leaving = self.leave(grace.max(LEAST));
            // Each answers within its grace, or its task is gone.
            futures::future::join_all(leaving).await;
            Ok(())
        })
    }
}

/// The shortest grace: a round trip.
const LEAST: Duration = Duration::from_millis(50);

impl Drop for NsqConsumer {
    fn drop(&mut self) {
        // As after closing, only that nobody waits for it.
        drop(self.leave(self.connection.limit));
    }
}

/// Settles the deliveries of one consumer.
struct NsqSettler {
    connection: Arc<Connection>,
    confirm: bool,
    longest_delay: Duration,
}

impl fmt::Debug for NsqSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NsqSettler")
    }
}

impl NsqSettler {
    fn how(&self, how: &Settlement) -> Result<How, SettleError> {
        match how {
            // There is nowhere to move it to.
            Settlement::Ack | Settlement::Reject => Ok(How::Finish),
            Settlement::Touch => Ok(How::Touch),
            Settlement::Nack { delay: None } => Ok(How::Requeue(0)),
            // nsqd would shorten it without a word.
            Settlement::Nack { delay: Some(delay) } if *delay > self.longest_delay => {
                Err(SettleError::Unsupported(format!(
                    "nsqd delays by {:?} at most (-max-req-timeout)",
                    self.longest_delay
                )))
            }
            Settlement::Nack { delay: Some(delay) } => Ok(How::Requeue(wire::millis(*delay))),
        }
    }
}

impl Settler for NsqSettler {
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        let how = self.how(&how);
        let (connection, confirm) = (Arc::clone(&self.connection), self.confirm);
        Box::pin(async move {
            let how = match how {
                Ok(how) => how,
                Err(error) => return tokens.iter().map(|_| Err(error.clone())).collect(),
            };
            let given: Vec<_> = tokens.into_iter().map(given).collect();
            // Those of one socket together, all sockets at the same time.
            let runs = given.chunk_by(|a, b| match (a, b) {
                (Ok(a), Ok(b)) => a.line.same_channel(&b.line),
                _ => false,
            });
            let runs = runs.map(|run| settle_run(&connection, run, how, confirm));
            futures::future::join_all(runs).await.concat()
        })
    }
}

/// The delivery that a token stands for.
fn given(token: Token) -> Result<Arc<Given>, SettleError> {
    let given = match token {
        Token::Object(object) => object.downcast::<Given>().ok(),
        Token::Number(_) => None,
    };
    given.ok_or_else(|| SettleError::Unsupported("a delivery of another backend".into()))
}

/// Settles deliveries of one socket.
async fn settle_run(
    connection: &Connection,
    run: &[Result<Arc<Given>, SettleError>],
    how: How,
    confirm: bool,
) -> Vec<Result<Settled, SettleError>> {
    let all = |error: SettleError| run.iter().map(|_| Err(error.clone())).collect();
    let given: Result<Vec<_>, _> = run.iter().cloned().collect();
    let (given, line) = match given {
        Ok(given) => match given.first() {
            Some(first) => (given.clone(), first.line.clone()),
            None => return Vec::new(),
        },
        Err(error) => return all(error),
    };
    if connection.is_closed() {
        return all(SettleError::Closed);
    }
    let (answer, answered) = oneshot::channel();
    if line.send(Command::Settle { given, how, confirm, answer }).is_err() {
        let why = "its consumer is gone, and its lock has passed or cannot be used any more";
        return all(SettleError::LeaseLost(why.into()));
    }
    match timeout(connection.limit, answered).await {
        Ok(Ok(results)) => results,
        Ok(Err(_)) => all(SettleError::Indeterminate("the connection ended".into())),
        Err(_) => {
            let why = format!("nsqd did not confirm within {:?}", connection.limit);
            all(SettleError::Indeterminate(why))
        }
    }
}

impl Given {
    /// Whether settling it would settle another delivery.
    pub(super) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }
}

/// The subscription was deleted.
pub(super) fn gone(topic: &str, channel: &str) -> BackendError {
    let problem = format!("topic {topic} has no channel {channel} (any more)");
    BackendError::new(ErrorKind::NotFound, problem)
}
