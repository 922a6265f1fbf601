//! What a run shows while it runs: a bar on a terminal, a line a property elsewhere.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{plan::Plan, results::Verdict, runner::Event};

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
                    let name = &self.names[target];
                    let about = match result.verdict {
                        Verdict::Pass | Verdict::Fail => result.key_figure,
                        _ => result.reason,
                    };
                    self.line(&format!("{name} {:<32} {:<7} {about}", result.id, result.verdict));
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
        let line = line.trim_end();
        match &self.bar {
            Some(bar) => bar.println(line),
            // Nobody may be listening.
            None => drop(writeln!(std::io::stderr().lock(), "{line}")),
        }
    }
}
