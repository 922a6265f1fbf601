//! The JetStream API: requests and answers in JSON.

use async_nats::StatusCode;
use bytes::Bytes;
use serde_json::Value;

use super::connection::{Connection, Lost, Reply};
use crate::{BackendError, ErrorKind, PublishError, RejectKind};

/// An error of the API: its number and what it says.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) code: u64,
    pub(super) description: String,
}

impl Connection {
    /// Asks the API.
    pub(super) async fn ask(
        &self,
        subject: String,
        question: Value,
    ) -> Result<Value, BackendError> {
        let payload = if question.is_null() { Bytes::new() } else { question.to_string().into() };
        let doing = subject.clone();
        let answer = match self.request(subject.into(), None, payload, None).await {
            Ok(pending) => pending.wait(self.limit).await,
            Err(lost) => Err(lost),
        };
        let reply = answer.map_err(|lost| match lost {
            Lost::NotSent(why) => BackendError::new(ErrorKind::Unreachable, why),
            Lost::Unanswered(why) => {
                BackendError::new(ErrorKind::Timeout, format!("{doing}: {why}"))
            }
            Lost::Closed => BackendError::new(ErrorKind::Closed, "the connection is closed"),
        })?;
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(BackendError::new(
                ErrorKind::Unsupported,
                "the server has no JetStream: start it with -js, or enable it for the account",
            ));
        }
        match parse(&reply) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(error.into_backend(&doing)),
            Err(problem) => {
                Err(BackendError::new(ErrorKind::WrongServer, format!("{doing}: {problem}")))
            }
        }
    }

    /// Makes sure that there is JetStream to use.
    pub(super) async fn require_jetstream(&self, at: &str) -> Result<(), BackendError> {
        self.ask("$JS.API.INFO".into(), Value::Null).await.map(drop).map_err(|e| e.during(at))
    }
}

/// Reads an answer: what was asked for, or the API's error, or why it is neither.
pub(super) fn parse(reply: &Reply) -> Result<Result<Value, ApiError>, String> {
    if let Some(status) = reply.status {
        return Err(format!("the server answered with status {status}"));
    }
    let value: Value = serde_json::from_slice(&reply.payload)
        .map_err(|error| format!("the answer is not understood: {error}"))?;
    let Value::Object(fields) = &value else {
        return Err("the answer is not understood: it is no JSON object".into());
    };
    match fields.get("error") {
        None => Ok(Ok(value)),
        Some(error) => Ok(Err(ApiError {
            code: error["err_code"].as_u64().unwrap_or(0),
            description: error["description"].as_str().unwrap_or("an error without words").into(),
        })),
    }
}

impl ApiError {
    /// What the error means for a request. Numbers as in nats-server's `errors.json`.
    fn into_backend(self, doing: &str) -> BackendError {
        let kind = match self.code {
            10059 | 10014 => ErrorKind::NotFound,
            10058 | 10148 | 10013 | 10099 | 10100 | 10105 => ErrorKind::Conflict,
            10039 | 10076 => ErrorKind::Unsupported,
            10002 | 10023 | 10026 | 10027 | 10028 | 10047 => ErrorKind::LimitReached,
            _ => ErrorKind::Other,
        };
        BackendError::new(
            kind,
            format!("{doing}: {} (JetStream error {})", self.description, self.code),
        )
    }

    /// What the error means for a publish: it was not stored.
    pub(super) fn into_publish(self) -> PublishError {
        let kind = match self.code {
            10054 => RejectKind::TooLarge,
            10002 | 10023 | 10028 | 10047 | 10077 | 10110 => RejectKind::LimitReached,
            10059 | 10060 => RejectKind::NoTopic,
            _ => RejectKind::NotAllowed,
        };
        let reason = format!("{} (JetStream error {})", self.description, self.code);
        PublishError::Rejected { kind, reason }
    }
}
