//! Publishing with confirmation.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::NATS_MESSAGE_ID};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    api,
    connection::{Connection, Lost, Pending, Reply},
};
use crate::{
    BoxFuture, Confirmation, DedupKey, Message, PublishError, PublishReceipt, Publisher, RejectKind,
};

/// The header that carries a routing key.
pub(super) const KEY: &str = "Queueproof-Key";

/// How many publishes of one publisher may be unconfirmed.
const IN_FLIGHT: usize = 4096;

/// A publisher on one stream.
pub(super) struct NatsPublisher {
    connection: Arc<Connection>,
    stream: String,
    limit: Duration,
    in_flight: Arc<Semaphore>,
}

impl NatsPublisher {
    pub(super) fn new(connection: Arc<Connection>, stream: &str, limit: Duration) -> Self {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        NatsPublisher { connection, stream: stream.into(), limit, in_flight }
    }
}

/// Publishes one message to a stream's subject, as far as the client.
pub(super) async fn hand_over(
    connection: &Connection,
    stream: &str,
    message: Message,
    place: Option<OwnedSemaphorePermit>,
) -> Result<Pending, PublishError> {
    if message.delay.is_some() {
        let why = "this backend does not use JetStream's scheduled messages";
        return Err(PublishError::Unsupported(why.into()));
    }
    let headers = headers(&message)?;
    let max = connection.client.max_payload();
    let size = message.payload.len() + headers.as_ref().map_or(0, wire_size);
    if size > max {
        // The server would close the connection over it.
        return Err(PublishError::Rejected {
            kind: RejectKind::TooLarge,
            reason: format!("payload and headers have {size} bytes, and the server takes {max}"),
        });
    }
    let subject = stream.to_string().into();
    let sent = connection.request(subject, headers, message.payload, place).await;
    sent.map_err(|lost| match lost {
        Lost::NotSent(why) => PublishError::NotSent(why),
        Lost::Unanswered(why) => PublishError::Indeterminate(why),
        Lost::Closed => PublishError::Closed,
    })
}

/// Waits for the confirmation of a message that was handed over.
pub(super) async fn confirm(
    pending: Pending,
    stream: &str,
    limit: Duration,
) -> Result<PublishReceipt, PublishError> {
    match pending.wait(limit).await {
        Ok(reply) => receipt(&reply, stream),
        Err(Lost::NotSent(why) | Lost::Unanswered(why)) => Err(PublishError::Indeterminate(why)),
        Err(Lost::Closed) => Err(PublishError::Closed),
    }
}

/// What a reply to a publish says. One that does not clearly say that the message is in this
/// stream says nothing.
fn receipt(reply: &Reply, stream: &str) -> Result<PublishReceipt, PublishError> {
    if reply.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(PublishError::Rejected {
            kind: RejectKind::NoTopic,
            reason: format!("no stream takes the subject {stream}"),
        });
    }
    let answer = match api::parse(reply) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.into_publish()),
        Err(problem) => return Err(PublishError::Indeterminate(problem)),
    };
    let position = answer["seq"].as_u64().filter(|&seq| seq > 0);
    let (Some(stored_in), Some(position)) = (answer["stream"].as_str(), position) else {
        let problem = "the confirmation has no stream or no sequence number";
        return Err(PublishError::Indeterminate(problem.into()));
    };
    if stored_in != stream {
        let problem = format!("the confirmation is of stream {stored_in}, not {stream}");
        return Err(PublishError::Indeterminate(problem));
    }
    let duplicate = match &answer["duplicate"] {
        Value::Null => false,
        Value::Bool(duplicate) => *duplicate,
        other => {
            let problem = format!("the confirmation's \"duplicate\" is {other}");
            return Err(PublishError::Indeterminate(problem));
        }
    };
    Ok(PublishReceipt { duplicate: Some(duplicate), position: Some(position) })
}

/// What a message's key, headers and deduplication id become.
fn headers(message: &Message) -> Result<Option<HeaderMap>, PublishError> {
    let invalid = |what: String| PublishError::Rejected { kind: RejectKind::Invalid, reason: what };
    let mut headers = HeaderMap::new();
    let value = |name: &str, value: &str| {
        value.parse::<HeaderValue>().map_err(|e| invalid(format!("the value of {name}: {e}")))
    };
    for (name, text) in &message.headers {
        if name.to_ascii_lowercase().starts_with("nats-") || name == KEY {
            return Err(invalid(format!("the header {name} is reserved")));
        }
        let parsed: HeaderName =
            name.parse().map_err(|e| invalid(format!("{name:?} is not a header's name: {e}")))?;
        headers.append(parsed, value(name, text)?);
    }
    if let Some(key) = &message.key {
        headers.insert(KEY, value("the key", key)?);
    }
    match &message.dedup {
        None => {}
        Some(DedupKey::Id(id)) => headers.insert(NATS_MESSAGE_ID, value("the id", id)?),
        Some(DedupKey::Sequence(_)) => {
            let why = "JetStream deduplicates by id, not by a producer's numbers";
            return Err(PublishError::Unsupported(why.into()));
        }
    }
    Ok((!headers.is_empty()).then_some(headers))
}

/// How many bytes headers take on the wire, which count towards the server's limit.
fn wire_size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |v| (name, v)));
    let lines: usize = lines
        .map(|(name, value)| {
            AsRef::<[u8]>::as_ref(name).len() + value.as_str().len() + ": \r\n".len()
        })
        .sum();
    "NATS/1.0\r\n\r\n".len() + lines
}

impl Publisher for NatsPublisher {
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>> {
        Box::pin(async move {
            // A place is free again when the reply is there, whether or not anybody waits for it.
            let place = Arc::clone(&self.in_flight).acquire_owned();
            let place = match tokio::time::timeout(self.limit, place).await {
                Ok(place) => place.map_err(|_| PublishError::Closed)?,
                Err(_) => {
                    let why = format!("{IN_FLIGHT} publishes are unconfirmed for {:?}", self.limit);
                    return Err(PublishError::NotSent(why));
                }
            };
            let handed_over = hand_over(&self.connection, &self.stream, message, Some(place));
            let pending = handed_over.await?;
            let (stream, limit) = (self.stream.clone(), self.limit);
            Ok(Box::pin(async move { confirm(pending, &stream, limit).await }) as Confirmation)
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // All permits are back when nothing is unconfirmed.
            let all = self.in_flight.acquire_many(IN_FLIGHT as u32);
            let _ = tokio::time::timeout(self.limit, all).await;
        })
    }
}
