//! Runs a plan: scenarios in, histories and verdicts out.
//!
//! Each property runs on a thread with a runtime of its own, so that scenarios are single tasks
//! and an embedded broker's clock can be simulated. `jobs` of them run at the same time on one
//! target; targets follow one another, so that they do not disturb each other's figures.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use queueproof_backends::Connector;
use tokio_util::sync::CancellationToken;

use crate::{
    conformance::{self, Property, Stage},
    flaw::Flaw,
    history::{self, Halt, Header, History, Ledger, RunRecord, TargetRecord},
    names,
    plan::{Plan, TargetPlan},
    results::{Host, PropertyResult, Results, Run, SCHEMA, TargetResult, Tool, Verdict},
    target::{Introduction, Reached, Unreached, Waiting, runtime},
};

/// What happens during a run, for whoever shows it.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something takes long: what, in words.
    Waiting(String),
    /// A target is not there, and need not be.
    TargetAbsent {
        /// Its place in the plan.
        target: usize,
    },
    /// A target was reached, or could not be (then its properties follow as `broken`).
    TargetStarted {
        /// Its place in the plan.
        target: usize,
        /// The broker's version in its own words; empty if unknown.
        broker_version: String,
    },
    /// A property began.
    PropertyStarted {
        /// The target's place in the plan.
        target: usize,
        /// The property.
        id: &'static str,
    },
    /// A property ended.
    PropertyFinished {
        /// The target's place in the plan.
        target: usize,
        /// What was found.
        result: PropertyResult,
    },
}

/// Runs a plan to its end, or to its cancellation (what had not ended is `broken` then).
///
/// # Errors
/// Where the folder for the histories cannot be written.
pub fn run(
    plan: &Plan,
    cancel: &CancellationToken,
    show: &(dyn Fn(Event) + Sync),
) -> Result<Results, history::HistoryError> {
    let began = Instant::now();
    let mut run = Run {
        seed: plan.seed,
        started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        duration_ms: 0,
        host: Host::this(),
    };
    let mut record = RunRecord::new(run.clone(), Vec::new());
    if let Some(folder) = &plan.out {
        history::begin_run(folder)?;
        history::write_run(folder, &record)?;
    }
    let mut targets = Vec::new();
    for (index, target) in plan.targets.iter().enumerate() {
        let reached = reach(target, cancel, &|line| show(Event::Waiting(line.into())));
        let (introduction, broken, absent) = match &reached {
            Ok((_, introduction)) => (Some(introduction), None, None),
            Err(Unreached::Absent(reason)) if target.optional => (None, None, Some(reason.clone())),
            Err(Unreached::Absent(reason) | Unreached::Broken(reason)) => {
                (None, Some(reason.clone()), None)
            }
        };
        let version = introduction.map(|i| i.broker_version.clone()).unwrap_or_default();
        let capabilities = introduction.map(|i| i.capabilities.clone());
        if let Some(folder) = &plan.out {
            record.targets.push(TargetRecord {
                name: target.name.clone(),
                backend: target.backend.name().into(),
                broker_version: version.clone(),
                settings: target.settings.clone(),
                capabilities: capabilities.clone(),
                broken: broken.clone(),
                absent: absent.clone(),
                properties: target.properties.iter().map(|p| p.id.into()).collect(),
                schedule: false,
            });
            history::write_run(folder, &record)?;
        }
        show(match absent {
            Some(_) => Event::TargetAbsent { target: index },
            None => Event::TargetStarted { target: index, broker_version: version.clone() },
        });
        let show_result = |result: &PropertyResult| {
            show(Event::PropertyFinished { target: index, result: result.clone() });
        };
        let properties = match reached {
            Err(_) if absent.is_some() => Vec::new(),
            Err(_) => {
                let reason = broken.unwrap_or_default();
                let broken = |p: &&'static Property| conformance::broken(p, reason.clone());
                let results: Vec<_> = target.properties.iter().map(broken).collect();
                results.iter().for_each(show_result);
                results
            }
            Ok((reached, introduction)) => {
                let crew = Crew {
                    plan,
                    target,
                    connector: Arc::clone(&reached.connector),
                    introduction,
                    cancel,
                    dead: Mutex::default(),
                };
                let results = crew
                    .work(&|id| show(Event::PropertyStarted { target: index, id }), &show_result);
                // Only now may a private broker stop.
                drop(reached);
                results
            }
        };
        targets.push(TargetResult {
            name: target.name.clone(),
            backend: target.backend.name().into(),
            broker_version: version,
            settings: target.settings.clone(),
            absent,
            demonstrated: conformance::demonstrated(capabilities.as_ref(), &properties),
            capabilities,
            cost: Default::default(),
            properties,
        });
    }
    run.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let results = Results { schema: SCHEMA.into(), tool: Tool::this(), run, targets };
    if let Some(folder) = &plan.out {
        record.run = results.run.clone();
        history::write_run(folder, &record)?;
    }
    Ok(results)
}

/// Makes a target ready.
fn reach(
    plan: &TargetPlan,
    cancel: &CancellationToken,
    tell: &dyn Fn(&str),
) -> Result<(Reached, Introduction), Unreached> {
    waiting(cancel, tell, |waiting| {
        let reached = Reached::new(plan, waiting)?;
        let introduction = reached.introduce().map_err(Unreached::Broken)?;
        Ok((reached, introduction))
    })
}

