//! What is judged of a workload as a whole.

use super::{Ending, Handover, Watch, coverage};
use crate::{
    checker::{AnomalyKind, Findings, millis, words},
    history::nanos,
    scheduler::{Action, Strategy, Workload},
};

/// What is judged of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Every tick is executed at least once.
    EveryTick,
    /// Every tick is scheduled once.
    OncePerTick,
    /// A scheduler that dies or pauses costs no tick.
    Failover,
    /// Schedulers whose clocks disagree schedule once all the same.
    Skew,
    /// The pool is covered equally.
    Coverage,
    /// Requests reach agents, and are executed, when they are due.
    Lateness,
    /// What has expired is dropped, and only that.
    Expired,
    /// What a crashed agent was executing is executed by another one.
    AgentCrash,
    /// A broadcast reaches every agent.
    Broadcast,
    /// Slow agents hold nobody else up.
    SlowMinority,
}

/// Whether a workload has anything of an aspect.
///
/// # Errors
/// Why not.
pub fn exercised(aspect: Aspect, workload: &Workload) -> Result<(), &'static str> {
    let event = |of: fn(&Action) -> bool| workload.timeline.iter().any(|m| of(&m.action));
    let broadcast = |wanted: bool| workload.checks.iter().any(|check| check.broadcast == wanted);
    let has = |is: bool, why: &'static str| if is { Ok(()) } else { Err(why) };
    match aspect {
        Aspect::EveryTick | Aspect::Expired => Ok(()),
        Aspect::OncePerTick => {
            has(workload.schedulers.count > 1, "there is one scheduler only: see --schedulers")
        }
        Aspect::Failover => has(
            event(|action| {
                matches!(
                    action,
                    Action::KillSchedulers(_)
                        | Action::StopSchedulers(_)
                        | Action::PauseSchedulers(..)
                )
            }),
            "no scheduler is killed, stopped or paused: see --event",
        ),
        Aspect::Skew => has(
            workload.clock_error() > std::time::Duration::ZERO && workload.schedulers.count > 1,
            "the schedulers' clocks agree: see --skew",
        ),
        Aspect::Coverage | Aspect::Lateness => has(broadcast(false), "all checks are broadcast"),
        Aspect::AgentCrash => {
            let churn = workload.churn.is_some_and(|churn| churn.crash > 0.0);
            let crash = event(|action| matches!(action, Action::CrashAgents(_)));
            has(churn || crash, "no agent crashes: see --event")
        }
        Aspect::Broadcast => has(broadcast(true), "no check is broadcast"),
        Aspect::SlowMinority => {
            let slow = |wanted: bool| workload.agents.iter().any(|group| group.slow == wanted);
            has(slow(true) && slow(false), "no group of agents is slow")
        }
    }
}

