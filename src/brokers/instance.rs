//! A broker process with its directory: what a private broker (guarded or not) and a background
//! broker have in common.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{
    BrokerError, BrokerKind, Launch, Readiness, StartSettings, process,
    process::{ProcessId, end_child, is_stopped, wait_until},
};

/// A broker that was started; ended when dropped, unless it was [detached](Self::detach).
#[derive(Debug)]
pub(super) struct Instance {
    kind: &'static BrokerKind,
    launch: Launch,
    child: Option<Child>,
    version: String,
}

/// What is known about an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    /// The process that runs, or ran last.
    pub pid: u32,
    /// The same while it runs, to know it again.
    pub process: Option<ProcessId>,
    pub alive: bool,
    pub url: String,
    pub admin_url: Option<String>,
    /// Where it listens, in the order of its kind.
    pub ports: Vec<u16>,
    /// In the broker's own words; empty until it was ready.
    pub version: String,
    pub dir: PathBuf,
}

/// What can be asked of an instance.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Request {
    Report,
    Stop,
    Kill,
    Pause,
    Resume,
    Restart,
}

/// The name of the log within the directory: all that the broker printed.
pub(super) const LOG: &str = "broker.log";

/// Below the ephemeral ports of Linux (from 32768) and macOS (from 49152): no outgoing connection
/// takes the port of a broker that is down for a moment, not even a client's that keeps trying to
/// reach that very port (which can connect to itself).
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Why a process did not become ready.
enum StartFailure {
    /// Somebody else listens on its port: another try may succeed.
    PortTaken(BrokerError),
    Other(BrokerError),
}

impl From<BrokerError> for StartFailure {
    fn from(error: BrokerError) -> Self {
        StartFailure::Other(error)
    }
}

