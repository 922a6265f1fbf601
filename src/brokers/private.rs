//! A broker for one run, that leaves nothing behind.

use std::{
    env,
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use tempfile::TempDir;

use super::{
    BrokerError, BrokerKind, StartSettings, absolute,
    guard::Guard,
    instance::{Instance, Report, Request, log_tail},
    load::Meter,
};
use crate::scheduler::Load;

/// A broker of our own: it listens on a free port of 127.0.0.1 alone, keeps its configuration,
/// log and store in a temporary directory that only the user can enter, and is stopped and removed
/// with everything in it when this is dropped.
///
/// That a destructor cannot promise (Ctrl-C, `SIGTERM`, `SIGKILL`, an abort) a guard does: the
/// broker is the child of a second queueproof process, that ends it and removes the directory as
/// soon as this process is gone, in whatever way. It is the executable of
/// [`StartSettings::guard`]; without one the broker is a child of this process, and only the
/// destructor stops it.
///
/// The calls block, and may come from any thread; dropping it waits until the broker has ended.
#[derive(Debug)]
pub struct PrivateBroker {
    kind: &'static BrokerKind,
    state: Mutex<State>,
    url: String,
    admin_url: Option<String>,
    ports: Vec<u16>,
    version: String,
    dir: PathBuf,
    meter: Meter,
}

#[derive(Debug)]
struct State {
    keeper: Keeper,
    pid: u32,
}

/// Who holds the process and its directory.
#[derive(Debug)]
enum Keeper {
    Guard(Guard),
    Here(Kept),
}

/// An instance with its temporary directory; dropping it ends the one, then removes the other.
#[derive(Debug)]
pub(super) struct Kept {
    pub instance: Instance,
    _dir: TempDir,
}

impl PrivateBroker {
    /// Starts a broker, and waits until it takes clients (NATS and nsqd: some 10 ms, Pulsar: some
    /// 6 s, measured). If that usually takes a second or more, `tell` is given a line that says so.
    ///
    /// # Errors
    /// - Usage: the settings have what this kind does not take.
    /// - Environment: it cannot be started, or is not ready within the kind's `start_timeout`; the
    ///   message ends with the end of its log.
    /// - Interrupted: `interrupted` became true meanwhile.
    ///
    /// Nothing is left of it then.
    pub fn start(
        kind: &'static BrokerKind,
        mut settings: StartSettings,
        interrupted: &AtomicBool,
        tell: &dyn Fn(&str),
    ) -> Result<Self, BrokerError> {
        settings.binary = absolute(&settings.binary)?;
        settings.parent = Some(absolute(&settings.parent.unwrap_or_else(env::temp_dir))?);
        kind.tell_start(&settings.binary, tell);
        let (keeper, report) = match settings.guard.take() {
            Some(program) => {
                let (guard, report) = Guard::start(&program, kind, settings, interrupted)?;
                (Keeper::Guard(guard), report)
            }
            None => {
                let mut kept = Kept::start(kind, settings, interrupted)?;
                let report = kept.instance.report();
                (Keeper::Here(kept), report)
            }
        };
        let meter = Meter::default();
        meter.runs(report.process.as_ref());
        Ok(PrivateBroker {
            kind,
            state: Mutex::new(State { keeper, pid: report.pid }),
            url: report.url,
            admin_url: report.admin_url,
            ports: report.ports,
            version: report.version,
            dir: report.dir,
            meter,
        })
    }

    /// Where clients connect, now and after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its administrative interface is, now and after a restart; `None` for a broker that
    /// has none (NATS, etcd).
    pub fn admin_url(&self) -> Option<&str> {
        self.admin_url.as_deref()
    }

    /// The port of [`url`](Self::url).
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// What kind it is.
    pub fn kind(&self) -> &'static BrokerKind {
        self.kind
    }

    /// Its version, in its own words.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its temporary directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its messages are, below [`dir`](Self::dir).
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The process that runs, or ran last; a restart makes a new one.
    pub fn pid(&self) -> u32 {
        self.state().pid
    }

    /// The end of what it logged: 20 lines, 64 KiB at most.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log_tail(&self) -> io::Result<String> {
        log_tail(&self.dir)
    }

    /// Whether the process runs, paused or not.
    pub fn is_alive(&self) -> bool {
        self.ask(Request::Report).is_ok_and(|report| report.alive)
    }

    /// Ends it gracefully, and after the kind's `stop_timeout` by force. Its store stays until
    /// this is dropped. If it does not run this does nothing.
    ///
    /// # Errors
    /// Environment: the guard is gone.
    pub fn stop(&self) -> Result<(), BrokerError> {
        self.ask(Request::Stop).map(drop)
    }

    /// Ends it with `SIGKILL`, as a crash does, and waits until it is gone. If it does not run
    /// this does nothing.
    ///
    /// # Errors
    /// Environment: the guard is gone.
    pub fn kill9(&self) -> Result<(), BrokerError> {
        self.ask(Request::Kill).map(drop)
    }

    /// Freezes it (`SIGSTOP`): its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// Environment: it does not run, or the guard is gone.
    pub fn pause(&self) -> Result<(), BrokerError> {
        self.ask(Request::Pause).map(drop)
    }

    /// Lets it run on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// Environment: it does not run, or the guard is gone.
    pub fn resume(&self) -> Result<(), BrokerError> {
        self.ask(Request::Resume).map(drop)
    }

    /// Starts it again on the same store and address, after [`stop`](Self::stop) if it runs, and
    /// waits until it takes clients.
    ///
    /// # Errors
    /// As for [`start`](Self::start); its port may have been taken in the meantime.
    pub fn restart(&self) -> Result<(), BrokerError> {
        self.ask(Request::Restart).map(drop)
    }

    /// What its processes have used so far, those before a restart included, and what the one that
    /// runs holds now (`None` while it does not run). Where it does not answer, counts are as it
    /// told them last. It takes some milliseconds (if the broker hangs, half a second), also while
    /// the broker is being restarted.
    ///
    /// From its first call on, what ends the broker looks at its load before, so that nothing is
    /// missing but what happens in that moment. After a crash etcd does again, and counts again,
    /// what it had not yet written into its database (0.1 s).
    pub fn load(&self) -> Load {
        self.meter.sample(&self.kind.monitoring, &self.ports)
    }

    fn ask(&self, request: Request) -> Result<Report, BrokerError> {
        let mut state = self.state();
        if matches!(request, Request::Stop | Request::Kill | Request::Restart)
            && self.meter.is_wanted()
        {
            self.load();
        }
        let report = match &mut state.keeper {
            Keeper::Guard(guard) => guard.ask(request)?,
            Keeper::Here(kept) => kept.instance.obey(request, &AtomicBool::new(false))?,
        };
        state.pid = report.pid;
        self.meter.runs(report.process.as_ref());
        Ok(report)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done by a panic: each question is answered or the guard is gone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    pub fn start(
        kind: &'static BrokerKind,
        settings: StartSettings,
        cancelled: &AtomicBool,
    ) -> Result<Self, BrokerError> {
        let parent = settings.parent.clone().unwrap_or_else(env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix(&format!("queueproof-{}-", kind.name))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(BrokerError::io(format_args!(
                "making a temporary directory in `{}`",
                parent.display()
            )))?;
        let path = dir.path().to_owned();
        let instance = Instance::start(kind, settings, path, cancelled, &mut |_| Ok(()))?;
        Ok(Kept { instance, _dir: dir })
    }
}
