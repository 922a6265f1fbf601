//! Publishing with confirmation.

use std::{sync::Arc, time::Duration};

use pulsar::message::proto::MessageMetadata;
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    batch::{self, Group},
    pool::Pool,
    producer::{Entry, Place, Producer, Stored, millis_since_epoch, properties},
    wire,
};
use crate::{
    BoxFuture, Confirmation, DedupKey, Message, PublishError, PublishReceipt, Publisher, RejectKind,
};

/// A publisher on one topic.
pub(super) struct PulsarPublisher {
    /// Kept so that the connection lives as long as its publishers.
    pool: Arc<Pool>,
    producer: Arc<Producer>,
    /// How long a confirmation may take.
    limit: Duration,
    /// Whether the broker deduplicates; if not, why.
    dedup: Result<(), String>,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// How many messages of one publisher may be unconfirmed. The broker stops reading a connection
/// that has 1,000 (`maxPendingPublishRequestsPerConnection`).
const IN_FLIGHT: usize = 900;

/// How many bytes of one publisher may be unconfirmed.
const BYTES_IN_FLIGHT: usize = 32 << 20;

impl PulsarPublisher {
    pub(super) fn new(
        pool: Arc<Pool>,
        producer: Arc<Producer>,
        limit: Duration,
        dedup: Result<(), String>,
    ) -> Self {
        let messages = Arc::new(Semaphore::new(IN_FLIGHT));
        let bytes = Arc::new(Semaphore::new(BYTES_IN_FLIGHT));
        PulsarPublisher { pool, producer, limit, dedup, messages, bytes }
    }

    /// Waits for a place among what may be in flight.
    async fn place(&self, size: usize, deadline: Instant) -> Result<Place, PublishError> {
        let size = u32::try_from(size.clamp(1, BYTES_IN_FLIGHT)).unwrap_or(u32::MAX);
        let place = async {
            let message = Arc::clone(&self.messages).acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>((
                message,
                Arc::clone(&self.bytes).acquire_many_owned(size).await?,
            ))
        };
        match timeout_at(deadline, place).await {
            Ok(place) => place.map_err(|_| PublishError::Closed),
            Err(_) => {
                let why =
                    format!("too many publishes are unconfirmed, for {:?} already", self.limit);
                Err(PublishError::NotSent(why))
            }
        }
    }

    /// What one message becomes, unless it cannot be published.
    fn entry(&self, message: &Message) -> Result<Entry, PublishError> {
        let sequence = match &message.dedup {
            None => None,
            Some(DedupKey::Id(_)) => return Err(PublishError::Unsupported(NO_IDS.into())),
            Some(DedupKey::Sequence(_)) if self.producer.name.is_none() => {
                return Err(PublishError::Unsupported(
                    "a number deduplicates only under a producer's name: open the publisher with one".into(),
                ));
            }
            Some(DedupKey::Sequence(number)) => {
                self.dedup.clone().map_err(PublishError::Unsupported)?;
                // The broker's numbers are signed.
                if i64::try_from(*number).is_err() {
                    return Err(PublishError::Rejected {
                        kind: RejectKind::Invalid,
                        reason: format!("the number {number} is above Pulsar's largest, 2^63-1"),
                    });
                }
                Some(*number)
            }
        };
        let deliver_at_time = message.delay.map(|delay| {
            let delay = i64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
            i64::try_from(millis_since_epoch()).unwrap_or(i64::MAX).saturating_add(delay)
        });
        let metadata = MessageMetadata {
            properties: properties(message),
            partition_key: message.key.clone(),
            deliver_at_time,
            ..MessageMetadata::default()
        };
        Ok(Entry { metadata, payload: message.payload.to_vec(), sequence })
    }

    /// Publishes several messages as one entry.
    async fn publish_entry(&self, messages: &[Message]) -> Result<Handed, PublishError> {
        self.is_open()?;
        let deadline = Instant::now() + self.limit;
        let (metadata, payload) = batch::pack(messages);
        let place = self.place(payload.len(), deadline).await?;
        let answer =
            self.producer.send(Entry { metadata, payload, sequence: None }, Some(place))?;
        Ok(Handed { answer, deadline, limit: self.limit, dedup: self.dedup.is_ok() })
    }

