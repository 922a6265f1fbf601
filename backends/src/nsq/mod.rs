//! NSQ.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use address::Address;
use tokio::sync::OnceCell;

pub use crate::tls::Tls;
use crate::{
    BackendError, BoxFuture, Capability, Connector, ErrorKind, Link, QueueBackend, Support,
    link::TcpLink,
};

mod address;
mod admin;
mod backend;
mod capabilities;
mod connect;
mod connection;
mod consumer;
mod dial;
mod publisher;
mod receiver;
mod remembered;
mod roster;
mod sender;
mod socket;
mod wire;

/// How to reach nsqd, and how to use it.
#[derive(Debug, Clone)]
pub struct NsqSettings {
    /// nsqd's TCP address, `nsq://host:port`; `nsqs://host:port` demands TLS.
    pub url: String,
    /// nsqd's HTTP address, `http://host:port`; `None` for the port after that of `url`.
    pub http_url: Option<String>,
    /// HTTP addresses of `nsqlookupd`s, where consumers find every nsqd that has their topic;
    /// empty for the one nsqd of `url`.
    pub lookupd: Vec<String>,
    /// Whether topics and channels are `#ephemeral`: held in memory alone.
    pub ephemeral: bool,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long to wait for an answer or a confirmation.
    pub request_timeout: Duration,
    /// The secret of `AUTH`.
    pub auth: Option<Secret>,
    /// Transport security: used where `url` demands it, and where something is set here and nsqd
    /// offers it.
    pub tls: Tls,
    /// How long creating a subscription waits until nsqd looks after the timers of the new
    /// channel, which it finds every 5 s (1.3.0, no setting). Before that what is handed back with
    /// a delay, published with one, or not settled in time comes back up to 5 s late. Zero where
    /// nothing depends on that.
    pub new_channel_wait: Duration,
}

/// A secret; its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl Default for NsqSettings {
    fn default() -> Self {
        NsqSettings {
            url: "nsq://127.0.0.1:4150".into(),
            http_url: None,
            lookupd: Vec::new(),
            ephemeral: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            auth: None,
            tls: Tls::default(),
            new_channel_wait: Duration::from_millis(5200),
        }
    }
}

/// An nsqd, or with nsqlookupd a number of them.
pub struct NsqConnector {
    shared: Arc<Shared>,
}

/// What the connections of one connector share.
struct Shared {
    settings: NsqSettings,
    address: Address,
    tls: OnceLock<Option<Arc<rustls::ClientConfig>>>,
    /// Asked once, so that every connection says the same of its capabilities.
    terms: OnceCell<connect::Terms>,
    remembered: remembered::Remembered,
}

impl NsqConnector {
    /// A connector with these settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an address that is none, or certificates that cannot be
    /// read.
    pub fn new(settings: NsqSettings) -> Result<Self, BackendError> {
        let address = Address::parse(&settings.url)?;
        if let Some(url) = &settings.http_url {
            address::check_http("nsq.http_url", url)?;
        }
        for url in &settings.lookupd {
            address::check_http("an address in nsq.lookupd", url)?;
        }
        let shared = Shared {
            settings,
            address,
            tls: OnceLock::new(),
            terms: OnceCell::new(),
            remembered: remembered::Remembered::default(),
        };
        shared.tls()?;
        Ok(NsqConnector { shared: Arc::new(shared) })
    }
}

impl Shared {
    /// What TLS is to be asked for with, if it is.
    fn tls(&self) -> Result<Option<Arc<rustls::ClientConfig>>, BackendError> {
        if let Some(made) = self.tls.get() {
            return Ok(made.clone());
        }
        let wanted = self.address.tls || self.settings.tls != Tls::default();
        let made = wanted.then(|| self.settings.tls.config()).transpose()?;
        Ok(self.tls.get_or_init(|| made).clone())
    }
}

impl fmt::Debug for NsqConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NsqConnector").field("settings", &self.shared.settings).finish()
    }
}

/// What the backend declares, as [`Capabilities::support`](crate::Capabilities::support), where
/// nothing is `#ephemeral`.
pub fn declares() -> BTreeMap<Capability, Support> {
    capabilities::usual()
}

/// Checks an address without connecting.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which never repeats a secret.
pub fn check_url(url: &str) -> Result<(), BackendError> {
    Address::parse(url).map(drop)
}

impl Connector for NsqConnector {
    fn backend(&self) -> &'static str {
        "nsq"
    }

    fn connect(
        &self,
        link: Option<Arc<dyn Link>>,
    ) -> BoxFuture<'_, Result<Arc<dyn QueueBackend>, BackendError>> {
        Box::pin(async move {
            let Shared { settings, address, terms, .. } = &*self.shared;
            let through = link.as_ref().and_then(|link| link.address());
            let met = connect::meet(settings, address, self.shared.tls()?, through).await?;
            let terms = *terms.get_or_try_init(|| connect::terms(&met, settings)).await?;
            let shared = Arc::clone(&self.shared);
            let backend = backend::NsqBackend::new(shared, terms, met, link);
            Ok(Arc::new(backend) as Arc<dyn QueueBackend>)
        })
    }

    fn link(&self) -> BoxFuture<'_, Result<Arc<dyn Link>, BackendError>> {
        Box::pin(async move {
            let link = TcpLink::start(self.shared.address.at()).await.map_err(|error| {
                BackendError::new(ErrorKind::Other, format!("no local port for a link: {error}"))
            })?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }
}
