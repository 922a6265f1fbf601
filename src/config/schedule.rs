//! The scheduler's workload, as the user writes it.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError, List, feasible,
    resolve::{range, span},
};
use crate::scheduler::{
    AgentGroup, Cadence, CheckGroup, Churn, Distribution, Moment, Schedulers, Strategy, Workload,
};

/// A workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// How long ticks fall due.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// How a tick is published only once; the best that the backend has without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The schedulers.
    pub schedulers: Schedulers,
    /// The checks.
    pub checks: Vec<CheckSettings>,
    /// The agents.
    pub agents: Vec<AgentSettings>,
    /// Whether each agent has a connection of its own.
    pub connection_per_agent: bool,
    /// How many agents share a connection otherwise.
    pub agents_per_connection: u32,
    /// How long a request stays locked to an agent that does not settle it.
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// The deduplication window of the pools' topics.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// How late a request may reach an agent before it counts as late.
    #[serde(with = "humantime_serde")]
    pub tolerance: Duration,
    /// Agents that come and go all the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    /// What happens when, as `30s kill 1 scheduler`.
    pub timeline: Vec<Moment>,
}

/// Checks that differ in their number only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckSettings {
    /// The name.
    pub name: String,
    /// How many.
    pub count: u32,
    /// The namespace.
    pub namespace: String,
    /// The pool of agents that it runs on.
    pub subscription: String,
    /// How often it is due.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// When it is due, instead of an interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Whether checks of one interval are spread over it.
    pub splay: bool,
    /// Whether each agent of the pool executes it.
    pub broadcast: bool,
    /// How long after it was due a request is worth executing; a minute, or the interval if that is
    /// longer, without.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Duration>,
    /// How long an execution may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// Agents that differ in nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// How many.
    pub count: u32,
    /// Their pools.
    pub subscriptions: List,
    /// How long an execution takes.
    pub execution: Execution,
    /// How many requests of a pool one agent executes at the same time.
    pub concurrency: u16,
    /// The part of executions that fail.
    pub fails: f64,
    /// Whether they are the slow minority.
    pub slow: bool,
}

/// How long an execution takes: anything between the two, equally likely; or exponential.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Execution {
    /// The shortest.
    #[serde(with = "humantime_serde")]
    pub least: Duration,
    /// The longest.
    #[serde(with = "humantime_serde")]
    pub most: Duration,
    /// The mean of an exponential distribution, instead of the two.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub mean: Option<Duration>,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            duration: Duration::from_secs(60),
            strategy: None,
            schedulers: Schedulers::default(),
            checks: vec![CheckSettings::default()],
            agents: vec![AgentSettings::default()],
            connection_per_agent: false,
            agents_per_connection: 500,
            ack_timeout: Duration::from_secs(10),
            dedup_window: Duration::from_secs(120),
            tolerance: Duration::from_secs(1),
            churn: None,
            timeline: Vec::new(),
        }
    }
}

