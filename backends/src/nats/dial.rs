//! From an address to a client, or to words that say why there is none.

use std::{error::Error, time::Duration};

use async_nats::{ConnectErrorKind, ConnectOptions};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{Auth, NatsSettings};
use crate::{BackendError, ErrorKind, error::chain};

/// One server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Reads a list of addresses. Never repeats what may be a secret.
pub(super) fn parse(url: &str) -> Result<Vec<Server>, BackendError> {
    let invalid = |problem: &str| BackendError::new(ErrorKind::InvalidArgument, problem);
    url.split(',')
        .map(|url| {
            let (scheme, rest) = url.trim().split_once("://").ok_or_else(|| {
                invalid("a NATS address begins with nats:// or tls://, as nats://127.0.0.1:4222")
            })?;
            let tls = match scheme {
                "nats" => false,
                "tls" => true,
                _ => return Err(invalid("a NATS address begins with nats:// or tls://")),
            };
            if rest.contains('@') {
                return Err(invalid(
                    "an address must not hold a user, password or token; set nats.auth instead",
                ));
            }
            let rest = rest.trim_end_matches('/');
            // The last colon is a port's, unless it is within an IPv6 address's brackets.
            let (host, port) = match rest.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => {
                    let port = port.parse().ok().filter(|&p: &u16| p > 0);
                    (host, port.ok_or_else(|| invalid("the port of a NATS address is 1 to 65535"))?)
                }
                _ => (rest, 4222),
            };
            if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
                return Err(invalid("a NATS address is nats://HOST:PORT"));
            }
            Ok(Server { tls, host: host.into(), port })
        })
        .collect()
}

impl Server {
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls { "tls" } else { "nats" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

/// The client library's options for these settings.
pub(super) async fn options(settings: &NatsSettings) -> Result<ConnectOptions, BackendError> {
    let bad = |what: &str, error: &dyn Error| {
        BackendError::new(ErrorKind::Unauthorized, format!("{what}: {error}"))
    };
    let options = match &settings.auth {
        Auth::None => ConnectOptions::new(),
        Auth::UserPassword { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
        Auth::Token(token) => ConnectOptions::with_token(token.clone()),
        Auth::NkeySeed(seed) => {
            key_pair(seed)?;
            ConnectOptions::with_nkey(seed.clone())
        }
        Auth::Credentials(text) => ConnectOptions::with_credentials(text)
            .map_err(|e| bad("the credentials are not understood", &e))?,
        Auth::Jwt { jwt, seed } => {
            let key = std::sync::Arc::new(key_pair(seed)?);
            ConnectOptions::with_jwt(jwt.clone(), move |nonce| {
                let key = std::sync::Arc::clone(&key);
                async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
        }
    };
    let tls = &settings.tls;
    let mut options = options.require_tls(tls.required);
    if let Some(file) = &tls.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &tls.client {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if tls.first {
        options = options.tls_first();
    }
    Ok(options
        .name("queueproof")
        .connection_timeout(settings.connect_timeout)
        .request_timeout(Some(settings.request_timeout))
        // Answers of many pipelined requests wait in one subscription: it must not overflow,
        // since the library then drops silently.
        .subscription_capacity(1 << 17)
        // Only where we were told to: a link must not be gone round.
        .ignore_discovered_servers()
        .reconnect_delay_callback(|attempt| match attempt {
            0 | 1 => Duration::ZERO,
            _ => Duration::from_millis(50),
        }))
}

fn key_pair(seed: &str) -> Result<nkeys::KeyPair, BackendError> {
    // The error of the library might repeat the seed.
    nkeys::KeyPair::from_seed(seed.trim())
        .map_err(|_| BackendError::new(ErrorKind::Unauthorized, "the nkey seed is not one"))
}

/// What a failure to connect means.
pub(super) async fn explain(
    error: async_nats::ConnectError,
    host: &str,
    port: u16,
    limit: Duration,
) -> BackendError {
    let at = format!("{host}:{port}");
    let words = chain(&error);
    // A certificate that is not trusted comes as an error of input and output.
    let kind = match error.kind() {
        ConnectErrorKind::Io if words.contains("certificate") => ConnectErrorKind::Tls,
        kind => kind,
    };
    match kind {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            BackendError::new(
                ErrorKind::Unauthorized,
                format!("{at} refused the credentials ({words}); see nats.auth"),
            )
        }
        ConnectErrorKind::Dns | ConnectErrorKind::ServerParse => {
            BackendError::new(ErrorKind::Unreachable, format!("{at} is not known: {words}"))
        }
        ConnectErrorKind::Tls => BackendError::new(
            ErrorKind::WrongServer,
            format!("no safe connection to {at}: {words}; see nats.tls"),
        ),
        _ => look(host, port, limit.min(Duration::from_secs(2)), &words).await,
    }
}

/// Looks what is at an address where no NATS server could be spoken to.
async fn look(host: &str, port: u16, limit: Duration, words: &str) -> BackendError {
    let at = format!("{host}:{port}");
    let bare = host.trim_matches(['[', ']']);
    let stream = match timeout(limit, TcpStream::connect((bare, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return BackendError::new(
                ErrorKind::Unreachable,
                format!("nobody answers at {at}: {error}"),
            );
        }
        Err(_) => {
            return BackendError::new(
                ErrorKind::Unreachable,
                format!("nobody answers at {at} in time"),
            );
        }
    };
    let mut greeting = [0; 64];
    let mut stream = stream;
    match timeout(limit, stream.read(&mut greeting)).await {
        Ok(Ok(n)) if greeting[..n].starts_with(b"INFO ") => {
            BackendError::new(ErrorKind::Timeout, format!("{at} is a NATS server, but: {words}"))
        }
        Ok(Ok(0)) => BackendError::new(
            ErrorKind::WrongServer,
            format!("{at} closes the connection without a greeting: not a NATS server"),
        ),
        Ok(Ok(n)) => {
            let said = String::from_utf8_lossy(&greeting[..n]).escape_debug().to_string();
            BackendError::new(
                ErrorKind::WrongServer,
                format!("{at} is not a NATS server: it greets with \"{said}\""),
            )
        }
        Ok(Err(error)) => {
            BackendError::new(ErrorKind::WrongServer, format!("{at} is not a NATS server: {error}"))
        }
        Err(_) => BackendError::new(
            ErrorKind::WrongServer,
            format!(
                "{at} accepts connections and says nothing: not a NATS server, or one that wants TLS first"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_host_and_perhaps_a_port() {
        let parsed = |url: &str| parse(url).unwrap().iter().map(Server::url).collect::<Vec<_>>();
        assert_eq!(parsed("nats://localhost"), ["nats://localhost:4222"]);
        assert_eq!(parsed("tls://h:1/"), ["tls://h:1"]);
        assert_eq!(parsed("nats://[::1]:5"), ["nats://[::1]:5"]);
        assert_eq!(parsed("nats://[::1]"), ["nats://[::1]:4222"]);
        assert_eq!(parsed("nats://a, nats://b:2"), ["nats://a:4222", "nats://b:2"]);
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_a_secret() {
        for url in [
            "",
            "localhost:4222",
            "http://x",
            "nats://",
            "nats://h:0",
            "nats://h:70000",
            "nats://h/x",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
        let error = parse("nats://me:hunter2@host").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
