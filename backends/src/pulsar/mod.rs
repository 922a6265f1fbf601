//! Apache Pulsar.

use std::{fmt, path::PathBuf, time::Duration};

pub use crate::tls::Tls;
use crate::{BackendError, ErrorKind};

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
        /// The issuer's address.
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

/// Checks an address without connecting.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which never repeats a secret.
pub fn check_url(url: &str) -> Result<(), BackendError> {
    match url.starts_with("pulsar://") || url.starts_with("pulsar+ssl://") {
        true => Ok(()),
        false => Err(BackendError::new(
            ErrorKind::InvalidArgument,
            "a Pulsar address begins with pulsar:// or pulsar+ssl://",
        )),
    }
}
