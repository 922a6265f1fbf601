//! Settling deliveries.

use std::{collections::HashMap, fmt, sync::Arc};

use pulsar::message::proto::MessageMetadata;
use tokio::time::Instant;

use super::{
    connection::{Lost, Pending},
    given::Given,
    pool::Pool,
    producer::{Entry, Producer, properties},
    publisher::confirm,
    subscriber::{Open, Released, Subscriber},
    wire,
};
use crate::{Access, BoxFuture, DeadLetter, SettleError, Settled, Settlement, Settler, Token};

/// Settles the deliveries of one consumer.
pub(super) struct PulsarSettler {
    subscriber: Arc<Subscriber>,
}

impl fmt::Debug for PulsarSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PulsarSettler")
    }
}

/// How many messages one `ACK` names.
const IDS: usize = 1000;

/// Why a delivery cannot be handed back for later.
pub(super) const NO_DELAY: &str = "Pulsar's brokers hand a message back at once; a delay is a matter of the client, which \
     has to stay and hold it";

/// Why a lock cannot be extended.
pub(super) const NO_TOUCH: &str =
    "Pulsar's brokers have no ack timeout, so there is nothing that a client could ask to extend";

impl PulsarSettler {
    pub(super) fn new(subscriber: Arc<Subscriber>) -> Self {
        PulsarSettler { subscriber }
    }
}

impl Settler for PulsarSettler {
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        let subscriber = Arc::clone(&self.subscriber);
        Box::pin(async move {
            let count = tokens.len();
            let given: Vec<_> = tokens
                .into_iter()
                .filter_map(|token| match token {
                    Token::Object(object) => object.downcast::<Given>().ok(),
                    Token::Number(_) => None,
                })
                .collect();
            if given.len() != count {
                let foreign = SettleError::Unsupported("a delivery of another backend".into());
                return vec![Err(foreign); count];
            }
            match how {
                Settlement::Ack => subscriber.ack(&given).await,
                Settlement::Nack { delay: Some(delay) } if !delay.is_zero() => {
                    vec![Err(SettleError::Unsupported(NO_DELAY.into())); count]
                }
                Settlement::Nack { .. } => subscriber.nack(given).await,
                Settlement::Reject => subscriber.reject(given).await,
                Settlement::Touch => vec![Err(SettleError::Unsupported(NO_TOUCH.into())); count],
            }
        })
    }
}

fn settle_error(lost: Lost) -> SettleError {
    match lost {
        Lost::NotSent(why) => SettleError::NotSent(why),
        Lost::Unanswered(why) => SettleError::Indeterminate(why),
        Lost::Closed => SettleError::Closed,
    }
}

impl Subscriber {
    /// Where a settlement can be sent.
    fn reach(&self) -> Result<(Arc<Pool>, Open), SettleError> {
        let pool = self.pool.upgrade().filter(|pool| !pool.is_closed());
        let pool = pool.ok_or(SettleError::Closed)?;
        match self.opened() {
            Ok(Some(open)) => Ok((pool, open)),
            Ok(None) => Err(SettleError::NotSent(
                "the consumer is not open: its connection is down, or its topic moves".into(),
            )),
            Err(()) => Err(SettleError::LeaseLost(
                "the consumer was closed, and the broker took back what it held".into(),
            )),
        }
    }

    /// Acknowledges. Pulsar takes it whoever holds the message by now, so it is sent in any case,
    /// and what the broker says of it is the answer.
    ///
    /// One of several messages that share an entry waits here for the others: the broker knows
    /// entries.
    async fn ack(&self, given: &[Arc<Given>]) -> Vec<Result<Settled, SettleError>> {
        let (_pool, open) = match self.reach() {
            Ok(reach) => reach,
            Err(error) => return vec![Err(error); given.len()],
        };
        let mut results = Vec::with_capacity(given.len());
        for given in given.chunks(IDS) {
            let sent = self.send_ack(&open, given);
            results.push((given.len(), sent));
        }
        let mut answers = Vec::with_capacity(given.len());
        for (count, sent) in results {
            match sent {
                Ok(sent) => answers.append(&mut self.acked(sent).await),
                Err(error) => answers.extend(vec![Err(error); count]),
            }
        }
        answers
    }

