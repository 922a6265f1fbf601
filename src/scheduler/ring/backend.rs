//! A Sensu backend of the baseline: its watchers, its part in advancing the rings, its agents'
//! sessions.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_client::{
    Client, Compare, CompareOp, Error, EventType, GetOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{World, emitted};
use crate::{
    history::Halt,
    scheduler::{Cadence, Event, Request, SchedulerState},
};

/// A backend that runs.
pub(super) struct Backend {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What its tasks share.
pub(super) struct Shared {
    world: Arc<World>,
    id: u16,
    client: Client,
    /// The agents that are connected to it.
    sessions: Mutex<HashMap<String, mpsc::UnboundedSender<Request>>>,
    /// The leases of their items, by key.
    leases: Mutex<HashMap<String, i64>>,
    paused: watch::Sender<Option<Instant>>,
    ended: watch::Sender<bool>,
}

/// How often agents tell that they live, and how long until they count as dead (the defaults of
/// sensu-agent's `--keepalive-interval` and `--keepalive-warning-timeout`).
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: i64 = 120;

/// How long to wait before watchers that ended are made again, at least (as Sensu does).
const WATCH_AGAIN: Duration = Duration::from_secs(1);

impl Backend {
    /// Starts one: it watches the ring and the trigger of each check.
    pub(super) async fn start(world: Arc<World>, id: u16, client: Client) -> Result<Self, Halt> {
        let shared = Arc::new(Shared {
            world,
            id,
            client,
            sessions: Mutex::default(),
            leases: Mutex::default(),
            paused: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        });
        let stream = shared.watch().await;
        let stream = stream.map_err(|error| Halt::Broken(format!("watching in etcd: {error}")))?;
        let recorder = &shared.world.recorder;
        let event = Event::Scheduler { scheduler: id, is: SchedulerState::Started };
        recorder.record(recorder.now(), event);
        let tasks = vec![
            tokio::spawn(Arc::clone(&shared).work(stream)),
            tokio::spawn(Arc::clone(&shared).keep_alive()),
        ];
        Ok(Backend { shared, tasks })
    }

    /// What acts for it.
    pub(super) fn starter(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// It does nothing until then; the task that ends that.
    pub(super) fn pause(&self, until: Instant) -> JoinHandle<()> {
        let shared = self.starter();
        shared.paused.send_replace(Some(until));
        shared.state(SchedulerState::Paused);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            shared.paused.send_replace(None);
            shared.state(SchedulerState::Resumed);
        })
    }

