//! Reaching Pulsar.

use std::sync::Arc;

use queueproof_backends::pulsar::{Auth, PulsarConnector, PulsarSettings, Tls};

use super::{Reached, Unreached, Waiting, private::private};
use crate::{
    brokers::Wanted,
    config::{self, ConfigError, secret},
};

/// Reaches the broker at a URL, or one that is started for it.
pub(super) fn reach(pulsar: &config::Pulsar, waiting: Waiting<'_>) -> Result<Reached, Unreached> {
    let broken = |error: &dyn ToString| Unreached::Broken(error.to_string());
    let auth = auth(&pulsar.auth).map_err(|e| broken(&e))?;
    let (url, admin_url, broker) = match &pulsar.url {
        Some(url) => {
            let admin = pulsar.admin_url.clone().unwrap_or_else(|| beside(url));
            (url.clone(), admin, None)
        }
        None => {
            let wanted = Wanted {
                binary: pulsar.server.binary.clone(),
                version: pulsar.server.version.clone(),
            };
            let lines = pulsar.server.config.iter().map(|(key, value)| format!("{key}={value}\n"));
            let extra: String = lines.collect();
            let broker = private("pulsar", &wanted, waiting, |settings| settings.extra = extra)?;
            let admin = broker.admin_url().unwrap_or_default().to_string();
            (broker.url().to_string(), admin, Some(broker))
        }
    };
    let settings = PulsarSettings {
        url,
        admin_url,
        tenant: pulsar.tenant.clone(),
        namespace: pulsar.namespace.clone(),
        batching: pulsar.batching,
        connect_timeout: pulsar.connect_timeout,
        request_timeout: pulsar.request_timeout,
        auth,
        tls: Tls {
            ca_file: pulsar.tls.ca_file.clone(),
            client: pulsar.tls.cert_file.clone().zip(pulsar.tls.key_file.clone()),
        },
    };
    let connector = PulsarConnector::new(settings).map_err(|e| broken(&e))?;
    Ok(Reached { connector: Arc::new(connector), broker })
}

/// The address of the admin interface where Pulsar's own defaults put it: on the same host.
fn beside(url: &str) -> String {
    let (scheme, port) = match url.starts_with("pulsar+ssl://") {
        true => ("https", 8443),
        false => ("http", 8080),
    };
    let first = url.split("://").nth(1).unwrap_or(url).split([',', '/']).next().unwrap_or(url);
    // The last colon is a port's, unless it is within an IPv6 address's brackets.
    let host = match first.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => first,
    };
    format!("{scheme}://{host}:{port}")
}

/// Reads the credentials that the settings refer to.
fn auth(auth: &config::PulsarAuth) -> Result<Auth, ConfigError> {
    const KEY: &str = "pulsar.auth";
    let token = secret(KEY, "token", &auth.token_file, &auth.token_env)?;
    let password = secret(KEY, "password", &auth.password_file, &auth.password_env)?;
    match (token, auth.user.clone(), password, auth.oauth2.clone()) {
        (None, None, None, None) => Ok(Auth::None),
        (Some(token), None, None, None) => Ok(Auth::Token(token)),
        (None, Some(user), Some(password), None) => Ok(Auth::Basic { user, password }),
        (None, Some(_), None, None) => Err(ConfigError::new(
            "pulsar.auth.user needs pulsar.auth.password_file or pulsar.auth.password_env",
        )),
        (None, None, Some(_), None) => {
            Err(ConfigError::new("a password in pulsar.auth needs pulsar.auth.user"))
        }
        (None, None, None, Some(oauth2)) => Ok(Auth::OAuth2 {
            issuer_url: oauth2.issuer_url,
            credentials_file: oauth2.credentials_file,
            audience: oauth2.audience,
            scope: oauth2.scope,
        }),
        _ => Err(ConfigError::new("pulsar.auth names several kinds of credentials; one is needed")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_admin_interface_is_looked_for_on_the_brokers_host() {
        for (url, expected) in [
            ("pulsar://h:6650", "http://h:8080"),
            ("pulsar://h", "http://h:8080"),
            ("pulsar+ssl://h:6651/", "https://h:8443"),
            ("pulsar://[::1]:6650", "http://[::1]:8080"),
        ] {
            assert_eq!(super::beside(url), expected);
        }
    }
}
