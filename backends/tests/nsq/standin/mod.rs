//! A stand-in for nsqd: its protocol and enough of its HTTP interface over queues in memory, with
//! its answers, its timing and, on demand, manners that no honest server has.
//!
//! It is the project's own, for machines without an nsqd and for what a real one cannot be made to
//! do. What it shows is shown of the client alone: it is no evidence of NSQ, and never in a table
//! of results.
// Not every test that uses it uses all of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch};

mod http;
mod protocol;
mod queue;

/// A server; everything of it is gone when this is dropped.
pub struct StandIn {
    /// Where it speaks the protocol.
    pub tcp: SocketAddr,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// How it is set, in nsqd's terms.
#[derive(Debug, Clone)]
pub struct Options {
    pub msg_timeout: Duration,
    pub max_msg_timeout: Duration,
    pub max_req_timeout: Duration,
    pub max_msg_size: usize,
    pub max_body_size: usize,
    pub max_rdy_count: usize,
    /// The secret of `AUTH`, if one is demanded.
    pub secret: Option<String>,
    /// What it does wrong.
    pub manner: Manner,
}

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nothing.
    Honest,
    /// It accepts connections and says nothing.
    Mute,
    /// It says something else than nsqd does.
    Babbling,
    /// It stores what is published and does not confirm it.
    Unconfirming,
    /// It stores what is published and closes the connection instead of confirming it.
    ClosingUnconfirmed,
    /// It stores nothing, refuses each publish in these words and closes the connection.
    Refusing(&'static str),
    /// It carries out the first publish and refuses the second in these words.
    RefusingSecond(&'static str),
    /// It takes the acknowledgements of a connection and closes it before it says which failed.
    ClosingUnsettled,
    /// It keeps back each second refusal until it has sent the next one.
    RefusingOutOfOrder,
    /// It confirms each publish twice.
    ConfirmingTwice,
    /// After the handshake it says nothing more, not even that it lives.
    Stalling,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            msg_timeout: Duration::from_secs(60),
            max_msg_timeout: Duration::from_secs(900),
            max_req_timeout: Duration::from_secs(3600),
            max_msg_size: 1 << 20,
            max_body_size: 5 << 20,
            max_rdy_count: 2500,
            secret: None,
            manner: Manner::Honest,
        }
    }
}

/// What its tasks share.
struct Shared {
    options: Options,
    tcp: SocketAddr,
    http: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    broker: queue::Broker,
    next_client: u64,
    /// Who is told that a topic was deleted: its consumers are closed.
    deleted: Option<watch::Sender<String>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// How often it looks for what is due: nsqd does so every 100 ms.
const SCAN: Duration = Duration::from_millis(100);

impl StandIn {
    /// Starts one on free loopback ports, on a thread of its own.
    pub fn start(options: Options) -> StandIn {
        let (stop, mut stopped) = watch::channel(false);
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = || TcpListener::bind("127.0.0.1:0");
                let (tcp, http) = (listener().await.unwrap(), listener().await.unwrap());
                let shared = Arc::new(Shared {
                    options,
                    tcp: tcp.local_addr().unwrap(),
                    http: http.local_addr().unwrap(),
                    state: Mutex::default(),
                });
                shared.state().deleted = Some(watch::Sender::new(String::new()));
                ready.send((shared.tcp, shared.http)).unwrap();
                tokio::select! {
                    () = protocol::serve(tcp, &shared) => {}
                    () = http::serve(http, &shared) => {}
                    () = scan(&shared) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
                // With the runtime its tasks end, and with them their sockets.
            });
        });
        let (tcp, http) = started.recv().unwrap();
        StandIn { tcp, http, stop, thread: Some(thread) }
    }
}

async fn scan(shared: &Shared) {
    let mut ticks = tokio::time::interval(SCAN);
    loop {
        ticks.tick().await;
        shared.state().broker.scan();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
