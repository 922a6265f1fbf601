//! A subscription: what waits, what is leased to whom, what is due when.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::broker::Bell;
use crate::{Delivery, Message, SettleError, Settled, Settlement, SubscriptionSpec, Token};

/// A subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    spec: SubscriptionSpec,
    /// What was never leased, in its order.
    fresh: VecDeque<Queued>,
    /// What came back, by position: it goes first.
    returned: BTreeMap<u64, Queued>,
    /// What was handed back with a delay.
    delayed: BTreeMap<(Instant, u64), Queued>,
    leases: Leases,
    /// When leases pass, in order: the timeout is the same for all. An entry may be stale.
    expiries: VecDeque<(Instant, u64)>,
    consumers: Vec<Leasee>,
    /// Whose turn it is.
    turn: usize,
    next_consumer: u64,
}

/// A message in a subscription.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    position: u64,
    message: Message,
    /// When it may be delivered, if not at once.
    due: Option<Instant>,
    /// How often it was handed out.
    attempts: u32,
}

/// A message that is locked for a consumer.
#[derive(Debug)]
struct Lease {
    queued: Queued,
    consumer: u64,
    expires: Instant,
    /// Whether the consumer was handed it, or it waits in the prefetch buffer.
    handed: bool,
}

/// A consumer, as the broker sees it.
#[derive(Debug)]
struct Leasee {
    number: u64,
    connection: u64,
    prefetch: usize,
    buffer: VecDeque<u64>,
    bell: Bell,
}

/// Leases by their tokens: a place in a table and how often that place was used, so that an old
/// token never means a new lease.
#[derive(Debug, Default)]
struct Leases {
    places: Vec<(u32, Option<Lease>)>,
    free: Vec<u32>,
}

impl Queued {
    pub(super) fn new(position: u64, message: Message, now: Instant) -> Self {
        let due = message.delay.map(|delay| now + delay);
        Queued {
            position,
            message: Message { dedup: None, delay: None, ..message },
            due,
            attempts: 0,
        }
    }
}

impl Subscription {
    pub(super) fn new(spec: SubscriptionSpec) -> Self {
        Subscription {
            spec,
            fresh: VecDeque::new(),
            returned: BTreeMap::new(),
            delayed: BTreeMap::new(),
            leases: Leases::default(),
            expiries: VecDeque::new(),
            consumers: Vec::new(),
            turn: 0,
            next_consumer: 0,
        }
    }

    pub(super) fn spec(&self) -> &SubscriptionSpec {
        &self.spec
    }

    pub(super) fn push(&mut self, queued: Queued) {
        match queued.due {
            None => self.fresh.push_back(queued),
            Some(due) => drop(self.delayed.insert((due, queued.position), queued)),
        }
    }

    pub(super) fn waiting(&self) -> u64 {
        (self.fresh.len() + self.returned.len() + self.delayed.len()) as u64
    }

    pub(super) fn leased(&self) -> u64 {
        self.leases.len() as u64
    }

    pub(super) fn wake_all(&mut self) {
        for consumer in &self.consumers {
            consumer.bell.notify_one();
        }
    }

