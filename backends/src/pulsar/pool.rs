//! The connections behind one [`crate::QueueBackend`]: one to the address of the settings, and one
//! to each other broker that a lookup names as the owner of a topic.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use pulsar::message::proto::{self, ServerError, command_lookup_topic_response::LookupType};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    PulsarSettings,
    admin::Admin,
    connection::{Connection, Lost, lock},
    dial::{self, Address},
    wire,
};
use crate::{BackendError, ErrorKind, Link};

/// All connections of one backend.
pub(super) struct Pool {
    pub(super) settings: Arc<PulsarSettings>,
    pub(super) admin: Admin,
    /// Whether the broker deduplicates in the namespace; if not, why.
    pub(super) dedup: Result<(), String>,
    base: Arc<Connection>,
    others: Mutex<HashMap<String, Arc<Connection>>>,
    /// Held while one of them is opened, so that each is opened once.
    opening: tokio::sync::Mutex<()>,
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Whether all goes through a link.
    linked: bool,
    /// Kept so that it lives as long as what goes through it.
    _link: Option<Arc<dyn Link>>,
}

/// Why a request to a broker failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no answer.
    Lost(Lost),
    /// The broker refused.
    Refused(ServerError, String),
    /// It cannot be connected to.
    Unreachable(BackendError),
}

impl From<Lost> for Fault {
    fn from(lost: Lost) -> Self {
        Fault::Lost(lost)
    }
}

/// How often a lookup may be sent on to another broker.
const REDIRECTS: usize = 8;

/// The pause before asking again a broker that is not ready yet, or not reachable.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

impl Pool {
    pub(super) fn new(
        settings: Arc<PulsarSettings>,
        admin: Admin,
        base: Arc<Connection>,
        dedup: Result<(), String>,
        link: Option<Arc<dyn Link>>,
    ) -> Self {
        let tasks = Mutex::new(Some(JoinSet::new()));
        let linked = link.is_some();
        let (others, opening) = Default::default();
        Pool { settings, admin, dedup, base, others, opening, tasks, linked, _link: link }
    }

    /// The connection to the address of the settings.
    pub(super) fn base(&self) -> &Arc<Connection> {
        &self.base
    }

    pub(super) fn is_closed(&self) -> bool {
        self.base.now().closed
    }

    /// A topic's full name.
    pub(super) fn full_name(&self, topic: &str) -> String {
        format!("persistent://{}/{}/{topic}", self.settings.tenant, self.settings.namespace)
    }

    /// How often one of the connections was lost, at most.
    pub(super) fn disconnects(&self) -> u64 {
        let others = lock(&self.others);
        let others = others.values().map(|other| other.now().losses);
        others.chain([self.base.now().losses]).max().unwrap_or(0)
    }

    /// Runs a task that [`close`](Self::close) waits for; it must end when the pool is closed.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.tasks).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// The connection to the broker that serves a topic, and its present generation. With a link
    /// it is one through the link: whoever is there then serves the topic, or says that it does
    /// not.
    pub(super) async fn owner(
        &self,
        topic: &str,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, u64), Fault> {
        patiently(deadline, || self.look_up(topic, deadline)).await
    }

    async fn look_up(
        &self,
        topic: &str,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, u64), Fault> {
        let mut asked = Arc::clone(&self.base);
        let mut authoritative = false;
        for _ in 0..REDIRECTS {
            let left = || deadline.saturating_duration_since(Instant::now());
            let generation = asked.up(left()).await?;
            let full = self.full_name(topic);
            let mut pending = asked.ask(generation, |id| wire::lookup(full, id, authoritative))?;
            let answer = pending.wait(left()).await?;
            if let Some(error) = answer.error {
                return Err(refused(error.error, error.message));
            }
            let Some(answer) = answer.lookup_topic_response else {
                let words = "a lookup was answered by another command".into();
                return Err(Fault::Refused(ServerError::UnknownError, words));
            };
            let kind = answer.response.and_then(|r| LookupType::try_from(r).ok());
            if matches!(kind, None | Some(LookupType::Failed)) {
                let code = answer.error.unwrap_or(ServerError::UnknownError as i32);
                return Err(refused(code, answer.message.unwrap_or_default()));
            }
            let by_proxy = answer.proxy_through_service_url.unwrap_or(false);
            if self.linked && !by_proxy {
                return Ok((asked, generation));
            }
            let next = self.named(&answer, by_proxy).await?;
            if kind == Some(LookupType::Connect) {
                let generation = next.up(left()).await?;
                return Ok((next, generation));
            }
            asked = next;
            authoritative = answer.authoritative.unwrap_or(false);
        }
        let words = format!("a lookup was sent on more than {REDIRECTS} times");
        Err(Fault::Refused(ServerError::UnknownError, words))
    }