    /// Sends one `ACK` for all of these.
    fn send_ack(&self, open: &Open, given: &[Arc<Given>]) -> Result<Acking, SettleError> {
        let whole: Vec<bool> = given.iter().map(|given| given.acknowledge()).collect();
        let released: Vec<Released> = given.iter().map(|g| self.release(&g.spot)).collect();
        let acked = given.iter().zip(&whole).filter(|(_, whole)| **whole);
        let ids: Vec<_> = acked.map(|(given, _)| given.spot.entry_id()).collect();
        let sent = match (ids.is_empty(), self.confirm) {
            (true, _) => Ok(None),
            (false, false) => {
                let frame = wire::ack(open.id, ids, None);
                open.connection.send(open.generation, frame).map(|()| None)
            }
            (false, true) => {
                let ask = |id| wire::ack(open.id, ids, Some(id));
                open.connection.ask(open.generation, ask).map(Some)
            }
        };
        match sent {
            Ok(pending) => Ok(Acking { whole, released, pending }),
            Err(lost) => {
                released.into_iter().for_each(|released| self.put_back(released));
                Err(settle_error(lost))
            }
        }
    }

    /// What the broker says of an `ACK`.
    async fn acked(&self, acking: Acking) -> Vec<Result<Settled, SettleError>> {
        let Acking { whole, released, pending } = acking;
        let Some(mut pending) = pending else { return vec![Ok(Settled::Sent); whole.len()] };
        let outcome = match pending.wait(self.limit).await {
            Err(lost) => Err(settle_error(lost)),
            Ok(answer) => match answer.ack_response {
                Some(response) if response.error.is_none() => Ok(Settled::Confirmed),
                Some(response) => {
                    let code = wire::server_error(response.error.unwrap_or_default());
                    let words = response.message.unwrap_or_default();
                    Err(SettleError::Indeterminate(format!("{}: {words}", wire::error_name(code))))
                }
                None => Err(SettleError::Indeterminate(
                    "an acknowledgement was answered by another command".into(),
                )),
            },
        };
        if outcome.is_err() {
            released.into_iter().for_each(|released| self.put_back(released));
        }
        let answer = |whole: bool| match whole {
            true => outcome.clone(),
            false => Ok(Settled::Sent),
        };
        whole.into_iter().map(answer).collect()
    }

    /// Hands back, or moves away what has used up its deliveries.
    async fn nack(self: Arc<Self>, given: Vec<Arc<Given>>) -> Vec<Result<Settled, SettleError>> {
        let open = match self.reach() {
            Ok((_, open)) => open,
            Err(error) => return vec![Err(error); given.len()],
        };
        let mut results: Vec<Option<Result<Settled, SettleError>>> = vec![None; given.len()];
        let mut back = Vec::new();
        let mut moved = HashMap::new();
        for (nth, given) in given.iter().enumerate() {
            // The broker would take it for the present delivery's, whoever handed it out.
            let Some(released) = self.release_own(given) else {
                results[nth] = Some(Err(lapsed()));
                continue;
            };
            match self.terms.used_up(given.attempt) {
                true => drop(moved.insert(nth, (Arc::clone(given), released))),
                false => back.push((nth, given.spot, released)),
            }
        }
        let spots: Vec<_> = back.iter().map(|(_, spot, _)| *spot).collect();
        let sent = open.redeliver(&spots).map(|()| Settled::Sent).map_err(settle_error);
        for (nth, _, released) in back {
            if sent.is_err() {
                self.put_back(released);
            }
            results[nth] = Some(sent.clone());
        }
        let moving = moved.into_iter().map(async |(nth, (given, released))| {
            let outcome = self.bury(&given).await;
            if outcome.is_err() {
                self.put_back(released);
            }
            (nth, outcome)
        });
        for (nth, outcome) in futures::future::join_all(moving).await {
            results[nth] = Some(outcome);
        }
        let unsaid = || Err(SettleError::Indeterminate("nothing was done".into()));
        results.into_iter().map(|result| result.unwrap_or_else(unsaid)).collect()
    }

