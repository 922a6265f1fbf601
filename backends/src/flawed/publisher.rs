//! Flaws of publishing.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::{Flaw, Shared};
use crate::{
    BoxFuture, Confirmation, DedupKey, Delivery, Limits, Message, PublishError, PublishReceipt,
    Publisher, Token, confirmed,
};

/// A publisher with a flaw.
pub(super) struct FlawedPublisher {
    /// Shared with what is stored later than it is confirmed.
    inner: Arc<Mutex<Box<dyn Publisher>>>,
    shared: Arc<Shared>,
    topic: String,
    name: Option<String>,
    number: u64,
    /// How many numbered messages it has published.
    numbered: u64,
    limits: Limits,
    closed: Arc<std::sync::atomic::AtomicBool>,
}

impl FlawedPublisher {
    pub(super) fn new(
        inner: Box<dyn Publisher>,
        shared: Arc<Shared>,
        topic: &str,
        name: Option<String>,
        limits: Limits,
    ) -> Self {
        let number = {
            let mut state = shared.state();
            state.publishers += 1;
            state.publishers
        };
        FlawedPublisher {
            inner: Arc::new(Mutex::new(inner)),
            shared,
            topic: topic.to_string(),
            name,
            number,
            numbered: 0,
            limits,
            closed: Arc::default(),
        }
    }

    /// Changes the number as the flaw wants it; whether the message is dropped as a duplicate.
    fn renumber(&mut self, message: &mut Message) -> bool {
        let Some(DedupKey::Sequence(number)) = message.dedup else { return false };
        let name = self.name.clone().unwrap_or_default();
        let mut state = self.shared.state();
        match self.shared.flaw {
            Flaw::IgnoreDedup | Flaw::AdmitTakenName => message.dedup = None,
            Flaw::ExactNumbersOnly => {
                // Remembered here: not every broker that knows numbers knows ids.
                message.dedup = None;
                return !state.numbers.insert((self.topic.clone(), name, number));
            }
            Flaw::RestartNumbers => message.dedup = Some(DedupKey::Sequence(self.numbered)),
            Flaw::DropGaps => {
                let last = state.last_number.insert(name, number);
                return last.is_some_and(|last| number > last + 1);
            }
            _ => {}
        }
        self.numbered += 1;
        false
    }

    /// Changes the key as the flaw wants it.
    fn distort(&self, message: &mut Message) {
        let Some(DedupKey::Id(key)) = &mut message.dedup else { return };
        let mut state = self.shared.state();
        match self.shared.flaw {
            Flaw::IgnoreDedup => {
                message.dedup = None;
            }
            Flaw::DedupPerPublisher => key.push_str(&format!("~{}", self.number)),
            Flaw::DedupCollide if key.bytes().map(u32::from).sum::<u32>().is_multiple_of(3) => {
                *key = "collision".into();
            }
            Flaw::DedupRace => {
                let now = Instant::now();
                let before = state.used.insert(key.clone(), (self.number, now));
                if let Some((by, at)) = before
                    && by != self.number
                    && now - at < Duration::from_millis(1)
                {
                    key.push_str(&format!("~{}", self.number));
                }
            }
            Flaw::DedupForgetAcked | Flaw::RetryStoredTwice => {
                state.keys.insert(message.payload.clone(), key.clone());
                if let Some(times) = state.forgotten.get(key.as_str()) {
                    key.push_str(&format!("~{times}"));
                }
            }
            _ => {}
        }
    }
}

/// A receipt out of nothing.
fn invented(duplicate: bool) -> PublishReceipt {
    PublishReceipt { duplicate: Some(duplicate), position: None }
}

