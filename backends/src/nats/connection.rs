//! A connection: the client, its events, and the replies that are waited for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Event, HeaderMap, StatusCode, Subject, connection::State};
use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{NatsSettings, dial};
use crate::{BackendError, ErrorKind, Link};

/// A connection to a server.
pub(super) struct Connection {
    pub(super) client: Client,
    /// How long to wait for an answer.
    pub(super) limit: Duration,
    events: Arc<Events>,
    /// Where replies come in: this and a number.
    inbox: String,
    next: AtomicU64,
    waiting: Waiting,
    reader: JoinHandle<()>,
    closed: AtomicBool,
    /// Kept so that the proxy lives as long as what goes through it.
    _link: Option<Arc<dyn Link>>,
}

/// What the client tells of itself.
struct Events {
    /// Counts the losses of the connection.
    lost: watch::Sender<u64>,
    gone: watch::Sender<bool>,
}

/// An answer of the server.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Bytes,
    pub(super) status: Option<StatusCode>,
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
    receiver: oneshot::Receiver<Reply>,
    number: u64,
    waiting: Waiting,
}

/// Who waits for a reply, by its number, and the place in flight that it takes meanwhile.
type Waiting = Arc<Mutex<HashMap<u64, (oneshot::Sender<Reply>, Option<OwnedSemaphorePermit>)>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    pub(super) async fn open(
        settings: &NatsSettings,
        servers: &[dial::Server],
        link: Option<Arc<dyn Link>>,
    ) -> Result<Arc<Self>, BackendError> {
        let mut addresses: Vec<_> = servers.to_vec();
        if let Some(address) = link.as_ref().and_then(|link| link.address()) {
            addresses = vec![dial::Server {
                tls: servers[0].tls,
                host: address.ip().to_string(),
                port: address.port(),
            }];
        }
        let waiting = Waiting::default();
        let events =
            Arc::new(Events { lost: watch::Sender::new(0), gone: watch::Sender::new(false) });
        let (told, pending) = (Arc::clone(&events), Arc::clone(&waiting));
        let options = dial::options(settings).await?.event_callback(move |event| {
            tracing::debug!(%event, "nats");
            match event {
                Event::Disconnected => {
                    // The library would leave these waiting for ever.
                    lock(&pending).clear();
                    told.lost.send_modify(|lost| *lost += 1);
                }
                Event::Closed => drop(told.gone.send_replace(true)),
                _ => {}
            }
            std::future::ready(())
        });
        let urls: Vec<_> = addresses.iter().map(dial::Server::url).collect();
        let first = &addresses[0];
        let at = format!("{}:{}", first.host, first.port);
        // One attempt a server, each within the connect timeout.
        let patience = settings.connect_timeout * urls.len() as u32 + Duration::from_millis(500);
        let client = match timeout(patience, options.connect(urls)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let limit = settings.connect_timeout;
                return Err(dial::explain(error, &first.host, first.port, limit).await);
            }
            Err(_) => {
                let problem = format!("no connection to {at} within {patience:?}");
                return Err(BackendError::new(ErrorKind::Timeout, problem));
            }
        };
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(format!("{inbox}.*")).await.map_err(|error| {
            BackendError::new(ErrorKind::Other, format!("subscribing to replies: {error}"))
        })?;
        let answered = Arc::clone(&waiting);
        let reader = tokio::spawn(async move {
            while let Some(message) = replies.next().await {
                let number = message.subject.rsplit('.').next().and_then(|n| n.parse().ok());
                // One that nobody waits for came too late, or twice.
                if let Some((sender, _)) = number.and_then(|n: u64| lock(&answered).remove(&n)) {
                    let _ = sender.send(Reply { payload: message.payload, status: message.status });
                }
            }
        });
        let connection = Arc::new(Connection {
            client,
            limit: settings.request_timeout,
            events,
            inbox,
            next: AtomicU64::new(0),
            waiting,
            reader,
            closed: AtomicBool::new(false),
            _link: link,
        });
        connection.require_jetstream(&at).await?;
        Ok(connection)
    }

    /// Whether it is up, as far as the client knows.
    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Follows the losses of the connection.
    pub(super) fn losses(&self) -> watch::Receiver<u64> {
        self.events.lost.subscribe()
    }

    pub(super) fn disconnects(&self) -> u64 {
        *self.events.lost.borrow()
    }

    /// Sends a message that asks for an answer. What is sent while the connection is down would
    /// be sent later by the library, so it is refused here.
    pub(super) async fn request(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<Pending, Lost> {
        if self.is_closed() {
            return Err(Lost::Closed);
        }
        let before = self.disconnects();
        if !self.is_up() {
            return Err(Lost::NotSent("the connection is down".into()));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(number, (sender, place));
        let pending = Pending { receiver, number, waiting: Arc::clone(&self.waiting) };
        let reply = format!("{}.{number}", self.inbox);
        let sent = match headers {
            None => self.client.publish_with_reply(subject, reply, payload).await,
            Some(headers) => {
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        // The client has only taken it into its queue: if the connection was lost meanwhile,
        // nobody knows.
        match sent {
            Err(error) => Err(Lost::NotSent(error.to_string())),
            Ok(()) if self.disconnects() != before => Err(Lost::Unanswered(LOST.into())),
            Ok(()) => Ok(pending),
        }
    }

    /// Sends a message that asks for no answer.
    pub(super) async fn tell(&self, subject: Subject, payload: Bytes) -> Result<(), Lost> {
        if self.is_closed() {
            return Err(Lost::Closed);
        }
        if !self.is_up() {
            return Err(Lost::NotSent("the connection is down".into()));
        }
        let told = self.client.publish(subject, payload).await;
        told.map_err(|error| Lost::NotSent(error.to_string()))
    }

    /// Closes, and waits until the client's task has ended.
    pub(super) async fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.reader.abort();
        let mut gone = self.events.gone.subscribe();
        if self.client.drain().await.is_ok() {
            // A client that is reconnecting may never say so.
            let wait = if self.is_up() { CLOSING } else { Duration::from_millis(100) };
            let _ = timeout(wait, gone.wait_for(|gone| *gone)).await;
        }
        lock(&self.waiting).clear();
    }
}

/// How long the client may take to say goodbye.
const CLOSING: Duration = Duration::from_secs(2);

const LOST: &str = "the connection was lost";

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Pending {
    /// Waits for the answer.
    pub(super) async fn wait(mut self, limit: Duration) -> Result<Reply, Lost> {
        match timeout(limit, &mut self.receiver).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Lost::Unanswered(LOST.into())),
            Err(_) => Err(Lost::Unanswered(format!("no answer came within {limit:?}"))),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.number);
    }
}
