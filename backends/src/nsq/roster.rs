//! The sockets of a consumer: one, or with nsqlookupd one to every nsqd that has the topic.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Shared,
    address::Address,
    admin::{Admin, Producer},
    connection::{Connection, Node},
    consumer::{Command, Inbox, NsqConsumer},
    dial::Dialer,
    receiver::{Receiver, Terms},
};
use crate::{BackendError, ConsumerOptions};

/// The sockets of a consumer, one for each nsqd that has its channel.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    /// Which line is the next to get what cannot be divided.
    turn: usize,
    closed: bool,
}

struct Line {
    /// As nsqlookupd knows it.
    at: (String, u16),
    commands: mpsc::UnboundedSender<Command>,
}

/// The consumer that is wanted.
pub(super) struct Wanted {
    /// Topic and channel, as nsqd knows them.
    pub(super) names: (String, String),
    /// `None` for nsqd's default.
    pub(super) ack_timeout: Option<Duration>,
    pub(super) options: ConsumerOptions,
    pub(super) longest_delay: Duration,
}

/// How long a socket to an nsqd that is gone may take to leave.
const GRACE: Duration = Duration::from_secs(1);

/// How often nsqlookupd is asked.
const POLL: Duration = Duration::from_secs(2);

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more, and the ones that there are.
    pub(super) fn close(&self) -> Vec<mpsc::UnboundedSender<Command>> {
        let mut state = self.state();
        state.closed = true;
        state.lines.drain(..).map(|line| line.commands).collect()
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Adds one, unless the consumer has left.
    fn add(&self, at: (String, u16), commands: mpsc::UnboundedSender<Command>) {
        let mut state = self.state();
        if !state.closed {
            state.lines.push(Line { at, commands });
        }
    }

    /// Forgets those whose task has ended, and lets those leave that lead to none of these.
    fn keep(&self, known: &[(String, u16)]) {
        self.state().lines.retain(|line| {
            let keep = known.contains(&line.at);
            if !keep {
                let (left, _) = oneshot::channel();
                let _ = line.commands.send(Command::Leave { grace: GRACE, left });
            }
            keep && !line.commands.is_closed()
        });
    }

    fn has(&self, at: &(String, u16)) -> bool {
        self.state().lines.iter().any(|line| line.at == *at)
    }

    /// Divides the prefetch among the lines. Where there are more lines than that, they take
    /// turns.
    fn divide(&self, prefetch: u32) {
        let mut state = self.state();
        let count = state.lines.len().max(1);
        let shares = shares(prefetch, count as u32, state.turn as u32);
        state.turn = (state.turn + 1) % count;
        // First who gets less, so that there are not more than the prefetch.
        let mut lines: Vec<_> = state.lines.iter().zip(shares).collect();
        lines.sort_by_key(|(_, share)| *share);
        for (line, share) in lines {
            // One whose task has ended is forgotten at the next look.
            let _ = line.commands.send(Command::Ready(share));
        }
    }
}

/// How many deliveries each of `count` lines may have unsettled.
fn shares(prefetch: u32, count: u32, turn: u32) -> Vec<u32> {
    let (each, rest) = (prefetch / count, prefetch % count);
    let extra = |line: u32| u32::from((line + count - turn % count) % count < rest);
    (0..count).map(|line| each + extra(line)).collect()
}

