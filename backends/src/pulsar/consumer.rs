//! Consuming.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    connection::{Kind, Lost},
    pool::{PAUSE, Pool},
    settle::PulsarSettler,
    subscriber::{CLOSED, Subscriber},
    wire,
};
use crate::{BackendError, BoxFuture, Consumer, Delivery, ErrorKind, Settler, Token};

/// A consumer of one subscription.
pub(super) struct PulsarConsumer {
    /// Kept so that the connection lives as long as its consumers.
    pool: Arc<Pool>,
    subscriber: Arc<Subscriber>,
    settler: Arc<PulsarSettler>,
}

impl PulsarConsumer {
    pub(super) fn new(pool: Arc<Pool>, subscriber: Arc<Subscriber>) -> Self {
        let settler = Arc::new(PulsarSettler::new(Arc::clone(&subscriber)));
        PulsarConsumer { pool, subscriber, settler }
    }
}

impl Consumer for PulsarConsumer {
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>> {
        Box::pin(async move {
            let deadline = Instant::now() + linger;
            loop {
                if self.pool.is_closed() {
                    return Err(BackendError::new(ErrorKind::Closed, CLOSED));
                }
                let out = self.subscriber.hand_out(max)?;
                if !out.is_empty() || max == 0 {
                    let deliveries = out.into_iter().map(|given| Delivery {
                        message: given.message.clone(),
                        attempt: Some(given.attempt),
                        position: wire::position(
                            given.spot.ledger,
                            given.spot.entry,
                            given.spot.index,
                        ),
                        token: Token::Object(given),
                        settler: Arc::clone(&self.settler) as Arc<dyn Settler>,
                    });
                    return Ok(deliveries.collect());
                }
                if timeout_at(deadline, self.subscriber.arrived.notified()).await.is_err() {
                    return Ok(Vec::new());
                }
            }
        })
    }

    fn close(self: Box<Self>, grace: Duration) -> BoxFuture<'static, Result<(), BackendError>> {
        Box::pin(async move {
            let Some(open) = self.subscriber.retire() else { return Ok(()) };
            // What was sent before goes before it.
            let closed =
                open.connection.ask(open.generation, |id| wire::close_consumer(open.id, id));
            let answer = match closed {
                Ok(mut closed) => closed.wait(grace.max(PAUSE)).await.map(drop),
                Err(lost) => Err(lost),
            };
            open.connection.unregister(Kind::Consumer, open.id);
            match answer {
                // Where the socket is gone, so is the consumer.
                Ok(()) | Err(Lost::NotSent(_) | Lost::Closed) => Ok(()),
                Err(Lost::Unanswered(why)) if open.connection.now().generation.is_some() => {
                    let problem = format!("leaving {}: {why}", self.subscriber.subscription);
                    Err(BackendError::new(ErrorKind::Timeout, problem))
                }
                Err(Lost::Unanswered(_)) => Ok(()),
            }
        })
    }
}

impl Drop for PulsarConsumer {
    fn drop(&mut self) {
        if let Some(open) = self.subscriber.retire() {
            open.abandon();
        }
    }
}