    /// It is gone, and its agents' sessions with it.
    pub(super) fn end(&self) {
        self.shared.ended.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
        self.shared.sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Shared {
    fn state(&self, is: SchedulerState) {
        let recorder = &self.world.recorder;
        recorder.record(recorder.now(), Event::Scheduler { scheduler: self.id, is });
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    fn items(&self, pool: u16) -> String {
        format!("{}/items/", self.world.ring(pool))
    }

    fn trigger(&self, check: u32) -> String {
        let world = &self.world;
        let pool = world.workload.check(check).map_or(0, |check| check.group.pool);
        let name = &world.names[check as usize];
        format!("{}/triggers/{name}/1/{}", world.ring(pool), self.interval(check))
    }

    /// The interval of a check, seconds.
    fn interval(&self, check: u32) -> i64 {
        match self.world.workload.check(check).map(|check| &check.group.cadence) {
            Some(Cadence::Interval { every, .. }) => i64::try_from(every.as_secs()).unwrap_or(1),
            _ => 1,
        }
    }

    /// Two watchers a check: its ring's items, and its trigger's deletions.
    async fn watch(&self) -> Result<WatchStream, Error> {
        let mut client = self.client.clone();
        let mut stream: Option<WatchStream> = None;
        for check in self.world.workload.all_checks() {
            let items = WatchOptions::new().with_prefix();
            let deletions = WatchOptions::new()
                .with_prev_key()
                .with_filters([WatchFilterType::NoPut])
                .with_watch_id(i64::from(check.id) + 1);
            // Those of the items come first, and count from far above.
            let items = items.with_watch_id(ITEMS + i64::from(check.id));
            let (ring, trigger) = (self.items(check.group.pool), self.trigger(check.id));
            match &mut stream {
                None => {
                    let mut first = client.watch(ring, Some(items)).await?;
                    first.watch(trigger, Some(deletions)).await?;
                    stream = Some(first);
                }
                Some(stream) => {
                    stream.watch(ring, Some(items)).await?;
                    stream.watch(trigger, Some(deletions)).await?;
                }
            }
        }
        stream.ok_or_else(|| Error::WatchError("there are no checks".into()))
    }

    /// Handles what the watchers tell, each trigger by itself.
    async fn work(self: Arc<Self>, mut stream: WatchStream) {
        loop {
            let message = stream.message().await;
            match message {
                Ok(Some(response)) if !response.canceled() => {
                    let check = response.watch_id() - 1;
                    let Ok(check) = u32::try_from(check) else { continue };
                    if response.watch_id() >= ITEMS {
                        continue; // Sensu only logs that an agent came or went.
                    }
                    for event in response.events() {
                        if event.event_type() != EventType::Delete {
                            continue;
                        }
                        let Some(kv) = event.kv() else { continue };
                        let before = event.prev_kv().map(|kv| kv.value_str().map(str::to_string));
                        let before = before.and_then(Result::ok).unwrap_or_default();
                        let revision = kv.mod_revision();
                        let this = Arc::clone(&self);
                        tokio::spawn(async move { this.advance(check, before, revision).await });
                    }
                }
                _ => {
                    stream = self.watch_again().await;
                    for check in 0..self.world.workload.check_count() {
                        self.ensure_trigger(check);
                    }
                }
            }
        }
    }

    async fn watch_again(&self) -> WatchStream {
        loop {
            tokio::time::sleep(WATCH_AGAIN).await;
            match self.watch().await {
                Ok(stream) => return stream,
                Err(error) => tracing::info!("watching again in etcd: {error}"),
            }
        }
    }

    /// A trigger was deleted: it is the turn of the agent that it named. Puts it anew for the one
    /// after, unless another backend was first, and emits the request in either case.
    async fn advance(self: Arc<Self>, check: u32, turn: String, revision: i64) {
        let mut paused = self.paused.subscribe();
        // A frozen process handles later what came meanwhile.
        let _ = paused.wait_for(Option::is_none).await;
        let tick = self.world.tick(check, revision);
        let invoked = self.world.recorder.now();
        let (agent, won) = loop {
            if self.has_ended() {
                return;
            }
            match self.try_advance(check, &turn).await {
                Ok(Some(advanced)) => break advanced,
                Ok(None) => return, // The ring is empty.
                Err(error) => {
                    tracing::info!("advancing a ring in etcd: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let Some(tick) = tick.filter(|_| !self.has_ended()) else { return };
        let request = Request { check, tick, scheduler: self.id, copy: 0 };
        // Only the backend that the agent is connected to has somebody to send it to.
        let session =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&agent).cloned();
        if won || session.is_some() {
            self.world.recorder.record(invoked, emitted(request, won));
        }
        if let Some(session) = session {
            // One that has just gone takes nothing more.
            let _ = session.send(request);
        }
    }

    /// The agent whose turn it is, and whether this backend put the trigger anew.
    async fn try_advance(&self, check: u32, turn: &str) -> Result<Option<(String, bool)>, Error> {
        let pool = self.world.workload.check(check).map_or(0, |check| check.group.pool);
        let next = self.next_in_ring(&self.items(pool), turn).await?;
        let (Some(first), Some(next)) = (next.first(), next.last()) else { return Ok(None) };
        let mut client = self.client.clone();
        let lease = client.lease_grant(self.interval(check), None).await?.id();
        let trigger = self.trigger(check);
        let free = Compare::version(trigger.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(trigger, next.clone(), Some(PutOptions::new().with_lease(lease)));
        let won = client.txn(Txn::new().when([free]).and_then([put])).await?.succeeded();
        if !won {
            client.lease_revoke(lease).await?;
        }
        Ok(Some((first.clone(), won)))
    }

    /// The agent of that name, or else the next, and the one after it: round and round.
    async fn next_in_ring(&self, items: &str, turn: &str) -> Result<Vec<String>, Error> {
        let mut client = self.client.clone();
        let mut end = items.as_bytes().to_vec();
        end.push(0xff);
        let names = |kvs: &[etcd_client::KeyValue]| -> Vec<String> {
            let name = |kv: &etcd_client::KeyValue| {
                kv.key_str().ok()?.strip_prefix(items).map(str::to_string)
            };
            kvs.iter().filter_map(name).collect()
        };
        let from = GetOptions::new().with_range(end).with_limit(2);
        let found = client.get(format!("{items}{turn}"), Some(from)).await?;
        let mut found = names(found.kvs());
        if found.len() < 2 {
            let missing = i64::try_from(2 - found.len()).unwrap_or(2);
            let begin = GetOptions::new().with_prefix().with_limit(missing);
            let begin = client.get(items, Some(begin)).await?;
            found.extend(names(begin.kvs()));
        }
        Ok(found)
    }

    /// Makes sure that a check has a trigger, in the background.
    pub(super) fn ensure_trigger(self: &Arc<Self>, check: u32) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while !this.has_ended() {
                match this.try_trigger(check).await {
                    Ok(()) => return,
                    Err(error) => tracing::info!("starting a ring in etcd: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    async fn try_trigger(&self, check: u32) -> Result<(), Error> {
        let pool = self.world.workload.check(check).map_or(0, |check| check.group.pool);
        let (trigger, items) = (self.trigger(check), self.items(pool));
        let mut client = self.client.clone();
        let first = GetOptions::new().with_prefix().with_limit(1);
        let both = [TxnOp::get(trigger.clone(), None), TxnOp::get(items.clone(), Some(first))];
        let answers = client.txn(Txn::new().and_then(both)).await?.op_responses();
        let [TxnOpResponse::Get(there), TxnOpResponse::Get(first)] = answers.as_slice() else {
            return Err(Error::WatchError("etcd's answer to two questions is not two".into()));
        };
        let Some(first) = first.kvs().first().filter(|_| there.kvs().is_empty()) else {
            return Ok(()); // There is one, or there are no agents.
        };
        let next = first.key_str()?.strip_prefix(&items).unwrap_or_default().to_string();
        let lease = client.lease_grant(self.interval(check), None).await?.id();
        let free = Compare::version(trigger.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(trigger, next, Some(PutOptions::new().with_lease(lease)));
        if !client.txn(Txn::new().when([free]).and_then([put])).await?.succeeded() {
            client.lease_revoke(lease).await?;
        }
        Ok(())
    }

    /// An agent connects: it is put into the rings of its pools.
    pub(super) async fn connect(
        self: &Arc<Self>,
        agent: u32,
        inbox: mpsc::UnboundedSender<Request>,
    ) {
        let name = name(agent);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), inbox);
        for pool in self.world.workload.agent_group(agent).pools.clone() {
            let key = format!("{}{name}", self.items(pool));
            if let Err(error) = self.add(&key).await {
                self.world.trouble(format!("adding an agent to a ring in etcd: {error}"));
            }
        }
    }

    /// Puts an agent into a ring, or extends its lease.
    async fn add(&self, key: &str) -> Result<(), Error> {
        let mut client = self.client.clone();
        let there = client.get(key, None).await?;
        if let Some(lease) = there.kvs().first().map(etcd_client::KeyValue::lease)
            && lease != 0
        {
            let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
            keeper.keep_alive().await?;
            if answers.message().await?.is_some_and(|answer| answer.ttl() == KEEPALIVE_TIMEOUT) {
                self.leases
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(key.into(), lease);
                return Ok(());
            }
        }
        let lease = client.lease_grant(KEEPALIVE_TIMEOUT, None).await?.id();
        client.put(key, "", Some(PutOptions::new().with_lease(lease))).await?;
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into(), lease);
        Ok(())
    }

    /// An agent's connection ended: it is taken out of its rings, in the background.
    pub(super) fn disconnected(self: &Arc<Self>, agent: u32) -> JoinHandle<()> {
        let name = name(agent);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            for pool in this.world.workload.agent_group(agent).pools.clone() {
                let key = format!("{}{name}", this.items(pool));
                let lease = this.leases.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let mut client = this.client.clone();
                // Its key goes with its lease.
                if let Some(lease) = lease
                    && let Err(error) = client.lease_revoke(lease).await
                {
                    tracing::info!("taking an agent out of a ring in etcd: {error}");
                }
            }
        })
    }

    /// Extends the leases of the agents that are connected, as their keepalives come.
    async fn keep_alive(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEEPALIVE_EVERY).await;
            let keys: Vec<_> = {
                let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
                leases.keys().cloned().collect()
            };
            // Agents tell at times of their own.
            let pace = KEEPALIVE_EVERY / 2 / u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
            for key in keys {
                if let Err(error) = self.add(&key).await {
                    tracing::info!("an agent's keepalive in etcd: {error}");
                }
                tokio::time::sleep(pace).await;
            }
        }
    }
}

/// What the identifiers of watchers of items count from.
const ITEMS: i64 = 1 << 32;

/// An agent's name in its rings: in the order of their numbers.
fn name(agent: u32) -> String {
    format!("agent-{agent:06}")
}
