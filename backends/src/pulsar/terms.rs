//! What a subscription was created with: kept in its properties, where every connection finds it.

use std::{collections::BTreeMap, time::Duration};

use crate::{BackendError, DeadLetter, ErrorKind, Start, SubscriptionSpec};

/// How a subscription's deliveries are to be treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long one stays locked; `None` for a subscription that somebody else made.
    pub(super) ack_timeout: Option<Duration>,
    pub(super) dead_letter: Option<DeadLetter>,
    /// Whether the messages of a key go to one consumer.
    pub(super) by_key: bool,
}

const ACK_TIMEOUT: &str = "queueproof-ack-timeout-ns";
const START: &str = "queueproof-start";
const ORDERED_BY_KEY: &str = "queueproof-ordered-by-key";
const DEAD_LETTER_TOPIC: &str = "queueproof-dead-letter-topic";
const MAX_DELIVERIES: &str = "queueproof-max-deliveries";

impl Terms {
    /// The properties of a subscription of this specification.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a number that cannot be.
    pub(super) fn properties(
        spec: &SubscriptionSpec,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let invalid = |problem| Err(BackendError::new(ErrorKind::InvalidArgument, problem));
        if spec.ack_timeout.is_zero() {
            return invalid("an ack timeout must be longer than nothing");
        }
        let start = match spec.start {
            Start::Earliest => "earliest",
            Start::Latest => "latest",
        };
        let mut properties = BTreeMap::from([
            (ACK_TIMEOUT.into(), spec.ack_timeout.as_nanos().to_string()),
            (START.into(), start.into()),
            (ORDERED_BY_KEY.into(), spec.ordered_by_key.to_string()),
        ]);
        if let Some(dead_letter) = &spec.dead_letter {
            if dead_letter.max_deliveries == 0 {
                return invalid("a limit of deliveries must be 1 or more");
            }
            properties.insert(DEAD_LETTER_TOPIC.into(), dead_letter.topic.clone());
            properties.insert(MAX_DELIVERIES.into(), dead_letter.max_deliveries.to_string());
        }
        Ok(properties)
    }

    /// What the properties of a subscription say.
    pub(super) fn read(properties: &BTreeMap<String, String>) -> Self {
        let number = |name: &str| properties.get(name).and_then(|text| text.parse::<u64>().ok());
        let limit = number(MAX_DELIVERIES).and_then(|n| u32::try_from(n).ok());
        let topic = properties.get(DEAD_LETTER_TOPIC).cloned();
        Terms {
            ack_timeout: number(ACK_TIMEOUT).map(Duration::from_nanos),
            dead_letter: topic
                .zip(limit)
                .map(|(topic, max_deliveries)| DeadLetter { max_deliveries, topic }),
            by_key: properties.get(ORDERED_BY_KEY).is_some_and(|text| text == "true"),
        }
    }

    /// Whether this delivery is the last one that a message gets.
    pub(super) fn used_up(&self, attempt: u32) -> bool {
        self.dead_letter.as_ref().is_some_and(|d| attempt >= d.max_deliveries)
    }

    /// Whether this delivery is one more than a message gets.
    pub(super) fn is_over(&self, attempt: u32) -> bool {
        self.dead_letter.as_ref().is_some_and(|d| attempt > d.max_deliveries)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again() {
        let dead_letter = DeadLetter { max_deliveries: 3, topic: "d".into() };
        let spec = SubscriptionSpec {
            topic: "t".into(),
            name: "s".into(),
            start: Start::Latest,
            ack_timeout: Duration::from_micros(1500),
            dead_letter: Some(dead_letter.clone()),
            ordered_by_key: true,
        };
        let terms = Terms::read(&Terms::properties(&spec).unwrap());
        let expected = Terms {
            ack_timeout: Some(spec.ack_timeout),
            dead_letter: Some(dead_letter),
            by_key: true,
        };
        assert_eq!(terms, expected);
        assert!(terms.used_up(3) && !terms.used_up(2) && terms.is_over(4) && !terms.is_over(3));
        let foreign = Terms { ack_timeout: None, dead_letter: None, by_key: false };
        assert_eq!(Terms::read(&BTreeMap::new()), foreign);
        let zero = SubscriptionSpec { ack_timeout: Duration::ZERO, ..spec };
        assert!(Terms::properties(&zero).is_err());
    }
}