    async fn publish_one(&self, message: &Message) -> Result<Handed, PublishError> {
        self.is_open()?;
        let deadline = Instant::now() + self.limit;
        let place = self.place(message.payload.len(), deadline).await?;
        // The time of a delayed message counts from here.
        let answer = self.producer.send(self.entry(message)?, Some(place))?;
        let deadline = Instant::now() + self.limit;
        Ok(Handed { answer, deadline, limit: self.limit, dedup: self.dedup.is_ok() })
    }

    fn is_open(&self) -> Result<(), PublishError> {
        match self.pool.is_closed() {
            true => Err(PublishError::Closed),
            false => Ok(()),
        }
    }
}

/// An entry that was handed over.
struct Handed {
    answer: oneshot::Receiver<Result<Stored, PublishError>>,
    deadline: Instant,
    limit: Duration,
    /// Whether the broker would have told a duplicate.
    dedup: bool,
}

impl Handed {
    /// Waits for the confirmation, and makes a receipt for each of `count` messages that share the
    /// entry, or for the one that has it to itself.
    async fn receipts(self, count: Option<usize>) -> Vec<Result<PublishReceipt, PublishError>> {
        let stored = confirm(self.answer, self.deadline, self.limit).await;
        let receipt = |stored, index| match stored {
            Stored::Duplicate => PublishReceipt { duplicate: Some(true), position: None },
            Stored::At { ledger, entry } => PublishReceipt {
                duplicate: self.dedup.then_some(false),
                position: wire::position(ledger, entry, index),
            },
        };
        match count {
            None => vec![stored.map(|stored| receipt(stored, -1))],
            Some(count) => (0..)
                .take(count)
                .map(|index| stored.clone().map(|stored| receipt(stored, index)))
                .collect(),
        }
    }
}

/// Why there are no ids.
pub(super) const NO_IDS: &str = "Pulsar deduplicates by a producer's name and its numbers, not by an \
                                 id of the message: publish under one name with rising numbers";

/// Waits for what became of an entry.
pub(super) async fn confirm(
    answer: oneshot::Receiver<Result<Stored, PublishError>>,
    deadline: Instant,
    limit: Duration,
) -> Result<Stored, PublishError> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(PublishError::Indeterminate("the publisher was closed".into())),
        Err(_) => {
            Err(PublishError::Indeterminate(format!("no confirmation came within {limit:?}")))
        }
    }
}

impl Publisher for PulsarPublisher {
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>> {
        Box::pin(async move {
            let handed = self.publish_one(&message).await?;
            Ok(Box::pin(async move {
                let receipt = handed.receipts(None).await.pop();
                receipt.unwrap_or_else(|| Err(PublishError::Indeterminate("no receipt".into())))
            }) as Confirmation)
        })
    }

    fn publish_batch(
        &mut self,
        messages: Vec<Message>,
    ) -> BoxFuture<'_, Vec<Result<PublishReceipt, PublishError>>> {
        Box::pin(async move {
            let groups = match self.pool.settings.batching {
                true => {
                    let max = self.producer.max_message().unwrap_or(wire::DEFAULT_MAX_MESSAGE);
                    batch::groups(messages, max)
                }
                false => messages.into_iter().map(Group::Alone).collect(),
            };
            let mut handed = Vec::with_capacity(groups.len());
            for group in &groups {
                handed.push(match group {
                    Group::Alone(message) => self.publish_one(message).await,
                    Group::Packed(messages) => self.publish_entry(messages).await,
                });
            }
            let mut results = Vec::new();
            for (group, handed) in groups.iter().zip(handed) {
                let count = match group {
                    Group::Alone(_) => None,
                    Group::Packed(messages) => Some(messages.len()),
                };
                match handed {
                    Ok(handed) => results.append(&mut handed.receipts(count).await),
                    Err(error) => {
                        results.extend((0..count.unwrap_or(1)).map(|_| Err(error.clone())))
                    }
                }
            }
            results
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // All places are free when nothing is unconfirmed.
            let all = self.messages.acquire_many(IN_FLIGHT as u32);
            let _ = timeout_at(Instant::now() + self.limit, all).await;
            self.producer.close(self.limit).await;
        })
    }
}

impl Drop for PulsarPublisher {
    fn drop(&mut self) {
        self.producer.abandon();
    }
}
