//! The settings of NSQ.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError, List, Tls,
    resolve::{http_address, span, timeouts},
};

/// NSQ's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nsq {
    /// Where nsqd takes clients; a private one is started without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where its HTTP interface is; the port after that of `url` without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_url: Option<String>,
    /// HTTP addresses of nsqlookupds, where consumers find every nsqd that has their topic.
    pub lookupd: List,
    /// Whether topics and channels are `#ephemeral`.
    pub ephemeral: bool,
    /// How long a new channel is left alone until nsqd looks after its timers: it finds new channels
    /// every 5 s, and is up to that late before.
    #[serde(with = "humantime_serde")]
    pub new_channel_wait: Duration,
    /// How long connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long to wait for an answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Who to be.
    pub auth: NsqAuth,
    /// Transport security.
    pub tls: Tls,
    /// The private nsqd.
    pub server: NsqServer,
}

/// Credentials for NSQ: where they are, never what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NsqAuth {
    /// The file that holds the secret of `AUTH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The variable that holds the secret of `AUTH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
}

/// The private nsqd, where no URL is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NsqServer {
    /// The program; it is looked for without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// How many messages a topic or channel holds in memory; nsqd's 10,000 without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_queue_size: Option<u32>,
}

impl Default for Nsq {
    fn default() -> Self {
        Nsq {
            url: None,
            http_url: None,
            lookupd: List::default(),
            ephemeral: false,
            new_channel_wait: Duration::from_millis(5200),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            auth: NsqAuth::default(),
            tls: Tls::default(),
            server: NsqServer::default(),
        }
    }
}

impl Nsq {
    /// Checks numbers, times and addresses, each by its key.
    pub(super) fn validate(&self, key: &str) -> Result<(), ConfigError> {
        timeouts(key, self.connect_timeout, self.request_timeout)?;
        let wait = format!("{key}.new_channel_wait");
        span(&wait, self.new_channel_wait, Duration::ZERO, Duration::from_secs(60))?;
        self.tls.validate(key)?;
        let http = self.http_url.iter().map(|url| ("http_url", url));
        for (what, url) in http.chain(self.lookupd.0.iter().map(|url| ("lookupd", url))) {
            http_address(&format!("{key}.{what}"), url)?;
        }
        if self.url.is_none() && (self.http_url.is_some() || !self.lookupd.0.is_empty()) {
            return Err(ConfigError::new(format!(
                "{key}.http_url and {key}.lookupd go with {key}.url"
            )));
        }
        #[cfg(feature = "nsq")]
        if let Some(url) = &self.url {
            queueproof_backends::nsq::check_url(url)
                .map_err(|e| ConfigError::new(format!("{key}.url: {e}")))?;
        }
        Ok(())
    }
}
