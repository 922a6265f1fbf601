//! Sensu Go's round robin in etcd, written afresh from its published algorithm (`backend/ringv2`,
//! `schedulerd`, `agentd` and `keepalived` of sensu-go 6, and its documentation): the baseline that
//! a message queue is measured against.
//!
//! - Each pool is a ring: a key for each agent, on a lease that the agent's keepalives extend. Each
//!   backend that an agent connects to puts it there, and takes it out when its connection ends.
//! - Each check has a trigger: a key on a lease of the check's interval, whose value is the agent
//!   whose turn is next. The lease is the clock: when it expires, etcd deletes the key.
//! - Each scheduler (a Sensu backend) watches the ring and the trigger of each check. At a deletion
//!   each of them looks up the agent that was next and the one after, grants a lease, and tries to
//!   put the trigger anew; one succeeds, the others revoke their leases. All of them emit the
//!   check's request all the same, and the one to which the agent is connected delivers it.
//! - Nothing is locked or acknowledged: what is emitted while its agent is away, or is broken off
//!   by a crash, or comes while the agent is still at the same check, is lost: at most once.
//!
//! The shortcomings are the algorithm's: a lease is whole seconds and no shorter than etcd allows
//! (measured with 3.4.23: 2 s with its own election timeout, 5 s with that of the etcd that Sensu
//! embeds, which is 3 s), it expires up to half a second late, and the next one begins
//! only then. Each check goes round by itself and begins with the ring's first agent, so that checks
//! that begin together are all at the same agent, round after round. An agent that is gone without
//! its connection ending (none here is) keeps its turns until its lease ends. The clocks of
//! schedulers play no part.
//!
//! What differs from Sensu: the backends that are there at the beginning watch all checks at once,
//! where Sensu's begin with one of each ring a second (those that are added later do as Sensu's);
//! checks begin so that they fire first at their first tick, as well as a lease can; a killed
//! backend's agents connect to the others after [`RECONNECT`]; agents do not mind a paused backend.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{BrokerControl, Cadence, Event, Recorder, Ticks, Workload};
use crate::history::{Halt, nanos};

mod agent;
mod backend;
mod clock;
mod engine;
mod store;

use backend::Backend;
use clock::{Firing, Firings};
use store::{Store, Trigger};

pub use engine::RECONNECT;

/// What a run of the baseline needs.
pub struct RingSetup {
    /// What is scheduled: at intervals of whole seconds, and to one agent each.
    pub workload: Workload,
    /// Where etcd is: `http://HOST:PORT`.
    pub endpoint: String,
    /// What all keys begin with.
    pub prefix: String,
    /// Where events go.
    pub recorder: Recorder,
    /// The seed of all random choices.
    pub seed: u64,
    /// The process of etcd, if it is ours.
    pub broker: Option<Arc<dyn BrokerControl>>,
    /// Ends the run early.
    pub cancel: CancellationToken,
}

/// Why the ring cannot run a workload; `None` if it can.
pub fn unfit(workload: &Workload) -> Option<String> {
    workload.checks.iter().find_map(|group| {
        let why = match &group.cadence {
            Cadence::Cron(_) => "the baseline runs at intervals, not by a cron line".into(),
            Cadence::Interval { every, .. }
                if every.subsec_nanos() != 0 || *every < Duration::from_secs(1) =>
            {
                let every = humantime::format_duration(*every);
                format!("an interval of {every}: a ring's clock are leases, of whole seconds")
            }
            Cadence::Interval { .. } if group.broadcast => {
                "a ring hands a check to one agent, not to all".into()
            }
            Cadence::Interval { .. } => return None,
        };
        Some(format!("check {}: {why}", group.name))
    })
}

/// Runs a workload on the ring to its end.
///
/// # Errors
/// What kept it from its end.
pub async fn run(setup: RingSetup) -> Result<(), Halt> {
    if let Some(why) = unfit(&setup.workload) {
        return Err(Halt::Undecided(why));
    }
    let RingSetup { workload, endpoint, prefix, recorder, seed, broker, cancel } = setup;
    let world = World::new(workload, prefix, recorder, seed).map_err(Halt::Undecided)?;
    engine::run(Arc::new(world), endpoint, broker, cancel).await
}

