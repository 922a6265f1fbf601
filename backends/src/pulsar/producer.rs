//! A producer: opened, sent with, opened again after a loss, and told what became of each message.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pulsar::message::proto::{
    self, CommandSendError, CommandSendReceipt, KeyValue, MessageMetadata, ProducerAccessMode,
    ServerError, base_command::Type,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep},
};

use super::{
    connection::{Connection, Kind, LOST, Lost, Owner, lock},
    pool::{Fault, PAUSE, Pool, patiently, refused},
    wire::{self, Frame, Payload},
};
use crate::{Access, Message, PublishError, RejectKind};

/// A producer on one topic.
pub(super) struct Producer {
    pub(super) topic: String,
    /// The name that was asked for; without one the broker gives one.
    pub(super) name: Option<String>,
    access: Access,
    state: Mutex<State>,
    /// Something has changed that the keeper must look at.
    wake: Notify,
    retired: Notify,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// What was sent and not answered, in the order of sending.
    pending: VecDeque<Sent>,
    /// The number of the next message that comes without one.
    next: u64,
    /// How often it was opened.
    epoch: u64,
    /// The broker's number for an exclusive access, with which it is claimed again.
    topic_epoch: Option<u64>,
    /// The name that the broker gave.
    given_name: Option<String>,
    /// An id that the broker closed, perhaps before its opening was taken in.
    closed_id: Option<u64>,
    ended: Option<PublishError>,
}

/// Where it is open.
struct Open {
    connection: Arc<Connection>,
    generation: u64,
    id: u64,
    name: String,
}

/// What was sent and not answered.
struct Sent {
    sequence: u64,
    answer: oneshot::Sender<Result<Stored, PublishError>>,
    /// Its place among what may be in flight.
    _place: Option<Place>,
}

/// A place among what may be in flight.
pub(super) type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What became of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// It is there.
    At {
        /// In this ledger.
        ledger: u64,
        /// With this number.
        entry: u64,
    },
    /// Its number was not above the highest of this producer's name.
    Duplicate,
}

/// What is to be sent as one entry.
pub(super) struct Entry {
    pub(super) metadata: MessageMetadata,
    pub(super) payload: Vec<u8>,
    /// The number that it is to have.
    pub(super) sequence: Option<u64>,
}

/// Undoes an opening that was given up.
struct Opening<'a> {
    connection: &'a Arc<Connection>,
    generation: u64,
    id: u64,
    done: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.connection.farewell(self.generation, Kind::Producer, self.id);
        }
    }
}

impl Producer {
    pub(super) fn new(topic: &str, name: Option<String>, access: Access) -> Arc<Self> {
        Arc::new(Producer {
            topic: topic.into(),
            name,
            access,
            state: Mutex::default(),
            wake: Notify::new(),
            retired: Notify::new(),
        })
    }

    /// Opens it. With [`Access::WaitForExclusive`] it waits for as long as it takes, but
    /// everything else must be answered by the deadline.
    pub(super) async fn open(
        self: &Arc<Self>,
        pool: &Pool,
        deadline: Instant,
    ) -> Result<(), Fault> {
        patiently(deadline, || self.try_open(pool, deadline)).await
    }

