//! Apache Pulsar, in its binary protocol and through its admin interface.
//!
//! | contract | Pulsar |
//! |---|---|
//! | topic | a non-partitioned persistent topic of the namespace; `Keep` is a retention of -1 |
//! | subscription | a durable subscription, `Shared`, or `Key_Shared` where it is ordered by key; its terms are its properties |
//! | `DedupKey::Sequence` | the sequence id of a named producer, exactly as given |
//! | publish confirmation | `SEND_RECEIPT`; ledger and entry -1 mean dropped as a duplicate |
//! | position | ledger, entry and index in the entry as one number, where they fit |
//! | prefetch | permits (`FLOW`): exactly as many as it has room for |
//! | attempt | `redelivery_count` + 1 |
//! | confirmed settlement | `ACK` with a request id, and its `ACK_RESPONSE`; a nack (`REDELIVER_UNACKNOWLEDGED_MESSAGES`) has no answer |
//! | ack timeout, dead letters | the client's, as in Pulsar's own clients |
//! | depth | the admin interface's statistics, after a round trip on the connection's own socket |
//!
//! Of the `pulsar` crate its protocol layer is used: the codec, the commands, the credentials. Its
//! producers and consumers cannot serve an evaluator: sequence ids begin at 0 in every producer
//! object, which loses messages behind successful receipts; counts of redelivery are dropped;
//! acknowledgements are not confirmed; one of an entry's messages acknowledges nothing or all; the
//! prefetch is approximate; a stream whose connection is lost ends without an error; closing with
//! a full prefetch hangs.
//!
//! What goes to the admin interface does not pass through a link; all else does.
//!
//! What Pulsar 4.0.8 does that a user may not expect, all of it measured:
//! - A number that is sent again while the first is in flight is refused
//!   ([`crate::PublishError::Rejected`]): the broker cannot tell yet whether it is a duplicate. Once
//!   the first is stored the second is told as a duplicate, as is every number below the highest.
//! - `redelivery_count` counts what was handed back. It does not count deliveries whose consumer
//!   was cut or left, and it begins anew when a subscription has no consumer any more, or the
//!   broker was started again.
//! - An acknowledgement of any delivery is taken and confirmed, also a late one of a message that
//!   somebody else holds by now. A late nack has no effect, so it is refused here.
//! - Acknowledgements are written down at most once a second
//!   (`managedLedgerDefaultMarkDeleteRateLimit`): what was confirmed shortly before a broker was
//!   killed comes again.
//! - Unless `isDelayedDeliveryDeliverAtTimeStrict` is set, a delay shorter than the tick
//!   (`delayedDeliveryTickTimeMillis`, 1 s by default) is no delay: the message comes at once.
//!   Longer ones come up to a tick late.
//! - What was acknowledged is deleted with its whole ledger, some time later: so a second
//!   subscription of an `UntilAcked` topic, which Pulsar does not mind, may find it.
//! - One consumer of a `Shared` subscription gets first deliveries in their order; with several, or
//!   after something was handed back, Pulsar promises none.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

pub use crate::tls::Tls;
use crate::{
    BackendError, BoxFuture, Capability, Connector, ErrorKind, Link, QueueBackend, Support,
    link::TcpLink,
};

mod admin;
mod attach;
mod auth;
mod backend;
mod batch;
mod capabilities;
mod connection;
mod consumer;
mod dial;
mod drive;
mod given;
mod pool;
mod producer;
mod publisher;
mod settle;
mod subscriber;
mod terms;
mod wire;

/// How to reach Pulsar, and how to use it.
#[derive(Debug, Clone)]
pub struct PulsarSettings {
    /// The broker's address, `pulsar://host:port` or `pulsar+ssl://host:port`.
    pub url: String,
    /// The admin interface's address, `http://host:port` or `https://host:port`.
    pub admin_url: String,
    /// The tenant in which topics are made.
    pub tenant: String,
    /// The namespace in which topics are made; it is made where there is none.
    pub namespace: String,
    /// Whether publishers put several messages into one entry of the store. Then the broker counts
    /// and redelivers entries.
    pub batching: bool,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long to wait for an answer or a confirmation.
    pub request_timeout: Duration,
    /// Who to be.
    pub auth: Auth,
    /// Transport security, of both addresses.
    pub tls: Tls,
}

/// Credentials. Its `Debug` shows the kind alone.
#[derive(Clone, Default)]
pub enum Auth {
    /// None.
    #[default]
    None,
    /// A token, as a JWT.
    Token(String),
    /// A user and a password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// OAuth 2.0, client credentials.
    OAuth2 {
        /// The issuer's address. One without a path must name itself with a slash at the end, as
        /// the client library compares.
        issuer_url: String,
        /// The file with the client's id and secret, as Pulsar's own clients read it.
        credentials_file: PathBuf,
        /// The audience, where the issuer wants one.
        audience: Option<String>,
        /// The scope, where the issuer wants one.
        scope: Option<String>,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::Token(_) => "token",
            Auth::Basic { .. } => "user and password",
            Auth::OAuth2 { .. } => "oauth2",
        })
    }
}

