//! Consuming by pulls, and settling.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{
    connection::{Connection, Lost},
    publisher::{KEY, confirm, hand_over},
};
use crate::{
    BackendError, BoxFuture, Consumer, ConsumerOptions, DedupKey, Delivery, ErrorKind, Message,
    PublishError, SettleError, Settled, Settlement, Settler, Token,
};

/// Where messages go that nobody acknowledges.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters {
    pub(super) topic: String,
    pub(super) max_deliveries: u64,
}

/// A consumer of a durable consumer.
pub(super) struct NatsConsumer {
    connection: Arc<Connection>,
    settler: Arc<NatsSettler>,
    dead_letters: Option<DeadLetters>,
    next_message: String,
    /// Where messages come in. It stays through reconnects; the pulls do not.
    inbox: String,
    messages: Subscriber,
    prefetch: usize,
    /// What came and was not handed out.
    buffer: VecDeque<Arc<Given>>,
    /// How many messages were asked for and have not come.
    asked: usize,
    /// When the pulls have expired for certain.
    renew: Instant,
    losses: watch::Receiver<u64>,
}

/// A delivery of the server.
#[derive(Debug)]
struct Given {
    message: Message,
    /// Where to send acknowledgements.
    reply: String,
    stream: String,
    consumer: String,
    sequence: u64,
    attempt: u64,
}

/// How long a pull stays at the server.
const EXPIRES: Duration = Duration::from_secs(10);

/// How much longer to wait before a pull is taken for lost.
const GRACE: Duration = Duration::from_secs(2);

impl NatsConsumer {
    pub(super) async fn open(
        connection: Arc<Connection>,
        stream: &str,
        consumer: &str,
        options: ConsumerOptions,
        dead_letters: Option<DeadLetters>,
    ) -> Result<Self, BackendError> {
        let inbox = connection.client.new_inbox();
        let messages = connection.client.subscribe(inbox.clone()).await.map_err(|error| {
            BackendError::new(ErrorKind::Other, format!("subscribing to deliveries: {error}"))
        })?;
        let settler = Arc::new(NatsSettler {
            connection: Arc::clone(&connection),
            confirm: options.confirm_acks,
            dead_letters: dead_letters.clone(),
        });
        let losses = connection.losses();
        let mut consumer = NatsConsumer {
            connection,
            settler,
            dead_letters,
            next_message: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            messages,
            prefetch: options.prefetch as usize,
            buffer: VecDeque::new(),
            asked: 0,
            renew: Instant::now(),
            losses,
        };
        consumer.ask().await;
        Ok(consumer)
    }

    /// Asks for as much as the prefetch has room for.
    async fn ask(&mut self) {
        if self.losses.has_changed().unwrap_or(false) {
            // The server has forgotten the pulls with the connection.
            self.losses.mark_unchanged();
            self.asked = 0;
        }
        if Instant::now() >= self.renew {
            self.asked = 0;
        }
        let room = self.prefetch.saturating_sub(self.buffer.len() + self.asked);
        // Not for every single place: half of them, or when nothing is asked for any more.
        if room == 0 || (self.asked > 0 && room * 2 < self.prefetch) {
            return;
        }
        let pull = json!({ "batch": room, "expires": EXPIRES.as_nanos() as u64 });
        let pull = Bytes::from(pull.to_string());
        // While the connection is down this waits for the next time.
        if self.connection.is_up() {
            let client = &self.connection.client;
            let reply = self.inbox.clone();
            if client.publish_with_reply(self.next_message.clone(), reply, pull).await.is_ok() {
                self.asked += room;
                self.renew = Instant::now() + EXPIRES + GRACE;
            }
        }
    }

    /// Takes in what the server sent.
    fn take_in(&mut self, message: async_nats::Message) -> Result<(), BackendError> {
        let Some(status) = message.status else {
            self.asked = self.asked.saturating_sub(1);
            match Given::new(message) {
                Some(given) => self.buffer.push_back(Arc::new(given)),
                // Not a delivery: nothing can be said of it, and nothing settled.
                None => tracing::warn!("a message that is no delivery came in"),
            }
            return Ok(());
        };
        let words = message.description.unwrap_or_default();
        tracing::debug!(%status, words, "pull");
        if status == StatusCode::IDLE_HEARTBEAT {
            return Ok(());
        }
        if status == StatusCode::NO_RESPONDERS || words.contains("Consumer Deleted") {
            return Err(BackendError::new(ErrorKind::NotFound, "the subscription is gone"));
        }
        if status == StatusCode::from_u16(400).unwrap_or(StatusCode::TIMEOUT) {
            let problem = format!("the server refused a pull: {words}");
            return Err(BackendError::new(ErrorKind::Other, problem));
        }
        // Whatever it says: this pull is over, and says how much of it did not come.
        let left = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
        let left = left.and_then(|n| n.as_str().parse().ok()).unwrap_or(self.asked);
        self.asked = self.asked.saturating_sub(left);
        Ok(())
    }