    async fn try_open(self: &Arc<Self>, pool: &Pool, deadline: Instant) -> Result<(), Fault> {
        let (connection, generation) = pool.owner(&self.topic, deadline).await?;
        let id = connection.id();
        connection.register(Kind::Producer, id, Arc::clone(self) as Arc<dyn Owner>);
        let mut opening = Opening { connection: &connection, generation, id, done: false };
        let full = pool.full_name(&self.topic);
        let command = self.command(full, id);
        let mut pending = connection.ask(generation, |request_id| {
            wire::command(Type::Producer, |c| {
                c.producer = Some(proto::CommandProducer { request_id, ..command });
            })
        })?;
        let mut answer = pending.wait(deadline.saturating_duration_since(Instant::now())).await?;
        let success = loop {
            if let Some(error) = answer.error {
                return Err(refused(error.error, error.message));
            }
            let Some(success) = answer.producer_success else {
                let words = "opening a producer was answered by another command".into();
                return Err(Fault::Refused(ServerError::UnknownError, words));
            };
            if success.producer_ready.unwrap_or(true) {
                break success;
            }
            // It stands in the queue for an exclusive access.
            answer = pending.answer().await?;
        };
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return Err(Lost::Closed.into()); // Given up meanwhile: what is open is closed again.
        }
        if state.closed_id == Some(id) {
            let words = "the broker closed the producer as soon as it was open".into();
            return Err(Fault::Refused(ServerError::ServiceNotReady, words));
        }
        opening.done = true;
        let after_last = success.last_sequence_id.and_then(|last| u64::try_from(last + 1).ok());
        state.next = state.next.max(after_last.unwrap_or(0));
        state.epoch += 1;
        state.topic_epoch = success.topic_epoch.or(state.topic_epoch);
        state.given_name = Some(success.producer_name.clone());
        drop(opening);
        state.open = Some(Open { connection, generation, id, name: success.producer_name });
        Ok(())
    }

    fn command(&self, topic: String, producer_id: u64) -> proto::CommandProducer {
        let state = lock(&self.state);
        let access = match self.access {
            Access::Shared => ProducerAccessMode::Shared,
            Access::Exclusive => ProducerAccessMode::Exclusive,
            Access::WaitForExclusive => ProducerAccessMode::WaitForExclusive,
        };
        proto::CommandProducer {
            topic,
            producer_id,
            producer_name: self.name.clone().or_else(|| state.given_name.clone()),
            user_provided_producer_name: Some(self.name.is_some()),
            epoch: Some(state.epoch),
            producer_access_mode: Some(access as i32),
            topic_epoch: state.topic_epoch,
            ..proto::CommandProducer::default()
        }
    }

    /// Opens it again whenever it is lost, until it is retired or cannot be opened any more.
    pub(super) async fn keep(self: Arc<Self>, pool: Weak<Pool>, limit: Duration) {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.retired.notified() => return,
            }
            let mut pause = Duration::ZERO;
            while !self.is_open() {
                let Some(pool) = pool.upgrade().filter(|pool| !pool.is_closed()) else {
                    return self.end(PublishError::Closed);
                };
                let again = async {
                    sleep(pause).await;
                    self.open(&pool, Instant::now() + limit).await
                };
                let opened = tokio::select! {
                    () = self.retired.notified() => return,
                    opened = again => opened,
                };
                if let Err(fault) = opened {
                    tracing::debug!(topic = self.topic, ?fault, "opening a producer again");
                    if let Some(error) = self.is_final(&fault) {
                        return self.end(error);
                    }
                    pause = (pause * 2).clamp(PAUSE, Duration::from_secs(1));
                }
            }
        }
    }

    fn is_open(&self) -> bool {
        lock(&self.state).open.is_some()
    }

    /// Whether a fault means that it will never be open again, and what publishes are told then.
    fn is_final(&self, fault: &Fault) -> Option<PublishError> {
        let rejected = |kind, reason| Some(PublishError::Rejected { kind, reason });
        match fault {
            Fault::Lost(Lost::Closed) => Some(PublishError::Closed),
            Fault::Refused(ServerError::ProducerFenced, words) => rejected(
                RejectKind::NotAllowed,
                format!("another publisher has the topic to itself now: {words}"),
            ),
            Fault::Refused(ServerError::TopicNotFound, words) => {
                rejected(RejectKind::NoTopic, format!("the topic is gone: {words}"))
            }
            Fault::Refused(ServerError::TopicTerminatedError, words) => {
                rejected(RejectKind::NotAllowed, format!("the topic takes no more: {words}"))
            }
            Fault::Refused(ServerError::AuthorizationError, words) => {
                rejected(RejectKind::NotAllowed, words.clone())
            }
            _ => None,
        }
    }

    fn end(&self, error: PublishError) {
        lock(&self.state).ended.get_or_insert(error);
    }

    /// Sends an entry, unless it is not open. A number that it is not given is the next one.
    pub(super) fn send(
        &self,
        entry: Entry,
        place: Option<Place>,
    ) -> Result<oneshot::Receiver<Result<Stored, PublishError>>, PublishError> {
        let mut state = lock(&self.state);
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        let Some(open) = &state.open else {
            let why = "the publisher is not open: its connection is down, or its topic moves";
            return Err(PublishError::NotSent(why.into()));
        };
        let count = entry.metadata.num_messages_in_batch.unwrap_or(1);
        let sequence = entry.sequence.unwrap_or(state.next);
        let highest = sequence.saturating_add(u64::try_from(count.max(1) - 1).unwrap_or(0));
        let frame = open.frame(entry, sequence, highest)?;
        let (answer, receiver) = oneshot::channel();
        let (connection, generation) = (Arc::clone(&open.connection), open.generation);
        // Before it is sent, so that no answer can find it missing; nobody else can look while
        // the lock is held.
        state.pending.push_back(Sent { sequence, answer, _place: place });
        if let Err(lost) = connection.send(generation, frame) {
            state.pending.pop_back();
            return Err(match lost {
                Lost::NotSent(why) | Lost::Unanswered(why) => PublishError::NotSent(why),
                Lost::Closed => PublishError::Closed,
            });
        }
        state.next = state.next.max(highest.saturating_add(1));
        Ok(receiver)
    }

    /// The largest message that the broker takes, while it is open.
    pub(super) fn max_message(&self) -> Option<usize> {
        lock(&self.state).open.as_ref().map(|open| open.connection.max_message())
    }

    /// Closes it at the broker, and waits for the broker to say so, for at most `limit`.
    pub(super) async fn close(&self, limit: Duration) {
        if let Some(open) = self.retire() {
            let closed =
                open.connection.ask(open.generation, |id| wire::close_producer(open.id, id));
            if let Ok(mut closed) = closed {
                // One that is lost is closed as well.
                let _ = closed.wait(limit).await;
            }
            open.connection.unregister(Kind::Producer, open.id);
        }
    }

    /// Closes it at the broker without waiting; confirmations that are due still come.
    pub(super) fn abandon(&self) {
        if let Some(open) = self.retire() {
            open.connection.farewell(open.generation, Kind::Producer, open.id);
        }
    }

    fn retire(&self) -> Option<Open> {
        let open = {
            let mut state = lock(&self.state);
            state.ended.get_or_insert(PublishError::Closed);
            state.open.take()
        };
        self.retired.notify_one();
        open
    }

    /// Everything that waits for an answer has none.
    fn forsake(&self, why: &str) {
        let pending = {
            let mut state = lock(&self.state);
            state.open = None;
            std::mem::take(&mut state.pending)
        };
        for sent in pending {
            // Nobody may wait for it any more.
            let _ = sent.answer.send(Err(PublishError::Indeterminate(why.into())));
        }
        self.wake.notify_one();
    }

    /// A confirmation. A position belongs to the earliest message of its number that is in flight,
    /// "duplicate" to the latest one: the broker answers that without storing anything.
    fn received(&self, receipt: &CommandSendReceipt) {
        let stored = match &receipt.message_id {
            Some(id) if id.ledger_id != u64::MAX && id.entry_id != u64::MAX => {
                Ok(Stored::At { ledger: id.ledger_id, entry: id.entry_id })
            }
            Some(_) => Ok(Stored::Duplicate),
            None => Err(PublishError::Indeterminate("the confirmation has no position".into())),
        };
        self.answer(receipt.sequence_id, stored == Ok(Stored::Duplicate), stored);
    }

    fn failed(&self, error: &CommandSendError) {
        let code = wire::server_error(error.error);
        let words = format!("{}: {}", wire::error_name(code), error.message);
        let rejected = |kind| PublishError::Rejected { kind, reason: words.clone() };
        // Neither stored nor known to be a duplicate, while another one of its number is in flight.
        let repeated = error.message.contains(REPEATED);
        let outcome = match code {
            _ if repeated => rejected(RejectKind::Invalid),
            ServerError::ChecksumError | ServerError::IncompatibleSchema => {
                rejected(RejectKind::Invalid)
            }
            ServerError::ProducerFenced
            | ServerError::TopicTerminatedError
            | ServerError::AuthorizationError => rejected(RejectKind::NotAllowed),
            ServerError::NotAllowedError if error.message.contains("size") => {
                rejected(RejectKind::TooLarge)
            }
            ServerError::NotAllowedError => rejected(RejectKind::NotAllowed),
            ServerError::ProducerBlockedQuotaExceededError
            | ServerError::ProducerBlockedQuotaExceededException => {
                rejected(RejectKind::LimitReached)
            }
            // What failed while it was being stored may be there all the same.
            _ => PublishError::Indeterminate(words),
        };
        // What failed to be stored was first in the line.
        self.answer(error.sequence_id, repeated, Err(outcome));
    }

    fn answer(&self, sequence: u64, latest: bool, outcome: Result<Stored, PublishError>) {
        let sent = {
            let mut state = lock(&self.state);
            let matches = |sent: &Sent| sent.sequence == sequence;
            let found = match latest {
                true => state.pending.iter().rposition(matches),
                false => state.pending.iter().position(matches),
            };
            found.and_then(|index| state.pending.remove(index))
        };
        match sent {
            // Nobody may wait for it any more.
            Some(sent) => drop(sent.answer.send(outcome)),
            None => tracing::debug!(sequence, "a confirmation that nobody waits for"),
        }
    }
}

