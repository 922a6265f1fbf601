//! The task of a publisher's socket. nsqd confirms the commands of a connection in their order and
//! names none of them: what waits for a confirmation is a queue, and a place in it stays when
//! nobody waits any more.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    connection::{Connection, at, until_closed},
    dial::Dialer,
    socket::Socket,
    wire::{self, Frame},
};
use crate::{PublishError, RejectKind};

/// One command, with one confirmation.
pub(super) struct Publish {
    pub(super) what: What,
    pub(super) confirmed: oneshot::Sender<Result<(), PublishError>>,
}

/// What is published.
pub(super) enum What {
    /// One message.
    One(Bytes),
    /// One that is delivered after so many milliseconds.
    Deferred(Bytes, u64),
    /// Many, with one confirmation.
    Many(Vec<Bytes>),
}

/// Writes commands and reads confirmations.
pub(super) struct Sender {
    dialer: Dialer,
    topic: String,
    commands: mpsc::Receiver<Publish>,
    pending: VecDeque<Pending>,
    up: Arc<AtomicBool>,
    losses: Arc<AtomicU64>,
    closed: watch::Receiver<bool>,
    limit: Duration,
    /// When to end at the latest, once nobody can hand it more.
    until: Option<Instant>,
}

/// A command that was sent.
struct Pending {
    many: bool,
    confirmed: oneshot::Sender<Result<(), PublishError>>,
}

/// How many commands may be unconfirmed.
const IN_FLIGHT: usize = 4096;

/// How many bytes may wait to be sent before no more commands are taken.
const WAITING: usize = 4 << 20;

impl Sender {
    pub(super) fn new(
        connection: &Connection,
        topic: String,
        commands: mpsc::Receiver<Publish>,
        up: Arc<AtomicBool>,
        limit: Duration,
    ) -> Self {
        Sender {
            dialer: connection.node.dialer.clone(),
            topic,
            commands,
            pending: VecDeque::new(),
            up,
            losses: connection.count_losses(),
            closed: connection.closed(),
            limit,
            until: None,
        }
    }

    /// Works until the publisher or its connection is closed.
    pub(super) async fn run(mut self, socket: Socket) {
        let mut socket = Some(socket);
        while let Some(up) = socket.take() {
            let Some(why) = self.serve(up).await else { break };
            tracing::debug!(topic = self.topic, why, "a publisher's connection to nsqd was lost");
            // In this order: who sees a failed confirmation sees a connection that is down.
            self.losses.fetch_add(1, Ordering::AcqRel);
            self.up.store(false, Ordering::Release);
            self.fail(&why);
            socket = self.redial().await;
            if socket.is_some() {
                self.up.store(true, Ordering::Release);
            }
        }
        self.up.store(false, Ordering::Release);
        self.fail("it was closed before nsqd confirmed");
    }

    /// Nothing that was sent will be confirmed.
    fn fail(&mut self, why: &str) {
        for pending in self.pending.drain(..) {
            let _ = pending.confirmed.send(Err(PublishError::Indeterminate(why.into())));
        }
    }

    /// Works on one socket; returns why it was lost, or nothing when all is done.
    async fn serve(&mut self, mut socket: Socket) -> Option<String> {
        loop {
            if self.until.is_some() && self.pending.is_empty() {
                return None;
            }
            let room = self.until.is_none()
                && self.pending.len() < IN_FLIGHT
                && socket.out.len() < WAITING;
            let until = self.until;
            tokio::select! {
                frame = socket.next() => match frame {
                    Ok(Frame::Response(body)) if body == "OK" => match self.pending.pop_front() {
                        // Who has stopped waiting has still used up this confirmation.
                        Some(pending) => drop(pending.confirmed.send(Ok(()))),
                        None => return Some("nsqd confirmed what was not published".into()),
                    },
                    Ok(Frame::Error(words)) => {
                        // nsqd carries out nothing that comes after, and closes the connection.
                        if let Some(pending) = self.pending.pop_front() {
                            let _ = pending.confirmed.send(Err(refused(&words, pending.many)));
                        }
                        return Some(format!("nsqd closed the connection: {words}"));
                    }
                    Ok(other) => return Some(format!("nsqd answered a publish with {other:?}")),
                    Err(lost) => return Some(lost.to_string()),
                },
                command = self.commands.recv(), if room => match command {
                    Some(command) => self.write(command, &mut socket),
                    None => self.until = Some(Instant::now() + self.limit),
                },
                () = at(until) => return None,
                () = until_closed(&mut self.closed) => return None,
            }
        }
    }