impl Watch {
    /// What is found of one aspect, after the last event.
    pub fn judge(&mut self, aspect: Aspect, findings: &mut Findings) {
        // What the record breaks off before its end is judged as far as it goes.
        self.close_all(Ending::BrokenOff);
        self.environment(findings);
        findings.absorb(&self.general);
        if let Some(found) = self.found.get(&aspect) {
            findings.absorb(found);
        }
        let figures = &self.figures;
        match aspect {
            Aspect::EveryTick => {
                findings.observe("ticks", figures.ticks);
                findings.observe("executed", figures.executed_ticks);
                findings.observe("executions", figures.executions);
                findings.observe("executions_failed", figures.failed);
                findings.observe("missed", figures.missed);
                findings.observe("lost", figures.lost);
                findings.observe("expired", figures.expired_ticks);
                findings.observe("left_out_on_purpose", figures.left_out);
                findings.key_figure =
                    format!("{} of {}", figures.executed_ticks, figures.ticks - figures.left_out);
                findings.require(figures.executed_ticks > 0, "no tick was executed");
            }
            Aspect::OncePerTick => self.once_per_tick(findings),
            Aspect::Failover => self.failover(findings),
            Aspect::Skew => self.skew(findings),
            Aspect::Coverage => coverage::judge(self, findings),
            Aspect::Lateness => {
                figures.observe_agents(findings);
                findings.observe("connecting_ms", millis(figures.connecting()));
                figures.received_after.observe("received", findings);
                figures.begun_after.observe("begun", findings);
                figures.ended_after.observe("ended", findings);
                findings.observe("late", figures.late);
                findings.observe("late_with_a_cause", figures.late_excused);
                findings.observe("behind_own_work", figures.behind_own_work);
                let p99 = figures.received_after.quantile(0.99);
                let max = figures.received_after.max();
                findings.key_figure = format!("p99 {}, max {}", words(p99), words(max));
                findings.require(figures.received_after.len() > 0, "no request was received");
                self.unseen(findings, AnomalyKind::LateTick);
            }
            Aspect::Expired => {
                findings.observe("dropped", figures.expired);
                findings.observe("received", figures.received);
                findings.key_figure = format!("{} dropped", figures.expired);
                findings.require(figures.received > 0, "no request was received");
                // Where all agents hang for longer than a request is worth executing.
                let hang = |moment: &crate::scheduler::Moment| match moment.action {
                    Action::StallAgents(count, span) => {
                        count >= self.workload.agent_count()
                            && span > self.workload.longest_expiry()
                    }
                    _ => false,
                };
                if self.workload.timeline.iter().any(hang) {
                    findings.require(
                        figures.expired > 0 || !findings.clean(),
                        "no request had expired, though all agents hung for longer",
                    );
                }
            }
            Aspect::AgentCrash => {
                findings.observe("broken_off", figures.broken_off);
                figures.rescued.observe("elsewhere_after", findings);
                findings.key_figure = match figures.rescued.len() {
                    0 => format!("{} broken off, 0 elsewhere", figures.broken_off),
                    n => format!("{n} elsewhere, within {}", words(figures.rescued.max())),
                };
                findings.require(figures.broken_off > 0, "no crash broke an execution off");
            }
            Aspect::Broadcast => {
                findings.observe("broadcasts", figures.broadcasts);
                findings.observe("received", figures.broadcast_deliveries);
                findings.key_figure =
                    format!("{} to {}", figures.broadcasts, figures.broadcast_deliveries);
                findings.require(figures.broadcast_deliveries > 1, "no broadcast was received");
            }
            Aspect::SlowMinority => {
                findings.observe("by_slow_agents", figures.by_slow);
                findings.observe("by_fast_agents", figures.by_fast);
                figures.received_after_by_fast.observe("received_by_fast", findings);
                findings.observe("behind_own_work", figures.behind_own_work);
                let p99 = figures.received_after_by_fast.quantile(0.99);
                findings.key_figure = format!("p99 of the fast {}", words(p99));
                self.unseen(findings, AnomalyKind::Blocked);
                let both = figures.by_slow > 0 && figures.by_fast > 0;
                findings.require(
                    both || !findings.clean(),
                    "slow and fast agents did not both execute",
                );
            }
        }
        if self.drained.is_none() {
            findings.undecided("the queue was not drained to its end");
            findings.observe("ticks_still_open", figures.broken_off_ticks);
        }
    }

    fn once_per_tick(&self, findings: &mut Findings) {
        let figures = &self.figures;
        findings.observe("ticks", figures.ticks);
        findings.observe("published", figures.published);
        findings.observe("dropped_as_duplicates", figures.dropped);
        findings.observe("publishes_unconfirmed", figures.unconfirmed);
        findings.observe("extra_copies", figures.extra_copies);
        findings.observe("received", figures.received);
        findings.observe("executions", figures.executions);
        figures.observe_redelivered(findings);
        let per_tick = figures.extra_copies as f64 / figures.delivered_ticks.max(1) as f64;
        findings.observe("extra_per_tick", (per_tick * 1e3).round() / 1e3);
        let again = figures.redelivered_in_all();
        findings.key_figure = match figures.extra_copies {
            0 if again == 0 => format!("{} once each", figures.delivered_ticks),
            0 => format!("{} once each, {again} handed on", figures.delivered_ticks),
            _ => format!("{per_tick:.2} extra per tick"),
        };
        // Where one publishes at a time, nobody is there to be dropped.
        let competed =
            figures.published > figures.delivered_ticks || self.workload.strategy.elects();
        findings.require(figures.delivered_ticks > 0, "no tick was received");
        findings.require(competed || !findings.clean(), "no two schedulers published a tick");
    }