    /// Takes what is to be handed out; a message that has used up its deliveries is moved away.
    async fn hand_out(&mut self, max: usize) -> Result<Vec<Delivery>, BackendError> {
        let mut deliveries = Vec::new();
        while deliveries.len() < max
            && let Some(given) = self.buffer.front().cloned()
        {
            let over = |d: &DeadLetters| given.attempt > d.max_deliveries;
            match self.dead_letters.as_ref().filter(|d| over(d)) {
                // If this is cancelled or fails, the server delivers it again.
                Some(dead_letters) => {
                    let moved = self.settler.dead_letter(&given, dead_letters).await;
                    if let Err(error) = moved {
                        tracing::warn!("not moved to {}: {error}", dead_letters.topic);
                    }
                    self.buffer.pop_front();
                }
                None => {
                    self.buffer.pop_front();
                    deliveries.push(Delivery {
                        message: given.message.clone(),
                        attempt: Some(u32::try_from(given.attempt).unwrap_or(u32::MAX)),
                        position: Some(given.sequence),
                        token: Token::Object(given),
                        settler: Arc::clone(&self.settler) as Arc<dyn Settler>,
                    });
                }
            }
        }
        Ok(deliveries)
    }
}

impl Consumer for NatsConsumer {
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>> {
        Box::pin(async move {
            let deadline = Instant::now() + linger;
            loop {
                if self.connection.is_closed() {
                    return Err(BackendError::new(ErrorKind::Closed, "the connection is closed"));
                }
                // What is there already.
                while self.buffer.len() < max
                    && let Some(Some(message)) = self.messages.next().now_or_never()
                {
                    self.take_in(message)?;
                }
                let deliveries = self.hand_out(max).await?;
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
                self.ask().await;
                if Instant::now() >= deadline {
                    return Ok(deliveries);
                }
                // A look now and then at whether a connection came back.
                let look = Instant::now() + if self.asked == 0 { RETRY } else { EXPIRES };
                let until = deadline.min(look).min(self.renew.max(Instant::now() + RETRY));
                tokio::select! {
                    message = self.messages.next() => match message {
                        Some(message) => self.take_in(message)?,
                        None => {
                            return Err(BackendError::new(
                                ErrorKind::Closed,
                                "the subscription to deliveries ended",
                            ));
                        }
                    },
                    _ = self.losses.changed() => self.asked = 0,
                    () = tokio::time::sleep_until(until) => {}
                }
            }
        })
    }

    fn close(mut self: Box<Self>, grace: Duration) -> BoxFuture<'static, Result<(), BackendError>> {
        Box::pin(async move {
            // Without interest the server sends no more; the round trip makes sure that it knows.
            let _ = self.messages.unsubscribe().await;
            if self.connection.is_up() {
                let knows = self.connection.require_jetstream("leaving");
                let _ = tokio::time::timeout(grace.max(RETRY), knows).await;
            }
            while let Some(Some(message)) = self.messages.next().now_or_never() {
                // What is no delivery needs nothing.
                let _ = self.take_in(message);
            }
            let never_handed_out: Vec<Token> =
                self.buffer.drain(..).map(|given| Token::Object(given)).collect();
            let back = self.settler.settle(never_handed_out, Settlement::Nack { delay: None });
            let _ = tokio::time::timeout(grace.max(RETRY), back).await;
            Ok(())
        })
    }
}

/// How long to wait before asking again, while there is nobody to ask.
const RETRY: Duration = Duration::from_millis(50);

impl Given {
    /// Reads a delivery; `None` if it is not one. The reply subject tells all:
    /// `$JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM_SEQ.CONSUMER_SEQ.TIME.PENDING`, with domain and
    /// account before the stream (and a token after) since server 2.14's second version of it.
    fn new(message: async_nats::Message) -> Option<Given> {
        let reply = message.reply?.to_string();
        let tokens: Vec<&str> = reply.split('.').collect();
        let at = match (tokens.len(), tokens.first(), tokens.get(1)) {
            (9, Some(&"$JS"), Some(&"ACK")) => 2,
            (11.., Some(&"$JS"), Some(&"ACK")) => 4,
            _ => return None,
        };
        let number = |i: usize| tokens.get(at + i).and_then(|n| n.parse::<u64>().ok());
        let (attempt, sequence) = (number(2)?, number(3)?);
        let (stream, consumer) = (tokens[at].to_string(), tokens[at + 1].to_string());
        let mut headers = Vec::new();
        let mut key = None;
        for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
            let name = name.to_string();
            for value in values {
                if name == KEY {
                    key = Some(value.as_str().to_string());
                } else if !name.starts_with("Nats-") {
                    headers.push((name.clone(), value.as_str().to_string()));
                }
            }
        }
        let message = Message { payload: message.payload, key, headers, ..Message::default() };
        Some(Given { message, reply, stream, consumer, sequence, attempt })
    }
}

