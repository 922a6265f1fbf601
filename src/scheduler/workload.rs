//! What is scheduled, by whom and for whom: resolved, nothing implicit left.

use std::time::Duration;

use queueproof_backends::{Capabilities, Capability};
use serde::{Deserialize, Serialize};

use super::{
    cadence::Cadence,
    clock::Clock,
    timeline::{Action, Moment},
};

/// A workload. With it a history says all that its judges need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// How long ticks fall due. What was scheduled by then is still executed afterwards.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// The wall clock at the epoch, milliseconds since 1970, UTC: for cron lines.
    pub epoch_unix_ms: u64,
    /// How a tick is published only once though several schedulers publish it.
    pub strategy: Strategy,
    /// The schedulers.
    pub schedulers: Schedulers,
    /// The names of the pools (Sensu's subscriptions); checks and agents refer to them by place.
    pub pools: Vec<String>,
    /// The checks, in groups that differ in their number only.
    pub checks: Vec<CheckGroup>,
    /// The agents at the beginning, in groups that differ in nothing.
    pub agents: Vec<AgentGroup>,
    /// Whether each agent has a connection of its own.
    pub connection_per_agent: bool,
    /// How many agents share a connection otherwise, 1 or more.
    pub agents_per_connection: u32,
    /// How long a request stays locked to an agent that does not settle it.
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// The deduplication window that the pools' topics are created with.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// How late a request may reach an agent, counted from when it was due, before it counts as
    /// late; and how exact all that is timed is taken to be.
    #[serde(with = "humantime_serde")]
    pub tolerance: Duration,
    /// Agents that come and go all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    /// What happens when, in the order of time.
    pub timeline: Vec<Moment>,
}

/// The schedulers: replicas that know nothing of each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedulers {
    /// How many there are at the beginning, 1 or more.
    pub count: u16,
    /// How far their clocks are off, at most: the first is this much behind, the last this much
    /// ahead, the others between them.
    #[serde(with = "humantime_serde")]
    pub skew: Duration,
    /// By how much their clocks run too slow or fast, at most, parts in a million, spread likewise.
    pub drift_ppm: u32,
    /// Whether one that was paused, or waited for its election, publishes what fell due meanwhile
    /// and has not expired.
    pub catch_up: bool,
    /// How many publishes of one scheduler may be unconfirmed, 1 or more: beyond it waits.
    pub in_flight: u32,
    /// How often it repeats a publish of which it is not known whether it was stored.
    pub retries: u16,
}

/// Checks that differ in their number only; the numbers begin with 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckGroup {
    /// The name; with more than one, followed by `-` and the number.
    pub name: String,
    /// How many there are, 1 or more.
    pub count: u32,
    /// The namespace.
    pub namespace: String,
    /// The pool that executes it, a place in [`Workload::pools`].
    pub pool: u16,
    /// When it is due.
    pub cadence: Cadence,
    /// Whether each agent of the pool executes it, and not one of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broadcast: bool,
    /// How long after it was due a request is worth executing.
    #[serde(with = "humantime_serde")]
    pub expires: Duration,
    /// How long an execution may take before the agent gives it up as failed.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// Agents that differ in nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentGroup {
    /// How many there are.
    pub count: u32,
    /// Their pools, places in [`Workload::pools`], 1 or more.
    pub pools: Vec<u16>,
    /// How long an execution takes.
    pub execution: Distribution,
    /// How many requests of a pool one agent executes at the same time, 1 or more.
    pub concurrency: u16,
    /// The part of executions that fail, so that the agent hands the request on, 0 to 1.
    pub fails: f64,
    /// Whether they are the slow minority.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow: bool,
}

/// How long something takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Always the same.
    Constant(#[serde(with = "humantime_serde")] Duration),
    /// Anything between the two, equally likely.
    Uniform {
        /// The shortest.
        #[serde(with = "humantime_serde")]
        least: Duration,
        /// The longest.
        #[serde(with = "humantime_serde")]
        most: Duration,
    },
    /// Exponential with this mean, cut off at ten times it.
    Exponential(#[serde(with = "humantime_serde")] Duration),
}

/// Agents that come and go all the time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    /// How often some go.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// How many go each time.
    pub agents: u32,
    /// How long until as many come.
    #[serde(with = "humantime_serde")]
    pub away: Duration,
    /// The part of them that crash instead of leaving, 0 to 1.
    pub crash: f64,
}

