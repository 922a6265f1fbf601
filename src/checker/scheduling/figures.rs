//! Figures of a workload that need no more memory as time passes.

use hdrhistogram::Histogram;

use super::{again::Cause, tick::Fate};
use crate::checker::{Findings, evidence::Time};

/// The figures.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) ticks: u64,
    pub(super) executed_ticks: u64,
    pub(super) missed: u64,
    pub(super) lost: u64,
    pub(super) expired_ticks: u64,
    pub(super) left_out: u64,
    /// Ticks that were missed while the broker elected another scheduler.
    pub(super) missed_in_gap: u64,
    pub(super) published: u64,
    pub(super) dropped: u64,
    pub(super) unconfirmed: u64,
    /// The longest that the broker took to confirm a publish, restarts apart.
    pub(super) slowest_answer: Time,
    pub(super) received: u64,
    pub(super) executions: u64,
    pub(super) failed: u64,
    pub(super) expired: u64,
    /// Ticks of which something was delivered, and copies of ticks that were delivered beside the
    /// first.
    pub(super) delivered_ticks: u64,
    pub(super) extra_copies: u64,
    pub(super) explained_copies: u64,
    redelivered: [u64; Cause::ALL.len()],
    pub(super) redelivered_without_cause: u64,
    /// Ticks that were open when the record broke off.
    pub(super) broken_off_ticks: u64,
    /// For each pool: ticks that came late, and that an agent that went may have had, unseen.
    pub(super) late_unseen: Vec<u64>,
    /// Deliveries that a crash broke off, and how long after it their ticks were received again.
    pub(super) broken_off: u64,
    pub(super) rescued: Spans,
    pub(super) received_after: Spans,
    pub(super) begun_after: Spans,
    pub(super) ended_after: Spans,
    pub(super) received_after_by_fast: Spans,
    pub(super) spread: Spans,
    pub(super) early: Spans,
    pub(super) late: u64,
    pub(super) late_excused: u64,
    pub(super) behind_own_work: u64,
    pub(super) broadcasts: u64,
    pub(super) broadcast_deliveries: u64,
    pub(super) by_slow: u64,
    pub(super) by_fast: u64,
    agents: u64,
    joining: Option<(Time, Time)>,
}

/// Spans of time, to three digits, in constant memory.
#[derive(Debug)]
pub(super) struct Spans {
    all: Histogram<u64>,
    /// The longest, exactly.
    max: Time,
}

impl Spans {
    fn new() -> Self {
        // Three digits of microseconds; it grows by itself. They are in its range.
        #[expect(clippy::expect_used)] // three digits are always taken
        Spans { all: Histogram::new(3).expect("three significant digits"), max: 0 }
    }

    pub(super) fn add(&mut self, nanos: Time) {
        // It grows by itself: what 64 bits of nanoseconds hold has room.
        let _ = self.all.record(nanos / 1000);
        self.max = self.max.max(nanos);
    }

    pub(super) fn len(&self) -> u64 {
        self.all.len()
    }

    pub(super) fn quantile(&self, quantile: f64) -> Time {
        (self.all.value_at_quantile(quantile) * 1000).min(self.max)
    }

    pub(super) fn max(&self) -> Time {
        self.max
    }

    /// Notes count, median, 99th percentile and the longest under names that begin so.
    pub(super) fn observe(&self, name: &str, findings: &mut Findings) {
        if self.all.is_empty() {
            return;
        }
        let ms = |nanos: Time| (nanos as f64 / 1e4).round() / 100.0;
        findings.observe(&format!("{name}_p50_ms"), ms(self.quantile(0.5)));
        findings.observe(&format!("{name}_p99_ms"), ms(self.quantile(0.99)));
        findings.observe(&format!("{name}_max_ms"), ms(self.max()));
    }
}

impl Figures {
    pub(super) fn new(pools: usize) -> Self {
        Figures {
            ticks: 0,
            executed_ticks: 0,
            missed: 0,
            lost: 0,
            expired_ticks: 0,
            left_out: 0,
            missed_in_gap: 0,
            published: 0,
            dropped: 0,
            unconfirmed: 0,
            slowest_answer: 0,
            received: 0,
            executions: 0,
            failed: 0,
            expired: 0,
            delivered_ticks: 0,
            extra_copies: 0,
            explained_copies: 0,
            redelivered: [0; Cause::ALL.len()],
            redelivered_without_cause: 0,
            broken_off_ticks: 0,
            late_unseen: vec![0; pools],
            broken_off: 0,
            rescued: Spans::new(),
            received_after: Spans::new(),
            begun_after: Spans::new(),
            ended_after: Spans::new(),
            received_after_by_fast: Spans::new(),
            spread: Spans::new(),
            early: Spans::new(),
            late: 0,
            late_excused: 0,
            behind_own_work: 0,
            broadcasts: 0,
            broadcast_deliveries: 0,
            by_slow: 0,
            by_fast: 0,
            agents: 0,
            joining: None,
        }
    }

    pub(super) fn published(&mut self, fate: Fate) {
        match fate {
            Fate::Stored => self.published += 1,
            Fate::Dropped => {
                self.published += 1;
                self.dropped += 1;
            }
            Fate::Unknown | Fate::NotStored => self.unconfirmed += 1,
        }
    }

    pub(super) fn executed(&mut self, ok: bool) {
        match ok {
            true => self.executions += 1,
            false => self.failed += 1,
        }
    }

    pub(super) fn redelivered(&mut self, cause: Cause) {
        self.redelivered[cause as usize] += 1;
    }

    /// An agent joined; those that did before the epoch are counted and timed.
    pub(super) fn joined(&mut self, at: (Time, Time), first: bool) {
        if !first {
            return;
        }
        self.agents += 1;
        self.joining = Some(match self.joining {
            Some((first, last)) => (first.min(at.0), last.max(at.1)),
            None => at,
        });
    }

    /// How many agents there were at the epoch.
    pub(super) fn observe_agents(&self, findings: &mut Findings) {
        findings.observe("agents", self.agents);
    }

    pub(super) fn connecting(&self) -> Time {
        self.joining.map_or(0, |(first, last)| last - first)
    }

    pub(super) fn observe_redelivered(&self, findings: &mut Findings) {
        for cause in Cause::ALL {
            let count = self.redelivered[cause as usize];
            if count > 0 {
                findings.observe(&format!("again_{}", cause.name()), count);
            }
        }
    }

    pub(super) fn redelivered_in_all(&self) -> u64 {
        self.redelivered.iter().sum()
    }
}