impl Owner for Producer {
    fn told(&self, frame: Frame) {
        let command = frame.command;
        if let Some(receipt) = &command.send_receipt {
            self.received(receipt);
        } else if let Some(error) = &command.send_error {
            self.failed(error);
        } else if let Some(closed) = &command.close_producer {
            let connection = {
                let mut state = lock(&self.state);
                state.closed_id = Some(closed.producer_id);
                let open = state.open.as_ref().filter(|open| open.id == closed.producer_id);
                open.map(|open| Arc::clone(&open.connection))
            };
            if let Some(connection) = connection {
                connection.unregister(Kind::Producer, closed.producer_id);
                self.forsake("the broker closed the producer: its topic moves, or is gone");
            }
        }
    }

    fn lost(&self, id: u64) {
        let elsewhere = lock(&self.state).open.as_ref().is_some_and(|open| open.id != id);
        if !elsewhere {
            self.forsake(LOST);
        }
    }
}

impl Open {
    /// The frame of an entry, if the broker takes one of its size.
    fn frame(&self, entry: Entry, sequence: u64, highest: u64) -> Result<Frame, PublishError> {
        use prost::Message as _;
        let batch = entry.metadata.num_messages_in_batch;
        let metadata = MessageMetadata {
            producer_name: self.name.clone(),
            sequence_id: sequence,
            publish_time: millis_since_epoch(),
            uncompressed_size: Some(u32::try_from(entry.payload.len()).unwrap_or(u32::MAX)),
            highest_sequence_id: batch.map(|_| highest),
            ..entry.metadata
        };
        let max = self.connection.max_message();
        let beside = metadata.encoded_len();
        if entry.payload.len() > max || beside > BESIDE {
            // The broker would close the connection over it.
            return Err(PublishError::Rejected {
                kind: RejectKind::TooLarge,
                reason: format!(
                    "the payload has {} bytes and what goes with it {beside}; the broker takes {max} and {BESIDE}",
                    entry.payload.len()
                ),
            });
        }
        let mut frame = wire::command(Type::Send, |c| {
            c.send = Some(proto::CommandSend {
                producer_id: self.id,
                sequence_id: sequence,
                num_messages: batch,
                highest_sequence_id: batch.map(|_| highest),
                ..proto::CommandSend::default()
            });
        });
        frame.payload = Some(Payload { metadata, data: entry.payload });
        Ok(frame)
    }
}

/// The broker's words for a number that was sent again while it was in flight (4.0.8, measured; the
/// code is `PersistenceError`, as for a failure to store).
const REPEATED: &str = "Cannot determine whether the message is a duplicate";

/// How much key, headers and the rest of the metadata may take, bytes: they share the padding of
/// a frame with the command.
const BESIDE: usize = wire::PADDING - 512;

/// The time as Pulsar counts it. A clock before 1970 is at 1970.
pub(super) fn millis_since_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A message's headers as properties.
pub(super) fn properties(message: &Message) -> Vec<KeyValue> {
    let pair =
        |(key, value): &(String, String)| KeyValue { key: key.clone(), value: value.clone() };
    message.headers.iter().map(pair).collect()
}
