//! A link for networked brokers: a TCP proxy in this process.
//!
//! One lock holds the state of the link; a byte is forwarded only while it is held and the state
//! lets it pass. So when [`cut`](Link::cut) or [`hold`](Link::hold) has returned, no byte that
//! had not been written to a socket before is written after.

use std::{
    any::Any,
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{Direction, Link};

/// A TCP proxy that can be broken on purpose. Its tasks run on the runtime that started it and
/// end when it is dropped.
pub struct TcpLink {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes whoever forwards when the state has changed.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    cut: bool,
    hold_to_broker: bool,
    hold_to_client: bool,
    next: u64,
    connections: HashMap<u64, Carried>,
}

/// A connection that is carried.
struct Carried {
    task: JoinHandle<()>,
    ends: Vec<Arc<TcpStream>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|version| *version += 1);
    }
}

impl State {
    fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToBroker => self.hold_to_broker,
            Direction::ToClient => self.hold_to_client,
        }
    }
}

impl TcpLink {
    /// Starts a proxy on a free loopback port to `upstream`, `host:port`.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(upstream: impl Into<String>) -> io::Result<TcpLink> {
        let upstream = upstream.into();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0) });
        let accepting = Arc::clone(&shared);
        let acceptor = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Out of descriptors: others may close some.
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    continue;
                };
                let mut state = accepting.state();
                if state.cut {
                    reset(&client);
                    continue;
                }
                let number = state.next;
                state.next += 1;
                let (shared, upstream) = (Arc::clone(&accepting), upstream.clone());
                let client = Arc::new(client);
                let carried = Arc::clone(&client);
                let task = tokio::spawn(async move {
                    if let Err(error) = carry(&shared, number, &carried, &upstream).await {
                        tracing::debug!(%error, "a connection over the link ended");
                    }
                    shared.state().connections.remove(&number);
                });
                state.connections.insert(number, Carried { task, ends: vec![client] });
            }
        });
        Ok(TcpLink { address, shared, acceptor })
    }
}

/// Makes closing a socket a reset, which the other end sees at once.
fn reset(socket: &TcpStream) {
    // Closing without it does as well, only later.
    let _ = socket.set_zero_linger();
}

/// Carries one connection until either end closes it.
async fn carry(shared: &Shared, number: u64, client: &TcpStream, upstream: &str) -> io::Result<()> {
    let broker = Arc::new(TcpStream::connect(upstream).await?);
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    match shared.state().connections.get_mut(&number) {
        Some(carried) => carried.ends.push(Arc::clone(&broker)),
        None => return Ok(()),
    }
    tokio::select! {
        ended = pump(shared, client, &broker, Direction::ToBroker) => ended,
        ended = pump(shared, &broker, client, Direction::ToClient) => ended,
    }
}

/// How much is read ahead while it may pass, bytes.
const READ_AHEAD: usize = 256 << 10;