/// What backends and agents share: not what Sensu's do, but what the run must know of them.
struct World {
    workload: Workload,
    ticks: Vec<Ticks>,
    /// The trigger of each check.
    triggers: Vec<Trigger>,
    /// Which check a trigger is of, by its key.
    check_of: HashMap<String, u32>,
    /// What the keys of each pool's agents begin with.
    rings: Vec<String>,
    /// What all keys begin with.
    prefix: String,
    recorder: Recorder,
    seed: u64,
    /// The epoch on the recorder's clock; 0 before it is known.
    epoch: AtomicU64,
    /// Which checks have begun.
    begun: Vec<AtomicBool>,
    firings: Vec<Mutex<Firings>>,
    /// The backends that are alive.
    backends: Mutex<BTreeMap<u16, Arc<Backend>>>,
    deliveries: AtomicU64,
    /// When anything was received or executed last, on the recorder's clock.
    active: AtomicU64,
    executing: AtomicU64,
    /// What went wrong last, so that it is told once.
    trouble: Mutex<String>,
}

impl World {
    fn new(
        workload: Workload,
        prefix: String,
        recorder: Recorder,
        seed: u64,
    ) -> Result<Self, String> {
        let ticks = workload.all_checks().map(|check| Ticks::of(&workload, check));
        let ticks = ticks.collect::<Result<Vec<_>, _>>()?;
        let triggers = workload.all_checks().map(|check| {
            let ring = &workload.pools[usize::from(check.group.pool)];
            let name = format!("{}/{}", check.group.namespace, check.name());
            let seconds = seconds(&check.group.cadence);
            Trigger {
                key: store::trigger(&prefix, ring, &name, seconds),
                items: store::items(&prefix, ring),
                seconds,
            }
        });
        let triggers: Vec<_> = triggers.collect();
        Ok(World {
            check_of: triggers.iter().map(|trigger| trigger.key.clone()).zip(0..).collect(),
            rings: workload.pools.iter().map(|ring| store::items(&prefix, ring)).collect(),
            prefix,
            begun: ticks.iter().map(|_| AtomicBool::new(false)).collect(),
            firings: ticks.iter().map(|_| Mutex::default()).collect(),
            ticks,
            triggers,
            workload,
            recorder,
            seed,
            epoch: AtomicU64::new(0),
            backends: Mutex::default(),
            deliveries: AtomicU64::new(0),
            active: AtomicU64::new(0),
            executing: AtomicU64::new(0),
            trouble: Mutex::default(),
        })
    }

    /// Which tick a firing of a check stands for, known by the revision of its trigger's deletion.
    fn firing(&self, check: u32, revision: i64) -> Option<Firing> {
        let place = check as usize;
        let epoch = self.epoch.load(Ordering::Relaxed);
        let now = self.recorder.now().checked_sub(epoch).filter(|_| epoch > 0)?;
        // A backend that was paused sees what fired meanwhile.
        let interval = nanos(Duration::from_secs(self.triggers[place].seconds.unsigned_abs()));
        let behind = nanos(self.workload.longest_disturbance()) / interval.max(1);
        let keep = usize::try_from(behind).unwrap_or(usize::MAX).saturating_add(RECENT);
        let end = nanos(self.workload.duration);
        let mut firings = self.firings[place].lock().unwrap_or_else(PoisonError::into_inner);
        firings.see(&self.ticks[place], revision, (now, end), keep)
    }

    /// How an agent is called in its rings: in the order of the numbers.
    fn agent_name(&self, agent: u32) -> String {
        format!("agent-{agent:06}")
    }

    /// The number of an agent that is called so.
    fn number_of(&self, name: &str) -> Option<u32> {
        name.strip_prefix("agent-")?.parse().ok()
    }

    /// The rings of an agent.
    fn rings_of(&self, agent: u32) -> impl Iterator<Item = &str> {
        let pools = &self.workload.agent_group(agent).pools;
        pools.iter().map(|pool| self.rings[usize::from(*pool)].as_str())
    }

    fn has_begun(&self, check: u32) -> bool {
        self.begun[check as usize].load(Ordering::Relaxed)
    }

    fn backends(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Backend>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_delivery(&self) -> u64 {
        self.deliveries.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that something was received or executed.
    fn is_active(&self) {
        self.active.store(self.recorder.now(), Ordering::Relaxed);
    }

    /// Writes down that something went wrong, if it is not what went wrong last.
    fn trouble(&self, words: String) {
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != words {
            tracing::warn!("{words}");
            last.clone_from(&words);
            self.recorder.record(self.recorder.now(), Event::Trouble(words));
        }
    }
}

/// How many firings of a check are remembered at least: backends see the same one almost at once.
const RECENT: usize = 8;

/// An interval in seconds, 1 or more; 0 for a cron line, which is unfit.
fn seconds(cadence: &Cadence) -> i64 {
    match cadence {
        Cadence::Interval { every, .. } => i64::try_from(every.as_secs()).unwrap_or(i64::MAX),
        Cadence::Cron(_) => 0,
    }
}
