//! Flaws of delivering and settling.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{Flaw, Place, Shared};
use crate::{
    BackendError, BoxFuture, Consumer, Delivery, Message, SettleError, Settled, Settlement,
    Settler, Token,
};

/// A consumer with a flaw.
pub(super) struct FlawedConsumer {
    /// `None` for one that is never given anything.
    inner: Option<Box<dyn Consumer>>,
    settler: Arc<FlawedSettler>,
    resurrected: bool,
}

/// Settles what a flawed consumer was given.
struct FlawedSettler {
    shared: Arc<Shared>,
    place: Place,
    number: u64,
    /// How late it hands back what it hands back late.
    late: Duration,
    /// What comes to this consumer again and to no other.
    own: Mutex<VecDeque<Delivery>>,
    /// What it was given and has not settled.
    out: Mutex<Vec<Delivery>>,
}

/// What a flawed delivery's token holds: the delivery of the broker, and who settles it.
struct Given(Delivery, Arc<FlawedSettler>);

/// Settles what no broker delivered.
#[derive(Debug)]
pub(super) struct Nobody;

/// How often a consumer looks for what the flaw has for it.
const LOOK: Duration = Duration::from_millis(10);

impl FlawedConsumer {
    pub(super) fn new(
        inner: Option<Box<dyn Consumer>>,
        shared: Arc<Shared>,
        place: Place,
        number: u64,
        late: Duration,
    ) -> Self {
        let settler = FlawedSettler {
            shared,
            place,
            number,
            late,
            own: Mutex::default(),
            out: Mutex::default(),
        };
        FlawedConsumer { inner, settler: Arc::new(settler), resurrected: false }
    }
}

/// Acknowledges behind the application's back.
async fn ack(delivery: &Delivery) {
    let _ = delivery.ack().await;
}

impl FlawedSettler {
    /// What the flaw makes of what the broker delivered.
    async fn distort(&self, given: Vec<Delivery>) -> Vec<Delivery> {
        let shared = &self.shared;
        let mut made = Vec::with_capacity(given.len());
        for mut delivery in given {
            let body = &mut delivery.message.payload;
            match shared.flaw {
                Flaw::LoseDelivery if shared.turn() => {
                    ack(&delivery).await;
                    continue;
                }
                Flaw::SplitFanOut if !self.is_for_this_subscription(body) => {
                    ack(&delivery).await;
                    continue;
                }
                Flaw::LateAckLoses if shared.state().deleted.contains(body) => {
                    ack(&delivery).await;
                    continue;
                }
                Flaw::AutoAck => ack(&delivery).await,
                Flaw::Corrupt if shared.turn() => {
                    let mut changed = BytesMut::from(&body[..]);
                    if let Some(last) = changed.last_mut() {
                        *last ^= 1;
                    }
                    *body = changed.freeze();
                }
                Flaw::TruncateLarge if body.len() > 60_000 => body.truncate(body.len() / 2),
                Flaw::DropHeaders => {
                    delivery.message.headers.clear();
                    delivery.message.key = None;
                }
                Flaw::AttemptStuck => delivery.attempt = delivery.attempt.map(|_| 1),
                Flaw::AttemptSkips => delivery.attempt = delivery.attempt.map(|a| a * 2 - 1),
                Flaw::DeliverTwice if shared.turn() => made.push(delivery.clone()),
                Flaw::DeliverToTwo if shared.turn() => {
                    let extra = (self.number, delivery.clone());
                    let mut state = shared.state();
                    state.extra.entry(self.place.clone()).or_default().push_back(extra);
                }
                Flaw::Invent if shared.turn() => made.push(Delivery {
                    message: Message::new(&b"nobody published this"[..]),
                    settler: Arc::new(Nobody),
                    ..delivery.clone()
                }),
                _ => {}
            }
            made.push(delivery);
        }
        if shared.is(Flaw::Reorder) {
            for pair in made.chunks_exact_mut(2) {
                pair.swap(0, 1);
            }
        }
        made
    }

    /// What the flaw has for this consumer besides what the broker delivers.
    fn extra(&self, resurrected: &mut bool) -> Vec<Delivery> {
        let mut extra: Vec<_> = lock(&self.own).drain(..).collect();
        let mut state = self.shared.state();
        if let Some(others) = state.extra.get_mut(&self.place) {
            let mut left = VecDeque::new();
            for (not_for, delivery) in others.drain(..) {
                match not_for == self.number {
                    true => left.push_back((not_for, delivery)),
                    false => extra.push(delivery),
                }
            }
            *others = left;
        }
        if self.shared.is(Flaw::Resurrect) && !std::mem::replace(resurrected, true) {
            extra.extend(state.acked.get(&self.place).cloned());
        }
        extra
    }

    fn is_for_this_subscription(&self, body: &Bytes) -> bool {
        let state = self.shared.state();
        let subscriptions = state.subscriptions.get(&self.place.0).map_or(&[][..], Vec::as_slice);
        let place = subscriptions.iter().position(|s| *s == self.place.1).unwrap_or(0);
        let sum: usize = body.iter().map(|&b| usize::from(b)).sum();
        sum % subscriptions.len().max(1) == place
    }

