//! etcd's settings, for the ring that is the baseline of `schedule`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, resolve::http_address};

/// etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Etcd {
    /// The address, as `http://HOST:2379`; a private etcd is started without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The private etcd.
    pub server: EtcdServer,
}

/// A private etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdServer {
    /// The version; the one that is found without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The program; it is looked for without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
}

impl Etcd {
    /// Checks the address.
    pub(super) fn validate(&self, key: &str) -> Result<(), ConfigError> {
        match &self.url {
            Some(url) => http_address(&format!("{key}.url"), url),
            None => Ok(()),
        }
    }
}
