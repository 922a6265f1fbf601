//! A consumer that writes down what it is given and how it settles it.

use std::{sync::Arc, time::Duration};

use queueproof_backends::{Capability, Delivery as Given, QueueBackend, Settlement, settle_all};

use super::{Stage, Subscription, broken, next};
use crate::{
    history::{Halt, How, Receive, Settle, SettleOutcome, What},
    message::{self, Seen},
};

/// A consumer of the scenario.
pub struct Consumer<'s> {
    pub(super) stage: &'s Stage,
    pub(super) connection: u16,
    pub(super) backend: Arc<dyn QueueBackend>,
    pub(super) subscription: Subscription,
    pub(super) id: u16,
    pub(super) inner: Box<dyn queueproof_backends::Consumer>,
}

/// A delivery, to be settled.
pub struct Delivery<'s> {
    stage: &'s Stage,
    connection: u16,
    /// When it was received.
    pub at: u64,
    /// Who it says it is.
    pub seen: Seen,
    /// The broker's count.
    pub attempt: Option<u32>,
    id: u32,
    given: Given,
}

impl<'s> Consumer<'s> {
    /// The consumer's number in the history.
    pub fn number(&self) -> u16 {
        self.id
    }

    /// Waits for deliveries: an empty list when nothing came in time.
    pub async fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> Result<Vec<Delivery<'s>>, Halt> {
        let stage = self.stage;
        let invoked = stage.now();
        let given = self.inner.receive(max, linger).await.map_err(|e| broken("receiving", &e))?;
        if given.len() > max {
            return Err(Halt::Broken(format!(
                "the backend handed out {} deliveries where {max} were asked for",
                given.len()
            )));
        }
        let completed = stage.now();
        if !given.is_empty() {
            // An embedded broker answers at once: the others of this scenario want a turn too.
            tokio::task::yield_now().await;
        }
        let mut ledger = stage.ledger.borrow_mut();
        let mut deliveries = Vec::with_capacity(given.len());
        for given in given {
            let id = next(&stage.counts.deliveries);
            let payload = &given.message.payload;
            let seen = message::decode(payload, stage.run);
            let receive = Receive {
                subscription: self.subscription.id,
                consumer: self.id,
                delivery: id,
                seen,
                attempt: given.attempt,
                position: given.position,
                len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                body: message::fingerprint(payload),
                extra: message::extra_fingerprint(&given.message),
            };
            let at = (invoked, completed);
            ledger.record_at(self.connection, at, What::Receive(Box::new(receive)));
            deliveries.push(Delivery {
                stage,
                connection: self.connection,
                at: completed,
                seen,
                attempt: given.attempt,
                id,
                given,
            });
        }
        Ok(deliveries)
    }

    /// Waits for `count` deliveries and keeps them all; fewer when nothing more came for a quiet
    /// period.
    pub async fn take(&mut self, count: usize) -> Result<Vec<Delivery<'s>>, Halt> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let received = self.receive(count - taken.len(), self.stage.quiet()).await?;
            if received.is_empty() {
                break;
            }
            taken.extend(received);
        }
        Ok(taken)
    }

    /// Receives and acknowledges until a time of the ledger.
    pub async fn ack_until(&mut self, time: u64) -> Result<(), Halt> {
        while let left @ 1.. = time.saturating_sub(self.stage.now()) {
            let received = self.receive(256, Duration::from_nanos(left)).await?;
            self.stage.ack_all(&received).await;
        }
        Ok(())
    }

    /// Makes sure that the consumer's connection answers.
    pub async fn probe(&self) -> Result<(), Halt> {
        let Subscription { topic, name, .. } = &self.subscription;
        let answer = if self.stage.has(Capability::Depth) {
            self.backend.depth(&topic.name, name).await.map(drop)
        } else {
            self.backend.topics(&topic.name).await.map(drop)
        };
        answer.map_err(|e| broken("asking whether the broker still answers", &e))
    }

    /// Leaves gracefully.
    pub async fn leave(self, grace: Duration) -> Result<(), Halt> {
        let invoked = self.stage.now();
        self.inner.close(grace).await.map_err(|e| broken("closing a consumer", &e))?;
        self.stage.record(self.connection, invoked, What::Leave { consumer: self.id });
        Ok(())
    }
}

impl Delivery<'_> {
    /// Acknowledges.
    pub async fn ack(&self) -> SettleOutcome {
        self.settle(Settlement::Ack).await
    }

    /// Hands back.
    pub async fn nack(&self, delay: Option<Duration>) -> SettleOutcome {
        self.settle(Settlement::Nack { delay }).await
    }

    /// Gives up.
    pub async fn reject(&self) -> SettleOutcome {
        self.settle(Settlement::Reject).await
    }

    /// Extends.
    pub async fn touch(&self) -> SettleOutcome {
        self.settle(Settlement::Touch).await
    }

    async fn settle(&self, how: Settlement) -> SettleOutcome {
        let invoked = self.stage.now();
        let recorded = How::from(&how);
        let outcome = SettleOutcome::from(self.given.settle(how).await);
        let settle = Settle { delivery: self.id, how: recorded, outcome: outcome.clone() };
        self.stage.record(self.connection, invoked, What::Settle(Box::new(settle)));
        outcome
    }
}

impl Stage {
    /// Acknowledges many.
    pub async fn ack_all(&self, deliveries: &[Delivery<'_>]) {
        self.settle_all(deliveries, Settlement::Ack).await;
    }

    /// Settles many in the same way.
    pub async fn settle_all(&self, deliveries: &[Delivery<'_>], how: Settlement) {
        if deliveries.is_empty() {
            return;
        }
        let given: Vec<_> = deliveries.iter().map(|d| d.given.clone()).collect();
        let invoked = self.now();
        let recorded = How::from(&how);
        let results = settle_all(&given, how).await;
        let completed = self.now();
        let mut ledger = self.ledger.borrow_mut();
        for (delivery, result) in deliveries.iter().zip(results) {
            let settle = Settle { delivery: delivery.id, how: recorded, outcome: result.into() };
            let at = (invoked, completed);
            ledger.record_at(delivery.connection, at, What::Settle(Box::new(settle)));
        }
    }
}
