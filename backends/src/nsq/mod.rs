//! NSQ, through a protocol client of the project's own.
//!
//! | contract | NSQ |
//! |---|---|
//! | connection | a socket for each publisher and each consumer, and HTTP for the rest |
//! | topic | a topic |
//! | subscription | a channel |
//! | publish confirmation | `OK`, by its position; one for all messages of an `MPUB` |
//! | prefetch | `RDY`, which counts unsettled deliveries too |
//! | ack timeout | `msg_timeout` of the consumer's connection |
//! | confirmed settlement | emulated: a `TOUCH` that must fail, after the batch |
//!
//! # Why not a client library
//!
//! The one that there is, tokio-nsq 0.14, takes nsqd's answer to one late acknowledgement for the
//! end of the connection, and everything that the consumer holds goes to others (the test
//! `one_late_acknowledgement_through_tokio_nsq_ends_its_connection_and_gives_everything_it_held_to_others`).
//! An acknowledgement that is late is what a work queue must expect, and nothing around the library
//! can save what its connection held.
//!
//! # What NSQ does not keep
//!
//! nsqd knows nothing of a topic's retention and keeps no ack timeout with a channel: the connector
//! remembers both, in this process. A consumer of a channel that was made elsewhere has nsqd's
//! default (`-msg-timeout`). A message is gone when every channel has finished it, whatever the
//! retention; a topic without channels keeps its messages for the first one. nsqd makes a topic
//! that is published to, and a channel that is subscribed to, if it is not there: this client asks
//! first, when it opens and when it connects again.
//!
//! # Measured with nsqd 1.3.0
//!
//! - What a consumer holds whose connection is gone comes back when its ack timeout has passed, not
//!   at once: nsqd does not look at a connection's deliveries when it ends.
//! - nsqd looks for what is due every 100 ms: at 20 channels (`-queue-scan-selection-count`), chosen
//!   at random. With up to that many, what is due comes up to 0.13 s late; with 60, up to 1.4 s. The
//!   declared resolutions follow from the setting and from how many channels there are.
//! - It finds a new channel up to 5 s after it was made, and there is no setting for that: until
//!   then nothing times out and nothing delayed comes. Creating a subscription waits for it
//!   ([`NsqSettings::new_channel_wait`]).
//! - A delayed message that finds the memory queue full (`-mem-queue-size`) loses its delay, and so
//!   does everything delayed when nsqd restarts: it is delivered at once.
//! - While nsqd writes down a new topic or channel, publishes wait, up to 0.2 s.
//! - Without a buffer for deliveries, as this client asks for, 58,000 a second came, each within
//!   0.5 ms of its publish; with one it were 126,000, and a single one was 25 ms late (256 bytes, 2
//!   cores). The backend is for work queues, so it has none.
//!
//! # Links
//!
//! The sockets of publishers and consumers go through a link, HTTP does not. So
//! [`QueueBackend::depth`] and [`QueueBackend::topics`] first make sure that every consumer's socket
//! answers. With a link nsqlookupd is not asked: it would lead past it.

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
mod barrier;
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
    /// HTTP addresses of `nsqlookupd`s, where consumers find every nsqd that has their topic, and
    /// share their prefetch among them; empty for the one nsqd of `url`. Publishers use that one
    /// in any case.
    pub lookupd: Vec<String>,
    /// Whether topics and channels are `#ephemeral`: held in memory alone. nsqd deletes such a
    /// channel, with all that it holds, when its last consumer is gone, also when only its
    /// connection was lost, and such a topic with its last channel.
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
