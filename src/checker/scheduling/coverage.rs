//! How equally a pool was covered.

use super::{Watch, crew::Agent};
use crate::{
    checker::{AnomalyKind, Findings, millis},
    scheduler::AgentGroup,
};

/// How improbable it must be that choosing by chance gives any agent as little.
const IMPROBABLE: f64 = 1e-6;

/// Judges the shares of those agents that were there, undisturbed, from the epoch to the end.
pub(super) fn judge(watch: &Watch, findings: &mut Findings) {
    let (Some(from), Some(until)) = (watch.epoch, watch.ended) else {
        findings.undecided("the workload did not come to its end");
        return;
    };
    let mut seen = false;
    for (pool, name, group) in kinds(watch) {
        let share = |agent: &Agent| {
            agent.shares.iter().find(|share| share.pool == pool).map(|s| (s.received, s.first))
        };
        // Only agents that are alike can be expected to get as much as each other.
        let alike = |agent: &Agent| !agent.slow && agent.group == group;
        let steady =
            watch.agents.iter().filter(|(_, agent)| alike(agent) && agent.steady(from, until));
        let shares: Vec<_> =
            steady.filter_map(|(id, agent)| Some((id, share(agent)?, agent.idle))).collect();
        if shares.len() < 2 {
            continue;
        }
        let key = |figure: &str| format!("{name}{figure}");
        let agents = shares.len() as f64;
        let counts = || shares.iter().map(|(_, (count, _), _)| f64::from(*count));
        let total: f64 = counts().sum();
        let squares: f64 = counts().map(|count| count * count).sum();
        let mean = total / agents;
        let least = shares.iter().map(|(_, (count, _), _)| *count).min().unwrap_or(0);
        let most = shares.iter().map(|(_, (count, _), _)| *count).max().unwrap_or(0);
        let idle = shares.iter().map(|(_, _, idle)| *idle).max().unwrap_or(0);
        let jain = if squares > 0.0 { total * total / (agents * squares) } else { 0.0 };
        // The expectation of a sum of squares of multinomial counts.
        let by_chance = total / (agents + total - 1.0);
        let round = |value: f64| (value * 1e4).round() / 1e4;
        findings.observe(&key("agents"), shares.len());
        findings.observe(&key("received"), total as u64);
        findings.observe(&key("share_min"), least);
        findings.observe(&key("share_max"), most);
        findings.observe(&key("jain"), round(jain));
        findings.observe(&key("jain_by_chance"), round(by_chance));
        findings.observe(&key("longest_idle_ms"), millis(idle));
        let duration = until.saturating_sub(from) as f64;
        if total > 0.0 {
            let idle_in_turn = duration / total * agents;
            findings.observe(&key("longest_idle_in_turn_ms"), millis(idle_in_turn as u64));
        }
        if least > 0 {
            let first = shares.iter().map(|(_, (_, first), _)| *first).max().unwrap_or(0);
            let harmonic: f64 = (1..=shares.len()).map(|n| 1.0 / n as f64).sum();
            findings.observe(&key("until_all_had_one"), first);
            findings.observe(&key("until_all_had_one_in_turn"), shares.len());
            findings
                .observe(&key("until_all_had_one_by_chance"), (agents * harmonic).round() as u64);
        }
        findings.key_figure = format!("Jain {jain:.4}, {least}–{most}");
        if agents * (-mean).exp() >= IMPROBABLE {
            findings.undecided(format!(
                "{total} requests for {agents} agents are too few to tell an agent that is left out \
                 from one that chance leaves out"
            ));
        }
        seen = true;
        for (agent, (count, _), idle) in &shares {
            if agents * at_most(mean, *count) < IMPROBABLE {
                findings.anomaly(AnomalyKind::Starved, || {
                    format!(
                        "agent {agent} was given {count} of {total} requests, with {mean:.1} for each \
                         of {agents} agents, and nothing for {:.1} s",
                        *idle as f64 / 1e9
                    )
                });
            }
        }
    }
    findings.require(seen, "fewer than two agents were there throughout");
}

/// The kinds of agents that are judged: by their pool and their group, with what the names of their
/// figures begin with where there are several.
fn kinds(watch: &Watch) -> impl Iterator<Item = (u16, String, usize)> + '_ {
    let workload = &watch.workload;
    let pools = (0..).zip(&workload.pools);
    pools.flat_map(move |(pool, name)| {
        let of_pool = move |group: &AgentGroup| group.pools.contains(&pool) && !group.slow;
        let several = workload.agents.iter().filter(|group| of_pool(group)).count() > 1;
        let groups = workload.agents.iter().enumerate().filter(move |(_, group)| of_pool(group));
        groups.map(move |(group, _)| {
            let pool_name = if workload.pools.len() == 1 { "" } else { name };
            let of_group = if several { format!("group_{group}") } else { String::new() };
            let parts = [pool_name, &of_group].into_iter().filter(|part| !part.is_empty());
            (pool, parts.map(|part| format!("{part}_")).collect(), group)
        })
    })
}

/// The probability that a Poisson variable of this mean is at most so large.
fn at_most(mean: f64, count: u32) -> f64 {
    let count = f64::from(count);
    if count >= mean {
        return 1.0;
    }
    // From the largest term down, in logarithms, until what is left does not matter.
    let mut term = count * mean.ln() - mean - ln_factorial(count as u32);
    let mut sum = 0.0;
    let mut k = count;
    loop {
        let value = term.exp();
        sum += value;
        if k < 1.0 || value < sum * 1e-12 {
            return sum;
        }
        term += k.ln() - mean.ln();
        k -= 1.0;
    }
}

fn ln_factorial(n: u32) -> f64 {
    (2..=n).map(|k| f64::from(k).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_poisson_distribution_is_what_tables_say() {
        assert!((at_most(10.0, 0) - 4.539_993e-5).abs() < 1e-10);
        assert!((at_most(10.0, 5) - 0.067_086).abs() < 1e-6);
        assert!((at_most(30.0, 10) - 2.235e-5).abs() < 1e-7);
        assert_eq!(at_most(3.0, 3), 1.0);
    }
}
