//! What schedulers and agents of one run share: the workload, the names of its topics, its clock.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use queueproof_backends::Capabilities;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{Event, Flaw, Recorder, Ticks, Workload};
use crate::history::nanos;

/// The world of one run.
pub(super) struct World {
    pub(super) workload: Workload,
    /// The ticks of each check.
    pub(super) ticks: Vec<Ticks>,
    pub(super) capabilities: Capabilities,
    pub(super) recorder: Recorder,
    /// Tells this run's requests from any other's; not derived from the seed, which repeats.
    pub(super) run: u64,
    pub(super) seed: u64,
    pub(super) flaw: Option<Flaw>,
    pub(super) prefix: String,
    /// When the epoch is, once it is known; who waits for it is woken in the order of coming, which
    /// a `watch` does not promise.
    epoch: OnceLock<Instant>,
    begins: Notify,
    /// A permit for each scheduler that is ready to publish.
    pub(super) ready: Semaphore,
    /// A permit for each scheduler that has published all there was.
    pub(super) done: Semaphore,
    /// The scheduler that was elected last.
    leader: Mutex<Option<u16>>,
    deliveries: AtomicU64,
    /// When anything was received, executed or settled last, on the recorder's clock.
    active: AtomicU64,
    /// How many executions are under way.
    pub(super) executing: AtomicU64,
    /// What went wrong last, so that it is told once.
    trouble: Mutex<String>,
}

/// A queue of requests: a pool's, where one agent takes each, or the pool's broadcasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Queue {
    pub(super) pool: u16,
    pub(super) broadcast: bool,
}

/// The subscription that a pool's agents share.
pub(super) const SUBSCRIPTION: &str = "agents";

/// The names of all topics that a workload uses.
pub fn topics(prefix: &str, workload: &Workload) -> Vec<String> {
    let pools = (0..).take(workload.pools.len());
    let queues = pools.flat_map(|pool| [false, true].map(|broadcast| Queue { pool, broadcast }));
    queues.map(|queue| queue.topic(prefix)).collect()
}

impl Queue {
    fn topic(self, prefix: &str) -> String {
        let kind = if self.broadcast { "b" } else { "p" };
        format!("{prefix}-{kind}{}", self.pool)
    }
}

impl World {
    pub(super) fn new(
        workload: Workload,
        capabilities: Capabilities,
        recorder: Recorder,
        prefix: String,
        seed: u64,
        flaw: Option<Flaw>,
    ) -> Result<Self, String> {
        let ticks = workload.all_checks().map(|check| Ticks::of(&workload, check));
        Ok(World {
            ticks: ticks.collect::<Result<_, _>>()?,
            workload,
            capabilities,
            recorder,
            run: rand::random(),
            seed,
            flaw,
            prefix,
            epoch: OnceLock::new(),
            begins: Notify::new(),
            ready: Semaphore::new(0),
            done: Semaphore::new(0),
            leader: Mutex::default(),
            deliveries: AtomicU64::new(0),
            active: AtomicU64::new(0),
            executing: AtomicU64::new(0),
            trouble: Mutex::default(),
        })
    }

    /// The queues that checks are published to, in an order that is the same for all.
    pub(super) fn queues(&self) -> Vec<Queue> {
        let of = |check: &super::CheckGroup| Queue { pool: check.pool, broadcast: check.broadcast };
        let mut queues: Vec<_> = self.workload.checks.iter().map(of).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    /// The name of a queue's topic.
    pub(super) fn topic(&self, queue: Queue) -> String {
        queue.topic(&self.prefix)
    }

    /// Sets the epoch to this moment, and writes it down.
    pub(super) fn begin(&self) {
        let now = self.recorder.now();
        self.recorder.record_at((now, now), Event::Begin);
        // There is one beginning.
        let _ = self.epoch.set(self.recorder.instant(now));
        self.begins.notify_waiters();
    }

    /// Waits for the epoch.
    pub(super) async fn begun(&self) {
        let begins = self.begins.notified();
        if !self.has_begun() {
            begins.await;
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.epoch.get().is_some()
    }

    /// The true time, nanoseconds since the epoch; 0 before it.
    pub(super) fn since_epoch(&self) -> u64 {
        self.epoch.get().map_or(0, |epoch| nanos(Instant::now().saturating_duration_since(*epoch)))
    }

    /// The instant of a true time since the epoch; a day from now before that is known.
    pub(super) fn instant(&self, time: u64) -> Instant {
        match self.epoch.get() {
            Some(epoch) => *epoch + Duration::from_nanos(time),
            None => Instant::now() + Duration::from_secs(86_400),
        }
    }

    /// The scheduler that was elected last, if it was not deposed.
    pub(super) fn leader(&self) -> Option<u16> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_leader(&self, leader: Option<u16>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    pub(super) fn next_delivery(&self) -> u64 {
        self.deliveries.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that something was received, executed or settled.
    pub(super) fn is_active(&self) {
        self.active.store(self.recorder.now(), Ordering::Relaxed);
    }

    /// When that was last.
    pub(super) fn last_active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Writes down that something went wrong, if it is not what went wrong last.
    pub(super) fn trouble(&self, words: String) {
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != words {
            tracing::warn!("{words}");
            last.clone_from(&words);
            self.recorder.record(self.recorder.now(), Event::Trouble(words));
        }
    }
}
