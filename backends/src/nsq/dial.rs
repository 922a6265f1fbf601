//! From an address to a socket past its handshake, or to words that say why there is none.

use std::{io, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    Secret,
    address::Address,
    socket::{Lost, Socket, Stream},
    wire::{self, Frame},
};
use crate::{BackendError, ErrorKind};

/// How to open sockets to one nsqd.
#[derive(Clone)]
pub(super) struct Dialer {
    /// Whom to speak to: its certificate is checked against this host.
    pub(super) address: Address,
    /// Where to connect instead, for what goes through a link.
    pub(super) through: Option<std::net::SocketAddr>,
    /// Present where TLS is asked for; whether nsqd must have it the address says.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) auth: Option<Secret>,
    /// How long connecting and the handshake may take.
    pub(super) limit: Duration,
}

/// What nsqd answers to `IDENTIFY`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Greeting {
    pub(super) version: String,
    /// The highest `RDY`.
    pub(super) max_rdy_count: u32,
    /// How long a delivery on this connection stays locked, milliseconds.
    pub(super) msg_timeout: u64,
    tls_v1: bool,
    auth_required: bool,
}

/// How often nsqd and the client show each other that they live. nsqd takes 1 s to 60 s.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A socket on which nothing, not even a heartbeat, has come for this long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Dialer {
    /// `host:port` of nsqd, for messages.
    pub(super) fn at(&self) -> String {
        self.address.at()
    }

    /// Opens a socket on which deliveries stay locked for `ack_timeout`; `None` for nsqd's
    /// default.
    pub(super) async fn open(
        &self,
        ack_timeout: Option<Duration>,
    ) -> Result<(Socket, Greeting), BackendError> {
        let deadline = Instant::now() + self.limit;
        let stream = self.connect(deadline).await?;
        let mut socket = Socket::new(Box::new(stream), PATIENCE);
        socket.out.extend_from_slice(wire::MAGIC);
        wire::identify(&mut socket.out, self.wishes(ack_timeout).to_string().as_bytes());
        let said = self.answer(&mut socket, deadline, "greeting it").await?;
        let greeting: Greeting = serde_json::from_slice(&said).map_err(|error| {
            let problem = format!("{} does not greet as nsqd does: {error}", self.at());
            BackendError::new(ErrorKind::WrongServer, problem)
        })?;
        match &self.tls {
            Some(config) if greeting.tls_v1 => {
                socket = self.secure(socket, config, deadline).await?;
                self.answer(&mut socket, deadline, "greeting it over TLS").await?;
            }
            _ if self.address.tls => {
                let problem = format!(
                    "{} is nsqd {} and has no TLS, which nsqs:// demands: it wants -tls-cert and \
                     -tls-key, or you want nsq://",
                    self.at(),
                    greeting.version
                );
                return Err(BackendError::new(ErrorKind::Unsupported, problem));
            }
            _ => {}
        }
        if greeting.auth_required {
            let Some(Secret(secret)) = &self.auth else {
                let problem = format!("nsqd at {} wants a secret: set nsq.auth", self.at());
                return Err(BackendError::new(ErrorKind::Unauthorized, problem));
            };
            wire::auth(&mut socket.out, secret);
            self.answer(&mut socket, deadline, "authorizing").await?;
        }
        socket.bear_silence(PATIENCE);
        Ok((socket, greeting))
    }

    /// Opens a socket, however often it takes.
    pub(super) async fn persist(&self, ack_timeout: Option<Duration>) -> (Socket, Greeting) {
        let mut backoff = Backoff::default();
        loop {
            sleep(backoff.next()).await;
            match self.open(ack_timeout).await {
                Ok(opened) => return opened,
                Err(error) => tracing::debug!(%error, "nsqd was not reached again"),
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<TcpStream, BackendError> {
        let at = self.through.map_or_else(|| self.at(), |through| through.to_string());
        let unreachable = |why: String| {
            let problem = format!("nobody answers at {at}: {why}");
            BackendError::new(ErrorKind::Unreachable, problem)
        };
        let stream = match timeout_at(deadline, TcpStream::connect(&at)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no connection within {:?}", self.limit))),
        };
        // Without it only the latency is worse.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// What a connection is to be like. Without a buffer nsqd sends a delivery at once; with one,
    /// up to `-min-output-buffer-timeout` (25 ms) later where nothing follows it.
    fn wishes(&self, ack_timeout: Option<Duration>) -> serde_json::Value {
        json!({
            "client_id": "queueproof",
            "hostname": "queueproof",
            "user_agent": concat!("queueproof/", env!("CARGO_PKG_VERSION")),
            "feature_negotiation": true,
            "heartbeat_interval": wire::millis(HEARTBEAT),
            "output_buffer_size": -1,
            "output_buffer_timeout": -1,
            "tls_v1": self.tls.is_some(),
            // Zero leaves nsqd's default.
            "msg_timeout": ack_timeout.map_or(0, wire::millis),
        })
    }

    /// Waits for the answer to one step of the handshake.
    pub(super) async fn answer(
        &self,
        socket: &mut Socket,
        deadline: Instant,
        doing: &str,
    ) -> Result<bytes::Bytes, BackendError> {
        let at = self.at();
        match timeout_at(deadline, socket.next()).await {
            Ok(Ok(Frame::Response(body))) => Ok(body),
            Ok(Ok(Frame::Error(words))) => Err(self.refused(doing, &words)),
            Ok(Ok(Frame::Message(_))) => Err(BackendError::new(
                ErrorKind::WrongServer,
                format!("{at} sends a message while {doing}: it is not nsqd"),
            )),
            Ok(Err(Lost::Garbage(shown))) => Err(BackendError::new(
                ErrorKind::WrongServer,
                format!("{at} is not nsqd: it says \"{shown}\""),
            )),
            Ok(Err(lost)) => Err(BackendError::new(
                ErrorKind::WrongServer,
                format!("{at} gives no answer while {doing}: {lost}; is it nsqd's TCP address?"),
            )),
            Err(_) => Err(BackendError::new(
                ErrorKind::Timeout,
                format!(
                    "{at} accepts connections and says nothing within {:?}: an nsqd that hangs, \
                     or something else",
                    self.limit
                ),
            )),
        }
    }

    /// What nsqd's refusal of a handshake means.
    fn refused(&self, doing: &str, words: &str) -> BackendError {
        let kind = match words.split_ascii_whitespace().next() {
            Some("E_AUTH_FAILED" | "E_UNAUTHORIZED" | "E_AUTH_FIRST" | "E_AUTH_ERROR") => {
                ErrorKind::Unauthorized
            }
            Some("E_BAD_TOPIC" | "E_BAD_CHANNEL") => ErrorKind::InvalidArgument,
            _ if words.contains("exceeds limit") => ErrorKind::LimitReached,
            _ if words.contains("TLS required") => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        };
        let hint = match kind {
            ErrorKind::Unauthorized => "; see nsq.auth",
            ErrorKind::Unsupported => "; use nsqs:// instead of nsq://",
            _ => "",
        };
        BackendError::new(kind, format!("nsqd at {} refused, {doing}: {words}{hint}", self.at()))
    }

    /// Puts TLS under a socket.
    async fn secure(
        &self,
        socket: Socket,
        config: &Arc<rustls::ClientConfig>,
        deadline: Instant,
    ) -> Result<Socket, BackendError> {
        let unsafe_ = |why: String| {
            let problem = format!("no safe connection to {}: {why}; see nsq.tls", self.at());
            BackendError::new(ErrorKind::WrongServer, problem)
        };
        let host = ServerName::try_from(self.address.host.clone())
            .map_err(|_| unsafe_("the host is neither a name nor an address".into()))?;
        let plain = socket
            .into_stream()
            .ok_or_else(|| unsafe_("it went on speaking without TLS".into()))?;
        let handshake = TlsConnector::from(Arc::clone(config)).connect(host, plain);
        match timeout_at(deadline, handshake).await {
            Ok(Ok(stream)) => Ok(Socket::new(Box::new(stream) as Box<dyn Stream>, PATIENCE)),
            Ok(Err(error)) => Err(unsafe_(words(&error))),
            Err(_) => Err(unsafe_(format!("the handshake did not end within {:?}", self.limit))),
        }
    }
}

/// An error of TLS comes as one of input and output, with its own words inside.
fn words(error: &io::Error) -> String {
    error.get_ref().map_or_else(|| error.to_string(), ToString::to_string)
}

/// How long to wait before each attempt to connect again: at first not at all, at most a second.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let attempt = self.attempts;
        self.attempts = attempt.saturating_add(1);
        match attempt {
            0 => Duration::ZERO,
            n => (Duration::from_millis(50) * 2_u32.saturating_pow(n - 1))
                .min(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_at_once_and_then_ever_more_rarely_up_to_a_second() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [0, 50, 100, 200, 400, 800, 1000, 1000]);
        for _ in 0..100 {
            assert_eq!(backoff.next(), Duration::from_secs(1));
        }
    }
}
