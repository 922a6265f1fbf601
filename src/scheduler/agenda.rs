//! What happens while a workload runs, by time: its timeline, its churn, samples of the broker.

use std::{collections::VecDeque, time::Duration};

use super::{Action, Churn, Workload};
use crate::history::nanos;

/// How often the broker's load is sampled.
pub(super) const SAMPLE: Duration = Duration::from_secs(1);

/// What is to happen, by time since the epoch.
pub(super) struct Agenda {
    /// What is known in advance, the latest first.
    known: Vec<(u64, Action)>,
    churn: Option<(u64, Churn)>,
    /// When agents come back that went, the earliest first.
    coming: VecDeque<(u64, u32)>,
    sample: Option<u64>,
    end: u64,
}

/// What happens.
pub(super) enum Happens {
    /// Something of the timeline.
    Action(Action),
    /// The broker's load is sampled.
    Sample,
    /// So many agents go, each by crashing with this chance.
    Go(u32, f64),
    /// So many agents come.
    Come(u32),
}

impl Agenda {
    pub(super) fn new(workload: &Workload, samples: bool) -> Self {
        let moments = workload.timeline.iter().map(|moment| (nanos(moment.at), moment.action));
        let mut known: Vec<_> = moments.collect();
        // Those of the same time in the order in which they are written.
        known.sort_by_key(|(at, _)| *at);
        known.reverse();
        Agenda {
            known,
            churn: workload.churn.map(|churn| (nanos(churn.every), churn)),
            coming: VecDeque::new(),
            sample: samples.then_some(nanos(SAMPLE)),
            end: nanos(workload.duration),
        }
    }

    /// The next, and when; `None` when the duration is over.
    pub(super) fn next(&mut self) -> Option<(u64, Happens)> {
        let times = [
            self.known.last().map(|(at, _)| *at),
            self.coming.front().map(|(at, _)| *at),
            self.churn.map(|(at, _)| at),
            self.sample,
        ];
        let (which, at) = (0..)
            .zip(times)
            .filter_map(|(which, at)| Some((which, at?)))
            .min_by_key(|&(which, at)| (at, which))?;
        if at >= self.end {
            return None;
        }
        let what = match which {
            0 => Happens::Action(self.known.pop()?.1),
            1 => Happens::Come(self.coming.pop_front()?.1),
            2 => {
                let (due, churn) = self.churn.as_mut()?;
                self.coming.push_back((*due + nanos(churn.away), churn.agents));
                *due += nanos(churn.every);
                Happens::Go(churn.agents, churn.crash)
            }
            _ => {
                self.sample = Some(at + nanos(SAMPLE));
                Happens::Sample
            }
        };
        Some((at, what))
    }
}