/// How a tick is published only once though several schedulers publish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// All publish; the broker drops equal keys, from whomever they come
    DedupId,
    /// The broker elects one publisher; the others wait for their turn
    ExclusivePublisher,
    /// One at a time holds the publisher's name; the broker drops numbers that were there
    Sequence,
    /// Those who lose a transaction in etcd repeat what the winner did
    #[value(skip)]
    Ring,
    /// All publish, and nothing is done about it: duplicates appear and are counted
    None,
}

/// A check of a group.
#[derive(Debug, Clone, Copy)]
pub struct Check<'w> {
    /// Its number.
    pub id: u32,
    /// Its group.
    pub group: &'w CheckGroup,
    /// Its number within the group.
    pub nth: u32,
}

impl Default for Schedulers {
    fn default() -> Self {
        Schedulers {
            count: 3,
            skew: Duration::ZERO,
            drift_ppm: 0,
            catch_up: true,
            in_flight: 1024,
            retries: 5,
        }
    }
}

impl Default for Churn {
    fn default() -> Self {
        let (every, away) = (Duration::from_secs(10), Duration::from_secs(60));
        Churn { every, agents: 1, away, crash: 0.5 }
    }
}

impl Workload {
    /// How many checks there are.
    pub fn check_count(&self) -> u32 {
        self.checks.iter().map(|group| group.count).sum()
    }

    /// How many agents there are at the beginning.
    pub fn agent_count(&self) -> u32 {
        self.agents.iter().map(|group| group.count).sum()
    }