/// Opens a consumer.
pub(super) async fn open(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    wanted: Wanted,
) -> Result<NsqConsumer, BackendError> {
    let Wanted { names: (topic, channel), ack_timeout, options, longest_delay } = wanted;
    let inbox = Arc::new(Inbox::default());
    let lines = Lines::default();
    let ephemeral = shared.settings.ephemeral;
    let node = connection.node.clone();
    let terms = Terms { node, topic, channel, ack_timeout, ephemeral, found: false };
    let opened = terms.open().await?;
    let (receiver, commands) =
        Receiver::new(connection, terms.clone(), Arc::clone(&inbox), options.prefetch);
    connection.remember(&commands);
    connection.run(receiver.run(opened));
    lines.add(connection.broadcast.clone(), commands);
    if uses_lookupd(shared, connection) {
        let task = Follow {
            shared: Arc::clone(shared),
            connection: Arc::downgrade(connection),
            terms,
            inbox: Arc::clone(&inbox),
            lines: lines.clone(),
            prefetch: options.prefetch,
        };
        let mut closed = connection.closed();
        connection.run(async move {
            tokio::select! {
                () = task.run() => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
        });
    }
    let connection = Arc::clone(connection);
    Ok(NsqConsumer::new(connection, inbox, lines, options.confirm_acks, longest_delay))
}

/// A link leads to one nsqd: what goes through it finds no others.
fn uses_lookupd(shared: &Shared, connection: &Connection) -> bool {
    !shared.settings.lookupd.is_empty() && connection.node.dialer.through.is_none()
}

/// Keeps a consumer connected to every nsqd that has its topic.
struct Follow {
    shared: Arc<Shared>,
    connection: std::sync::Weak<Connection>,
    terms: Terms,
    inbox: Arc<Inbox>,
    lines: Lines,
    prefetch: u32,
}

impl Follow {
    async fn run(self) {
        while !self.lines.is_closed() {
            let Some(connection) = self.connection.upgrade() else { return };
            match found(&self.shared, &connection, &self.terms.topic).await {
                Ok(found) => {
                    if found.complete {
                        let at = |p: &Producer| (p.broadcast_address.clone(), p.tcp_port);
                        let mut known: Vec<_> = found.producers.iter().map(at).collect();
                        known.push(connection.broadcast.clone());
                        self.lines.keep(&known);
                    }
                    for producer in found.producers {
                        self.join(&connection, producer).await;
                    }
                }
                // What is known goes on.
                Err(error) => tracing::debug!(%error, "nsqlookupd was not reached"),
            }
            self.lines.divide(self.prefetch);
            drop(connection);
            sleep(POLL).await;
        }
    }

    /// Connects to an nsqd, unless there is a connection to it.
    async fn join(&self, connection: &Connection, producer: Producer) {
        let at = (producer.broadcast_address.clone(), producer.tcp_port);
        if self.lines.has(&at) {
            return;
        }
        let opened = async {
            let node = node(&self.shared, connection, &producer)?;
            let terms = Terms { node, found: true, ..self.terms.clone() };
            Ok::<_, BackendError>((terms.open().await?, terms))
        };
        match opened.await {
            Ok((opened, terms)) => {
                let (receiver, commands) =
                    Receiver::new(connection, terms, Arc::clone(&self.inbox), 0);
                connection.remember(&commands);
                connection.run(receiver.run(opened));
                self.lines.add(at, commands);
            }
            Err(error) => tracing::debug!(%error, ?at, "an nsqd of nsqlookupd was not reached"),
        }
    }
}

/// Every nsqd that has a topic: the one of the settings, and those that nsqlookupd knows.
pub(super) async fn nodes(
    shared: &Shared,
    connection: &Connection,
    topic: &str,
) -> Result<Vec<Node>, BackendError> {
    let mut nodes = vec![connection.node.clone()];
    if uses_lookupd(shared, connection) {
        for producer in found(shared, connection, topic).await?.producers {
            nodes.push(node(shared, connection, &producer)?);
        }
    }
    Ok(nodes)
}

/// What nsqlookupd knows, without the nsqd of the settings.
struct Found {
    producers: Vec<Producer>,
    /// Whether all have answered.
    complete: bool,
}

/// Asks every nsqlookupd. One that answers is enough.
async fn found(
    shared: &Shared,
    connection: &Connection,
    topic: &str,
) -> Result<Found, BackendError> {
    let mut producers: Vec<Producer> = Vec::new();
    let (mut answered, mut problem) = (0, None);
    for at in &shared.settings.lookupd {
        let limit = connection.limit;
        let lookupd = Admin::new(at, "nsqlookupd", &shared.settings.tls, limit, limit)?;
        match lookupd.lookup(topic).await {
            Ok(known) => {
                answered += 1;
                producers.extend(known);
            }
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(error) if answered == 0 => return Err(error),
        _ => {}
    }
    let own = &connection.broadcast;
    producers
        .retain(|producer| (&producer.broadcast_address, producer.tcp_port) != (&own.0, own.1));
    producers.sort();
    producers.dedup();
    Ok(Found { producers, complete: answered == shared.settings.lookupd.len() })
}

/// How to reach an nsqd that nsqlookupd knows.
fn node(
    shared: &Shared,
    connection: &Connection,
    producer: &Producer,
) -> Result<Node, BackendError> {
    let settings = &shared.settings;
    let address = Address {
        tls: connection.node.dialer.address.tls,
        host: producer.broadcast_address.clone(),
        port: producer.tcp_port,
    };
    let http = Address { tls: false, host: address.host.clone(), port: producer.http_port };
    let limit = settings.connect_timeout;
    let admin = Admin::new(
        &format!("http://{}", http.at()),
        "nsqd's HTTP interface",
        &settings.tls,
        limit,
        settings.request_timeout,
    )?;
    Ok(Node { dialer: Dialer { address, ..connection.node.dialer.clone() }, admin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetch_is_divided_and_what_is_left_over_goes_round() {
        assert_eq!(shares(10, 1, 0), [10]);
        assert_eq!(shares(10, 3, 0), [4, 3, 3]);
        assert_eq!(shares(10, 3, 1), [3, 4, 3]);
        assert_eq!(shares(1, 3, 2), [0, 0, 1]);
        assert_eq!(shares(2, 3, 2), [1, 0, 1]);
        for turn in 0..7 {
            assert_eq!(shares(11, 4, turn).iter().sum::<u32>(), 11);
        }
    }
}