    /// Makes everything happen that is due by now, and leases what waits to who has room. Returns
    /// what goes to a dead-letter topic.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<(String, Message)> {
        let mut moved = Vec::new();
        while let Some(&(due, token)) = self.expiries.front()
            && due <= now
        {
            self.expiries.pop_front();
            // A touched lease has a later entry; a settled one has none.
            if self.leases.get(token).is_some_and(|lease| lease.expires <= now)
                && let Some(lease) = self.take(token)
            {
                moved.extend(self.give_back(lease.queued, None));
            }
        }
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let queued = entry.remove();
            self.returned.insert(queued.position, queued);
        }
        self.assign(now);
        moved
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let expiry = self.expiries.front().map(|(due, _)| *due);
        let delayed = self.delayed.first_key_value().map(|((due, _), _)| *due);
        expiry.into_iter().chain(delayed).min()
    }

    /// Leases what waits to the consumers in turn.
    fn assign(&mut self, now: Instant) {
        let expires = now + self.spec.ack_timeout;
        while !(self.fresh.is_empty() && self.returned.is_empty()) {
            let count = self.consumers.len();
            let has_room = |&i: &usize| {
                let consumer = &self.consumers[i];
                consumer.buffer.len() < consumer.prefetch
            };
            let Some(mut chosen) = (0..count).map(|i| (self.turn + i) % count).find(has_room)
            else {
                return;
            };
            self.turn = (chosen + 1) % count;
            if self.spec.ordered_by_key {
                // What is next may belong to another consumer, or have to wait for it.
                let Some((queued, owner)) = self.next_by_key() else { return };
                chosen = owner.unwrap_or(chosen);
                self.lease(queued, chosen, expires);
                continue;
            }
            let older = self.returned.first_key_value().map(|(position, _)| *position);
            let newer = self.fresh.front().map(|queued| queued.position);
            let first_returned = older.is_some_and(|o| newer.is_none_or(|n| o < n));
            let queued = match first_returned {
                true => self.returned.pop_first().map(|(_, queued)| queued),
                false => self.fresh.pop_front(),
            };
            let Some(queued) = queued else { return };
            self.lease(queued, chosen, expires);
        }
    }

    /// Locks a message for the consumer at this place.
    fn lease(&mut self, queued: Queued, chosen: usize, expires: Instant) {
        let consumer = &mut self.consumers[chosen];
        let lease = Lease { queued, consumer: consumer.number, expires, handed: false };
        let token = self.leases.insert(lease);
        self.expiries.push_back((expires, token));
        consumer.buffer.push_back(token);
        if consumer.buffer.len() == 1 {
            consumer.bell.notify_one();
        }
    }

    /// Takes the oldest message whose key is nobody's, or the key of a consumer that has room,
    /// with that consumer's place. What is behind another of its key waits for that.
    fn next_by_key(&mut self) -> Option<(Queued, Option<usize>)> {
        let mut owners = self.leases.owners();
        let place = |number| self.consumers.iter().position(|c| c.number == number);
        let mut waiting: Vec<_> = self.returned.values().chain(&self.fresh).collect();
        waiting.sort_by_key(|queued| queued.position);
        // A message that comes later, by a delay, is before its key's others all the same.
        for delayed in self.delayed.values().filter(|d| d.attempts > 0) {
            owners.entry(delayed.message.key.as_deref()).or_insert(0);
        }
        let (position, owner) = waiting.into_iter().find_map(|queued| {
            let key = queued.message.key.as_deref();
            let Some(owner) = owners.get(&key).filter(|_| key.is_some()) else {
                return Some((queued.position, None));
            };
            let owner = place(*owner)?;
            let has_room = self.consumers[owner].buffer.len() < self.consumers[owner].prefetch;
            has_room.then_some((queued.position, Some(owner)))
        })?;
        let queued = self.returned.remove(&position).or_else(|| {
            let index = self.fresh.iter().position(|queued| queued.position == position)?;
            self.fresh.remove(index)
        });
        queued.map(|queued| (queued, owner))
    }

    /// Adds a consumer and returns its number.
    pub(super) fn attach(&mut self, connection: u64, prefetch: usize, bell: Bell) -> u64 {
        self.next_consumer += 1;
        let buffer = VecDeque::new();
        let number = self.next_consumer;
        self.consumers.push(Leasee { number, connection, prefetch, buffer, bell });
        number
    }

    pub(super) fn is_attached(&self, consumer: u64) -> bool {
        self.consumers.iter().any(|c| c.number == consumer)
    }

    /// Removes a consumer; what it holds returns.
    pub(super) fn detach(&mut self, consumer: u64, now: Instant) -> Vec<(String, Message)> {
        self.consumers.retain(|c| c.number != consumer);
        self.turn = 0;
        let mut moved = Vec::new();
        for token in self.leases.of(consumer) {
            if let Some(lease) = self.leases.remove(token) {
                moved.extend(self.give_back(lease.queued, None));
            }
        }
        moved.extend(self.advance(now));
        moved
    }

    /// Removes the consumers of a connection.
    pub(super) fn disconnect(&mut self, connection: u64, now: Instant) -> Vec<(String, Message)> {
        let gone: Vec<_> = self
            .consumers
            .iter()
            .filter(|c| c.connection == connection)
            .map(|c| c.number)
            .collect();
        gone.into_iter().flat_map(|consumer| self.detach(consumer, now)).collect()
    }

    /// Hands out what is leased to a consumer. The settler is added by the caller.
    pub(super) fn hand_out(
        &mut self,
        consumer: u64,
        max: usize,
        now: Instant,
        settler: &std::sync::Arc<dyn crate::Settler>,
    ) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < max {
            let Some(place) = self.consumers.iter_mut().find(|c| c.number == consumer) else {
                break;
            };
            let room = (max - deliveries.len()).min(place.buffer.len());
            if room == 0 {
                break;
            }
            for token in place.buffer.drain(..room) {
                let Some(lease) = self.leases.get_mut(token) else { continue };
                lease.handed = true;
                lease.queued.attempts += 1;
                deliveries.push(Delivery {
                    message: lease.queued.message.clone(),
                    attempt: Some(lease.queued.attempts),
                    position: Some(lease.queued.position),
                    token: Token::Number(token),
                    settler: std::sync::Arc::clone(settler),
                });
            }
            // There is room in the buffer again.
            self.assign(now);
        }
        deliveries
    }

    /// Settles a delivery. Returns what goes to a dead-letter topic beside the answer.
    pub(super) fn settle(
        &mut self,
        token: u64,
        how: &Settlement,
        now: Instant,
    ) -> (Result<Settled, SettleError>, Option<(String, Message)>) {
        let expires = now + self.spec.ack_timeout;
        let lost = || SettleError::LeaseLost("the delivery is settled, or was given back".into());
        match how {
            Settlement::Touch => {
                let Some(lease) = self.leases.get_mut(token) else { return (Err(lost()), None) };
                lease.expires = expires;
                self.expiries.push_back((expires, token));
                (Ok(Settled::Confirmed), None)
            }
            Settlement::Ack | Settlement::Nack { .. } | Settlement::Reject => {
                let Some(lease) = self.leases.remove(token) else { return (Err(lost()), None) };
                let moved = match how {
                    Settlement::Nack { delay } => {
                        let due = delay.filter(|d| *d > Duration::ZERO).map(|d| now + d);
                        self.give_back(lease.queued, due)
                    }
                    Settlement::Reject => self.dead_letter(lease.queued),
                    Settlement::Ack | Settlement::Touch => None,
                };
                (Ok(Settled::Confirmed), moved)
            }
        }
    }

    /// Ends a lease that passed; it may still wait in a buffer.
    fn take(&mut self, token: u64) -> Option<Lease> {
        let lease = self.leases.remove(token)?;
        if !lease.handed
            && let Some(consumer) = self.consumers.iter_mut().find(|c| c.number == lease.consumer)
        {
            consumer.buffer.retain(|&t| t != token);
        }
        Some(lease)
    }

    /// Puts a message back, now or at a time, or moves it away if it has used up its deliveries.
    fn give_back(&mut self, queued: Queued, due: Option<Instant>) -> Option<(String, Message)> {
        if self.spec.dead_letter.as_ref().is_some_and(|d| queued.attempts >= d.max_deliveries) {
            return self.dead_letter(queued);
        }
        match due {
            Some(due) => self.delayed.insert((due, queued.position), queued),
            None => self.returned.insert(queued.position, queued),
        };
        None
    }

    /// Moves a message away; without a dead-letter topic it is deleted.
    fn dead_letter(&self, queued: Queued) -> Option<(String, Message)> {
        self.spec.dead_letter.as_ref().map(|d| (d.topic.clone(), queued.message))
    }
}

