//! A connection of the contract: the sockets of its publishers and consumers, together.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    admin::{Admin, Info},
    consumer::Command,
    dial::Dialer,
};
use crate::{BackendError, ErrorKind, Link};

/// One nsqd: how to reach it both ways.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) dialer: Dialer,
    pub(super) admin: Admin,
}

/// What the sockets of a connection have in common.
pub(super) struct Connection {
    /// The nsqd of the settings.
    pub(super) node: Node,
    /// How that is known to nsqlookupd.
    pub(super) broadcast: (String, u16),
    /// How long to wait for an answer or a confirmation.
    pub(super) limit: Duration,
    closed: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    losses: Mutex<Losses>,
    consumers: Mutex<Vec<mpsc::WeakUnboundedSender<Command>>>,
    /// Kept so that the proxy lives as long as what goes through it.
    _link: Option<Arc<dyn Link>>,
}

/// How often the sockets of a connection were lost.
#[derive(Default)]
struct Losses {
    open: Vec<Arc<AtomicU64>>,
    /// The most of any that is gone.
    gone: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a task may take to end after the connection was closed.
const CLOSING: Duration = Duration::from_secs(3);

impl Connection {
    pub(super) fn new(
        node: Node,
        info: Info,
        limit: Duration,
        link: Option<Arc<dyn Link>>,
    ) -> Self {
        let port = u16::try_from(info.tcp_port).unwrap_or(0);
        Connection {
            node,
            broadcast: (info.broadcast_address, port),
            limit,
            closed: watch::Sender::new(false),
            tasks: Mutex::default(),
            losses: Mutex::default(),
            consumers: Mutex::default(),
            _link: link,
        }
    }

    /// Follows whether it is closed.
    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// # Errors
    /// [`ErrorKind::Closed`] if it is.
    pub(super) fn require_open(&self) -> Result<(), BackendError> {
        match self.is_closed() {
            true => Err(BackendError::new(ErrorKind::Closed, "the connection is closed")),
            false => Ok(()),
        }
    }

    /// Where a new socket counts its losses.
    pub(super) fn count_losses(&self) -> Arc<AtomicU64> {
        let counter = Arc::new(AtomicU64::new(0));
        let mut losses = lock(&self.losses);
        losses.settle();
        losses.open.push(Arc::clone(&counter));
        counter
    }

    /// How often the connection was lost. What breaks it breaks all its sockets, so it is the most
    /// that any of them was lost.
    pub(super) fn disconnects(&self) -> u64 {
        let mut losses = lock(&self.losses);
        losses.settle();
        let open = losses.open.iter().map(|counter| counter.load(Ordering::Acquire));
        open.max().unwrap_or(0).max(losses.gone)
    }

    /// Runs a task of this connection, until it ends or the connection is closed.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(task));
    }

    /// Remembers a consumer's socket, to ask whether it lives.
    pub(super) fn remember(&self, commands: &mpsc::UnboundedSender<Command>) {
        let mut consumers = lock(&self.consumers);
        consumers.retain(|consumer| consumer.strong_count() > 0);
        consumers.push(commands.downgrade());
    }

    /// Makes sure that nsqd answers on the socket of every open consumer, and waits for those that
    /// are being connected again.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] if one does not answer in time.
    pub(super) async fn probe(&self) -> Result<(), BackendError> {
        let mut answers = Vec::new();
        for consumer in lock(&self.consumers).iter().filter_map(mpsc::WeakUnboundedSender::upgrade)
        {
            let (sender, receiver) = oneshot::channel();
            if consumer.send(Command::Probe(sender)).is_ok() {
                answers.push(receiver);
            }
        }
        // One whose task has ended meanwhile has nothing to show.
        let all = futures::future::join_all(answers);
        timeout(self.limit, all).await.map(drop).map_err(|_| {
            let problem = format!(
                "a consumer's socket to {} does not answer within {:?}",
                self.node.dialer.at(),
                self.limit
            );
            BackendError::new(ErrorKind::Unreachable, problem)
        })
    }

    /// Closes, and waits until no task is left, and with it no socket.
    pub(super) async fn close(&self) {
        self.closed.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        let ended = futures::future::join_all(tasks.into_iter().map(async |mut task| {
            if timeout(CLOSING, &mut task).await.is_err() {
                task.abort();
                // It ends at its next wait.
                let _ = task.await;
            }
        }));
        ended.await;
    }
}

impl Losses {
    /// Forgets those whose socket is gone for good, but not how often they were lost.
    fn settle(&mut self) {
        let gone = &mut self.gone;
        self.open.retain(|counter| {
            let open = Arc::strong_count(counter) > 1;
            if !open {
                *gone = (*gone).max(counter.load(Ordering::Acquire));
            }
            open
        });
    }
}

/// Waits until a connection is closed.
pub(super) async fn until_closed(closed: &mut watch::Receiver<bool>) {
    // An error means that it is gone altogether.
    let _ = closed.wait_for(|closed| *closed).await;
}

/// Waits until a time, if there is one.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
