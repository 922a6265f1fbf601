//! Messages, receipts, deliveries and their settlement.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{BoxFuture, PublishError, SettleError};

/// A message, as published and as delivered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The body, any bytes.
    pub payload: Bytes,
    /// The routing or ordering key, where the broker has one ([`crate::Capability::Keys`]).
    pub key: Option<String>,
    /// Names and values, where the broker has them ([`crate::Capability::Headers`]); names are
    /// case-sensitive tokens without `:` or spaces, values printable ASCII.
    pub headers: Vec<(String, String)>,
    /// The deduplication key; not part of what is delivered.
    pub dedup: Option<DedupKey>,
    /// Deliver it no earlier than this after it was stored, where the broker can
    /// ([`crate::Capability::DelayedPublish`]); not part of what is delivered.
    pub delay: Option<Duration>,
}

/// What makes a message equal to an earlier one for the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DedupKey {
    /// A text; any publisher may repeat it.
    Id(String),
    /// A number under the publisher's name ([`crate::PublisherOptions::name`]): not above the
    /// highest one stored means duplicate.
    Sequence(u64),
}

/// The broker's confirmation of a publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishReceipt {
    /// Whether the broker dropped it as a duplicate; `None` where it does not tell.
    pub duplicate: Option<bool>,
    /// Its position in the topic, where the broker tells: unique among the stored messages of a
    /// topic. A duplicate's is that of the message it repeats, or `None`.
    pub position: Option<u64>,
}

/// A message locked for one consumer.
///
/// Settling takes `&self` and may be tried more than once: what a second try does is the broker's
/// answer. Dropping it unsettled does nothing.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What was published.
    pub message: Message,
    /// 1 for the first delivery of this message in this subscription, where the broker counts
    /// ([`crate::Capability::AttemptCount`]).
    pub attempt: Option<u32>,
    /// The message's position in its topic, comparable to [`PublishReceipt::position`].
    pub position: Option<u64>,
    /// The backend's own reference to it.
    pub token: Token,
    /// Who settles it.
    pub settler: Arc<dyn Settler>,
}

/// A backend's reference to a delivery: a number costs nothing; an object holds what the client
/// library needs.
#[derive(Clone)]
pub enum Token {
    /// A number of the backend's own.
    Number(u64),
    /// Anything else.
    Object(Arc<dyn Any + Send + Sync>),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Number(n) => write!(f, "Token({n})"),
            Token::Object(_) => f.write_str("Token(..)"),
        }
    }
}

/// What a consumer tells the broker about a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done: never deliver it again in this subscription.
    ///
    /// - After a confirmed ack it is not delivered again, whatever is reconnected.
    Ack,
    /// Not done: deliver it again.
    ///
    /// - Without a delay at once; with one not before it has passed.
    /// - To any consumer of the subscription, the one that nacked it not preferred.
    Nack {
        /// How long to wait, where the broker can ([`crate::Capability::NackDelay`]).
        delay: Option<Duration>,
    },
    /// Not to be done by anybody: to the dead-letter topic, if there is one, else deleted.
    Reject,
    /// Still at it: the ack timeout starts anew.
    Touch,
}

/// What is known about a settlement that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The broker confirmed it.
    Confirmed,
    /// It was sent; the broker does not confirm.
    Sent,
}

/// Settles the deliveries of one consumer.
pub trait Settler: Send + Sync + fmt::Debug {
    /// Settles many in the same way: one result a token, in their order.
    ///
    /// # Behaviour
    /// - It works while the consumer is receiving, from any task, and also after the consumer was
    ///   closed as long as its connection is open and the delivery's lock lasts.
    /// - A settlement after the lock was lost is [`SettleError::LeaseLost`] where the broker
    ///   tells; it never removes a message that is locked for somebody else, or loses it.
    /// - One that can no longer be confirmed is [`SettleError::Indeterminate`], in bounded time.
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>>;
}

impl Delivery {
    /// Acknowledges it. See [`Settlement::Ack`].
    pub fn ack(&self) -> BoxFuture<'static, Result<Settled, SettleError>> {
        self.settle(Settlement::Ack)
    }

    /// Hands it back. See [`Settlement::Nack`].
    pub fn nack(
        &self,
        delay: Option<Duration>,
    ) -> BoxFuture<'static, Result<Settled, SettleError>> {
        self.settle(Settlement::Nack { delay })
    }

    /// Gives it up. See [`Settlement::Reject`].
    pub fn reject(&self) -> BoxFuture<'static, Result<Settled, SettleError>> {
        self.settle(Settlement::Reject)
    }

    /// Extends its lock. See [`Settlement::Touch`].
    pub fn touch(&self) -> BoxFuture<'static, Result<Settled, SettleError>> {
        self.settle(Settlement::Touch)
    }

    /// Settles it in the given way.
    ///
    /// # Errors
    /// A [`SettleError`] that says what is known.
    pub fn settle(&self, how: Settlement) -> BoxFuture<'static, Result<Settled, SettleError>> {
        let settled = self.settler.settle(vec![self.token.clone()], how);
        Box::pin(async move {
            // A settler answers once for each token; one that does not has said nothing.
            settled.await.pop().unwrap_or_else(|| {
                Err(SettleError::Indeterminate("the backend gave no answer".into()))
            })
        })
    }
}

/// Settles many deliveries of any consumers in the same way: one result each, in their order.
/// Runs of deliveries with the same settler go to it as one batch.
pub async fn settle_all(
    deliveries: &[Delivery],
    how: Settlement,
) -> Vec<Result<Settled, SettleError>> {
    let mut results = Vec::with_capacity(deliveries.len());
    for run in deliveries.chunk_by(|a, b| Arc::ptr_eq(&a.settler, &b.settler)) {
        let tokens = run.iter().map(|d| d.token.clone()).collect();
        let mut answers = run[0].settler.settle(tokens, how.clone()).await;
        answers.resize_with(run.len(), || {
            Err(SettleError::Indeterminate("the backend gave no answer".into()))
        });
        results.append(&mut answers);
    }
    results
}

impl Message {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Message { payload: payload.into(), ..Message::default() }
    }
}

/// A confirmation that is there already, for backends that answer at once.
pub fn confirmed(result: Result<PublishReceipt, PublishError>) -> crate::Confirmation {
    Box::pin(std::future::ready(result))
}
