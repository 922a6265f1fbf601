//! NATS JetStream, through async-nats and the JetStream API's own JSON.
//!
//! | contract | JetStream |
//! |---|---|
//! | topic | a stream with one subject of its name |
//! | subscription | a durable pull consumer with explicit acknowledgement |
//! | ack timeout | `ack_wait` |
//! | deduplication id | `Nats-Msg-Id` in the stream's `duplicate_window` |
//! | confirmed settlement | the reply that the server sends to every `+ACK`, `-NAK`, `+WPI`, `+TERM` that asks for one |
//!
//! What the client library does not do is done here, each with a test against a real server:
//! confirmations fail at once when the connection is lost, and in any case in bounded time; a
//! publish while the connection is down is refused instead of kept for later; pulls are renewed
//! after a reconnect; a reply that is not understood is never taken for a success.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    BackendError, BoxFuture, Capability, Connector, ErrorKind, Link, QueueBackend, Support,
    link::TcpLink,
};

mod api;
mod backend;
mod connection;
mod consumer;
mod dial;
mod publisher;

/// How to reach a NATS server, and how to use it.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// `nats://host:port` or `tls://host:port`; several, separated by commas, name one cluster.
    pub url: String,
    /// Where streams are kept.
    pub storage: Storage,
    /// How many servers keep each stream, 1 to 5.
    pub replicas: u8,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long to wait for an answer or a confirmation.
    pub request_timeout: Duration,
    /// Who to be.
    pub auth: Auth,
    /// How to be safe from others.
    pub tls: Tls,
}

/// Where streams are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In files.
    File,
    /// In memory.
    Memory,
}

/// Credentials. Its `Debug` shows the kind alone.
#[derive(Clone, Default)]
pub enum Auth {
    /// None.
    #[default]
    None,
    /// A user and a password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
    /// The seed of an nkey.
    NkeySeed(String),
    /// The text of a credentials file: a JWT and its seed.
    Credentials(String),
    /// A JWT and the seed that signs for it.
    Jwt {
        /// The JWT.
        jwt: String,
        /// The seed.
        seed: String,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::UserPassword { .. } => "user and password",
            Auth::Token(_) => "token",
            Auth::NkeySeed(_) => "nkey",
            Auth::Credentials(_) => "credentials",
            Auth::Jwt { .. } => "jwt",
        })
    }
}

/// Transport security.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Whether to refuse a server without it.
    pub required: bool,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake comes before the server's greeting.
    pub first: bool,
}

impl Default for NatsSettings {
    fn default() -> Self {
        NatsSettings {
            url: "nats://127.0.0.1:4222".into(),
            storage: Storage::File,
            replicas: 1,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            auth: Auth::None,
            tls: Tls::default(),
        }
    }
}

/// A NATS server, or a cluster of them.
#[derive(Debug)]
pub struct NatsConnector {
    settings: Arc<NatsSettings>,
    servers: Vec<dial::Server>,
}

impl NatsConnector {
    /// A connector with these settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an address or a number that cannot be.
    pub fn new(settings: NatsSettings) -> Result<Self, BackendError> {
        let servers = dial::parse(&settings.url)?;
        if !(1..=5).contains(&settings.replicas) {
            let problem = format!("{} replicas: NATS keeps 1 to 5", settings.replicas);
            return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
        }
        Ok(NatsConnector { settings: Arc::new(settings), servers })
    }
}

/// What the backend declares, as [`Capabilities::support`](crate::Capabilities::support).
pub fn declares() -> BTreeMap<Capability, Support> {
    backend::declares()
}

/// Checks an address, or a list of them, without connecting.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which never repeats a secret.
pub fn check_url(url: &str) -> Result<(), BackendError> {
    dial::parse(url).map(drop)
}

impl Connector for NatsConnector {
    fn backend(&self) -> &'static str {
        "nats"
    }

    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>> {
        Box::pin(async move {
            let connection =
                connection::Connection::open(&self.settings, &self.servers, link).await?;
            let settings = Arc::clone(&self.settings);
            Ok(Arc::new(backend::NatsBackend::new(settings, connection)) as Arc<dyn QueueBackend>)
        })
    }

    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>> {
        Box::pin(async move {
            let server = &self.servers[0];
            let link = TcpLink::start(format!("{}:{}", server.host, server.port)).await;
            let link = link.map_err(|error| {
                BackendError::new(ErrorKind::Other, format!("no local port for a link: {error}"))
            })?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }
}