/// Forwards one way until its end.
async fn pump(
    shared: &Shared,
    from: &TcpStream,
    to: &TcpStream,
    direction: Direction,
) -> io::Result<()> {
    let mut changed = shared.changed.subscribe();
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut ended = false;
    loop {
        changed.mark_unchanged();
        let blocked = {
            let state = shared.state();
            let blocked = state.cut || state.holds(direction);
            if !blocked && !held.is_empty() {
                match to.try_write(&held) {
                    Ok(n) => drop(held.drain(..n)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            blocked
        };
        if ended && held.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = changed.changed() => {}
            ready = to.writable(), if !blocked && !held.is_empty() => ready?,
            // What is held back is read all the same: the sender must not notice.
            ready = from.readable(), if !ended && (blocked || held.len() < READ_AHEAD) => {
                ready?;
                match from.try_read(&mut buffer) {
                    Ok(0) => ended = true,
                    Ok(n) => held.extend_from_slice(&buffer[..n]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl Link for TcpLink {
    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn cut(&self) {
        self.shared.change(|state| {
            state.cut = true;
            state.hold_to_broker = false;
            state.hold_to_client = false;
            for (_, carried) in state.connections.drain() {
                carried.ends.iter().for_each(|end| reset(end));
                carried.task.abort();
            }
        });
    }

    fn hold(&self, direction: Direction) {
        self.shared.change(|state| match direction {
            Direction::ToBroker => state.hold_to_broker = true,
            Direction::ToClient => state.hold_to_client = true,
        });
    }

    fn heal(&self) {
        self.shared.change(|state| {
            state.cut = false;
            state.hold_to_broker = false;
            state.hold_to_client = false;
        });
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.acceptor.abort();
        for (_, carried) in self.shared.state().connections.drain() {
            carried.task.abort();
        }
    }
}

impl fmt::Debug for TcpLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpLink({})", self.address)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    /// A link to a server that echoes, and a client through it.
    async fn echo() -> (TcpLink, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = TcpLink::start(server.local_addr().unwrap().to_string()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let client = TcpStream::connect(link.address).await.unwrap();
        (link, client)
    }

    async fn says(client: &mut TcpStream, text: &[u8]) {
        client.write_all(text).await.unwrap();
    }

    async fn hears(client: &mut TcpStream, text: &[u8]) {
        let mut heard = vec![0; text.len()];
        timeout(Duration::from_secs(10), client.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, text);
    }

    async fn hears_nothing(client: &mut TcpStream) {
        let mut heard = [0; 1];
        assert!(timeout(Duration::from_millis(100), client.read(&mut heard)).await.is_err());
    }

    #[tokio::test]
    async fn it_carries_megabytes_unchanged() {
        let (_link, mut client) = echo().await;
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n * 7 / 3) as u8).collect();
        let (mut read, mut write) = client.split();
        let mut heard = vec![0; sent.len()];
        let (said, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut heard));
        said.unwrap();
        got.unwrap();
        assert!(heard == sent);
    }

    #[tokio::test]
    async fn what_is_held_either_way_flows_in_order_after_healing() {
        for direction in [Direction::ToBroker, Direction::ToClient] {
            let (link, mut client) = echo().await;
            says(&mut client, b"before ").await;
            hears(&mut client, b"before ").await;
            link.hold(direction);
            says(&mut client, b"one ").await;
            says(&mut client, b"two ").await;
            hears_nothing(&mut client).await;
            link.heal();
            hears(&mut client, b"one two ").await;
        }
    }

    #[tokio::test]
    async fn a_cut_closes_loses_and_refuses_until_it_heals() {
        let (link, mut client) = echo().await;
        says(&mut client, b"x").await;
        hears(&mut client, b"x").await;
        link.hold(Direction::ToClient);
        says(&mut client, b"lost").await;
        hears_nothing(&mut client).await;
        link.cut();
        let mut heard = [0; 8];
        let end = timeout(Duration::from_secs(5), client.read(&mut heard)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let mut refused = TcpStream::connect(link.address).await.unwrap();
        let end = timeout(Duration::from_secs(5), refused.read(&mut heard)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        link.heal();
        let mut client = TcpStream::connect(link.address).await.unwrap();
        says(&mut client, b"again").await;
        hears(&mut client, b"again").await;
    }

    #[tokio::test]
    async fn dropping_it_closes_everything() {
        let (link, mut client) = echo().await;
        says(&mut client, b"x").await;
        hears(&mut client, b"x").await;
        let address = link.address;
        drop(link);
        let mut heard = [0; 1];
        let end = timeout(Duration::from_secs(5), client.read(&mut heard)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn without_an_upstream_the_client_is_closed() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let link = TcpLink::start(free.to_string()).await.unwrap();
        let mut client = TcpStream::connect(link.address).await.unwrap();
        let end = timeout(Duration::from_secs(5), client.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