    /// The connection to the broker that an answer names; one behind a proxy is reached at the
    /// address of the settings. (A standalone broker says that it is behind one, so that its
    /// advertised address need not be right.)
    async fn named(
        &self,
        answer: &proto::CommandLookupTopicResponse,
        by_proxy: bool,
    ) -> Result<Arc<Connection>, Fault> {
        let here = self.base.address();
        let url = match here.tls {
            true => answer.broker_service_url_tls.as_deref(),
            false => answer.broker_service_url.as_deref(),
        };
        let url = url.filter(|url| !url.is_empty()).ok_or_else(|| {
            let words = format!("the broker that a lookup names has no address for {}", here.url());
            Fault::Unreachable(BackendError::new(ErrorKind::Unreachable, words))
        })?;
        let there = dial::parse(url).map_err(|error| {
            Fault::Unreachable(error.during(&format!("a lookup leads to {url:?}")))
        })?;
        if there == *here {
            return Ok(Arc::clone(&self.base));
        }
        self.connection_to(&there, by_proxy).await
    }

    async fn connection_to(
        &self,
        broker: &Address,
        by_proxy: bool,
    ) -> Result<Arc<Connection>, Fault> {
        let _opening = self.opening.lock().await;
        if let Some(connection) = lock(&self.others).get(&broker.at()) {
            return Ok(Arc::clone(connection));
        }
        let dialer = self.base.dialer_to(broker, by_proxy);
        let opened = Connection::open(dialer).await.map_err(|error| {
            let doing = format!("a lookup leads to the broker at {}", broker.at());
            Fault::Unreachable(error.during(&doing))
        })?;
        lock(&self.others).insert(broker.at(), Arc::clone(&opened));
        if self.is_closed() {
            // Closing may have looked before it was there.
            opened.close().await;
            return Err(Lost::Closed.into());
        }
        Ok(opened)
    }

    /// Makes sure, by a round trip on each, that the connections are up.
    pub(super) async fn round_trip(&self, limit: Duration) -> Result<(), Fault> {
        self.base.round_trip(limit).await?;
        let others: Vec<_> = lock(&self.others).values().cloned().collect();
        for other in others {
            other.round_trip(limit).await?;
        }
        Ok(())
    }

    /// Closes all connections, and waits for all tasks.
    pub(super) async fn close(&self) {
        self.base.close().await;
        let others = std::mem::take(&mut *lock(&self.others));
        futures::future::join_all(others.values().map(|other| other.close())).await;
        let tasks = lock(&self.tasks).take();
        if let Some(mut tasks) = tasks {
            let ended = async { while tasks.join_next().await.is_some() {} };
            // They end by themselves: this is for one that does not.
            if tokio::time::timeout(Duration::from_secs(2), ended).await.is_err() {
                tasks.shutdown().await;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.base.shut();
        lock(&self.others).values().for_each(|other| other.shut());
    }
}

pub(super) fn refused(code: i32, message: String) -> Fault {
    Fault::Refused(wire::server_error(code), message)
}

/// Asks again until the deadline while the refusal may be over in a moment.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Fault>>>(
    deadline: Instant,
    mut ask: impl FnMut() -> F,
) -> Result<T, Fault> {
    loop {
        match ask().await {
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

/// Whether a refusal may be over in a moment.
fn is_passing(code: ServerError) -> bool {
    use ServerError::{MetadataError, ServiceNotReady, TooManyRequests};
    matches!(code, ServiceNotReady | TooManyRequests | MetadataError)
}

impl Fault {
    /// Whether it is the connection's, and not the broker's answer.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Fault::Lost(Lost::NotSent(_) | Lost::Unanswered(_)))
    }

    /// As an error of the contract, with what was being done.
    pub(super) fn explain(self, doing: &str) -> BackendError {
        let (kind, words) = match self {
            Fault::Unreachable(error) => return error.during(doing),
            Fault::Lost(Lost::NotSent(why)) => (ErrorKind::Unreachable, why),
            Fault::Lost(Lost::Unanswered(why)) => (ErrorKind::Timeout, why),
            Fault::Lost(Lost::Closed) => (ErrorKind::Closed, "the connection is closed".into()),
            Fault::Refused(code, message) => {
                (kind_of(code), format!("{}: {message}", wire::error_name(code)))
            }
        };
        BackendError::new(kind, format!("{doing}: {words}"))
    }
}

/// What a broker's refusal to open something means.
fn kind_of(code: ServerError) -> ErrorKind {
    match code {
        ServerError::AuthenticationError | ServerError::AuthorizationError => {
            ErrorKind::Unauthorized
        }
        ServerError::TopicNotFound
        | ServerError::SubscriptionNotFound
        | ServerError::ConsumerNotFound => ErrorKind::NotFound,
        ServerError::ProducerBusy | ServerError::ProducerFenced | ServerError::ConsumerBusy => {
            ErrorKind::Conflict
        }
        ServerError::ProducerBlockedQuotaExceededError
        | ServerError::ProducerBlockedQuotaExceededException
        | ServerError::TooManyRequests => ErrorKind::LimitReached,
        ServerError::InvalidTopicName => ErrorKind::InvalidArgument,
        ServerError::NotAllowedError | ServerError::UnsupportedVersionError => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Other,
    }
}
