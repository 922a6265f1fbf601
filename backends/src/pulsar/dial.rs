//! From an address to a connection that the broker has greeted, or to words that say why there
//! is none.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt;
use pulsar::message::proto::{self, base_command::Type};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_util::codec::FramedRead;

use super::{
    auth::Credentials,
    wire::{self, Frames, ReadError},
};
use crate::{BackendError, ErrorKind};

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// All that connecting, and connecting again, takes.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) address: Address,
    /// Where to connect instead: a link.
    pub(super) through: Option<SocketAddr>,
    /// The broker behind a proxy at the address.
    pub(super) proxy_to: Option<String>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) connect_timeout: Duration,
}

/// A connection that the broker has greeted.
pub(super) struct Dialed {
    pub(super) reader: FramedRead<ReadHalf<Box<dyn Stream>>, Frames>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    /// The largest message that the broker takes, bytes.
    pub(super) max_message: usize,
}

/// A socket, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The newest protocol version whose manners this client has: acknowledgements are confirmed
/// since 17.
const PROTOCOL: i32 = 19;

/// Reads an address. Never repeats what may be a secret.
pub(super) fn parse(url: &str) -> Result<Address, BackendError> {
    let invalid = |problem: &str| BackendError::new(ErrorKind::InvalidArgument, problem);
    let (scheme, rest) = url.trim().split_once("://").ok_or_else(|| {
        invalid(
            "a Pulsar address begins with pulsar:// or pulsar+ssl://, as pulsar://127.0.0.1:6650",
        )
    })?;
    let (tls, default_port) = match scheme {
        "pulsar" => (false, 6650),
        "pulsar+ssl" => (true, 6651),
        _ => return Err(invalid("a Pulsar address begins with pulsar:// or pulsar+ssl://")),
    };
    if rest.contains('@') {
        return Err(invalid("an address must not hold a user or token; set pulsar.auth instead"));
    }
    if rest.contains(',') {
        return Err(invalid("one Pulsar address is enough: the broker there names the others"));
    }
    let rest = rest.trim_end_matches('/');
    // The last colon is a port's, unless it is within an IPv6 address's brackets.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let port = port.parse().ok().filter(|&p: &u16| p > 0);
            (host, port.ok_or_else(|| invalid("the port of a Pulsar address is 1 to 65535"))?)
        }
        _ => (rest, default_port),
    };
    if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
        return Err(invalid("a Pulsar address is pulsar://HOST:PORT"));
    }
    Ok(Address { tls, host: host.into(), port })
}

impl Address {
    /// `host:port`, to connect to and to show.
    pub(super) fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn url(&self) -> String {
        format!("pulsar{}://{}", if self.tls { "+ssl" } else { "" }, self.at())
    }
}

impl Dialer {
    /// Connects, within the connect timeout.
    ///
    /// # Errors
    /// Those of [`crate::Connector::connect`], in words that name the address.
    pub(super) async fn dial(&self) -> Result<Dialed, BackendError> {
        let deadline = Instant::now() + self.connect_timeout;
        let stream = self.tcp(deadline).await?;
        let stream: Box<dyn Stream> = match self.address.tls {
            false => Box::new(stream),
            true => self.secure(stream, deadline).await?,
        };
        self.greet(stream, deadline).await
    }