impl Default for PulsarSettings {
    fn default() -> Self {
        PulsarSettings {
            url: "pulsar://127.0.0.1:6650".into(),
            admin_url: "http://127.0.0.1:8080".into(),
            tenant: "public".into(),
            namespace: "queueproof".into(),
            batching: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            auth: Auth::None,
            tls: Tls::default(),
        }
    }
}

/// A Pulsar broker, or a cluster of them.
#[derive(Debug)]
pub struct PulsarConnector {
    settings: Arc<PulsarSettings>,
    address: dial::Address,
    tls: Arc<rustls::ClientConfig>,
    credentials: Arc<auth::Credentials>,
    admin: admin::Admin,
}

impl PulsarConnector {
    /// A connector with these settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an address, a name or a file that cannot be.
    pub fn new(settings: PulsarSettings) -> Result<Self, BackendError> {
        let address = dial::parse(&settings.url)?;
        check_names(&settings.tenant, &settings.namespace)?;
        let settings = Arc::new(settings);
        let tls = settings.tls.config()?;
        let credentials = Arc::new(auth::Credentials::new(&settings.auth)?);
        let admin = admin::Admin::new(&settings, &credentials)?;
        Ok(PulsarConnector { settings, address, tls, credentials, admin })
    }

    async fn open(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> Result<Arc<dyn QueueBackend>, BackendError> {
        let deadline = Instant::now() + self.settings.connect_timeout;
        let settings = Arc::clone(&self.settings);
        let base = dial::Dialer {
            address: self.address.clone(),
            through: link.as_ref().and_then(|link| link.address()),
            proxy_to: None,
            tls: Arc::clone(&self.tls),
            credentials: Arc::clone(&self.credentials),
            connect_timeout: settings.connect_timeout,
        };
        let base = connection::Connection::open(base).await?;
        let prepared = timeout_at(deadline.max(Instant::now() + LEAST), self.admin.prepare());
        let found = match prepared.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                base.close().await;
                let doing = format!("the broker at {} answers, but", self.address.at());
                return Err(error.during(&doing));
            }
            Err(_) => {
                base.close().await;
                let problem = format!(
                    "the broker at {} answers, but its admin interface at {} (pulsar.admin_url) does not answer within {:?}",
                    self.address.at(),
                    settings.admin_url,
                    settings.connect_timeout
                );
                return Err(BackendError::new(ErrorKind::Timeout, problem));
            }
        };
        let admin = self.admin.clone();
        let pool = pool::Pool::new(settings, admin, base, found.dedup.clone(), link);
        Ok(Arc::new(backend::PulsarBackend::new(Arc::new(pool), found)))
    }
}

/// How long the admin interface has at least, however long the broker took.
const LEAST: Duration = Duration::from_secs(1);

/// What the backend declares, as [`Capabilities::support`](crate::Capabilities::support), for a
/// broker with Pulsar's own defaults and a namespace of queueproof's.
pub fn declares() -> BTreeMap<Capability, Support> {
    capabilities::usual()
}

/// Checks an address without connecting.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which never repeats a secret.
pub fn check_url(url: &str) -> Result<(), BackendError> {
    dial::parse(url).map(drop)
}

/// Whether these can be a tenant and a namespace.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] with what is wrong.
pub fn check_names(tenant: &str, namespace: &str) -> Result<(), BackendError> {
    for (what, name) in [("tenant", tenant), ("namespace", namespace)] {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-=:._".contains(c);
        if name.is_empty() || !name.chars().all(plain) || name.starts_with('.') {
            let problem = format!(
                "{what}: {name:?} is not a name of a-z, A-Z, 0-9, - = : . and _ that begins with \
                 no dot"
            );
            return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
        }
    }
    Ok(())
}

impl Connector for PulsarConnector {
    fn backend(&self) -> &'static str {
        "pulsar"
    }

    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>> {
        Box::pin(self.open(link))
    }

    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>> {
        Box::pin(async move {
            let bare = self.address.host.trim_matches(['[', ']']);
            let upstream = match bare.contains(':') {
                true => format!("[{bare}]:{}", self.address.port),
                false => self.address.at(),
            };
            let link = TcpLink::start(upstream).await.map_err(|error| {
                BackendError::new(ErrorKind::Other, format!("no local port for a link: {error}"))
            })?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }
}
