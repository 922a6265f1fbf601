//! A Sensu backend of the baseline: its watchers, its part in advancing the rings, its agents'
//! sessions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Error, Event as Change, EventType, WatchRequestSender};
use futures::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{World, store::Store};
use crate::{
    history::Published,
    scheduler::{Event, Request, SchedulerState},
};

/// A backend. All that it does ends when it is dropped from [`Backend::end`] on.
pub(super) struct Backend {
    world: Arc<World>,
    id: u16,
    store: Store,
    /// The agents that are connected to it.
    sessions: Mutex<BTreeMap<u32, Session>>,
    paused: watch::Sender<Option<Instant>>,
    ended: CancellationToken,
}

/// An agent's session.
#[derive(Clone)]
pub(super) struct Session {
    /// Where its requests go. Closed when it has gone.
    pub(super) inbox: mpsc::UnboundedSender<Request>,
    /// Until when it hangs, if it does: then it tells nothing, not even that it lives.
    pub(super) hangs: watch::Receiver<Option<Instant>>,
}

/// How often agents tell that they live (the default of sensu-agent's `--keepalive-interval`).
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);

/// How often a backend begins to watch another check of a ring: at most once a second (the
/// `watchLimiter` of sensu-go's `ringv2`).
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How many requests to etcd a backend has under way at most, where it has many at once to make.
const AT_ONCE: usize = 64;

impl Backend {
    /// Starts one, which watches every check: at once, or as fast as Sensu's do.
    pub(super) async fn start(
        world: Arc<World>,
        id: u16,
        store: Store,
        at_once: bool,
    ) -> Result<Arc<Self>, Error> {
        let backend = Arc::new(Backend {
            world,
            id,
            store,
            sessions: Mutex::default(),
            paused: watch::Sender::new(None),
            ended: CancellationToken::new(),
        });
        let pace = if at_once { Duration::ZERO } else { WATCH_EVERY };
        let watched = Arc::clone(&backend).watch(None, pace).await?;
        backend.record(SchedulerState::Started);
        backend.spawn(Arc::clone(&backend).work(watched));
        backend.spawn(Arc::clone(&backend).keep_alive());
        Ok(backend)
    }

