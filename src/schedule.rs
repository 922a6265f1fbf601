//! Runs a workload of the scheduler on targets: events in, a history and verdicts out.
//!
//! A run is one thread with one runtime, so that an embedded broker's day passes on a simulated
//! clock; its judges watch while it goes on, so that nothing has to be kept.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use crate::{
    brokers::PrivateBroker,
    checker::scheduling::Watch,
    config::{ConfigError, Schedule},
    conformance::scheduling,
    conformance::stage::stalls,
    flaw::Flaw,
    history::{
        self, End, Halt, Header, HistoryError, Op, Published, RunRecord, SCHEDULE, TargetRecord,
        What, Writer,
    },
    names,
    plan::{BackendPlan, Plan, TargetPlan},
    results::{Host, PropertyResult, Results, Run, SCHEMA, TargetResult, Tool},
    runner,
    scheduler::{
        self, AgentState, BrokerControl, Costs, Event, Load, Recorder, Setup, Strategy, Workload,
    },
    target::{Introduction, Reached, Unreached, Waiting, runtime},
};

/// What a run shows while it goes on.
#[derive(Debug, Clone)]
pub enum Shown<'s> {
    /// Something takes long, or is worth knowing before it begins: in words.
    Line(&'s str),
    /// A target's workload began.
    Started {
        /// The target.
        target: &'s str,
        /// What is run on it.
        workload: &'s Workload,
    },
    /// How far it is.
    Counts(&'s Counts),
    /// A target's workload ended, with these verdicts.
    Finished {
        /// The target.
        target: &'s str,
        /// The verdicts.
        results: &'s [PropertyResult],
    },
}

/// Live counts of a workload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// The time since the epoch, nanoseconds.
    pub now: u64,
    /// Publishes that were confirmed, those that were dropped as duplicates included.
    pub published: u64,
    /// Of these, those that the broker reported as duplicates.
    pub dropped: u64,
    /// Requests that were handed to agents.
    pub received: u64,
    /// Executions that ended well.
    pub executed: u64,
    /// Agents that are there.
    pub agents: u64,
    epoch: Option<u64>,
}

/// Why a workload cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// What was asked for.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The folder for the history.
    #[error("{0}")]
    History(#[from] HistoryError),
}