    /// All checks, by their numbers.
    pub fn all_checks(&self) -> impl Iterator<Item = Check<'_>> {
        let each = self.checks.iter().flat_map(|group| (0..group.count).map(move |n| (group, n)));
        (0..).zip(each).map(|(id, (group, nth))| Check { id, group, nth })
    }

    /// The check of a number; `None` if there is no such.
    pub fn check(&self, id: u32) -> Option<Check<'_>> {
        let mut nth = id;
        for group in &self.checks {
            if nth < group.count {
                return Some(Check { id, group, nth });
            }
            nth -= group.count;
        }
        None
    }

    /// The group of an agent. Those that join later (whose numbers follow) take the groups in turn,
    /// by their sizes.
    pub fn agent_group(&self, agent: u32) -> &AgentGroup {
        let mut nth = agent % self.agent_count().max(1);
        for group in &self.agents {
            if nth < group.count {
                return group;
            }
            nth -= group.count;
        }
        &self.agents[0]
    }

    /// How many agents may have their connections cut at the same time, as the timeline says.
    pub fn cut_agents(&self) -> u32 {
        let cut = |moment: &Moment| match moment.action {
            Action::CutAgents(count, _) => count,
            _ => 0,
        };
        self.timeline.iter().map(cut).max().unwrap_or(0)
    }

    /// How many agents there may be at the same time, at most.
    pub fn most_agents(&self) -> u32 {
        let joins = |moment: &Moment| match moment.action {
            Action::JoinAgents(count) => count,
            _ => 0,
        };
        self.agent_count() + self.timeline.iter().map(joins).sum::<u32>()
    }

    /// Whether a scheduler is killed.
    pub fn kills_schedulers(&self) -> bool {
        self.timeline.iter().any(|moment| matches!(moment.action, Action::KillSchedulers(_)))
    }

    /// The longest that anybody is paused, hung or cut off.
    pub fn longest_disturbance(&self) -> Duration {
        let span = |moment: &Moment| match moment.action {
            Action::PauseSchedulers(_, span)
            | Action::CutAgents(_, span)
            | Action::StallAgents(_, span) => span,
            _ => Duration::ZERO,
        };
        self.timeline.iter().map(span).max().unwrap_or_default()
    }

    /// How long after a scheduler went what nobody publishes may be explained by that: an election
    /// takes far less than five seconds (measured: 4 to 16 ms on Pulsar 4.0.8), a pause its time.
    pub fn hand_over_limit(&self) -> Duration {
        Duration::from_secs(5) + self.tolerance + self.longest_disturbance()
    }

    /// A scheduler's clock. One that was added later has the true one, and so have those of a ring,
    /// since they look at none.
    pub fn clock(&self, scheduler: u16) -> Clock {
        Clock { skew: self.skew(scheduler), drift_ppm: self.drift_ppm(scheduler) }
    }

    /// The longest that one execution may take.
    pub fn longest_execution(&self) -> Duration {
        let most = self.agents.iter().map(|group| group.execution.most()).max();
        let timeout = self.checks.iter().map(|group| group.timeout).max();
        most.unwrap_or_default().min(timeout.unwrap_or(Duration::MAX))
    }

    /// The longest that a request is worth executing.
    pub fn longest_expiry(&self) -> Duration {
        self.checks.iter().map(|group| group.expires).max().unwrap_or_default()
    }

    /// How far a scheduler's clock is off at the epoch, nanoseconds; ahead is positive. One that
    /// was added later has none.
    pub fn skew(&self, scheduler: u16) -> i64 {
        let most = i64::try_from(self.schedulers.skew.as_nanos()).unwrap_or(i64::MAX);
        self.spread(scheduler, most)
    }

    /// By how much a scheduler's clock runs too fast, parts in a million.
    pub fn drift_ppm(&self, scheduler: u16) -> i64 {
        self.spread(scheduler, i64::from(self.schedulers.drift_ppm))
    }

    /// How far any scheduler's clock may be off, at any time of the workload.
    pub fn clock_error(&self) -> Duration {
        if self.strategy == Strategy::Ring {
            return Duration::ZERO; // Its clock is etcd's.
        }
        let drift = self.duration.mul_f64(f64::from(self.schedulers.drift_ppm) / 1e6);
        self.schedulers.skew + drift
    }

    fn spread(&self, scheduler: u16, most: i64) -> i64 {
        let (nth, last) = (i64::from(scheduler), i64::from(self.schedulers.count) - 1);
        if last <= 0 || nth > last || self.strategy == Strategy::Ring {
            0
        } else {
            most / last * (2 * nth - last)
        }
    }
}

impl Strategy {
    /// The one that a backend is fit for, by what it declares: the best first.
    pub fn of(capabilities: &Capabilities) -> Self {
        let fit = |strategy: &&Strategy| strategy.missing(capabilities).is_none();
        let best = [Strategy::DedupId, Strategy::ExclusivePublisher, Strategy::Sequence];
        best.iter().find(fit).copied().unwrap_or(Strategy::None)
    }

    /// What a backend lacks for it, in its own words; `None` if it has all.
    pub fn missing(self, capabilities: &Capabilities) -> Option<String> {
        let needs = match self {
            Strategy::DedupId => Capability::DedupId,
            Strategy::ExclusivePublisher => Capability::ExclusivePublisher,
            Strategy::Sequence => Capability::DedupSequence,
            Strategy::Ring | Strategy::None => return None,
        };
        capabilities.missing(needs).map(|why| format!("{needs}: {why}"))
    }

    /// Its name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::DedupId => "dedup-id",
            Strategy::ExclusivePublisher => "exclusive-publisher",
            Strategy::Sequence => "sequence",
            Strategy::Ring => "ring",
            Strategy::None => "none",
        }
    }

    /// Whether one scheduler at a time publishes.
    pub fn elects(self) -> bool {
        matches!(self, Strategy::ExclusivePublisher | Strategy::Sequence)
    }
}

impl Check<'_> {
    /// Its name.
    pub fn name(&self) -> String {
        match self.group.count {
            1 => self.group.name.clone(),
            _ => format!("{}-{}", self.group.name, self.nth),
        }
    }
}
