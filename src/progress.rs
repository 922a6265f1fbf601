//! What a run shows while it runs: a bar on a terminal, a line a property elsewhere.

use std::{
    io::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    checker::words,
    history::nanos,
    plan::Plan,
    results::{PropertyResult, Verdict},
    runner::Event,
    schedule::{Counts, Shown},
};

/// Shows a run on standard error.
pub struct Progress {
    names: Vec<String>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For a plan; with a bar where there is a terminal.
    pub fn new(plan: &Plan, interactive: bool) -> Self {
        let total: usize = plan.targets.iter().map(|t| t.properties.len()).sum();
        let bar = interactive.then(|| {
            let bar = ProgressBar::with_draw_target(
                Some(total as u64),
                ProgressDrawTarget::stderr_with_hz(10),
            );
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { names: plan.targets.iter().map(|t| t.name.clone()).collect(), bar }
    }

    /// Shows what happened.
    pub fn show(&self, event: Event) {
        match event {
            Event::Waiting(line) => self.line(&line),
            Event::TargetAbsent { target } => self.line(&format!("{}: absent", self.names[target])),
            Event::TargetStarted { target, broker_version } => {
                let name = &self.names[target];
                match broker_version.as_str() {
                    "" => {}
                    version => self.line(&format!("{name}: version {version}")),
                }
            }
            Event::PropertyStarted { target, id } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{} {id}", self.names[target]));
                }
            }
            Event::PropertyFinished { target, result } => {
                let remarkable = !matches!(result.verdict, Verdict::Pass | Verdict::Skipped);
                if self.bar.is_none() || remarkable {
                    self.line(&verdict(&self.names[target], &result));
                }
                if let Some(bar) = &self.bar {
                    bar.inc(1);
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, line: &str) {
        tell(self.bar.as_ref(), line);
    }
}

/// Shows a workload of the scheduler on standard error: a bar with live counts on a terminal, a
/// line now and then elsewhere.
pub struct Live {
    interactive: bool,
    state: Mutex<LiveState>,
}

#[derive(Default)]
struct LiveState {
    bar: Option<ProgressBar>,
    duration: u64,
    told: Option<Instant>,
}

/// How often counts are told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

impl Live {
    /// With a bar where there is a terminal.
    pub fn new(interactive: bool) -> Self {
        Live { interactive, state: Mutex::default() }
    }

    /// Shows what happened.
    pub fn show(&self, shown: &Shown<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match shown {
            Shown::Line(line) => tell(state.bar.as_ref(), line),
            Shown::Started { target, workload } => {
                let line = format!(
                    "{target}: {} schedulers, {} checks, {} agents, for {}, once by {}",
                    workload.schedulers.count,
                    workload.check_count(),
                    workload.agent_count(),
                    humantime::format_duration(workload.duration),
                    workload.strategy.name()
                );
                tell(state.bar.as_ref(), &line);
                state.duration = nanos(workload.duration);
                state.told = Some(Instant::now());
                state.bar = self.interactive.then(|| {
                    let target = ProgressDrawTarget::stderr_with_hz(10);
                    let bar = ProgressBar::with_draw_target(Some(state.duration), target);
                    let style = ProgressStyle::with_template("{bar:30} {wide_msg}");
                    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                });
            }
            Shown::Counts(counts) => {
                let line = state.counts(counts);
                let due = state.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
                if let Some(bar) = &state.bar {
                    bar.set_position(counts.now);
                    bar.set_message(line);
                } else if due {
                    state.told = Some(Instant::now());
                    tell(None, &line);
                }
            }
            Shown::Finished { target, results } => {
                if let Some(bar) = state.bar.take() {
                    bar.finish_and_clear();
                }
                for result in *results {
                    tell(None, &verdict(target, result));
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl LiveState {
    fn counts(&self, counts: &Counts) -> String {
        let what = match counts.now {
            0 => "agents are connecting".to_string(),
            now if now >= self.duration => "draining".to_string(),
            now => format!("{} of {}", words(now), words(self.duration)),
        };
        format!(
            "{what}: {} agents, {} published ({} dropped as duplicates), {} received, {} executed",
            counts.agents, counts.published, counts.dropped, counts.received, counts.executed
        )
    }
}

/// A verdict in a line.
fn verdict(target: &str, result: &PropertyResult) -> String {
    let about = match result.verdict {
        Verdict::Pass | Verdict::Fail => &result.key_figure,
        _ => &result.reason,
    };
    format!("{target} {:<32} {:<7} {about}", result.id, result.verdict)
}

fn tell(bar: Option<&ProgressBar>, line: &str) {
    let line = line.trim_end();
    match bar {
        Some(bar) => bar.println(line),
        // Nobody may be listening.
        None => drop(writeln!(std::io::stderr().lock(), "{line}")),
    }
}