/// Does something that blocks, and can be told that the user does not want to wait for it.
pub(crate) fn waiting<T>(
    cancel: &CancellationToken,
    tell: &dyn Fn(&str),
    act: impl FnOnce(Waiting<'_>) -> Result<T, Unreached>,
) -> Result<T, Unreached> {
    if cancel.is_cancelled() {
        return Err(Unreached::Broken(INTERRUPTED.into()));
    }
    let interrupted = AtomicBool::new(false);
    let (done, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // Starting a broker blocks; somebody else must look whether the user wants to wait.
        let interrupted = &interrupted;
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) =
                over.recv_timeout(Duration::from_millis(100))
            {
                if cancel.is_cancelled() {
                    interrupted.store(true, Ordering::Relaxed);
                }
            }
        });
        let acted = act(Waiting { interrupted, tell });
        drop(done);
        acted
    })
}

pub(crate) const INTERRUPTED: &str = "the run was interrupted";

/// Those who check the properties of one target.
struct Crew<'a> {
    plan: &'a Plan,
    target: &'a TargetPlan,
    connector: Arc<dyn Connector>,
    introduction: Introduction,
    cancel: &'a CancellationToken,
    /// Why the target is not worth trying any more.
    dead: Mutex<Option<String>>,
}

impl Crew<'_> {
    /// Checks all properties of the target.
    fn work(
        &self,
        started: &(dyn Fn(&'static str) + Sync),
        finished: &dyn Fn(&PropertyResult),
    ) -> Vec<PropertyResult> {
        let properties = &self.target.properties;
        let next = AtomicUsize::new(0);
        let mut results: Vec<Option<PropertyResult>> = vec![None; properties.len()];
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..self.plan.jobs.clamp(1, properties.len().max(1)) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let index = next.fetch_add(1, Ordering::Relaxed)
                        && let Some(property) = properties.get(index)
                    {
                        started(property.id);
                        if sender.send((index, self.check(property))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (index, result) in receiver {
                finished(&result);
                results[index] = Some(result);
            }
        });
        let lost = |(result, property): (Option<PropertyResult>, &&'static Property)| {
            result.unwrap_or_else(|| conformance::broken(property, "its thread ended".into()))
        };
        results.into_iter().zip(properties).map(lost).collect()
    }

    /// Checks one property.
    fn check(&self, property: &'static Property) -> PropertyResult {
        if let Some(skipped) = conformance::skipped(property, &self.introduction.capabilities) {
            return skipped;
        }
        let dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let halt = dead.or_else(|| self.cancel.is_cancelled().then(|| INTERRUPTED.into()));
        let path = self
            .plan
            .out
            .as_ref()
            .map(|folder| RunRecord::history_path(folder, &self.target.name, property.id));
        let history = match self.play(property, path, halt) {
            Ok(history) => history,
            Err(reason) => return conformance::broken(property, reason),
        };
        let result = conformance::judge(property, &history)
            .unwrap_or_else(|problem| conformance::broken(property, problem));
        if result.verdict == Verdict::Broken {
            self.look_for_life();
        }
        result
    }

    /// Plays a property's scenario, and returns its history.
    fn play(
        &self,
        property: &'static Property,
        path: Option<PathBuf>,
        halt: Option<String>,
    ) -> Result<History, String> {
        let simulated = self.connector.virtual_time();
        // Each simulated clock has its own time: what lives on one is not shared.
        let connector = match simulated {
            true => {
                let nobody = Waiting { interrupted: &AtomicBool::new(false), tell: &|_| {} };
                let reached = Reached::new(self.target, nobody);
                let reason = |(Unreached::Absent(reason) | Unreached::Broken(reason))| reason;
                reached.map_err(reason)?.connector
            }
            false => Arc::clone(&self.connector),
        };
        let runtime = runtime(simulated).map_err(|e| format!("no runtime can be made: {e}"))?;
        runtime.block_on(async {
            let header = Header {
                schema: history::SCHEMA.into(),
                target: self.target.name.clone(),
                property: property.id.into(),
                seed: self.plan.seed,
                suite: self.target.suite.clone(),
                capabilities: self.introduction.capabilities.clone(),
                virtual_time: simulated,
                flaw: self.target.flaw.map(|flaw| flaw.name().into()),
            };
            let ledger = Ledger::new(header, path.as_deref()).map_err(|error| {
                let path = path.as_deref().unwrap_or(std::path::Path::new("")).display();
                format!("the history cannot be kept in {path}: {error}")
            })?;
            if let Some(reason) = halt {
                return Ok(ledger.finish(Some(Halt::Broken(reason))));
            }
            let stage = Stage::new(
                connector,
                self.target.suite.clone(),
                self.introduction.capabilities.clone(),
                ledger,
                self.plan.seed,
                names::topic_prefix(&self.plan.prefix),
                self.target.flaw.and_then(Flaw::scheduler),
            );
            let ended = tokio::select! {
                ended = (property.scenario)(&stage) => ended,
                () = stage.watch() => Ok(()),
                () = tokio::time::sleep(self.target.suite.deadline) => Err(Halt::Undecided(format!(
                    "the scenario did not end within its deadline of {}",
                    humantime::format_duration(self.target.suite.deadline)
                ))),
                () = self.cancel.cancelled() => Err(Halt::Broken(INTERRUPTED.into())),
            };
            Ok(stage.strike().await.finish(ended.err()))
        })
    }

    /// After an environment failed: whether there is any use in going on.
    fn look_for_life(&self) {
        let Ok(runtime) = runtime(false) else { return };
        let alive = runtime.block_on(async {
            let connect = self.connector.connect(None);
            match tokio::time::timeout(LIFE, connect).await {
                Ok(Ok(connection)) => {
                    connection.close().await;
                    Ok(())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no connection within {LIFE:?}")),
            }
        });
        if let Err(reason) = alive {
            let reason = format!("the broker is gone: {reason}");
            self.dead.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        }
    }
}

/// How long to look for a broker that may be gone.
const LIFE: Duration = Duration::from_secs(5);