    async fn settle_one(&self, given: &Delivery, how: Settlement) -> Result<Settled, SettleError> {
        let shared = &self.shared;
        let payload = &given.message.payload;
        lock(&self.out).retain(|d| d.message.payload != payload);
        if how != Settlement::Touch
            && let Some(held) = shared.state().held.get_mut(&self.place)
        {
            *held = held.saturating_sub(1);
        }
        match (shared.flaw, how) {
            (Flaw::AutoAck, _) | (Flaw::IgnoreTouch, Settlement::Touch) => Ok(Settled::Confirmed),
            (Flaw::ForgetAck, Settlement::Ack) if shared.turn() => Ok(Settled::Confirmed),
            (Flaw::ForgetNack, Settlement::Nack { .. }) => given.ack().await,
            (Flaw::NackEarly, Settlement::Nack { .. }) => given.nack(None).await,
            (Flaw::NackLate, Settlement::Nack { delay }) => {
                let delay = delay.unwrap_or_default() + self.late;
                match given.nack(Some(delay)).await {
                    // A broker that knows no delays is told late.
                    Err(SettleError::Unsupported(_)) => {
                        let given = given.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(delay).await;
                            // Nobody is told how it went: that is the flaw.
                            let _ = given.nack(None).await;
                        });
                        Ok(Settled::Confirmed)
                    }
                    answer => answer,
                }
            }
            (Flaw::StickyNack, Settlement::Nack { .. }) => {
                let attempt = given.attempt.map(|a| a + 1);
                lock(&self.own).push_back(Delivery { attempt, ..given.clone() });
                Ok(Settled::Confirmed)
            }
            (Flaw::SharedSettlement, Settlement::Nack { delay }) => {
                {
                    let mut state = shared.state();
                    let all = state.subscriptions.get(&self.place.0).cloned().unwrap_or_default();
                    for other in all.into_iter().filter(|s| *s != self.place.1) {
                        let place = (self.place.0.clone(), other);
                        state.extra.entry(place).or_default().push_back((0, given.clone()));
                    }
                }
                given.nack(delay).await
            }
            (Flaw::LateAckLoses, Settlement::Ack) => {
                let answer = given.ack().await;
                if matches!(answer, Err(SettleError::LeaseLost(_))) {
                    shared.state().deleted.insert(payload.clone());
                }
                answer
            }
            (Flaw::LateAckLoses, Settlement::Nack { .. })
                if shared.state().deleted.contains(payload) =>
            {
                given.ack().await
            }
            (_, Settlement::Ack) => {
                let answer = given.ack().await;
                let mut state = shared.state();
                if shared.is(Flaw::Resurrect) {
                    state.acked.insert(self.place.clone(), given.clone());
                }
                if shared.is(Flaw::DedupForgetAcked)
                    && let Some(key) = state.keys.get(payload).cloned()
                {
                    *state.forgotten.entry(key).or_default() += 1;
                }
                answer
            }
            (_, how) => given.settle(how).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consumer for FlawedConsumer {
    fn receive(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> BoxFuture<'_, Result<Vec<Delivery>, BackendError>> {
        Box::pin(async move {
            let deadline = Instant::now() + linger;
            let settler = Arc::clone(&self.settler);
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let shared = &settler.shared;
                let blocked = shared.is(Flaw::HeadOfLine)
                    && shared.state().held.get(&settler.place).is_some_and(|&n| n > 0);
                let room = if shared.is(Flaw::HeadOfLine) { 1 } else { max };
                let mut made = settler.extra(&mut self.resurrected);
                match &mut self.inner {
                    Some(inner) if !blocked && made.len() < room => {
                        let wait = if made.is_empty() { left.min(LOOK) } else { Duration::ZERO };
                        let given = inner.receive(room - made.len(), wait).await?;
                        made.extend(settler.distort(given).await);
                    }
                    _ if made.is_empty() => tokio::time::sleep(left.min(LOOK)).await,
                    _ => {}
                }
                // What is too much now comes next time.
                let later = made.split_off(made.len().min(max));
                lock(&settler.own).extend(later);
                if !made.is_empty() {
                    let mut state = shared.state();
                    *state.held.entry(settler.place.clone()).or_default() += made.len() as u64;
                    state.piled_up.remove(&settler.place.0);
                    *state.delivered.entry(settler.place.clone()).or_default() += 1;
                    drop(state);
                    lock(&settler.out).extend(made.iter().cloned());
                    let wrap = |given: Delivery| Delivery {
                        token: Token::Object(Arc::new(Given(given.clone(), Arc::clone(&settler)))),
                        settler: Arc::clone(&settler) as Arc<dyn Settler>,
                        ..given
                    };
                    return Ok(made.into_iter().map(wrap).collect());
                }
                if left.is_zero() {
                    return Ok(made);
                }
            }
        })
    }

    fn close(self: Box<Self>, grace: Duration) -> BoxFuture<'static, Result<(), BackendError>> {
        Box::pin(async move {
            if self.settler.shared.is(Flaw::LeaveAcks) {
                let out = std::mem::take(&mut *lock(&self.settler.out));
                for delivery in out {
                    ack(&delivery).await;
                }
            }
            match self.inner {
                Some(inner) => inner.close(grace).await,
                None => Ok(()),
            }
        })
    }
}

impl Settler for FlawedSettler {
    fn settle(
        &self,
        tokens: Vec<Token>,
        how: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(tokens.len());
            for token in tokens {
                let given = match &token {
                    Token::Object(object) => object.downcast_ref::<Given>(),
                    Token::Number(_) => None,
                };
                answers.push(match given {
                    Some(Given(delivery, settler)) => {
                        settler.settle_one(delivery, how.clone()).await
                    }
                    None => Err(SettleError::Unsupported("a delivery of another consumer".into())),
                });
            }
            answers
        })
    }
}

impl fmt::Debug for FlawedSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlawedSettler({:?})", self.shared.flaw)
    }
}

impl Settler for Nobody {
    fn settle(
        &self,
        tokens: Vec<Token>,
        _: Settlement,
    ) -> BoxFuture<'static, Vec<Result<Settled, SettleError>>> {
        Box::pin(std::future::ready(vec![Ok(Settled::Confirmed); tokens.len()]))
    }
}
