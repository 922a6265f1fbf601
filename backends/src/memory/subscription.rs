//! A subscription: what waits, what is leased to whom, what is due when.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    broker::Bell,
    leases::{Lease, Leases},
    watch::Watch,
};
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
    /// By their numbers, which grow.
    consumers: BTreeMap<u64, Leasee>,
    /// Who of them has room in the prefetch buffer.
    roomy: BTreeSet<u64>,
    /// The connection of each, and its number.
    connections: BTreeSet<(u64, u64)>,
    /// Whose turn it is: the first with room from this number on.
    turn: u64,
    watch: Watch,
}

/// A message in a subscription.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    position: u64,
    pub(super) message: Message,
    /// When it may be delivered, if not at once.
    due: Option<Instant>,
    /// How often it was handed out.
    attempts: u32,
}

/// A consumer, as the broker sees it.
#[derive(Debug)]
struct Leasee {
    connection: u64,
    prefetch: usize,
    /// What is locked for it and waits to be received.
    buffer: VecDeque<u64>,
    /// What it has received and not settled.
    handed: BTreeSet<u64>,
    bell: Bell,
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
            consumers: BTreeMap::new(),
            roomy: BTreeSet::new(),
            connections: BTreeSet::new(),
            turn: 0,
            watch: Watch::default(),
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
        for consumer in self.consumers.values() {
            consumer.bell.notify_one();
        }
    }

    /// Makes everything happen that is due by now, and leases what waits to who has room. Returns
    /// what goes to a dead-letter topic.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<(String, Message)> {
        let mut moved = Vec::new();
        while let Some((due, token)) = self.next_expiry()
            && due <= now
        {
            self.expiries.pop_front();
            if let Some(lease) = self.take(token) {
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
        let due = self.next_due();
        self.watch.tend(due, now);
        moved
    }

    /// The lease that passes next. What is stale goes: a settled lease has no entry, and a touched
    /// one a later one.
    fn next_expiry(&mut self) -> Option<(Instant, u64)> {
        while let Some(&(due, token)) = self.expiries.front() {
            if self.leases.get(token).is_some_and(|lease| lease.expires == due) {
                return Some((due, token));
            }
            self.expiries.pop_front();
        }
        None
    }

    /// When something is due next.
    fn next_due(&mut self) -> Option<Instant> {
        let expiry = self.next_expiry().map(|(due, _)| due);
        let delayed = self.delayed.first_key_value().map(|((due, _), _)| *due);
        expiry.into_iter().chain(delayed).min()
    }

    /// A consumer begins or goes on to wait. The answer is when it has to look again, if it has to.
    pub(super) fn wait(&mut self, consumer: u64, now: Instant) -> Option<Instant> {
        // No lease that is made later passes before that: leases need not wake the timekeeper.
        let new_lease = now + self.spec.ack_timeout;
        let due = self.next_due().map_or(new_lease, |due| due.min(new_lease));
        self.watch.wait(consumer, &self.consumers.get(&consumer)?.bell, due)
    }

    /// A consumer stops waiting, if it did.
    pub(super) fn leave(&mut self, consumer: u64, now: Instant) {
        self.watch.leave(consumer, now);
    }

    /// Leases what waits to the consumers in turn.
    fn assign(&mut self, now: Instant) {
        let expires = now + self.spec.ack_timeout;
        while !(self.fresh.is_empty() && self.returned.is_empty()) {
            let next = self.roomy.range(self.turn..).next().or(self.roomy.first());
            let Some(mut chosen) = next.copied() else { return };
            self.turn = chosen + 1;
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

    /// Locks a message for a consumer that has room.
    fn lease(&mut self, queued: Queued, chosen: u64, expires: Instant) {
        let token = self.leases.insert(Lease { queued, consumer: chosen, expires, handed: false });
        self.expiries.push_back((expires, token));
        // Who has room is there; a lease of nobody would pass and return.
        let Some(consumer) = self.consumers.get_mut(&chosen) else { return };
        consumer.buffer.push_back(token);
        if consumer.buffer.len() == consumer.prefetch {
            self.roomy.remove(&chosen);
        }
        if consumer.buffer.len() == 1 {
            consumer.bell.notify_one();
        }
    }

    /// Takes the oldest message whose key is nobody's, or the key of a consumer that has room,
    /// with that consumer's number. What is behind another of its key waits for that.
    fn next_by_key(&mut self) -> Option<(Queued, Option<u64>)> {
        let mut owners = self.leases.owners();
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
            self.roomy.contains(owner).then_some((queued.position, Some(*owner)))
        })?;
        let queued = self.returned.remove(&position).or_else(|| {
            let index = self.fresh.iter().position(|queued| queued.position == position)?;
            self.fresh.remove(index)
        });
        queued.map(|queued| (queued, owner))
    }

    /// Adds a consumer under a number that no other had, higher than the others'.
    pub(super) fn attach(&mut self, number: u64, connection: u64, prefetch: usize, bell: Bell) {
        let (buffer, handed) = (VecDeque::new(), BTreeSet::new());
        self.consumers.insert(number, Leasee { connection, prefetch, buffer, handed, bell });
        self.roomy.insert(number);
        self.connections.insert((connection, number));
    }

    pub(super) fn is_attached(&self, consumer: u64) -> bool {
        self.consumers.contains_key(&consumer)
    }

    /// Removes a consumer; what it holds returns.
    pub(super) fn detach(&mut self, consumer: u64, now: Instant) -> Vec<(String, Message)> {
        let mut moved = self.remove(consumer, now);
        moved.extend(self.advance(now));
        moved
    }

    /// Removes the consumers of a connection.
    pub(super) fn disconnect(&mut self, connection: u64, now: Instant) -> Vec<(String, Message)> {
        let all = (connection, 0)..=(connection, u64::MAX);
        let gone: Vec<_> = self.connections.range(all).map(|(_, number)| *number).collect();
        let mut moved: Vec<_> = gone.into_iter().flat_map(|c| self.remove(c, now)).collect();
        moved.extend(self.advance(now));
        moved
    }

    fn remove(&mut self, number: u64, now: Instant) -> Vec<(String, Message)> {
        let Some(consumer) = self.consumers.remove(&number) else { return Vec::new() };
        self.roomy.remove(&number);
        self.connections.remove(&(consumer.connection, number));
        self.watch.leave(number, now);
        let tokens = consumer.handed.into_iter().chain(consumer.buffer);
        let leases: Vec<_> = tokens.filter_map(|token| self.leases.remove(token)).collect();
        leases.into_iter().filter_map(|lease| self.give_back(lease.queued, None)).collect()
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
            let Some(leasee) = self.consumers.get_mut(&consumer) else { break };
            let count = (max - deliveries.len()).min(leasee.buffer.len());
            if count == 0 {
                break;
            }
            for token in leasee.buffer.drain(..count) {
                let Some(lease) = self.leases.get_mut(token) else { continue };
                leasee.handed.insert(token);
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
            self.roomy.insert(consumer);
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
                let Some(lease) = self.take(token) else { return (Err(lost()), None) };
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

    /// Ends a lease; it may still wait in a buffer.
    fn take(&mut self, token: u64) -> Option<Lease> {
        let lease = self.leases.remove(token)?;
        if let Some(consumer) = self.consumers.get_mut(&lease.consumer) {
            consumer.handed.remove(&token);
            // Those that pass are the oldest, at the front.
            if !lease.handed
                && let Some(index) = consumer.buffer.iter().position(|&t| t == token)
            {
                consumer.buffer.remove(index);
                self.roomy.insert(lease.consumer);
            }
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