/// Runs the workload on every target of a plan, one after the other.
///
/// # Errors
/// What cannot be in the workload, or where the history cannot be kept.
pub fn run(
    plan: &Plan,
    schedule: &Schedule,
    cancel: &CancellationToken,
    show: &(dyn Fn(Shown<'_>) + Sync),
) -> Result<Results, ScheduleError> {
    let began = Instant::now();
    let mut run = Run {
        seed: plan.seed,
        started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        duration_ms: 0,
        host: Host::this(),
    };
    // What is wrong whatever the backend is told before anything is started.
    schedule.workload(Strategy::None, 0)?;
    let mut record = RunRecord::new(run.clone(), Vec::new());
    if let Some(folder) = &plan.out {
        history::begin_run(folder)?;
        history::write_run(folder, &record)?;
    }
    let mut targets = Vec::new();
    for target in &plan.targets {
        let result = one(plan, target, schedule, cancel, show, |reached| {
            let Some(folder) = &plan.out else { return Ok(()) };
            record.targets.push(reached);
            history::write_run(folder, &record)
        })?;
        targets.push(result);
    }
    run.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Some(folder) = &plan.out {
        record.run = run.clone();
        history::write_run(folder, &record)?;
    }
    Ok(Results { schema: SCHEMA.into(), tool: Tool::this(), run, targets })
}

/// Runs the workload on one target.
fn one(
    plan: &Plan,
    target: &TargetPlan,
    schedule: &Schedule,
    cancel: &CancellationToken,
    show: &(dyn Fn(Shown<'_>) + Sync),
    mut keep: impl FnMut(TargetRecord) -> Result<(), HistoryError>,
) -> Result<TargetResult, ScheduleError> {
    let properties = || scheduling::of_workload().map(|(property, _)| property);
    let mut result = TargetResult {
        name: target.name.clone(),
        backend: target.backend.name().into(),
        broker_version: String::new(),
        settings: target.settings.clone(),
        capabilities: None,
        absent: None,
        demonstrated: Default::default(),
        cost: Default::default(),
        properties: Vec::new(),
    };
    let mut record = TargetRecord {
        name: target.name.clone(),
        backend: target.backend.name().into(),
        broker_version: String::new(),
        settings: target.settings.clone(),
        capabilities: None,
        broken: None,
        absent: None,
        properties: properties().map(|property| property.id.into()).collect(),
        schedule: true,
    };
    let tell = |line: &str| show(Shown::Line(line));
    let reached = runner::waiting(cancel, &tell, |waiting| Driver::reach(target, waiting));
    let (driver, introduction) = match reached {
        Ok(reached) => reached,
        Err(Unreached::Absent(why)) if target.optional => {
            show(Shown::Line(&format!("{}: absent", target.name)));
            record.absent = Some(why.clone());
            keep(record)?;
            return Ok(TargetResult { absent: Some(why), ..result });
        }
        Err(Unreached::Absent(why) | Unreached::Broken(why)) => {
            record.broken = Some(why.clone());
            keep(record)?;
            let broken = |property| crate::conformance::broken(property, why.clone());
            result.properties = properties().map(broken).collect();
            return Ok(result);
        }
    };
    let simulated = driver.simulated();
    let workload = match fit(target, schedule, &introduction, simulated) {
        Ok(workload) => workload,
        // One of several that the workload is not for must not cost the results of the others.
        Err(error) if plan.targets.len() > 1 => {
            show(Shown::Line(&format!("{}: left out: {error}", target.name)));
            record.absent = Some(error.to_string());
            keep(record)?;
            return Ok(TargetResult { absent: Some(error.to_string()), ..result });
        }
        Err(error) => return Err(error.into()),
    };
    for warning in schedule.warnings(&workload, &introduction.capabilities) {
        show(Shown::Line(&format!("{}: warning: {warning}", target.name)));
    }
    result.settings = settings(target, &workload);
    record.settings = result.settings.clone();
    record.broker_version.clone_from(&introduction.broker_version);
    record.capabilities = Some(introduction.capabilities.clone());
    keep(record)?;
    result.broker_version = introduction.broker_version.clone();
    result.capabilities = Some(introduction.capabilities.clone());
    show(Shown::Started { target: &target.name, workload: &workload });
    let path = plan.out.as_deref().map(|out| RunRecord::schedule_path(out, &target.name));
    let play =
        Play { plan, target, workload: &workload, introduction: &introduction, cancel, show };
    let (properties, cost) = play.play(driver, path.as_deref());
    show(Shown::Finished { target: &target.name, results: &properties });
    Ok(TargetResult { properties, cost, ..result })
}

/// The workload for a target: with the strategy that was asked for, or the best that fits.
fn fit(
    target: &TargetPlan,
    schedule: &Schedule,
    introduction: &Introduction,
    simulated: bool,
) -> Result<Workload, ConfigError> {
    let capabilities = &introduction.capabilities;
    let ring = matches!(target.backend, BackendPlan::EtcdRing(_));
    let strategy = match schedule.strategy {
        _ if ring => Strategy::Ring,
        Some(strategy) => strategy,
        None => Strategy::of(capabilities),
    };
    if let Some(why) = strategy.missing(capabilities) {
        return Err(ConfigError::new(format!(
            "schedule.strategy: {} cannot do that. {why}",
            target.name
        )));
    }
    // A simulated day is the same day each time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let epoch = if simulated { SIMULATED_EPOCH } else { u64::try_from(now).unwrap_or(0) };
    let workload = schedule.workload(strategy, epoch)?;
    schedule.fits(&workload, target)?;
    #[cfg(feature = "etcd-ring")]
    if let Some(why) = scheduler::ring::unfit(&workload).filter(|_| ring) {
        return Err(ConfigError::new(format!("{}: {why}", target.name)));
    }
    Ok(workload)
}

/// How often a run shows how far it is, and looks whether it is to go on.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// 2026-01-01T00:00:00Z, milliseconds since 1970.
const SIMULATED_EPOCH: u64 = 1_767_225_600_000;

/// The settings that are shown: the workload's in place of the suite's.
fn settings(target: &TargetPlan, workload: &Workload) -> serde_json::Value {
    let mut settings = target.settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("suite");
        let mut shown = serde_json::to_value(workload).unwrap_or_default();
        if let Some(shown) = shown.as_object_mut() {
            // It differs from run to run, and is no setting.
            shown.remove("epoch_unix_ms");
        }
        settings.insert("schedule".into(), shown);
    }
    settings
}

/// One workload that is being run.
struct Play<'p> {
    plan: &'p Plan,
    target: &'p TargetPlan,
    workload: &'p Workload,
    introduction: &'p Introduction,
    cancel: &'p CancellationToken,
    show: &'p (dyn Fn(Shown<'_>) + Sync),
}