impl Default for CheckSettings {
    fn default() -> Self {
        CheckSettings {
            name: "check".into(),
            count: 10,
            namespace: "default".into(),
            subscription: "pool".into(),
            interval: None,
            cron: None,
            splay: true,
            broadcast: false,
            expires: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        AgentSettings {
            count: 20,
            subscriptions: List::one("pool"),
            execution: Execution::default(),
            concurrency: 1,
            fails: 0.0,
            slow: false,
        }
    }
}

impl Default for Execution {
    fn default() -> Self {
        let (least, most) = (Duration::from_millis(20), Duration::from_millis(200));
        Execution { least, most, mean: None }
    }
}

/// The interval of a check that says nothing.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a request is worth executing, at least, where nothing is said.
const EXPIRES: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(86_400);

impl Schedule {
    /// The workload, for a backend that is fit for this strategy.
    ///
    /// # Errors
    /// What cannot be, by its key.
    pub fn workload(
        &self,
        strategy: Strategy,
        epoch_unix_ms: u64,
    ) -> Result<Workload, ConfigError> {
        self.check_times()?;
        let mut pools: Vec<String> = Vec::new();
        for check in &self.checks {
            if !pools.contains(&check.subscription) {
                pools.push(check.subscription.clone());
            }
        }
        let place = |name: &str| pools.iter().position(|pool| pool == name);
        let checks = (0..).zip(&self.checks).map(|(nth, check)| {
            let pool = place(&check.subscription).unwrap_or(0);
            check.group(nth, u16::try_from(pool).unwrap_or(u16::MAX))
        });
        let checks = checks.collect::<Result<Vec<_>, _>>()?;
        let agents = (0..).zip(&self.agents).map(|(nth, agents)| agents.group(nth, &place, &pools));
        let agents = agents.collect::<Result<Vec<_>, _>>()?;
        for (nth, pool) in (0..).zip(&pools) {
            if !agents.iter().any(|group| group.pools.contains(&nth)) {
                return Err(ConfigError::new(format!(
                    "schedule.checks: no agent holds the subscription {pool:?}, so its checks would \
                     run nowhere; the agents' are {}",
                    self.subscriptions()
                )));
            }
        }
        let workload = Workload {
            duration: self.duration,
            epoch_unix_ms,
            strategy,
            schedulers: self.schedulers.clone(),
            pools,
            checks,
            agents,
            connection_per_agent: self.connection_per_agent,
            agents_per_connection: self.agents_per_connection,
            ack_timeout: self.ack_timeout,
            dedup_window: self.dedup_window,
            tolerance: self.tolerance,
            churn: self.churn,
            timeline: self.timeline.clone(),
        };
        range("schedule.checks", workload.check_count(), 1, 100_000)?;
        range("schedule.agents", workload.agent_count(), 1, 1_000_000)?;
        if workload.checks.iter().all(|group| first_due(&workload, group).is_none()) {
            return Err(ConfigError::new(format!(
                "schedule.duration: no check is due within {}",
                humantime::format_duration(self.duration)
            )));
        }
        feasible::check_timeline(&workload)?;
        Ok(workload)
    }