    fn failover(&self, findings: &mut Findings) {
        let gap = self.handovers.iter().map(|handover| handover.gap).max().unwrap_or(0);
        let replaced = |h: &Handover| (h.excuses && !h.pause).then_some(h.replaced? - h.at);
        let after = self.handovers.iter().filter_map(replaced).max();
        findings.observe("handovers", self.handovers.len());
        findings.observe("missed_in_gap", self.figures.missed_in_gap);
        findings.observe("longest_wait_for_publish_ms", millis(gap));
        if let Some(after) = after {
            findings.observe("replaced_after_ms", millis(after));
        }
        findings.key_figure = match after {
            Some(after) => format!("after {}, {} missed", words(after), self.figures.missed_in_gap),
            None => format!("longest gap {}", words(gap)),
        };
        findings.require(!self.handovers.is_empty(), "no scheduler that published went");
        let (true, Some(ended)) = (self.workload.strategy.elects(), self.ended) else { return };
        for handover in self.handovers.iter().filter(|h| h.replaced.is_none() && !h.pause) {
            // It must have had the time, and there must have been somebody.
            if handover.until < ended && self.any_ran(handover.until) {
                findings.anomaly(AnomalyKind::NoHandOver, || {
                    format!(
                        "nobody was elected after the one elected went at {}",
                        words(handover.at)
                    )
                });
            }
        }
    }

    fn skew(&self, findings: &mut Findings) {
        let figures = &self.figures;
        figures.spread.observe("spread", findings);
        figures.early.observe("before_due", findings);
        findings.observe("extra_copies", figures.extra_copies);
        findings.observe("extra_copies_beyond_window", figures.explained_copies);
        let max = figures.spread.max();
        findings.key_figure = match figures.explained_copies {
            0 => format!("up to {} apart", words(max)),
            n => format!("{n} twice, up to {} apart", words(max)),
        };
        let window = nanos(self.workload.dedup_window);
        let apart = nanos(self.workload.clock_error() * 2);
        findings.require(
            figures.spread.len() > 0 || self.workload.strategy.elects(),
            "no two schedulers published a tick",
        );
        if self.workload.strategy == Strategy::DedupId && apart > window.saturating_add(window / 10)
        {
            findings.require(
                figures.explained_copies > 0 || !findings.clean(),
                "no tick was scheduled twice, though the clocks differ by more than the window",
            );
        }
    }

    /// Agents that went may have had some ticks in their hands, unseen, and not more than they have
    /// room for.
    fn unseen(&self, findings: &mut Findings, kind: AnomalyKind) {
        for (pool, &late) in (0..).zip(&self.figures.late_unseen) {
            let room = self.agents.room(pool).map_or(0, |room| room.unseen);
            if late > room {
                findings.anomaly(kind, || {
                    format!(
                        "{late} ticks were received late of which agents that went, were cut or hung \
                         can have held {room}, unseen"
                    )
                });
            }
        }
    }

    /// A connection that was lost and that nobody cut: the environment failed.
    fn environment(&self, findings: &mut Findings) {
        if self.lost_connections > 0 && self.restarts.is_empty() {
            findings.observe("connections_lost", self.lost_connections);
            findings.disturbed(format!(
                "connections to the broker were lost {} time(s) without being cut",
                self.lost_connections
            ));
        }
    }
}