/// Everybody who takes in the events of a workload.
struct Books {
    watch: Watch,
    costs: Costs,
    counts: Counts,
    file: Option<Writer>,
    /// What the judges could not make sense of.
    confused: Option<String>,
}

type Found = (Vec<PropertyResult>, BTreeMap<String, serde_json::Value>);

impl Play<'_> {
    fn play(&self, driver: Driver, path: Option<&Path>) -> Found {
        let simulated = driver.simulated();
        let broken = |why: String| {
            let broken = |(property, _)| crate::conformance::broken(property, why.clone());
            (scheduling::of_workload().map(broken).collect(), Default::default())
        };
        let runtime = match runtime(simulated) {
            Ok(runtime) => runtime,
            Err(error) => return broken(format!("no runtime can be made: {error}")),
        };
        let books = match self.books(simulated, path) {
            Ok(books) => Arc::new(Mutex::new(books)),
            Err(why) => return broken(why),
        };
        let ended = thread::scope(|scope| {
            let (done, over) = mpsc::channel::<()>();
            let cancel = CancellationToken::new();
            let stop = cancel.clone();
            // On a simulated clock it passes in another time than the one that people see.
            let (books, this) = (&books, self);
            scope.spawn(move || {
                while over.recv_timeout(SHOW_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    this.show_counts(books);
                    if this.cancel.is_cancelled() {
                        stop.cancel();
                    }
                }
            });
            let ended = runtime.block_on(self.run(driver, books, cancel));
            drop(done);
            // What is left of tasks ends here, and nobody writes any more.
            drop(runtime);
            ended
        });
        let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
        let mut halt = ended.err();
        if let Some(confused) = books.confused.take() {
            halt.get_or_insert(Halt::Undecided(format!(
                "the events contradict each other: {confused}"
            )));
        }
        let end = End { at: books.watch.duration_ms() * 1_000_000, halt };
        let end = match books.file.take() {
            Some(file) => file.finish(end),
            None => end,
        };
        let properties = scheduling::results(&mut books.watch, self.workload, end.halt.as_ref());
        (properties, books.costs.figures())
    }

    fn books(&self, simulated: bool, path: Option<&Path>) -> Result<Books, String> {
        let header = Header {
            schema: history::SCHEMA.into(),
            target: self.target.name.clone(),
            property: SCHEDULE.into(),
            seed: self.plan.seed,
            suite: self.target.suite.clone(),
            capabilities: self.introduction.capabilities.clone(),
            virtual_time: simulated,
            flaw: self.target.flaw.map(|flaw| flaw.name().into()),
        };
        let mut file = match path {
            None => None,
            Some(path) => Some(Writer::create(path, &header).map_err(|error| {
                format!("the history cannot be kept in {}: {error}", path.display())
            })?),
        };
        if let Some(file) = &mut file {
            let what = What::Workload(Box::new(self.workload.clone()));
            file.op(&Op { at: (0, 0), by: 0, what });
        }
        let capabilities = &self.introduction.capabilities;
        Ok(Books {
            watch: Watch::new(self.workload, capabilities)?,
            costs: Costs::default(),
            counts: Counts::default(),
            file,
            confused: None,
        })
    }

    fn show_counts(&self, books: &Mutex<Books>) {
        let counts = books.lock().unwrap_or_else(PoisonError::into_inner).counts;
        (self.show)(Shown::Counts(&counts));
    }

    /// Runs the workload, and writes down what happens.
    async fn run(
        &self,
        driver: Driver,
        books: &Arc<Mutex<Books>>,
        cancel: CancellationToken,
    ) -> Result<(), Halt> {
        let simulated = driver.simulated();
        let start = tokio::time::Instant::now();
        let writing = Arc::clone(books);
        let recorder = Recorder::new(start, move |at, event| {
            writing.lock().unwrap_or_else(PoisonError::into_inner).see(at, event);
        });
        let run = driver.run(self, recorder, cancel);
        tokio::pin!(run);
        if simulated {
            return run.await; // On a simulated clock nothing can stall.
        }
        let note = |at| {
            books.lock().unwrap_or_else(PoisonError::into_inner).op(at, What::Stall);
        };
        tokio::select! {
            ended = run => ended,
            () = stalls(start, note) => Ok(()), // never: it watches for ever
        }
    }
}