    /// Moves to the dead-letter topic, or deletes where there is none.
    async fn reject(self: Arc<Self>, given: Vec<Arc<Given>>) -> Vec<Result<Settled, SettleError>> {
        if self.terms.dead_letter.is_none() {
            return self.ack(&given).await;
        }
        let moving = given.iter().map(async |given| {
            let released = self.release_own(given).ok_or_else(lapsed)?;
            let outcome = self.bury(given).await;
            if outcome.is_err() {
                self.put_back(released);
            }
            outcome
        });
        futures::future::join_all(moving).await
    }

    /// Moves a message in a task of its own; if that fails it is handed back, and tried again when
    /// it comes again.
    pub(super) fn bury_in_background(self: &Arc<Self>, given: Arc<Given>) {
        let Some(pool) = self.pool.upgrade() else { return };
        let this = Arc::clone(self);
        pool.spawn(async move {
            if let Err(error) = this.bury(&given).await {
                tracing::warn!("a message of {} was not moved away: {error}", this.topic);
                if let Ok(Some(open)) = this.opened() {
                    // Where the socket is lost, it comes back without asking.
                    let _ = open.redeliver(&[given.spot]);
                }
            }
        });
    }

    /// Moves a message to the dead-letter topic: first there, then away from here.
    async fn bury(&self, given: &Arc<Given>) -> Result<Settled, SettleError> {
        let Some(dead_letter) = &self.terms.dead_letter else { return Ok(Settled::Sent) };
        let _place = self.burying.acquire().await;
        let (pool, _) = self.reach()?;
        self.copy(&pool, dead_letter, given).await.map_err(|why| {
            SettleError::Indeterminate(format!(
                "the dead-letter topic {}: {why}",
                dead_letter.topic
            ))
        })?;
        let unsaid = || Err(SettleError::Indeterminate("nothing was said".into()));
        self.ack(std::slice::from_ref(given)).await.pop().unwrap_or_else(unsaid)
    }

    /// Publishes a message to the dead-letter topic. Where the broker deduplicates, its place in
    /// its topic is the name of a producer that publishes nothing else: so a second try, of anybody,
    /// does not store it twice.
    async fn copy(
        &self,
        pool: &Pool,
        dead_letter: &DeadLetter,
        given: &Given,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.limit;
        let spot = given.spot;
        let name = pool.dedup.is_ok().then(|| {
            let (topic, subscription) = (&self.topic, &self.subscription);
            format!("{topic}/{subscription}/{}/{}/{}", spot.ledger, spot.entry, spot.index)
        });
        let entry = Entry {
            metadata: MessageMetadata {
                properties: properties(&given.message),
                partition_key: given.message.key.clone(),
                ..MessageMetadata::default()
            },
            payload: given.message.payload.to_vec(),
            sequence: name.as_ref().map(|_| 0),
        };
        let producer = Producer::new(&dead_letter.topic, name, Access::Shared);
        let opened = producer.open(pool, deadline).await;
        opened.map_err(|fault| fault.explain("opening a producer").to_string())?;
        let stored = match producer.send(entry, None) {
            Ok(answer) => confirm(answer, deadline, self.limit).await,
            Err(error) => Err(error),
        };
        producer.close(self.limit).await;
        stored.map(drop).map_err(|error| error.to_string())
    }
}

/// An `ACK` that was sent.
struct Acking {
    /// Which of its messages were the last of their entry.
    whole: Vec<bool>,
    released: Vec<Released>,
    pending: Option<Pending>,
}

fn lapsed() -> SettleError {
    SettleError::LeaseLost(
        "it had been settled, its ack timeout had passed, or its connection had been lost".into(),
    )
}
