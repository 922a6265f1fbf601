//! Topics and channels in memory, as nsqd keeps them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

/// A message's id.
pub type Id = [u8; 16];

/// A message.
#[derive(Clone)]
pub struct Stored {
    pub id: Id,
    pub body: Vec<u8>,
    pub attempts: u16,
    pub delay: Duration,
}

/// All topics.
#[derive(Default)]
pub struct Broker {
    pub topics: BTreeMap<String, Topic>,
    next_id: u64,
}

/// A topic. What comes while there is no channel is kept for the first one.
#[derive(Default)]
pub struct Topic {
    pub channels: BTreeMap<String, Channel>,
    pub held: Vec<Stored>,
    pub published: u64,
}

/// A channel.
#[derive(Default)]
pub struct Channel {
    pub waiting: VecDeque<Stored>,
    pub in_flight: HashMap<Id, InFlight>,
    pub deferred: Vec<(Instant, Stored)>,
    pub clients: BTreeMap<u64, Client>,
    /// The client that was served last.
    last: u64,
}

/// A delivery that is not settled.
pub struct InFlight {
    message: Stored,
    client: u64,
    delivered: Instant,
    until: Instant,
}

/// A consumer's connection.
pub struct Client {
    pub ready: usize,
    pub in_flight: usize,
    pub closing: bool,
    pub msg_timeout: Duration,
    /// Where its deliveries go.
    pub frames: UnboundedSender<(u32, Vec<u8>)>,
}

/// What nsqd says when a message cannot be settled.
pub type Unsettled = &'static str;

impl Broker {
    /// Publishes.
    pub fn publish(&mut self, topic: &str, bodies: Vec<Vec<u8>>, delay: Duration) {
        let topic = self.topics.entry(topic.into()).or_default();
        for body in bodies {
            self.next_id += 1;
            let id = format!("{:016x}", 0x18a8_2e5d_0000_0000_u64 + self.next_id);
            let id = id.as_bytes().try_into().unwrap();
            topic.published += 1;
            topic.pass_on(Stored { id, body, attempts: 0, delay });
        }
    }

    /// The channel, made if it is not there.
    pub fn channel(&mut self, topic: &str, channel: &str) -> &mut Channel {
        let topic = self.topics.entry(topic.into()).or_default();
        let first = topic.channels.is_empty();
        topic.channels.entry(channel.into()).or_default();
        if first {
            for message in std::mem::take(&mut topic.held) {
                topic.pass_on(message);
            }
        }
        topic.channels.get_mut(channel).unwrap()
    }

    /// A consumer's connection has ended. What it held stays locked until its time is up.
    pub fn leave(&mut self, topic: &str, channel: &str, client: u64) {
        let Some(found) = self.topics.get_mut(topic) else { return };
        if let Some(left) = found.channels.get_mut(channel) {
            left.clients.remove(&client);
            if left.clients.is_empty() && channel.ends_with("#ephemeral") {
                found.channels.remove(channel);
            }
        }
        if found.channels.is_empty() && topic.ends_with("#ephemeral") {
            self.topics.remove(topic);
        }
    }

    /// Looks for what is due.
    pub fn scan(&mut self) {
        let now = Instant::now();
        for channel in self.topics.values_mut().flat_map(|topic| topic.channels.values_mut()) {
            channel.scan(now);
        }
    }
}

impl Topic {
    fn pass_on(&mut self, message: Stored) {
        if self.channels.is_empty() {
            self.held.push(message);
            return;
        }
        for channel in self.channels.values_mut() {
            if message.delay.is_zero() {
                channel.put(message.clone());
            } else {
                channel.deferred.push((Instant::now() + message.delay, message.clone()));
            }
        }
    }
}

impl Channel {
    fn put(&mut self, message: Stored) {
        self.waiting.push_back(message);
        self.pump();
    }

    /// Delivers what can be delivered, to one after the other.
    pub fn pump(&mut self) {
        while !self.waiting.is_empty() {
            let free = |c: &Client| !c.closing && c.in_flight < c.ready;
            let after = self.clients.range(self.last + 1..).find(|(_, c)| free(c));
            let next = after.or_else(|| self.clients.iter().find(|(_, c)| free(c)));
            let Some(number) = next.map(|(number, _)| *number) else { return };
            self.last = number;
            let mut message = self.waiting.pop_front().unwrap();
            let client = self.clients.get_mut(&number).unwrap();
            message.attempts += 1;
            client.in_flight += 1;
            let mut frame = vec![0; 8];
            frame.extend(message.attempts.to_be_bytes());
            frame.extend(message.id);
            frame.extend(&message.body);
            // One whose task has ended is taken off the list soon.
            let _ = client.frames.send((2, frame));
            let delivered = Instant::now();
            let until = delivered + client.msg_timeout;
            let flying = InFlight { message, client: number, delivered, until };
            self.in_flight.insert(flying.message.id, flying);
        }
    }

    fn take(&mut self, client: u64, id: Id) -> Result<InFlight, Unsettled> {
        match self.in_flight.get(&id) {
            None => Err("ID not in flight"),
            Some(flying) if flying.client != client => Err("client does not own message"),
            Some(_) => Ok(self.in_flight.remove(&id).unwrap()),
        }
    }

    fn free(&mut self, client: u64) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.in_flight -= 1;
        }
    }

    pub fn finish(&mut self, client: u64, id: Id) -> Result<(), Unsettled> {
        self.take(client, id)?;
        self.free(client);
        self.pump();
        Ok(())
    }

    pub fn requeue(&mut self, client: u64, id: Id, delay: Duration) -> Result<(), Unsettled> {
        let InFlight { message, .. } = self.take(client, id)?;
        self.free(client);
        if delay.is_zero() {
            self.put(message);
        } else {
            self.deferred.push((Instant::now() + delay, message));
            self.pump();
        }
        Ok(())
    }

    pub fn touch(&mut self, client: u64, id: Id, longest: Duration) -> Result<(), Unsettled> {
        let mut flying = self.take(client, id)?;
        let timeout = self.clients.get(&client).map_or(Duration::ZERO, |c| c.msg_timeout);
        flying.until = (Instant::now() + timeout).min(flying.delivered + longest);
        self.in_flight.insert(id, flying);
        Ok(())
    }

    fn scan(&mut self, now: Instant) {
        let due = |flying: &InFlight| flying.until <= now;
        let late: Vec<Id> =
            self.in_flight.iter().filter(|(_, f)| due(f)).map(|(id, _)| *id).collect();
        for id in late {
            let InFlight { message, client, .. } = self.in_flight.remove(&id).unwrap();
            self.free(client);
            self.put(message);
        }
        let (due, deferred) = self.deferred.drain(..).partition(|(at, _)| *at <= now);
        self.deferred = deferred;
        let mut due: Vec<(Instant, Stored)> = due;
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().for_each(|(_, message)| self.put(message));
    }
}