/// What runs a workload: the scheduler on a backend, or the baseline.
enum Driver {
    Backend(Reached),
    #[cfg(feature = "etcd-ring")]
    Ring(crate::target::ReachedEtcd),
}

impl Driver {
    /// Makes a target ready.
    fn reach(target: &TargetPlan, waiting: Waiting<'_>) -> Result<(Self, Introduction), Unreached> {
        #[cfg(feature = "etcd-ring")]
        if let BackendPlan::EtcdRing(etcd) = &target.backend {
            let reached = crate::target::reach_etcd(etcd, waiting)?;
            let introduction = reached.introduction.clone();
            return Ok((Driver::Ring(reached), introduction));
        }
        let reached = Reached::new(target, waiting)?;
        let introduction = reached.introduce().map_err(Unreached::Broken)?;
        Ok((Driver::Backend(reached), introduction))
    }

    fn simulated(&self) -> bool {
        match self {
            Driver::Backend(reached) => reached.connector.virtual_time(),
            #[cfg(feature = "etcd-ring")]
            Driver::Ring(_) => false,
        }
    }

    async fn run(
        self,
        play: &Play<'_>,
        recorder: Recorder,
        cancel: CancellationToken,
    ) -> Result<(), Halt> {
        let control = |broker: Option<PrivateBroker>| {
            broker.map(|broker| Arc::new(broker) as Arc<dyn BrokerControl>)
        };
        let (workload, seed) = (play.workload.clone(), play.plan.seed);
        let prefix = names::topic_prefix(&play.plan.prefix);
        match self {
            Driver::Backend(Reached { connector, broker }) => {
                let setup = Setup {
                    workload,
                    connector,
                    capabilities: play.introduction.capabilities.clone(),
                    recorder,
                    prefix,
                    seed,
                    flaw: play.target.flaw.and_then(Flaw::scheduler),
                    broker: control(broker),
                    cancel,
                };
                scheduler::run(setup).await
            }
            #[cfg(feature = "etcd-ring")]
            Driver::Ring(crate::target::ReachedEtcd { endpoint, broker, .. }) => {
                let broker = control(broker);
                let setup = scheduler::ring::RingSetup {
                    workload,
                    endpoint,
                    prefix,
                    recorder,
                    seed,
                    broker,
                    cancel,
                };
                scheduler::ring::run(setup).await
            }
        }
    }
}

impl BrokerControl for PrivateBroker {
    fn restart(&self) -> Result<(), String> {
        PrivateBroker::restart(self).map_err(|error| error.to_string())
    }

    fn load(&self) -> Load {
        PrivateBroker::load(self)
    }
}

impl Books {
    fn see(&mut self, at: (u64, u64), event: Event) {
        self.costs.see(at.1, &event);
        self.counts.see(at, &event);
        self.op(at, What::Schedule(Box::new(event)));
    }

    fn op(&mut self, at: (u64, u64), what: What) {
        let op = Op { at, by: 0, what };
        if let Some(file) = &mut self.file {
            file.op(&op);
        }
        if let Err(problem) = self.watch.see_op(&op) {
            self.confused.get_or_insert(problem);
        }
    }
}

impl Counts {
    fn see(&mut self, at: (u64, u64), event: &Event) {
        match event {
            Event::Begin => self.epoch = Some(at.1),
            Event::Publish { outcome: Published::Confirmed { duplicate, .. }, .. } => {
                self.published += 1;
                self.dropped += u64::from(*duplicate == Some(true));
            }
            Event::Receive { .. } => self.received += 1,
            Event::Execute { ok: true, .. } => self.executed += 1,
            Event::Agent { is: AgentState::Joined, .. } => self.agents += 1,
            Event::Agent { is: AgentState::Left | AgentState::Crashed, .. } => self.agents -= 1,
            _ => {}
        }
        self.now = self.epoch.map_or(0, |epoch| at.1.saturating_sub(epoch));
    }
}