impl Publisher for FlawedPublisher {
    fn publish(&mut self, message: Message) -> BoxFuture<'_, Result<Confirmation, PublishError>> {
        Box::pin(async move {
            let shared = Arc::clone(&self.shared);
            let original = message.clone();
            let mut message = message;
            if self.renumber(&mut message) {
                return Ok(confirmed(Ok(invented(true))));
            }
            self.distort(&mut message);
            let key = match &original.dedup {
                Some(DedupKey::Id(key)) => Some(key.clone()),
                _ => None,
            };
            match shared.flaw {
                Flaw::LosePublish if shared.turn() => return Ok(confirmed(Ok(invented(false)))),
                Flaw::RejectBurnsKey
                    if key.as_ref().is_some_and(|k| shared.state().burnt.contains(k)) =>
                {
                    return Ok(confirmed(Ok(invented(true))));
                }
                Flaw::CloseOnReject if self.closed.load(std::sync::atomic::Ordering::Relaxed) => {
                    return Err(PublishError::Closed);
                }
                Flaw::TakeTooLarge => {
                    let limit = self.limits.max_payload.and_then(|l| usize::try_from(l).ok());
                    message.payload.truncate(limit.unwrap_or(usize::MAX));
                }
                Flaw::DropBacklog => {
                    let mut state = shared.state();
                    let piled_up = state.piled_up.entry(self.topic.clone()).or_default();
                    *piled_up += 1;
                    if *piled_up > 100 {
                        return Ok(confirmed(Ok(invented(false))));
                    }
                }
                Flaw::IgnoreDelay => message.delay = None,
                Flaw::DelayLonger => {
                    let late = super::LATE + self.limits.publish_delay_resolution;
                    message.delay = message.delay.map(|delay| delay + late);
                }
                Flaw::ConfirmBeforeStoring => {
                    let inner = Arc::clone(&self.inner);
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        if let Ok(stored) = inner.lock().await.publish(message).await {
                            // Nobody is told how it went: that is the flaw.
                            let _ = stored.await;
                        }
                    });
                    return Ok(confirmed(Ok(invented(false))));
                }
                _ => {}
            }
            let mut inner = self.inner.lock().await;
            let handed_over = inner.publish(message).await;
            if shared.is(Flaw::SendLater) && handed_over.is_ok() {
                let unsent = std::mem::take(&mut shared.state().unsent);
                for message in unsent {
                    if let Ok(sent) = inner.publish(message).await {
                        let _ = sent.await;
                    }
                }
            }
            let topic = self.topic.clone();
            let closed = Arc::clone(&self.closed);
            let after = move |result: Result<PublishReceipt, PublishError>| {
                let mut state = shared.state();
                match (shared.flaw, &result) {
                    (Flaw::MisreportDuplicate | Flaw::RestartNumbers, Ok(receipt)) => {
                        return Ok(PublishReceipt { duplicate: Some(false), ..receipt.clone() });
                    }
                    (Flaw::WrongPosition, Ok(receipt)) => {
                        state.counted += 1;
                        let by = if state.counted.is_multiple_of(3) { 1000 } else { 0 };
                        let position = receipt.position.map(|p| p + by);
                        return Ok(PublishReceipt { position, ..receipt.clone() });
                    }
                    (Flaw::SendLater, Err(PublishError::NotSent(_))) => {
                        state.unsent.push(original);
                    }
                    (Flaw::RetryStoredTwice, Err(PublishError::Indeterminate(_))) => {
                        if let Some(key) = key {
                            *state.forgotten.entry(key).or_default() += 1;
                        }
                    }
                    (Flaw::RejectBurnsKey, Err(PublishError::Rejected { .. })) => {
                        state.burnt.extend(key);
                    }
                    (Flaw::CloseOnReject, Err(PublishError::Rejected { .. })) => {
                        closed.store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                    (Flaw::DeliverRejected, Err(PublishError::Rejected { .. })) => {
                        let subscriptions =
                            state.subscriptions.get(&topic).cloned().unwrap_or_default();
                        for subscription in subscriptions {
                            let delivery = Delivery {
                                message: original.clone(),
                                attempt: Some(1),
                                position: None,
                                token: Token::Number(0),
                                settler: Arc::new(super::consumer::Nobody),
                            };
                            let place = (topic.clone(), subscription);
                            state.extra.entry(place).or_default().push_back((0, delivery));
                        }
                    }
                    _ => {}
                }
                result
            };
            match handed_over {
                Ok(confirmation) => {
                    Ok(Box::pin(async move { after(confirmation.await) }) as Confirmation)
                }
                Err(error) => match after(Err(error)) {
                    Ok(receipt) => Ok(confirmed(Ok(receipt))),
                    Err(error) => Err(error),
                },
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // One that still stores what it has confirmed is left to itself.
            if let Ok(inner) = Arc::try_unwrap(self.inner) {
                inner.into_inner().close().await;
            }
        })
    }
}
