//! NSQ.

use std::{fmt, time::Duration};

pub use crate::tls::Tls;
use crate::{BackendError, ErrorKind};

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
    /// Transport security, used where nsqd offers it or the address demands it.
    pub tls: Tls,
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
        }
    }
}

/// Checks an address without connecting.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which never repeats a secret.
pub fn check_url(url: &str) -> Result<(), BackendError> {
    match url.starts_with("nsq://") || url.starts_with("nsqs://") {
        true => Ok(()),
        false => {
            Err(BackendError::new(ErrorKind::InvalidArgument, "an NSQ address begins with nsq://"))
        }
    }
}
