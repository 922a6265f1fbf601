//! The guard: a second queueproof process that holds a private broker, and ends it when the first
//! one is gone.
//!
//! The two share a socket: the guard's standard input. Each question is a line of JSON, and so is
//! each answer; nothing is told on the command line, where others could read it. When the process
//! that asks ends, by whatever means, the kernel closes its end, and the guard reads the end of
//! the stream. It is the broker's parent, so that no signal ever goes to a stranger who was given
//! the broker's process id.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::{
    BrokerError, BrokerKind, StartSettings,
    instance::{Report, Request},
    private::Kept,
    process::{ProcessId, wait_until},
};

/// The first argument that makes an executable a guard.
pub const GUARD_ARGUMENT: &str = "__broker-guard";

/// A guard, seen from the process that it serves.
#[derive(Debug)]
pub(super) struct Guard {
    kind: &'static BrokerKind,
    child: Child,
    stream: BufReader<UnixStream>,
    broker: Option<ProcessId>,
    dir: Option<PathBuf>,
}

/// The first line that a guard is told; [`Request`]s follow.
#[derive(Serialize, Deserialize)]
struct Start {
    kind: String,
    settings: StartSettings,
}

type Answer = Result<Report, BrokerError>;

static OWN: OnceLock<PathBuf> = OnceLock::new();

/// Makes this program able to guard. Call it first in `main`, before arguments are parsed or
/// threads are started: if it returns an exit code, this process was a guard, and is done.
pub fn guard_main() -> Option<ExitCode> {
    if env::args_os().nth(1).is_some_and(|argument| argument == GUARD_ARGUMENT) {
        return Some(match serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        });
    }
    if let Ok(program) = env::current_exe() {
        let _ = OWN.set(program);
    }
    None
}

/// This executable, if its `main` has called [`guard_main`].
pub fn own_guard() -> Option<PathBuf> {
    OWN.get().cloned()
}

impl Guard {
    /// Starts a guard that starts a broker.
    pub fn start(
        program: &Path,
        kind: &'static BrokerKind,
        settings: StartSettings,
        interrupted: &AtomicBool,
    ) -> Result<(Self, Report), BrokerError> {
        let doing = format!("starting the broker's guard `{}`", program.display());
        let failed = |error| BrokerError::io(&doing)(error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // How often an interrupt is looked for.
        ours.set_read_timeout(Some(Duration::from_millis(50))).map_err(failed)?;
        let child = Command::new(program)
            .arg(GUARD_ARGUMENT)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal must not reach the guard, which is needed just then.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let stream = BufReader::new(ours);
        let mut guard = Guard { kind, child, stream, broker: None, dir: None };
        let report = guard.tell(&Start { kind: kind.name.to_owned(), settings }, interrupted)?;
        Ok((guard, report))
    }

    pub fn ask(&mut self, request: Request) -> Answer {
        self.tell(&request, &AtomicBool::new(false))
    }

    fn tell(&mut self, line: &impl Serialize, interrupted: &AtomicBool) -> Answer {
        let answer = self.exchange(line, interrupted).map_err(|error| {
            // Whatever comes now would be the answer to an earlier question; and to the guard this
            // is the end.
            let _ = self.stream.get_ref().shutdown(Shutdown::Both);
            if interrupted.load(Ordering::Relaxed) {
                return BrokerError::interrupted();
            }
            BrokerError::environment(format!("the broker's guard does not answer: {error}"))
        })?;
        if let Ok(report) = &answer {
            self.broker.clone_from(&report.process);
            self.dir = Some(report.dir.clone());
        }
        answer
    }

    fn exchange(&mut self, line: &impl Serialize, interrupted: &AtomicBool) -> io::Result<Answer> {
        send(self.stream.get_ref(), line)?;
        // A start may be a restart: an end, then a start. Beyond that the guard has no excuse.
        let patience =
            self.kind.start_timeout + 2 * self.kind.stop_timeout + Duration::from_secs(10);
        let deadline = Instant::now() + patience;
        let mut answer = Vec::new();
        loop {
            // What came before an error stays in `answer`.
            match self.stream.read_until(b'\n', &mut answer) {
                Ok(_) if answer.ends_with(b"\n") => return Ok(serde_json::from_slice(&answer)?),
                Ok(_) => return Err(io::Error::other("it has ended")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if interrupted.load(Ordering::Relaxed) => {
                    return Err(io::Error::other("interrupted"));
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(io::Error::other(format!("nothing came in {patience:?}")));
                }
                Err(_) => {}
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
        let patience = self.kind.stop_timeout + Duration::from_secs(10);
        let ended = wait_until(patience, || !matches!(self.child.try_wait(), Ok(None)));
        if !ended {
            let _ = self.child.kill();
        }
        if self.child.wait().is_ok_and(|status| status.success()) {
            return;
        }
        // Somebody killed the guard: what it held is ours to remove.
        if let Some(broker) = &self.broker {
            broker.end(self.kind.stop_timeout);
        }
        if let Some(dir) = &self.dir
            && let Err(error) = fs::remove_dir_all(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("`{}` could not be removed: {error}", dir.display());
        }
    }
}

/// The guard's own work: until the stream ends, or `SIGTERM`.
fn serve() -> io::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&over))?;
    // These are for the process that we serve, and it may outlive them. They are handled, not
    // ignored, since the broker would inherit that.
    for signal in [SIGINT, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let lines = read_lines(&stream, &over)?;

    let start: Start = serde_json::from_str(&lines.recv().map_err(io::Error::other)?)?;
    let kept = super::kind(&start.kind).and_then(|kind| Kept::start(kind, start.settings, &over));
    let mut kept = match kept {
        Ok(kept) => kept,
        Err(error) => return send(&stream, &Answer::Err(error)),
    };
    send(&stream, &Answer::Ok(kept.instance.report()))?;
    while !over.load(Ordering::Relaxed) {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                let request: Request = serde_json::from_str(&line)?;
                send(&stream, &kept.instance.obey(request, &over))?;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

/// Reads lines on a thread of their own, so that the end of the stream is noticed also while the
/// broker is being started.
fn read_lines(stream: &UnixStream, over: &Arc<AtomicBool>) -> io::Result<mpsc::Receiver<String>> {
    let stream = BufReader::new(stream.try_clone()?);
    let over = Arc::clone(over);
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("questions".into()).spawn(move || {
        for line in stream.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    })?;
    Ok(receiver)
}

fn send(mut stream: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}
