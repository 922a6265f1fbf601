//! What NSQ does not keep with its topics and channels, and the contract does: remembered in this
//! process, by the connector, for all its connections.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{BackendError, ErrorKind, Retention};

/// The topics that were created here.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<HashMap<String, Topic>>);

#[derive(Debug)]
struct Topic {
    retention: Retention,
    /// Each channel's ack timeout.
    channels: HashMap<String, Duration>,
}

impl Remembered {
    fn topics(&self) -> MutexGuard<'_, HashMap<String, Topic>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic was created; `new` if nsqd did not have it.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it exists with another retention.
    pub(super) fn topic(
        &self,
        name: &str,
        retention: Retention,
        new: bool,
    ) -> Result<(), BackendError> {
        let mut topics = self.topics();
        match topics.get(name) {
            Some(topic) if !new && topic.retention != retention => {
                let problem = format!("topic {name} exists with another retention");
                Err(BackendError::new(ErrorKind::Conflict, problem))
            }
            Some(_) if !new => Ok(()),
            _ => {
                let topic = Topic { retention, channels: HashMap::new() };
                topics.insert(name.into(), topic);
                Ok(())
            }
        }
    }

    pub(super) fn forget(&self, topic: &str) {
        self.topics().remove(topic);
    }

    /// Whether a channel may be created, beside those that the topic has.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it exists with another ack timeout, or is the second one of a
    /// work queue.
    pub(super) fn may_create(
        &self,
        topic: &str,
        channel: &str,
        ack_timeout: Duration,
        others: bool,
    ) -> Result<(), BackendError> {
        let topics = self.topics();
        let Some(known) = topics.get(topic) else { return Ok(()) };
        let problem = if known.channels.get(channel).is_some_and(|&before| before != ack_timeout) {
            format!("subscription {channel} of topic {topic} exists with another ack timeout")
        } else if others && known.retention == Retention::UntilAcked {
            format!("topic {topic} is a work queue, and has a subscription")
        } else {
            return Ok(());
        };
        Err(BackendError::new(ErrorKind::Conflict, problem))
    }

    /// A channel was created.
    pub(super) fn channel(&self, topic: &str, channel: &str, ack_timeout: Duration) {
        let mut topics = self.topics();
        // One that was not created here can have any number of subscriptions.
        let topic = topics
            .entry(topic.into())
            .or_insert_with(|| Topic { retention: Retention::Keep, channels: HashMap::new() });
        topic.channels.insert(channel.into(), ack_timeout);
    }

    /// What a channel was created with; `None` if that was not here.
    pub(super) fn ack_timeout(&self, topic: &str, channel: &str) -> Option<Duration> {
        self.topics().get(topic)?.channels.get(channel).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_exists_is_the_same_or_in_conflict() {
        let known = Remembered::default();
        known.topic("t", Retention::UntilAcked, true).unwrap();
        known.topic("t", Retention::UntilAcked, false).unwrap();
        assert!(known.topic("t", Retention::Keep, false).is_err());
        known.may_create("t", "s", SECOND, false).unwrap();
        known.channel("t", "s", SECOND);
        known.may_create("t", "s", SECOND, false).unwrap();
        assert!(known.may_create("t", "s", SECOND * 2, false).is_err());
        assert!(known.may_create("t", "other", SECOND, true).is_err());
        assert_eq!(known.ack_timeout("t", "s"), Some(SECOND));
        assert_eq!(known.ack_timeout("t", "other"), None);
        // Somebody else deleted it, and it is created again.
        known.topic("t", Retention::Keep, true).unwrap();
        assert_eq!(known.ack_timeout("t", "s"), None);
        known.may_create("t", "other", SECOND, true).unwrap();
    }
}
