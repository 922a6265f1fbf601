//! A publisher that writes down what it publishes.

use std::time::Duration;

use queueproof_backends::{DedupKey, Message};

use super::Stage;
use crate::{
    history::{Publish, Published, What, nanos},
    message::{self, HEADER, Identity},
};

/// A publisher of the scenario.
pub struct Publisher<'s> {
    pub(super) stage: &'s Stage,
    pub(super) connection: u16,
    pub(super) topic: u16,
    pub(super) id: u16,
    pub(super) inner: Box<dyn queueproof_backends::Publisher>,
    pub(super) next: u32,
}

/// What travels beside a payload.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// The routing key.
    pub key: Option<String>,
    /// Names and values.
    pub headers: Vec<(String, String)>,
}

/// A message to be published.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// Which message of the publisher; `None` for the next.
    pub number: Option<u32>,
    /// Which attempt to publish it.
    pub copy: u16,
    /// The deduplication key, a number of the scenario.
    pub key: Option<u32>,
    /// The number under the publisher's name that deduplicates it.
    pub sequence: Option<u64>,
    /// How long its delivery is to be delayed.
    pub delay: Option<Duration>,
    /// A routing key, a number of the scenario; it stands for the one of `extra`.
    pub route: Option<u32>,
    /// Payload length, bytes; `None` for the suite's.
    pub len: Option<usize>,
    /// Routing key and headers.
    pub extra: Extra,
    /// Whether it is meant to be refused.
    pub illegal: bool,
}

impl Draft {
    /// A copy of a message with a deduplication key.
    pub fn keyed(key: u32, copy: u16) -> Self {
        Draft { number: Some(key), copy, key: Some(key), ..Draft::default() }
    }

    /// A message with a number under its publisher's name.
    pub fn numbered(sequence: u64) -> Self {
        Draft { sequence: Some(sequence), ..Draft::default() }
    }
}

/// How many messages go in one batch.
const BATCH: usize = 256;

impl Publisher<'_> {
    /// Publishes `count` plain messages, in batches, and waits for their confirmations.
    pub async fn send(&mut self, count: u32) {
        let mut left = count as usize;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            self.publish_all(vec![Draft::default(); batch]).await;
        }
    }

    /// Publishes many at once and waits for their confirmations.
    pub async fn publish_all(&mut self, drafts: Vec<Draft>) -> Vec<Published> {
        let (messages, mut records): (Vec<_>, Vec<_>) =
            drafts.into_iter().map(|draft| self.compose(draft)).unzip();
        let invoked = self.stage.now();
        let results = self.inner.publish_batch(messages).await;
        let completed = self.stage.now();
        let mut outcomes: Vec<_> = results.into_iter().map(Published::from).collect();
        outcomes.resize_with(records.len(), || {
            Published::Indeterminate("the backend gave no answer for it".into())
        });
        let mut ledger = self.stage.ledger.borrow_mut();
        for (record, outcome) in records.drain(..).zip(&outcomes) {
            let record = Publish { outcome: outcome.clone(), ..record };
            let at = (invoked, completed);
            ledger.record_at(self.connection, at, What::Publish(Box::new(record)));
        }
        outcomes
    }

    /// Publishes one and waits for its confirmation.
    pub async fn publish(&mut self, draft: Draft) -> Published {
        let (message, record) = self.compose(draft);
        let invoked = self.stage.now();
        let result = match self.inner.publish(message).await {
            Ok(confirmation) => confirmation.await,
            Err(error) => Err(error),
        };
        let outcome = Published::from(result);
        let record = Publish { outcome: outcome.clone(), ..record };
        self.stage.record(self.connection, invoked, What::Publish(Box::new(record)));
        outcome
    }

    /// Closes the publisher.
    pub async fn close(self) {
        self.inner.close().await;
    }

    /// Makes a message and its record.
    fn compose(&mut self, draft: Draft) -> (Message, Publish) {
        let number = draft.number.unwrap_or(self.next);
        self.next = self.next.max(number + 1);
        let len = draft.len.unwrap_or(self.stage.suite.payload as usize);
        let identity = Identity { topic: self.topic, publisher: self.id, number, copy: draft.copy };
        let payload = if len < HEADER {
            // Too small to say who it is: the only such message of its topic.
            self.stage.filler[..len].to_vec().into()
        } else {
            let mut buffer = self.stage.buffer.borrow_mut();
            message::encode(&mut buffer, self.stage.run, identity, len, &self.stage.filler)
        };
        let Extra { key, headers } = draft.extra;
        let key = draft.route.map(|route| format!("key-{route}")).or(key);
        let id = |key| DedupKey::Id(format!("{}-{}-{key:x}", self.stage.topic_prefix, self.topic));
        let dedup = draft.key.map(id).or(draft.sequence.map(DedupKey::Sequence));
        let message = Message { payload, key, headers, dedup, delay: draft.delay };
        let record = Publish {
            publisher: self.id,
            number,
            copy: draft.copy,
            topic: self.topic,
            key: draft.key,
            sequence: draft.sequence,
            delay: draft.delay.map(nanos),
            route: draft.route,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            body: message::fingerprint(&message.payload),
            extra: message::extra_fingerprint(&message),
            illegal: draft.illegal,
            outcome: Published::Indeterminate(String::new()),
        };
        (message, record)
    }
}
