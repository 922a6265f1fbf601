//! The settings of Apache Pulsar.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Tls,
    resolve::{http_address, timeouts},
};

/// Pulsar's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pulsar {
    /// Where the broker is; a private one is started without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where its admin interface is; port 8080 (with TLS 8443) of the same host without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_url: Option<String>,
    /// The tenant in which topics are made.
    pub tenant: String,
    /// The namespace in which topics are made.
    pub namespace: String,
    /// Whether publishers put several messages into one entry of the store.
    pub batching: bool,
    /// How long connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long to wait for an answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Who to be.
    pub auth: PulsarAuth,
    /// Transport security.
    pub tls: Tls,
    /// The private broker.
    pub server: PulsarServer,
}

/// Credentials for Pulsar: where they are, never what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PulsarAuth {
    /// The file that holds a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The variable that holds a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// The user, with a password from file or environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The variable that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// OAuth 2.0, client credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<PulsarOAuth2>,
}

/// OAuth 2.0, client credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "issuer_url and credentials_file")]
pub struct PulsarOAuth2 {
    /// The issuer's address.
    pub issuer_url: String,
    /// The file with the client's id and secret, as Pulsar's own clients read it.
    pub credentials_file: PathBuf,
    /// The audience, where the issuer wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The scope, where the issuer wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// The private Pulsar, where no URL is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PulsarServer {
    /// `bin/pulsar` of a distribution; it is looked for without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// The version; without, whichever is found first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Further lines of its configuration file, as `managedLedgerDefaultEnsembleSize: 1`.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub config: std::collections::BTreeMap<String, String>,
}

impl Default for Pulsar {
    fn default() -> Self {
        Pulsar {
            url: None,
            admin_url: None,
            tenant: "public".into(),
            namespace: "queueproof".into(),
            batching: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            auth: PulsarAuth::default(),
            tls: Tls::default(),
            server: PulsarServer::default(),
        }
    }
}

impl Pulsar {
    /// Checks numbers, times and addresses, each by its key.
    pub(super) fn validate(&self, key: &str) -> Result<(), ConfigError> {
        timeouts(key, self.connect_timeout, self.request_timeout)?;
        self.tls.validate(key)?;
        #[cfg(feature = "pulsar")]
        queueproof_backends::pulsar::check_names(&self.tenant, &self.namespace)
            .map_err(|e| ConfigError::new(format!("{key}: {e}")))?;
        for (line, value) in &self.server.config {
            // A backslash would escape, or swallow the line after it.
            if line.contains(['=', '\n', '\r', '#', '\\'])
                || value.contains(['\n', '\r'])
                || value.ends_with('\\')
            {
                return Err(ConfigError::new(format!(
                    "{key}.server.config: {line:?} is not one line of Pulsar's configuration"
                )));
            }
        }
        if self.admin_url.is_some() && self.url.is_none() {
            return Err(ConfigError::new(format!("{key}.admin_url goes with {key}.url")));
        }
        if let Some(url) = &self.admin_url {
            http_address(&format!("{key}.admin_url"), url)?;
        }
        if let Some(oauth2) = &self.auth.oauth2 {
            http_address(&format!("{key}.auth.oauth2.issuer_url"), &oauth2.issuer_url)?;
            if oauth2.credentials_file.as_os_str().is_empty() {
                return Err(ConfigError::new(format!(
                    "{key}.auth.oauth2.credentials_file: the path of a file is needed"
                )));
            }
        }
        #[cfg(feature = "pulsar")]
        if let Some(url) = &self.url {
            queueproof_backends::pulsar::check_url(url)
                .map_err(|e| ConfigError::new(format!("{key}.url: {e}")))?;
        }
        Ok(())
    }
}
