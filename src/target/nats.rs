//! Reaching NATS.

use std::sync::Arc;

use queueproof_backends::nats::{Auth, NatsConnector, NatsSettings, Storage, Tls};

use super::{Reached, Unreached, Waiting, private::private};
use crate::{
    brokers::{SyncInterval, Wanted},
    config::{self, ConfigError, read_secret, secret},
};

/// Reaches the server at a URL, or one that is started for it.
pub(super) fn reach(nats: &config::Nats, waiting: Waiting<'_>) -> Result<Reached, Unreached> {
    let broken = |error: &dyn ToString| Unreached::Broken(error.to_string());
    let auth = auth(&nats.auth).map_err(|e| broken(&e))?;
    let (url, broker) = match &nats.url {
        Some(url) => (url.clone(), None),
        None => {
            let sync = sync(nats.server.sync_interval.as_deref()).map_err(|e| broken(&e))?;
            let wanted =
                Wanted { binary: nats.server.binary.clone(), version: nats.server.version.clone() };
            let broker = private("nats", &wanted, waiting, |settings| settings.sync = sync)?;
            (broker.url().to_string(), Some(broker))
        }
    };
    let settings = NatsSettings {
        url,
        storage: match nats.storage {
            config::Storage::File => Storage::File,
            config::Storage::Memory => Storage::Memory,
        },
        replicas: nats.replicas,
        connect_timeout: nats.connect_timeout,
        request_timeout: nats.request_timeout,
        auth,
        tls: Tls {
            required: nats.tls.required,
            ca_file: nats.tls.ca_file.clone(),
            client: nats.tls.cert_file.clone().zip(nats.tls.key_file.clone()),
            first: nats.tls.first,
        },
    };
    let connector = NatsConnector::new(settings).map_err(|e| broken(&e))?;
    Ok(Reached { connector: Arc::new(connector), broker })
}

fn sync(interval: Option<&str>) -> Result<Option<SyncInterval>, String> {
    match interval {
        None => Ok(None),
        Some("always") => Ok(Some(SyncInterval::Always)),
        Some(text) => humantime::parse_duration(text)
            .map(|interval| Some(SyncInterval::Every(interval)))
            .map_err(|e| {
                format!(
                    "nats.server.sync_interval: {text:?} is neither \"always\" nor a duration: {e}"
                )
            }),
    }
}

/// Reads the credentials that the settings refer to.
fn auth(auth: &config::NatsAuth) -> Result<Auth, ConfigError> {
    const KEY: &str = "nats.auth";
    let password = secret(KEY, "password", &auth.password_file, &auth.password_env)?;
    let token = secret(KEY, "token", &auth.token_file, &auth.token_env)?;
    let file = |key: &str, path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| read_secret(&format!("{KEY}.{key}"), path)).transpose()
    };
    let seed = file("nkey_seed_file", &auth.nkey_seed_file)?;
    let credentials = file("credentials_file", &auth.credentials_file)?;
    let jwt = file("jwt_file", &auth.jwt_file)?;
    match (auth.user.clone(), password, token, seed, credentials, jwt) {
        (None, None, None, None, None, None) => Ok(Auth::None),
        (Some(user), Some(password), None, None, None, None) => {
            Ok(Auth::UserPassword { user, password })
        }
        (Some(_), None, ..) => Err(ConfigError::new(
            "nats.auth.user needs nats.auth.password_file or nats.auth.password_env",
        )),
        (None, Some(_), ..) => {
            Err(ConfigError::new("a password in nats.auth needs nats.auth.user"))
        }
        (None, None, Some(token), None, None, None) => Ok(Auth::Token(token)),
        (None, None, None, Some(seed), None, None) => Ok(Auth::NkeySeed(seed)),
        (None, None, None, None, Some(credentials), None) => Ok(Auth::Credentials(credentials)),
        (None, None, None, Some(seed), None, Some(jwt)) => Ok(Auth::Jwt { jwt, seed }),
        (None, None, None, None, None, Some(_)) => {
            Err(ConfigError::new("nats.auth.jwt_file needs nats.auth.nkey_seed_file"))
        }
        _ => Err(ConfigError::new("nats.auth names several kinds of credentials; one is needed")),
    }
}