impl Leases {
    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn insert(&mut self, lease: Lease) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.0 = place.0.wrapping_add(1);
        place.1 = Some(lease);
        u64::from(place.0) << 32 | u64::from(index)
    }

    fn place(&mut self, token: u64) -> Option<&mut Option<Lease>> {
        let (used, index) = ((token >> 32) as u32, token as u32);
        self.places.get_mut(index as usize).filter(|p| p.0 == used).map(|p| &mut p.1)
    }

    fn get(&self, token: u64) -> Option<&Lease> {
        let (used, index) = ((token >> 32) as u32, token as u32);
        self.places.get(index as usize).filter(|p| p.0 == used).and_then(|p| p.1.as_ref())
    }

    fn get_mut(&mut self, token: u64) -> Option<&mut Lease> {
        self.place(token)?.as_mut()
    }

    fn remove(&mut self, token: u64) -> Option<Lease> {
        let lease = self.place(token)?.take()?;
        self.free.push(token as u32);
        Some(lease)
    }

    /// Whose each key is: the consumer's that holds a message of it.
    fn owners(&self) -> std::collections::HashMap<Option<&str>, u64> {
        let leases = self.places.iter().filter_map(|(_, lease)| lease.as_ref());
        leases.map(|lease| (lease.queued.message.key.as_deref(), lease.consumer)).collect()
    }

    /// The tokens of a consumer's leases.
    fn of(&self, consumer: u64) -> Vec<u64> {
        let places = self.places.iter().zip(0_u64..);
        let held = places.filter(|((_, lease), _)| {
            lease.as_ref().is_some_and(|lease| lease.consumer == consumer)
        });
        held.map(|((used, _), index)| u64::from(*used) << 32 | index).collect()
    }
}
