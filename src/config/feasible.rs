//! Whether a workload can be run at all, and what in it is probably not meant.

use queueproof_backends::{Capabilities, Capability};

use super::{ConfigError, Schedule};
use crate::{
    plan::{BackendPlan, TargetPlan},
    scheduler::{Action, Moment, Strategy, Workload},
};

impl Schedule {
    /// Checks what depends on the target: that its broker can be restarted if that is asked for, and
    /// that there are descriptors enough. The limit is raised as far as this process may.
    ///
    /// # Errors
    /// What cannot be, with the number needed.
    pub fn fits(&self, workload: &Workload, target: &TargetPlan) -> Result<(), ConfigError> {
        let restarts = |moment: &&Moment| moment.action == Action::RestartBroker;
        if let Some(moment) = workload.timeline.iter().find(restarts) {
            let why = match &target.backend {
                BackendPlan::Memory(_) => "the embedded broker has no process to restart",
                backend if backend.is_remote() => "the broker at a URL is not ours to restart",
                _ => "",
            };
            if !why.is_empty() {
                return Err(ConfigError::new(format!("schedule.timeline: {moment}: {why}")));
            }
        }
        let needed = descriptors(workload, target);
        let limit = raise_descriptors(needed);
        if needed > limit {
            return Err(ConfigError::new(format!(
                "schedule.agents: {} agents on {} need some {needed} file descriptors, and this \
                 process may have {limit}; raise the limit (ulimit -n {needed}), or let agents share \
                 connections (schedule.agents_per_connection)",
                workload.most_agents(),
                target.name
            )));
        }
        Ok(())
    }

    /// What is allowed and probably not meant, or will show in the results.
    pub fn warnings(&self, workload: &Workload, capabilities: &Capabilities) -> Vec<String> {
        let words = |span| humantime::format_duration(span).to_string();
        let mut warnings = Vec::new();
        let apart = workload.clock_error() * 2;
        let window = workload.dedup_window;
        if workload.strategy == Strategy::DedupId && apart >= window {
            warnings.push(format!(
                "the schedulers' clocks may differ by {}, and the deduplication window is {}: ticks \
                 will be scheduled twice",
                words(apart),
                words(window)
            ));
        }
        if !capabilities.has(Capability::DedupWindow) && workload.strategy == Strategy::DedupId {
            warnings.push("this broker's deduplication window is not set by a topic".into());
        }
        for moment in &workload.timeline {
            if let Action::PauseSchedulers(_, span) = moment.action
                && workload.schedulers.catch_up
                && workload.strategy == Strategy::DedupId
                && span + apart >= window
            {
                warnings.push(format!(
                    "{moment}: what it catches up then is older than the deduplication window of {}: \
                     ticks will be scheduled twice",
                    words(window)
                ));
            }
        }
        if workload.longest_execution() > workload.ack_timeout
            && !capabilities.has(Capability::Touch)
        {
            warnings.push(format!(
                "an execution may take {}, longer than the ack timeout of {}, and this backend \
                 cannot extend a lock: such requests are executed more than once",
                words(workload.longest_execution()),
                words(workload.ack_timeout)
            ));
        }
        let least = workload.checks.iter().map(|group| group.expires).min().unwrap_or_default();
        if least < workload.ack_timeout {
            warnings.push(format!(
                "requests expire after {}, sooner than a lock passes ({}): what a crashed agent \
                 held may be missed",
                words(least),
                words(workload.ack_timeout)
            ));
        }
        if workload.strategy == Strategy::None && workload.schedulers.count > 1 {
            warnings.push(format!(
                "this backend cannot keep {} schedulers from scheduling each tick: duplicates will \
                 appear, and are counted",
                workload.schedulers.count
            ));
        }
        warnings
    }
}

/// Checks that the timeline asks for nothing that cannot be.
pub(super) fn check_timeline(workload: &Workload) -> Result<(), ConfigError> {
    let mut schedulers = u64::from(workload.schedulers.count);
    let mut agents = u64::from(workload.agent_count());
    let mut moments: Vec<_> = workload.timeline.iter().collect();
    moments.sort_by_key(|moment| moment.at);
    for moment in moments {
        let wrong =
            |why: String| Err(ConfigError::new(format!("schedule.timeline: {moment}: {why}")));
        if moment.at >= workload.duration {
            let end = humantime::format_duration(workload.duration);
            return wrong(format!("the workload is over after {end}"));
        }
        let (all, count, who) = match moment.action {
            Action::StopSchedulers(n) | Action::KillSchedulers(n) => {
                (Some(&mut schedulers), n, "schedulers")
            }
            Action::PauseSchedulers(n, _) if u64::from(n) > schedulers => {
                return wrong(format!("there are {schedulers} schedulers then"));
            }
            Action::AddSchedulers(n) => {
                schedulers += u64::from(n);
                (None, n, "")
            }
            Action::JoinAgents(n) => {
                agents += u64::from(n);
                (None, n, "")
            }
            Action::LeaveAgents(n) | Action::CrashAgents(n) => (Some(&mut agents), n, "agents"),
            Action::CutAgents(n, _) | Action::StallAgents(n, _) if u64::from(n) > agents => {
                return wrong(format!("there are {agents} agents then"));
            }
            _ => (None, 0, ""),
        };
        if let Some(there) = all {
            match there.checked_sub(u64::from(count)) {
                Some(left) => *there = left,
                None => return wrong(format!("there are {there} {who} then")),
            }
        }
    }
    Ok(())
}

/// How many file descriptors a workload needs in this process, and as many in the broker's, with
/// some to spare.
fn descriptors(workload: &Workload, target: &TargetPlan) -> u64 {
    const SPARE: u64 = 100;
    let agents = u64::from(workload.most_agents());
    let pools = workload.agents.iter().map(|group| group.pools.len() as u64).max().unwrap_or(1);
    let connections = match &target.backend {
        BackendPlan::Memory(_) => return 0,
        // Each consumer is a connection of its own, whatever is wanted.
        BackendPlan::Nsq(_) => agents * pools,
        _ if workload.connection_per_agent => agents,
        _ => agents.div_ceil(workload.agents_per_connection.into()),
    };
    // A link is a socket more on each side.
    let linked = u64::from(workload.cut_agents()) * 3;
    connections + linked + u64::from(workload.schedulers.count) * 4 + SPARE
}

/// Raises the limit of descriptors as far as needed and allowed; what it is then.
fn raise_descriptors(needed: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let (current, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if current >= needed {
        return current;
    }
    let raised = Rlimit { current: Some(needed.min(most)), maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => needed.min(most),
        Err(_) => current,
    }
}
