//! Errors that say what is known: whether the thing did not happen, may have happened, or was
//! refused.

use serde::{Deserialize, Serialize};

/// Why an operation other than publishing or settling failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{context}")]
pub struct BackendError {
    /// What kind of failure, for decisions.
    pub kind: ErrorKind,
    /// What was being done, with what, and the broker's or client's own words. Never a secret.
    pub context: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Nobody answers at the address.
    Unreachable,
    /// The credentials were refused, or do not suffice.
    Unauthorized,
    /// Something answers that is not this broker.
    WrongServer,
    /// The broker or its configuration lacks what is needed.
    Unsupported,
    /// No answer in time.
    Timeout,
    /// No such topic or subscription.
    NotFound,
    /// It exists otherwise, or the name is taken.
    Conflict,
    /// A limit of the broker was reached.
    LimitReached,
    /// The broker would refuse this name, number or setting; nothing was sent.
    InvalidArgument,
    /// This connection, publisher or consumer was closed.
    Closed,
    /// Anything else.
    Other,
}

/// What is known about a publish that has no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It did not leave this process and will not: certainly not stored.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may or may not have been stored, now or later.
    #[error("indeterminate: {0}")]
    Indeterminate(String),
    /// The broker, or the backend in its stead, refused it: certainly not stored.
    #[error("rejected: {reason}")]
    Rejected {
        /// What about it was refused.
        kind: RejectKind,
        /// In the words of who refused it.
        reason: String,
    },
    /// The broker cannot do what the message asks for: certainly not stored.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The publisher or its connection was closed: certainly not stored.
    #[error("the publisher is closed")]
    Closed,
}

/// What about a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectKind {
    /// The payload is over the limit.
    TooLarge,
    /// The payload is under the limit: empty.
    TooSmall,
    /// A header, key or dedup key is not acceptable.
    Invalid,
    /// The topic or the broker is full.
    LimitReached,
    /// There is no such topic.
    NoTopic,
    /// The publisher may not, or no longer: credentials, or another one took its name.
    NotAllowed,
}

/// What is known about a settlement that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// The lock had passed: the settlement had no effect.
    #[error("the lease was lost: {0}")]
    LeaseLost(String),
    /// It may or may not have taken effect.
    #[error("indeterminate: {0}")]
    Indeterminate(String),
    /// It was not sent: the connection is down.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The broker cannot do this.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The connection was closed.
    #[error("the connection is closed")]
    Closed,
}

impl BackendError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        BackendError { kind, context: context.into() }
    }

    /// The same, with what was being done put before.
    #[must_use]
    pub fn during(mut self, doing: &str) -> Self {
        self.context = format!("{doing}: {}", self.context);
        self
    }
}

/// An error with its causes, each told once.
#[cfg(any(feature = "nats", feature = "pulsar", feature = "nsq"))]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words.push_str(": ");
            words.push_str(&next);
        }
        cause = error.source();
    }
    words
}
