//! One socket to an nsqd, with its buffers: frames in, bytes out, heartbeats answered.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    time::{Instant, sleep_until},
};

use super::wire::{self, Frame};

/// A socket that is past its handshake.
pub(super) struct Socket {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    inbound: BytesMut,
    /// What is to be sent: append to it, and it leaves while somebody waits for a frame.
    pub(super) out: BytesMut,
    /// Whether something was written that a layer below may still hold.
    unflushed: bool,
    heard: Instant,
    patience: Duration,
}

/// What a socket is made of: TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a socket is of no more use.
#[derive(Debug)]
pub(super) enum Lost {
    /// The other end closed it, or the network did.
    Io(io::Error),
    /// Nothing came for too long.
    Silent(Duration),
    /// What came is not the protocol.
    Garbage(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the connection was closed by the other end")
            }
            Lost::Io(error) => write!(f, "the connection was lost: {error}"),
            Lost::Silent(limit) => {
                write!(f, "the connection was given up: nothing came for {limit:?}")
            }
            Lost::Garbage(shown) => {
                write!(f, "the connection was given up: it said \"{shown}\", which is not NSQ")
            }
        }
    }
}

impl Socket {
    /// A socket that is given up when nothing has come for `patience`.
    pub(super) fn new(stream: Box<dyn Stream>, patience: Duration) -> Self {
        let (read, write) = tokio::io::split(stream);
        Socket {
            read,
            write,
            inbound: BytesMut::with_capacity(64 << 10),
            out: BytesMut::new(),
            unflushed: false,
            heard: Instant::now(),
            patience,
        }
    }

    /// The stream under it, for a layer between; `None` if something was received already.
    pub(super) fn into_stream(self) -> Option<Box<dyn Stream>> {
        self.inbound.is_empty().then(|| self.read.unsplit(self.write))
    }

    /// Changes how long silence is borne.
    pub(super) fn bear_silence(&mut self, patience: Duration) {
        self.patience = patience;
        self.heard = Instant::now();
    }

    /// Waits for the next frame that is no heartbeat, and sends meanwhile what is to be sent.
    /// Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Frame, Lost> {
        loop {
            match wire::decode(&mut self.inbound) {
                Ok(Some(Frame::Response(body))) if body == wire::HEARTBEAT => {
                    wire::nop(&mut self.out);
                }
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => self.exchange().await?,
                Err(wire::Garbage(shown)) => return Err(Lost::Garbage(shown)),
            }
        }
    }

    /// Receives something or sends something.
    async fn exchange(&mut self) -> Result<(), Lost> {
        let Socket { read, write, inbound, out, unflushed, heard, patience } = self;
        // In this order: what came while this program slept is read before it counts as silence.
        tokio::select! {
            biased;
            received = read.read_buf(inbound) => match received {
                Ok(0) => Err(Lost::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {
                    *heard = Instant::now();
                    Ok(())
                }
                Err(error) => Err(Lost::Io(error)),
            },
            sent = send(write, out, unflushed), if !out.is_empty() || *unflushed => {
                sent.map_err(Lost::Io)
            }
            () = sleep_until(*heard + *patience) => Err(Lost::Silent(*patience)),
        }
    }
}

/// Sends a piece, or hands on what a layer below may hold.
async fn send(
    write: &mut WriteHalf<Box<dyn Stream>>,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if out.is_empty() {
        write.flush().await?;
        *unflushed = false;
    } else {
        write.write_buf(out).await?;
        *unflushed = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::DuplexStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn socket() -> (Socket, DuplexStream) {
        let (here, there) = tokio::io::duplex(1 << 16);
        (Socket::new(Box::new(here), PATIENCE), there)
    }

    fn heartbeat() -> Vec<u8> {
        [&[0, 0, 0, 15, 0, 0, 0, 0], wire::HEARTBEAT].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_is_answered_and_silence_is_given_up() {
        let (mut socket, mut there) = socket();
        let began = Instant::now();
        let peer = async {
            for _ in 0..10 {
                tokio::time::sleep(PATIENCE / 2).await;
                there.write_all(&heartbeat()).await.unwrap();
                let mut answer = [0; 4];
                there.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"NOP\n");
            }
        };
        let (lost, ()) = tokio::join!(socket.next(), peer);
        assert!(matches!(lost, Err(Lost::Silent(_))), "{lost:?}");
        assert_eq!(began.elapsed(), PATIENCE / 2 * 10 + PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_while_this_program_slept_is_no_silence() {
        let (mut socket, mut there) = socket();
        there.write_all(&heartbeat()).await.unwrap();
        there.write_all(&[0, 0, 0, 6, 0, 0, 0, 0, b'O', b'K']).await.unwrap();
        tokio::time::advance(PATIENCE * 10).await;
        assert_eq!(socket.next().await.unwrap(), Frame::Response("OK".into()));
    }

    #[tokio::test]
    async fn cancelling_loses_neither_what_comes_nor_what_goes() {
        let (mut socket, mut there) = socket();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            there.write_all(&[0, 0, 0, 6, 0, 0]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            there.write_all(&[0, 0, b'O', b'K']).await.unwrap();
            there.read_to_end(&mut all).await.unwrap();
            all
        });
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        socket.out.extend_from_slice(&sent);
        let mut frame = None;
        while frame.is_none() || !socket.out.is_empty() {
            let patience = Duration::from_micros(50);
            if let Ok(came) = tokio::time::timeout(patience, socket.next()).await {
                frame = Some(came.unwrap());
            }
        }
        assert_eq!(frame, Some(Frame::Response("OK".into())));
        drop(socket);
        assert!(reading.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_a_loss() {
        let (mut socket, there) = socket();
        drop(there);
        assert!(matches!(socket.next().await, Err(Lost::Io(_))));
    }
}