    /// Does something that ends with the backend.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        tokio::spawn(async move { ended.run_until_cancelled_owned(task).await });
    }

    fn record(&self, is: SchedulerState) {
        let recorder = &self.world.recorder;
        recorder.record(recorder.now(), Event::Scheduler { scheduler: self.id, is });
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u32, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It does nothing until then.
    pub(super) fn pause(self: &Arc<Self>, until: Instant) {
        self.paused.send_replace(Some(until));
        self.record(SchedulerState::Paused);
        let this = Arc::clone(self);
        self.spawn(async move {
            tokio::time::sleep_until(until).await;
            this.paused.send_replace(None);
            this.record(SchedulerState::Resumed);
        });
    }

    /// A frozen process does later what came meanwhile.
    async fn awake(&self) {
        // Its sender lives as long as this.
        let _ = self.paused.subscribe().wait_for(Option::is_none).await;
    }

    /// It is gone, with the sessions of its agents, which stay in their rings if it was killed. The
    /// agents that it had.
    pub(super) fn end(&self, is: SchedulerState) -> BTreeMap<u32, Session> {
        self.ended.cancel();
        self.record(is);
        let had = std::mem::take(&mut *self.sessions());
        if is == SchedulerState::Stopped {
            // The last that it does.
            let (world, store) = (Arc::clone(&self.world), self.store.clone());
            let agents: Vec<_> = had.keys().copied().collect();
            tokio::spawn(async move {
                let remove = |agent| remove(&world, &store, agent);
                stream::iter(agents).for_each_concurrent(AT_ONCE, remove).await;
            });
        }
        had
    }

    /// Watches all checks, from a revision or from now: two watchers each, on one stream. What has no
    /// trigger by now will see no deletion, and is given one.
    async fn watch(self: Arc<Self>, from: Option<i64>, pace: Duration) -> Result<Watched, Error> {
        let mut nths: HashMap<&str, u32> = HashMap::new();
        let mut checks: Vec<_> = (0..).zip(&self.world.triggers).collect();
        // Rings do not wait for each other.
        checks.sort_by_cached_key(|(_, trigger)| {
            let nth = nths.entry(trigger.items.as_str()).or_default();
            *nth += 1;
            *nth
        });
        let order: Vec<u32> = checks.into_iter().map(|(check, _)| check).collect();
        let Some((first, others)) = order.split_first() else {
            return Err(Error::WatchError("there are no checks".into()));
        };
        let [(ring, items), (trigger, deletions)] =
            Store::watches(&self.world.triggers[*first as usize], from);
        let mut stream = self.store.watcher().watch(ring, Some(items)).await?;
        stream.watch(trigger, Some(deletions)).await?;
        let (sender, answers) = stream.split();
        if from.is_none() {
            self.ensure(*first);
        }
        Ok(Watched { answers, _watching: self.watch_others(sender, others.to_vec(), from, pace) })
    }

    /// Watches the other checks while answers for the first ones are taken: thousands of answers
    /// that nobody takes would block the stream.
    fn watch_others(
        self: Arc<Self>,
        mut sender: WatchRequestSender,
        checks: Vec<u32>,
        from: Option<i64>,
        pace: Duration,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            let began = Instant::now();
            let mut nths: HashMap<&str, u32> = HashMap::new();
            for check in checks {
                let trigger = &self.world.triggers[check as usize];
                let nth = nths.entry(trigger.items.as_str()).or_default();
                *nth += 1;
                tokio::time::sleep_until(began + pace * *nth).await;
                for (key, options) in Store::watches(trigger, from) {
                    if sender.watch(key, Some(options)).await.is_err() {
                        return; // The stream has ended, as its reader sees.
                    }
                }
                if from.is_none() {
                    self.ensure(check);
                }
            }
            // The stream lives as long as its sender.
            std::future::pending::<()>().await;
        }))
    }

    /// Handles what the watchers tell, each deletion of a trigger by itself.
    async fn work(self: Arc<Self>, mut watched: Watched) {
        // The last revision of each trigger that was handled.
        let mut handled: HashMap<u32, i64> = HashMap::new();
        loop {
            match watched.answers.message().await {
                Ok(Some(answer)) if answer.canceled() => {
                    // What was missed is gone: as Sensu does, it begins anew.
                    self.world.trouble(format!("etcd ended a watcher: {}", answer.cancel_reason()));
                    watched = self.watch_again(None).await;
                }
                Ok(Some(answer)) => {
                    for change in answer.events() {
                        let Some((check, turn, revision)) = self.deleted(change) else { continue };
                        // After a resumption it may be told again.
                        if handled.insert(check, revision).is_none_or(|last| last < revision) {
                            self.spawn(Arc::clone(&self).advance(check, turn, revision));
                        }
                    }
                }
                // The connection is lost: etcd's client resumes where it was.
                Ok(None) | Err(_) => {
                    let from = handled.values().max().copied();
                    watched = self.watch_again(from).await;
                }
            }
        }
    }

    async fn watch_again(self: &Arc<Self>, from: Option<i64>) -> Watched {
        loop {
            match Arc::clone(self).watch(from, Duration::ZERO).await {
                Ok(watched) => return watched,
                Err(error) => tracing::info!("watching again in etcd: {error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Which check's trigger was deleted, if that is what changed, whom it named, and when. Sensu
    /// only logs that agents come and go.
    fn deleted(&self, change: &Change) -> Option<(u32, String, i64)> {
        let kv = change.kv().filter(|_| change.event_type() == EventType::Delete)?;
        let check = self.world.check_of.get(kv.key_str().ok()?)?;
        let turn = change.prev_kv().and_then(|kv| kv.value_str().ok()).unwrap_or_default();
        Some((*check, turn.to_string(), kv.mod_revision()))
    }

    /// A trigger was deleted: it is the turn of the agent that it named. Puts it anew, unless
    /// another backend was first, and emits the request in either case.
    async fn advance(self: Arc<Self>, check: u32, turn: String, revision: i64) {
        self.awake().await;
        let Some(firing) = self.world.firing(check, revision) else {
            // There is no tick yet, or none any more: the ring goes round all the same.
            self.advanced(check, &turn).await;
            return;
        };
        let invoked = self.world.recorder.now();
        let Some((agent, won)) = self.advanced(check, &turn).await else { return };
        let session = self.world.number_of(&agent).and_then(|n| self.sessions().get(&n).cloned());
        // One whose agent is connected elsewhere emits it to nobody.
        if !won && session.is_none() {
            return;
        }
        let request = Request { check, tick: firing.tick, scheduler: self.id, copy: firing.copy };
        // The one that put the trigger scheduled it; a loser emits the same, and nobody drops it.
        let duplicate = won.then_some(false);
        let outcome = Published::Confirmed { duplicate, position: None };
        self.world.recorder.record(invoked, Event::Publish { request, outcome });
        if let Some(session) = session {
            // One that has just gone takes nothing more.
            let _ = session.inbox.send(request);
        }
    }

    async fn advanced(&self, check: u32, turn: &str) -> Option<(String, bool)> {
        loop {
            match self.store.advance(&self.world.triggers[check as usize], turn).await {
                Ok(advanced) => return advanced,
                Err(error) => tracing::info!("advancing a ring in etcd: {error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Makes sure that a check that has begun has a trigger, in the background.
    pub(super) fn ensure(self: &Arc<Self>, check: u32) {
        if !self.world.has_begun(check) {
            return;
        }
        let this = Arc::clone(self);
        self.spawn(async move {
            let trigger = &this.world.triggers[check as usize];
            while let Err(error) = this.store.ensure(trigger).await {
                tracing::info!("beginning a check in etcd: {error}");
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// An agent connects, and tells at once that it lives; whether there is anybody on both sides.
    pub(super) async fn connect(self: &Arc<Self>, agent: u32, session: Session) -> bool {
        if self.ended.is_cancelled() || session.inbox.is_closed() {
            return false;
        }
        self.sessions().insert(agent, session);
        let kept = self.ended.clone().run_until_cancelled_owned(self.keep(agent)).await;
        kept.is_some()
    }

    /// An agent's connection has ended: it is taken out of its rings; whether it had one here.
    pub(super) fn disconnect(self: &Arc<Self>, agent: u32) -> bool {
        let was = self.sessions().remove(&agent).is_some();
        if was {
            let this = Arc::clone(self);
            self.spawn(async move { remove(&this.world, &this.store, agent).await });
        }
        was
    }

    /// Takes an agent's sign of life: it is in its rings. Where it was not, checks that wait for an
    /// agent begin.
    async fn keep(self: &Arc<Self>, agent: u32) {
        let name = self.world.agent_name(agent);
        for ring in self.world.rings_of(agent) {
            match self.store.add(ring, &name).await {
                Ok(false) => {}
                Ok(true) => {
                    let of_ring = (0..).zip(&self.world.triggers);
                    for (check, _) in of_ring.filter(|(_, trigger)| trigger.items == ring) {
                        self.ensure(check);
                    }
                }
                // As Sensu does: the next sign of life is the next try.
                Err(error) => self.world.trouble(format!("adding an agent to a ring: {error}")),
            }
        }
    }

    /// Takes the signs of life of all agents that are connected, each at a time of its own.
    async fn keep_alive(self: Arc<Self>) {
        let mut round = Instant::now();
        loop {
            round += KEEPALIVE_EVERY;
            tokio::time::sleep_until(round).await;
            let sessions: Vec<_> = self.sessions().clone().into_iter().collect();
            let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
            for (nth, (agent, session)) in (0..).zip(sessions) {
                tokio::time::sleep_until(round + KEEPALIVE_EVERY / count * nth).await;
                self.awake().await;
                let hangs = session.hangs.borrow().is_some_and(|until| until > Instant::now());
                if hangs || !self.sessions().contains_key(&agent) {
                    continue;
                }
                let this = Arc::clone(&self);
                self.spawn(async move { this.keep(agent).await });
            }
        }
    }
}

/// What a backend watches.
struct Watched {
    answers: etcd_client::WatchResponseStream,
    /// Begins to watch more, and keeps the stream open.
    _watching: AbortOnDropHandle<()>,
}

async fn remove(world: &World, store: &Store, agent: u32) {
    let name = world.agent_name(agent);
    for ring in world.rings_of(agent) {
        if let Err(error) = store.remove(ring, &name).await {
            world.trouble(format!("taking an agent out of a ring: {error}"));
        }
    }
}
