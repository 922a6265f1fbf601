//! Publishing with confirmation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    admin::Takes,
    connection::Connection,
    sender::{Publish, Sender, What},
    wire,
};
use crate::{
    BackendError, BoxFuture, Confirmation, Message, PublishError, PublishReceipt, Publisher,
    RejectKind,
};

/// A publisher on one topic, with a socket of its own.
pub(super) struct NsqPublisher {
    connection: Arc<Connection>,
    takes: Takes,
    limit: Duration,
    commands: mpsc::Sender<Publish>,
    /// Whether the socket is past its handshake, as far as is known.
    up: Arc<AtomicBool>,
    /// Resolves when the socket's task has ended.
    ended: oneshot::Receiver<()>,
}

/// How many messages one `MPUB` carries at most, and about how many bytes: it is confirmed, or
/// lost, as one.
const CHUNK: usize = 1000;
const CHUNK_BYTES: usize = 1 << 20;

impl NsqPublisher {
    /// Opens a publisher's socket.
    pub(super) async fn open(
        connection: Arc<Connection>,
        topic: String,
        takes: Takes,
        limit: Duration,
    ) -> Result<Self, BackendError> {
        let (socket, _) = connection.node.dialer.open(None).await?;
        let (commands, receiver) = mpsc::channel(256);
        let (alive, ended) = oneshot::channel();
        let up = Arc::new(AtomicBool::new(true));
        let sender = Sender::new(&connection, topic, receiver, Arc::clone(&up), limit);
        connection.run(async move {
            sender.run(socket).await;
            drop(alive);
        });
        Ok(NsqPublisher { connection, takes, limit, commands, up, ended })
    }

    /// What nsqd would refuse, and would close the connection over, is refused here.
    fn check(&self, message: &Message) -> Result<(), PublishError> {
        let unsupported = |why: &str| Err(PublishError::Unsupported(why.into()));
        if message.key.is_some() {
            return unsupported("an NSQ message is a body: it has no key");
        }
        if !message.headers.is_empty() {
            return unsupported("an NSQ message is a body: it has no headers");
        }
        if message.dedup.is_some() {
            return unsupported("nsqd does not deduplicate");
        }
        let rejected = |kind, reason| Err(PublishError::Rejected { kind, reason });
        let size = message.payload.len() as u64;
        if size == 0 {
            return rejected(RejectKind::TooSmall, "nsqd takes no empty message".into());
        }
        if size > self.takes.message {
            let max = self.takes.message;
            let reason = format!("it has {size} bytes, and nsqd takes {max} (-max-msg-size)");
            return rejected(RejectKind::TooLarge, reason);
        }
        if message.delay.is_some_and(|delay| delay > self.takes.delay) {
            let max = self.takes.delay;
            let reason = format!("nsqd delays a message by {max:?} at most (-max-req-timeout)");
            return rejected(RejectKind::Invalid, reason);
        }
        Ok(())
    }

    /// Hands a command to the socket's task, in the order of the calls.
    async fn hand_over(&self, what: What) -> Result<Handed, PublishError> {
        if self.connection.is_closed() {
            return Err(PublishError::Closed);
        }
        if !self.up.load(Ordering::Acquire) {
            return Err(PublishError::NotSent("the connection is down".into()));
        }
        let deadline = Instant::now() + self.limit;
        let place = match timeout_at(deadline, self.commands.reserve()).await {
            Ok(place) => place.map_err(|_| PublishError::Closed)?,
            Err(_) => {
                let why = format!("too many publishes are unconfirmed for {:?}", self.limit);
                return Err(PublishError::NotSent(why));
            }
        };
        let (confirmed, answer) = oneshot::channel();
        place.send(Publish { what, confirmed });
        Ok(Handed { answer, deadline, limit: self.limit })
    }
}

/// A command that was handed over.
struct Handed {
    answer: oneshot::Receiver<Result<(), PublishError>>,
    deadline: Instant,
    limit: Duration,
}

impl Handed {
    async fn confirmed(self) -> Result<PublishReceipt, PublishError> {
        match timeout_at(self.deadline, self.answer).await {
            Ok(Ok(answer)) => answer.map(|()| PublishReceipt::default()),
            Ok(Err(_)) => Err(PublishError::Indeterminate("the publisher ended".into())),
            Err(_) => {
                let why = format!("no confirmation came within {:?}", self.limit);
                Err(PublishError::Indeterminate(why))
            }
        }
    }
}