/// Settles the deliveries of one consumer.
struct NatsSettler {
    connection: Arc<Connection>,
    confirm: bool,
    dead_letters: Option<DeadLetters>,
}

impl fmt::Debug for NatsSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NatsSettler")
    }
}

impl NatsSettler {
    /// Moves a message to its dead-letter topic: first there, then away from here. Its place in
    /// the stream is its deduplication id, so that a second try does not store it twice.
    async fn dead_letter(
        &self,
        given: &Given,
        dead_letters: &DeadLetters,
    ) -> Result<Settled, SettleError> {
        let id = format!("dead-{}-{}-{}", given.stream, given.consumer, given.sequence);
        let message = Message { dedup: Some(DedupKey::Id(id)), ..given.message.clone() };
        let limit = self.connection.limit;
        let stored = async {
            let pending = hand_over(&self.connection, &dead_letters.topic, message, None).await?;
            confirm(pending, &dead_letters.topic, limit).await
        };
        stored.await.map_err(|error| match error {
            PublishError::NotSent(why) => SettleError::NotSent(why),
            PublishError::Closed => SettleError::Closed,
            error => SettleError::Indeterminate(format!("the dead-letter topic: {error}")),
        })?;
        self.send(given, Bytes::from_static(b"+TERM"), true).await
    }

    /// Sends one kind of acknowledgement.
    async fn send(
        &self,
        given: &Given,
        kind: Bytes,
        confirm: bool,
    ) -> Result<Settled, SettleError> {
        let lost = |lost| match lost {
            Lost::NotSent(why) => SettleError::NotSent(why),
            Lost::Unanswered(why) => SettleError::Indeterminate(why),
            Lost::Closed => SettleError::Closed,
        };
        let subject = given.reply.clone().into();
        if !confirm {
            return self.connection.tell(subject, kind).await.map(|()| Settled::Sent).map_err(lost);
        }
        let pending = self.connection.request(subject, None, kind, None).await.map_err(lost)?;
        let reply = pending.wait(self.connection.limit).await.map_err(lost)?;
        match (reply.status, reply.payload.is_empty()) {
            (None, true) => Ok(Settled::Confirmed),
            (Some(StatusCode::NO_RESPONDERS), _) => {
                Err(SettleError::LeaseLost("the subscription is gone".into()))
            }
            (status, _) => Err(SettleError::Indeterminate(format!(
                "the server's answer to an acknowledgement is not empty (status {status:?})"
            ))),
        }
    }

    async fn settle_one(&self, token: Token, how: Settlement) -> Result<Settled, SettleError> {
        let given = match token {
            Token::Object(object) => object.downcast::<Given>().ok(),
            Token::Number(_) => None,
        };
        let Some(given) = given else {
            return Err(SettleError::Unsupported("a delivery of another backend".into()));
        };
        let used_up = |d: &&DeadLetters| given.attempt >= d.max_deliveries;
        let kind = match (how, &self.dead_letters) {
            (Settlement::Ack, _) => Bytes::from_static(b"+ACK"),
            (Settlement::Touch, _) => Bytes::from_static(b"+WPI"),
            (Settlement::Reject, Some(dead_letters)) => {
                return self.dead_letter(&given, dead_letters).await;
            }
            (Settlement::Reject, None) => Bytes::from_static(b"+TERM"),
            (Settlement::Nack { .. }, dead_letters)
                if let Some(dead_letters) = dead_letters.as_ref().filter(used_up) =>
            {
                return self.dead_letter(&given, dead_letters).await;
            }
            (Settlement::Nack { delay: None }, _) => Bytes::from_static(b"-NAK"),
            (Settlement::Nack { delay: Some(delay) }, _) => {
                let delay = json!({ "delay": delay.as_nanos() as u64 });
                Bytes::from(format!("-NAK {delay}"))
            }
        };
        self.send(&given, kind, self.confirm).await
    }
}

impl Settler for NatsSettler {
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        let this = NatsSettler {
            connection: Arc::clone(&self.connection),
            confirm: self.confirm,
            dead_letters: self.dead_letters.clone(),
        };
        Box::pin(async move {
            let all = tokens.into_iter().map(|token| this.settle_one(token, how.clone()));
            futures::future::join_all(all).await
        })
    }
}