    async fn tcp(&self, deadline: Instant) -> Result<TcpStream, BackendError> {
        let at = self.address.at();
        let bare = self.address.host.trim_matches(['[', ']']).to_string();
        let connecting = async {
            match self.through {
                Some(link) => TcpStream::connect(link).await,
                None => TcpStream::connect((bare, self.address.port)).await,
            }
        };
        let stream = match timeout_at(deadline, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let problem = format!("nobody answers at {at}: {error}");
                return Err(BackendError::new(ErrorKind::Unreachable, problem));
            }
            Err(_) => {
                let problem = format!("nobody answers at {at} within {:?}", self.connect_timeout);
                return Err(BackendError::new(ErrorKind::Unreachable, problem));
            }
        };
        // Small frames go at once; where that cannot be set they go later.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn secure(
        &self,
        stream: TcpStream,
        deadline: Instant,
    ) -> Result<Box<dyn Stream>, BackendError> {
        let at = self.address.at();
        let bare = self.address.host.trim_matches(['[', ']']).to_string();
        let name = ServerName::try_from(bare).map_err(|error| {
            BackendError::new(ErrorKind::InvalidArgument, format!("{at}: {error}"))
        })?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        match timeout_at(deadline, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => {
                let problem = format!("no safe connection to {at}: {error}; see pulsar.tls");
                Err(BackendError::new(ErrorKind::WrongServer, problem))
            }
            Err(_) => {
                let problem = format!(
                    "{at} accepts connections, and no TLS handshake ended within {:?}: not a port for pulsar+ssl://?",
                    self.connect_timeout
                );
                Err(BackendError::new(ErrorKind::Timeout, problem))
            }
        }
    }

    /// Says `CONNECT` and waits for `CONNECTED`.
    async fn greet(
        &self,
        stream: Box<dyn Stream>,
        deadline: Instant,
    ) -> Result<Dialed, BackendError> {
        let at = self.address.at();
        let wrong = |what: &str| {
            BackendError::new(
                ErrorKind::WrongServer,
                format!("{at} is not a Pulsar broker's address for {}: {what}", self.address.url()),
            )
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let credentials = self.credentials.data(left).await?;
        let (name, data) = credentials.map_or((None, None), |(n, d)| (Some(n.into()), Some(d)));
        let connect = wire::command(Type::Connect, |c| {
            c.connect = Some(proto::CommandConnect {
                client_version: concat!("queueproof-", env!("CARGO_PKG_VERSION")).into(),
                auth_method_name: name,
                auth_data: data,
                protocol_version: Some(PROTOCOL),
                proxy_to_broker_url: self.proxy_to.clone(),
                feature_flags: Some(proto::FeatureFlags {
                    supports_auth_refresh: Some(true),
                    ..proto::FeatureFlags::default()
                }),
                ..proto::CommandConnect::default()
            });
        });
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = FramedRead::new(reader, Frames::new());
        let asking = async {
            send(&mut writer, connect).await?;
            loop {
                let Some(frame) = reader.next().await else {
                    return Err(wrong("it closes the connection without an answer"));
                };
                let frame = frame.map_err(|error| match error {
                    ReadError::Io(error) => wrong(&error.to_string()),
                    ReadError::NotPulsar(begin) => wrong(&begin),
                })?;
                if let Some(connected) = frame.command.connected {
                    let max = connected.max_message_size.and_then(|n| usize::try_from(n).ok());
                    return Ok(max.filter(|&n| n > 0).unwrap_or(wire::DEFAULT_MAX_MESSAGE));
                }
                if frame.command.auth_challenge.is_some() {
                    let answer = challenged(&self.credentials, self.connect_timeout).await?;
                    send(&mut writer, answer).await?;
                    continue;
                }
                return Err(match frame.command.error {
                    Some(error) => self.refused(&error),
                    None => wrong("it answers CONNECT with another command"),
                });
            }
        };
        let max_message = match timeout_at(deadline, asking).await {
            Ok(max) => max?,
            Err(_) => {
                let problem = format!(
                    "{at} accepts connections and says nothing within {:?}: not a Pulsar broker, or one that hangs",
                    self.connect_timeout
                );
                return Err(BackendError::new(ErrorKind::Timeout, problem));
            }
        };
        reader.decoder_mut().largest = max_message + wire::PADDING;
        Ok(Dialed { reader, writer, max_message })
    }

    /// What an error in answer to `CONNECT` means.
    fn refused(&self, error: &proto::CommandError) -> BackendError {
        use proto::ServerError::{AuthenticationError, AuthorizationError};
        let (at, code) = (self.address.at(), wire::server_error(error.error));
        let words = format!("{}: {}", wire::error_name(code), error.message);
        match code {
            AuthenticationError | AuthorizationError => BackendError::new(
                ErrorKind::Unauthorized,
                format!("{at} refused the credentials ({words}); see pulsar.auth"),
            ),
            _ => BackendError::new(ErrorKind::Other, format!("{at} refused to connect: {words}")),
        }
    }
}

/// The answer to a broker that asks for credentials anew.
pub(super) async fn challenged(
    credentials: &Credentials,
    limit: Duration,
) -> Result<wire::Frame, BackendError> {
    let (name, data) = credentials.data(limit).await?.unwrap_or(("none", Vec::new()));
    Ok(wire::command(Type::AuthResponse, |c| {
        c.auth_response = Some(proto::CommandAuthResponse {
            client_version: None,
            response: Some(proto::AuthData {
                auth_method_name: Some(name.into()),
                auth_data: Some(data),
            }),
            protocol_version: Some(PROTOCOL),
        });
    }))
}

async fn send(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    frame: wire::Frame,
) -> Result<(), BackendError> {
    let other = |error: &dyn Error| {
        BackendError::new(ErrorKind::WrongServer, format!("greeting the broker: {error}"))
    };
    let bytes = wire::encode(frame).map_err(|e| BackendError::new(ErrorKind::Other, e))?;
    writer.write_all(&bytes).await.map_err(|e| other(&e))?;
    writer.flush().await.map_err(|e| other(&e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_host_and_perhaps_a_port() {
        let parsed = |url: &str| parse(url).unwrap().url();
        assert_eq!(parsed("pulsar://localhost"), "pulsar://localhost:6650");
        assert_eq!(parsed("pulsar+ssl://h/"), "pulsar+ssl://h:6651");
        assert_eq!(parsed("pulsar://[::1]:5"), "pulsar://[::1]:5");
        assert_eq!(parsed("pulsar://[::1]"), "pulsar://[::1]:6650");
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_a_secret() {
        let wrong = ["", "localhost:6650", "http://x", "pulsar://", "pulsar://h:0", "pulsar://h/x"];
        for url in wrong.into_iter().chain(["pulsar://a:1,b:2", "pulsar://h:70000"]) {
            assert!(parse(url).is_err(), "{url}");
        }
        let error = parse("pulsar://me:hunter2@host").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