/// The command for these messages, one or more, and more only where none is delayed.
fn command(mut messages: Vec<Message>) -> What {
    match messages.pop() {
        Some(Message { payload, delay: Some(delay), .. }) if !delay.is_zero() => {
            What::Deferred(payload, wire::millis(delay))
        }
        Some(Message { payload, .. }) if messages.is_empty() => What::One(payload),
        last => What::Many(messages.into_iter().chain(last).map(|m| m.payload).collect()),
    }
}

/// Cuts a list of messages into those that go in one command each, as ranges of their number.
fn chunks(sizes: &[usize], most: usize, body: usize) -> Vec<std::ops::Range<usize>> {
    let mut chunks: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (index, size) in sizes.iter().enumerate() {
        bytes += 4 + size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < most && bytes <= body => chunk.end = index + 1,
            _ => {
                chunks.push(index..index + 1);
                bytes = wire::many_size([*size].into_iter());
            }
        }
    }
    chunks
}

impl Publisher for NsqPublisher {
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>> {
        Box::pin(async move {
            self.check(&message)?;
            let handed = self.hand_over(command(vec![message])).await?;
            Ok(Box::pin(handed.confirmed()) as Confirmation)
        })
    }

    fn publish_batch(
        &mut self,
        messages: Vec<Message>,
    ) -> BoxFuture<'_, Vec<Result<PublishReceipt, PublishError>>> {
        Box::pin(async move {
            // The order is kept: so one delayed message makes all go singly.
            let singly = messages.iter().any(|message| message.delay.is_some());
            let most = if singly { 1 } else { CHUNK };
            let body = usize::try_from(self.takes.body).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let mut results: Vec<Result<PublishReceipt, PublishError>> = Vec::new();
            let mut legal = Vec::new();
            for message in messages {
                let checked = self.check(&message);
                if checked.is_ok() {
                    legal.push((results.len(), message));
                }
                results.push(checked.map(|()| PublishReceipt::default()));
            }
            let sizes: Vec<_> = legal.iter().map(|(_, message)| message.payload.len()).collect();
            let mut legal = legal.into_iter();
            let mut pending = Vec::new();
            for chunk in chunks(&sizes, most, body) {
                let (places, messages): (Vec<_>, Vec<_>) = legal.by_ref().take(chunk.len()).unzip();
                pending.push((places, self.hand_over(command(messages)).await));
            }
            for (places, handed) in pending {
                let result = match handed {
                    Ok(handed) => handed.confirmed().await,
                    Err(error) => Err(error),
                };
                for place in places {
                    results[place] = result.clone();
                }
            }
            results
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let NsqPublisher { commands, ended, limit, .. } = *self;
            // The task ends when it can be handed no more and everything is confirmed, or is past
            // its time.
            drop(commands);
            let _ = timeout(limit * 2, ended).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_batch_is_cut_where_a_command_would_be_too_large_and_keeps_its_order() {
        assert!(chunks(&[], 10, 100).is_empty());
        assert_eq!(chunks(&[1, 1, 1], 2, 100), [0..2, 2..3]);
        assert_eq!(chunks(&[1, 1, 1], 1, 100), [0..1, 1..2, 2..3]);
        // 4 for the number of messages and 4 for the size of each.
        assert_eq!(chunks(&[46, 38, 1], 9, 96), [0..2, 2..3]);
        assert_eq!(chunks(&[46, 39, 1], 9, 96), [0..1, 1..3]);
        // One that is too large for a body with others goes alone.
        assert_eq!(chunks(&[1, 500, 1], 9, 96), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn one_message_is_no_list_and_a_delay_of_nothing_is_none() {
        let message = |delay| Message { delay, ..Message::new("x") };
        assert!(matches!(command(vec![message(None)]), What::One(_)));
        assert!(matches!(command(vec![message(Some(Duration::ZERO))]), What::One(_)));
        let soon = Some(Duration::from_micros(1));
        assert!(matches!(command(vec![message(soon)]), What::Deferred(_, 1)));
        let both = command(vec![Message::new("a"), Message::new("b")]);
        let What::Many(bodies) = both else { unreachable!() };
        assert_eq!(bodies, [Bytes::from("a"), Bytes::from("b")]);
    }
}
