//! The settings of NATS.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    resolve::{range, timeouts},
};

/// NATS's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nats {
    /// Where the server is; a private one is started without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where streams are kept.
    pub storage: Storage,
    /// How many servers keep each stream.
    pub replicas: u8,
    /// How long connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long to wait for an answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Who to be.
    pub auth: NatsAuth,
    /// Transport security.
    pub tls: NatsTls,
    /// The private server.
    pub server: NatsServer,
}

/// Where NATS keeps streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In files.
    #[default]
    File,
    /// In memory.
    Memory,
}

/// Credentials for NATS: where they are, never what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsAuth {
    /// The user, with a password from file or environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The variable that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// The file that holds a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The variable that holds a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// The file that holds an nkey's seed; with `jwt_file`, that JWT's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey_seed_file: Option<PathBuf>,
    /// A credentials file: JWT and seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// The file that holds a JWT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_file: Option<PathBuf>,
}

/// Transport security for NATS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsTls {
    /// Refuse a server without it.
    pub required: bool,
    /// Certificates to trust beside the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Handshake before the server's greeting.
    pub first: bool,
}

/// The private NATS server, where no URL is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsServer {
    /// The program; it is looked for without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// The version; without, whichever is found first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How often the server syncs its files: `always` or a duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<String>,
}

impl Default for Nats {
    fn default() -> Self {
        Nats {
            url: None,
            storage: Storage::File,
            replicas: 1,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            auth: NatsAuth::default(),
            tls: NatsTls::default(),
            server: NatsServer::default(),
        }
    }
}

impl Nats {
    /// Checks numbers, times and addresses, each by its key.
    pub(super) fn validate(&self, key: &str) -> Result<(), ConfigError> {
        range(&format!("{key}.replicas"), self.replicas, 1, 5)?;
        timeouts(key, self.connect_timeout, self.request_timeout)?;
        if let Some(url) = &self.url {
            #[cfg(feature = "nats")]
            queueproof_backends::nats::check_url(url)
                .map_err(|e| ConfigError::new(format!("{key}.url: {e}")))?;
            #[cfg(not(feature = "nats"))]
            let _ = url;
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return Err(ConfigError::new(format!("{key}.tls: cert_file and key_file go together")));
        }
        Ok(())
    }
}