    /// Writes a command, and those that wait behind it, so that they leave together.
    fn write(&mut self, first: Publish, socket: &mut Socket) {
        let mut next = Some(first);
        while let Some(Publish { what, confirmed }) = next {
            match &what {
                What::One(body) => wire::publish(&mut socket.out, &self.topic, body),
                What::Deferred(body, delay) => {
                    wire::publish_deferred(&mut socket.out, &self.topic, *delay, body);
                }
                What::Many(bodies) => wire::publish_many(&mut socket.out, &self.topic, bodies),
            }
            self.pending.push_back(Pending { many: matches!(what, What::Many(_)), confirmed });
            let room = self.pending.len() < IN_FLIGHT && socket.out.len() < WAITING;
            next = if room { self.commands.try_recv().ok() } else { None };
        }
    }

    /// Connects again; `None` when there is no need any more. What is handed over meanwhile is not
    /// sent, also not later.
    async fn redial(&mut self) -> Option<Socket> {
        let dialer = self.dialer.clone();
        let dialing = dialer.persist(None);
        tokio::pin!(dialing);
        loop {
            tokio::select! {
                (socket, _) = &mut dialing => return Some(socket),
                command = self.commands.recv() => {
                    let down = PublishError::NotSent("the connection is down".into());
                    let _ = command?.confirmed.send(Err(down));
                }
                () = until_closed(&mut self.closed) => return None,
            }
        }
    }
}

/// What an error frame says of the command that it answers. Where nsqd may have stored a part,
/// nobody knows.
fn refused(words: &str, many: bool) -> PublishError {
    let code = words.split_ascii_whitespace().next().unwrap_or_default();
    let kind = match code {
        "E_BAD_TOPIC" | "E_INVALID" => RejectKind::Invalid,
        "E_BAD_MESSAGE" | "E_BAD_BODY" if words.contains("too big") => RejectKind::TooLarge,
        "E_BAD_MESSAGE" | "E_BAD_BODY" => RejectKind::TooSmall,
        "E_PUB_FAILED" | "E_DPUB_FAILED" | "E_MPUB_FAILED" if words.ends_with("exiting") => {
            RejectKind::NoTopic
        }
        "E_PUB_FAILED" | "E_DPUB_FAILED" if !many => RejectKind::LimitReached,
        "E_UNAUTHORIZED" | "E_AUTH_FAILED" | "E_AUTH_FIRST" => RejectKind::NotAllowed,
        _ => return PublishError::Indeterminate(format!("nsqd answered: {words}")),
    };
    PublishError::Rejected { kind, reason: format!("nsqd answered: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_definite_where_nothing_can_have_been_stored() {
        let kind = |words: &str, many| match refused(words, many) {
            PublishError::Rejected { kind, .. } => Some(kind),
            _ => None,
        };
        let cases = [
            ("E_BAD_MESSAGE PUB message too big 9 > 8", Some(RejectKind::TooLarge)),
            ("E_BAD_MESSAGE PUB invalid message body size 0", Some(RejectKind::TooSmall)),
            ("E_BAD_BODY MPUB body too big 9 > 8", Some(RejectKind::TooLarge)),
            ("E_BAD_TOPIC PUB topic name \"x y\" is not valid", Some(RejectKind::Invalid)),
            ("E_PUB_FAILED PUB failed exiting", Some(RejectKind::NoTopic)),
            ("E_PUB_FAILED PUB failed no space left on device", Some(RejectKind::LimitReached)),
            ("E_UNAUTHORIZED AUTH failed for PUB on \"t\" \"\"", Some(RejectKind::NotAllowed)),
            ("E_SOMETHING new", None),
            ("", None),
        ];
        for (words, expected) in cases {
            assert_eq!(kind(words, false), expected, "{words}");
        }
        // nsqd stores the messages of a list one after the other.
        assert_eq!(kind("E_MPUB_FAILED MPUB failed no space left on device", true), None);
        let gone = kind("E_MPUB_FAILED MPUB failed exiting", true);
        assert_eq!(gone, Some(RejectKind::NoTopic));
    }
}