impl Instance {
    /// Starts a broker in this directory on a free port, and waits until it is ready. Every
    /// process that it starts for that is told to `spawned`.
    pub fn start(
        kind: &'static BrokerKind,
        settings: StartSettings,
        dir: PathBuf,
        cancelled: &AtomicBool,
        spawned: &mut dyn FnMut(&mut Instance) -> Result<(), BrokerError>,
    ) -> Result<Self, BrokerError> {
        const ATTEMPTS: usize = 5;
        let name = format!("queueproof-{:016x}", rand::random::<u64>());
        let store = dir.join("store");
        let had_store = store.exists();
        let launch = Launch { settings, dir, ports: Vec::new(), name };
        let mut instance = Instance { kind, launch, child: None, version: String::new() };
        let mut attempt = 1;
        loop {
            instance.launch.ports = free_ports(kind.ports)?;
            match instance.run(cancelled, spawned) {
                Ok(()) => return Ok(instance),
                // Between our look and the broker's bind somebody else took the port.
                Err(StartFailure::PortTaken(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    if !had_store {
                        // A new store may remember the port (Pulsar's bookie does).
                        let _ = fs::remove_dir_all(&store);
                    }
                }
                Err(StartFailure::PortTaken(error) | StartFailure::Other(error)) => {
                    return Err(error);
                }
            }
        }
    }

    /// Does what is asked; answers what is then known.
    pub fn obey(
        &mut self,
        request: Request,
        cancelled: &AtomicBool,
    ) -> Result<Report, BrokerError> {
        match request {
            Request::Report => {}
            Request::Stop => self.stop(),
            Request::Kill => self.kill(),
            Request::Pause => self.pause()?,
            Request::Resume => self.signal(Signal::CONT)?,
            Request::Restart => self.restart(cancelled)?,
        }
        Ok(self.report())
    }

    pub fn report(&mut self) -> Report {
        let alive = self.is_alive();
        let pid = self.child.as_ref().map_or(0, Child::id);
        Report {
            pid,
            process: ProcessId::of(pid).filter(|_| alive),
            alive,
            url: (self.kind.url)(&self.launch.ports),
            admin_url: self.kind.admin_url.map(|url| url(&self.launch.ports)),
            ports: self.launch.ports.clone(),
            version: self.version.clone(),
            dir: self.launch.dir.clone(),
        }
    }

    /// Leaves the process running when this is dropped.
    pub fn detach(mut self) {
        self.child = None;
    }

    /// The error for one that ended though nobody asked it to.
    pub fn died(&self) -> BrokerError {
        self.failure("is not running", 0)
    }

    fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            end_child(child, self.kind.stop_timeout);
        }
    }

    fn kill(&mut self) {
        if self.signal(Signal::KILL).is_ok()
            && let Some(child) = &mut self.child
        {
            let _ = child.wait();
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<(), BrokerError> {
        if !self.is_alive() {
            return Err(self.died());
        }
        if let Some(child) = &self.child {
            process::signal_group(child.id(), signal);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), BrokerError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        self.signal(Signal::STOP)?;
        // The signal is only on its way: a thread on another core may still answer (measured).
        let stopped = wait_until(PATIENCE, || self.child.as_ref().is_some_and(is_stopped));
        if stopped { Ok(()) } else { Err(self.failure("could not be paused", 0)) }
    }

    /// On the same store and ports, after a graceful stop if it still runs.
    fn restart(&mut self, cancelled: &AtomicBool) -> Result<(), BrokerError> {
        self.stop();
        let deadline = Instant::now() + self.kind.start_timeout;
        loop {
            match self.run(cancelled, &mut |_| Ok(())) {
                Ok(()) => return Ok(()),
                // Somebody has it for the moment; clients know no other address.
                Err(StartFailure::PortTaken(_)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(StartFailure::PortTaken(error) | StartFailure::Other(error)) => {
                    return Err(error);
                }
            }
        }
    }

    /// Starts the process and waits until it is ready; ends it if it will not be.
    fn run(
        &mut self,
        cancelled: &AtomicBool,
        spawned: &mut dyn FnMut(&mut Instance) -> Result<(), BrokerError>,
    ) -> Result<(), StartFailure> {
        let log_begins = self.spawn()?;
        let ready = spawned(self)
            .map_err(StartFailure::from)
            .and_then(|()| self.wait_ready(cancelled, log_begins));
        if ready.is_err() {
            self.kill();
        }
        ready
    }

    /// Starts the process; where in the log its own lines begin.
    fn spawn(&mut self) -> Result<u64, BrokerError> {
        let Launch { settings, dir, .. } = &self.launch;
        let doing = format!("starting `{}` in `{}`", settings.binary.display(), dir.display());
        let failed = |error| BrokerError::io(&doing)(error);
        let invocation = (self.kind.invocation)(&self.launch)?;
        let log = OpenOptions::new().create(true).append(true).open(dir.join(LOG));
        let log = log.map_err(failed)?;
        let log_begins = log.metadata().map_err(failed)?.len();
        let mut command = Command::new(invocation.program);
        for name in invocation.without_env {
            command.env_remove(name);
        }
        let child = command
            .args(invocation.args)
            .envs(invocation.env)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // A group of its own: Ctrl-C at the terminal is for queueproof, which stops it then.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        self.child = Some(child);
        Ok(log_begins)
    }

    fn wait_ready(&mut self, cancelled: &AtomicBool, log_begins: u64) -> Result<(), StartFailure> {
        let deadline = Instant::now() + self.kind.start_timeout;
        let pause = (self.kind.usual_start / 100)
            .clamp(Duration::from_millis(5), Duration::from_millis(50));
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(BrokerError::interrupted().into());
            }
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                let how = format!("ended with {status} before it was ready");
                let error = self.failure(&how, log_begins);
                let log = log_end(&self.launch.dir, log_begins).unwrap_or_default();
                let taken = log.to_lowercase().contains("address already in use");
                return Err(if taken { StartFailure::PortTaken(error) } else { error.into() });
            }
            let why = match (self.kind.probe)(&self.launch) {
                Readiness::Ready { version } => {
                    self.version = version;
                    return Ok(());
                }
                Readiness::Never(why) => {
                    return Err(self.failure(&why, log_begins).into());
                }
                Readiness::NotYet(why) => why,
            };
            if Instant::now() >= deadline {
                let how = format!("was not ready after {:?} ({why})", self.kind.start_timeout);
                return Err(self.failure(&how, log_begins).into());
            }
            thread::sleep(pause);
        }
    }

    /// An error that ends with the end of the log, from this place in it.
    fn failure(&self, how: &str, log_begins: u64) -> BrokerError {
        let binary = self.launch.settings.binary.display();
        let tail = match log_end(&self.launch.dir, log_begins) {
            Ok(log) if log.is_empty() => "it logged nothing".into(),
            Ok(log) => {
                let telling = log.lines().filter(|line| !(self.kind.noise)(line));
                match last_lines(telling) {
                    telling if telling.is_empty() => {
                        format!("its log ends with:\n{}", last_lines(log.lines()))
                    }
                    telling => format!("its log ends with:\n{telling}"),
                }
            }
            Err(error) => format!("its log cannot be read: {error}"),
        };
        BrokerError::environment(format!("`{binary}` {how}; {tail}"))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The last lines of the log in a broker's directory: 20 lines and 64 KiB at most.
pub(super) fn log_tail(dir: &Path) -> io::Result<String> {
    log_end(dir, 0).map(|log| last_lines(log.lines()))
}

/// The end of the log, from this place in it: 64 KiB at most.
fn log_end(dir: &Path, begins: u64) -> io::Result<String> {
    const BYTES: u64 = 64 * 1024;
    let mut log = File::open(dir.join(LOG))?;
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(begins.max(length.saturating_sub(BYTES))))?;
    let mut text = Vec::new();
    log.take(BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn last_lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    const LINES: usize = 20;
    let lines: Vec<_> = lines.collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Makes a directory that only its owner can enter, with those above it.
pub(super) fn private_dir(dir: &Path) -> Result<(), BrokerError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(BrokerError::io(format_args!("making `{}`", dir.display())))
}

/// Ports on which nobody listens at this moment.
fn free_ports(count: usize) -> Result<Vec<u16>, BrokerError> {
    const ATTEMPTS: usize = 1000;
    let mut held = Vec::new();
    for _ in 0..ATTEMPTS {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(PORTS);
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    let ports: Vec<_> = held.iter().filter_map(|l| Some(l.local_addr().ok()?.port())).collect();
    if ports.len() < count {
        return Err(BrokerError::environment("no free port on 127.0.0.1 could be found"));
    }
    Ok(ports)
}