    fn subscriptions(&self) -> String {
        let all = self.agents.iter().flat_map(|agents| agents.subscriptions.0.iter());
        all.collect::<BTreeSet<_>>().into_iter().cloned().collect::<Vec<_>>().join(", ")
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let ms = Duration::from_millis(1);
        span("schedule.duration", self.duration, ms * 100, DAY * 366)?;
        span("schedule.ack_timeout", self.ack_timeout, ms * 100, DAY)?;
        span("schedule.dedup_window", self.dedup_window, ms * 100, DAY)?;
        span("schedule.tolerance", self.tolerance, ms, DAY)?;
        range("schedule.agents_per_connection", self.agents_per_connection, 1, 1_000_000)?;
        range("schedule.schedulers.count", self.schedulers.count, 1, 100)?;
        range("schedule.schedulers.in_flight", self.schedulers.in_flight, 1, 1_000_000)?;
        range("schedule.schedulers.drift_ppm", self.schedulers.drift_ppm, 0, 100_000)?;
        span("schedule.schedulers.skew", self.schedulers.skew, Duration::ZERO, DAY)?;
        if let Some(churn) = &self.churn {
            span("schedule.churn.every", churn.every, ms * 10, DAY)?;
            span("schedule.churn.away", churn.away, Duration::ZERO, DAY)?;
            part("schedule.churn.crash", churn.crash)?;
            let agents: u64 = self.agents.iter().map(|group| u64::from(group.count)).sum();
            range("schedule.churn.agents", churn.agents, 1, agents)?;
        }
        Ok(())
    }
}

impl CheckSettings {
    fn group(&self, nth: usize, pool: u16) -> Result<CheckGroup, ConfigError> {
        let key = |name: &str| format!("schedule.checks[{nth}].{name}");
        plain(&key("name"), &self.name)?;
        plain(&key("namespace"), &self.namespace)?;
        plain(&key("subscription"), &self.subscription)?;
        range(&key("count"), self.count, 1, 100_000)?;
        let cadence = match (self.interval, &self.cron) {
            (Some(_), Some(_)) => {
                let words = "a check has an interval or a cron line, not both";
                return Err(ConfigError::new(format!("{}: {words}", key("cron"))));
            }
            (_, Some(line)) => Cadence::Cron(line.clone()),
            (interval, None) => {
                let every = interval.unwrap_or(INTERVAL);
                span(&key("interval"), every, Duration::from_millis(1), DAY * 366)?;
                Cadence::Interval { every, splay: self.splay }
            }
        };
        cadence.check().map_err(|why| ConfigError::new(format!("{}: {why}", key("cron"))))?;
        let expires = self.expires.unwrap_or(EXPIRES.max(self.interval.unwrap_or_default()));
        span(&key("expires"), expires, Duration::from_millis(1), DAY * 366)?;
        span(&key("timeout"), self.timeout, Duration::from_millis(1), DAY)?;
        Ok(CheckGroup {
            name: self.name.clone(),
            count: self.count,
            namespace: self.namespace.clone(),
            pool,
            cadence,
            broadcast: self.broadcast,
            expires,
            timeout: self.timeout,
        })
    }
}

impl AgentSettings {
    fn group(
        &self,
        nth: usize,
        place: &impl Fn(&str) -> Option<usize>,
        pools: &[String],
    ) -> Result<AgentGroup, ConfigError> {
        let key = |name: &str| format!("schedule.agents[{nth}].{name}");
        range(&key("count"), self.count, 1, 1_000_000)?;
        range(&key("concurrency"), self.concurrency, 1, 10_000)?;
        part(&key("fails"), self.fails)?;
        let mut held = Vec::new();
        for name in &self.subscriptions.0 {
            let Some(pool) = place(name) else {
                return Err(ConfigError::new(format!(
                    "{}: no check runs on the subscription {name:?}; the checks' are {}",
                    key("subscriptions"),
                    pools.join(", ")
                )));
            };
            held.push(u16::try_from(pool).unwrap_or(u16::MAX));
        }
        if held.is_empty() {
            return Err(ConfigError::new(format!("{}: the list is empty", key("subscriptions"))));
        }
        let Execution { least, most, mean } = self.execution;
        span(&key("execution.least"), least, Duration::ZERO, DAY)?;
        let execution = match mean {
            Some(mean) => {
                span(&key("execution.mean"), mean, Duration::ZERO, DAY)?;
                Distribution::Exponential(mean)
            }
            None => {
                span(&key("execution.most"), most, least, DAY)?;
                Distribution::Uniform { least, most }
            }
        };
        Ok(AgentGroup {
            count: self.count,
            pools: held,
            execution,
            concurrency: self.concurrency,
            fails: self.fails,
            slow: self.slow,
        })
    }
}

fn first_due(workload: &Workload, group: &CheckGroup) -> Option<u64> {
    let check = workload.all_checks().find(|check| check.group.name == group.name)?;
    let first = crate::scheduler::Ticks::of(workload, check).ok()?.from(0)?;
    (first.due < crate::history::nanos(workload.duration)).then_some(first.due)
}

/// Checks a name that goes into keys and requests as it is.
fn plain(key: &str, name: &str) -> Result<(), ConfigError> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=60).contains(&name.len()) && name.chars().all(fit) {
        return Ok(());
    }
    let expected = "1 to 60 characters of a-z, A-Z, 0-9, -, _ and .";
    Err(ConfigError::new(format!("{key}: {name:?} is not a name: {expected}")))
}

fn part(key: &str, value: f64) -> Result<(), ConfigError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(ConfigError::new(format!("{key}: {value} is not between 0 and 1"))),
    }
}
