//! Processes that are known again: by their id and the moment they started, since ids are reused.

use std::{
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid,
};
use serde::{Deserialize, Serialize};

use super::BrokerError;

/// A process, and no later one that was given the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub pid: u32,
    /// When it started, in the system's own terms.
    started: String,
}

impl ProcessId {
    /// The running process of this id; `None` if there is none, or only a dead one's remains.
    pub fn of(pid: u32) -> Option<Self> {
        started(pid).map(|started| ProcessId { pid, started })
    }

    pub fn is_running(&self) -> bool {
        started(self.pid).as_ref() == Some(&self.started)
    }

    /// Ends the process and its group, if it still runs: `SIGTERM`, then after `grace` `SIGKILL`.
    /// Returns whether it is gone.
    pub fn end(&self, grace: Duration) -> bool {
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(5))] {
            if self.is_running() {
                signal_group(self.pid, signal);
                // A paused process handles nothing but SIGKILL until it is resumed.
                signal_group(self.pid, Signal::CONT);
                wait_until(patience, || !self.is_running());
            }
        }
        !self.is_running()
    }

    /// Clears away what is left of the process, if it was a child of this one and is dead.
    pub fn reap(&self) {
        if let Some(pid) = as_pid(self.pid) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Signals the group that a process leads. A group that is gone already is no error.
pub(super) fn signal_group(leader: u32, signal: Signal) {
    if let Some(group) = as_pid(leader) {
        let _ = kill_process_group(group, signal);
    }
}

/// Not 0 and 1: a damaged file may say so, and to signal the "group" 1 is to signal everybody.
fn as_pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().filter(|id| *id > 1).and_then(Pid::from_raw)
}

/// Ends a child that leads its group, and waits for it: `SIGTERM`, then after `grace` `SIGKILL`.
pub(super) fn end_child(child: &mut Child, grace: Duration) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    signal_group(child.id(), Signal::TERM);
    signal_group(child.id(), Signal::CONT);
    if !wait_until(grace, || !matches!(child.try_wait(), Ok(None))) {
        signal_group(child.id(), Signal::KILL);
        let _ = child.wait();
    }
}

/// Whether all of a child's threads stand still.
pub(super) fn is_stopped(child: &Child) -> bool {
    let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), look).is_ok_and(|stopped| stopped.is_some())
}

/// Waits until `done`, looking every few milliseconds; whether it was done in time.
pub(super) fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a short-lived command prints; it is killed when it takes longer than `patience`.
/// Its output must fit into a pipe (64 KiB), since nobody reads before it has ended.
pub(super) fn output(command: &mut Command, patience: Duration) -> Result<Output, BrokerError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let doing = format!("running `{name}`");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(BrokerError::io(&doing))?;
    if !wait_until(patience, || !matches!(child.try_wait(), Ok(None))) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(BrokerError::environment(format!("{doing}: no end after {patience:?}")));
    }
    child.wait_with_output().map_err(BrokerError::io(&doing))
}

/// When a running process started; `None` for one that is dead, reaped or not.
#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    // Ticks since the boot: the boot's own id tells processes of different boots apart.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let (state, ticks) = (fields.first()?, fields.get(19)?);
    (!matches!(*state, "Z" | "X")).then(|| format!("{}+{ticks}", boot.trim()))
}

/// When a running process started; `None` for one that is dead, reaped or not.
#[cfg(not(target_os = "linux"))]
fn started(pid: u32) -> Option<String> {
    started_by_ps(pid)
}

#[cfg(any(test, not(target_os = "linux")))]
fn started_by_ps(pid: u32) -> Option<String> {
    let mut ps = Command::new("ps");
    ps.env("LC_ALL", "C").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]);
    let told = output(&mut ps, Duration::from_secs(5)).ok()?;
    let line = String::from_utf8(told.stdout).ok()?;
    let (state, started) = line.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_again_until_it_is_dead() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_running());
        assert!(started_by_ps(child.id()).is_some());
        child.kill().unwrap();
        // Dead from here on, though nobody has asked for its exit status.
        assert!(wait_until(Duration::from_secs(20), || !id.is_running()));
        assert_eq!(started_by_ps(child.id()), None);
        child.wait().unwrap();
        assert_eq!(ProcessId::of(child.id()), None);
    }

    #[test]
    fn a_later_process_with_the_same_id_is_another_one() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let earlier = ProcessId { started: "earlier".into(), ..me };
        assert!(!earlier.is_running());
        // Were it taken for the same, this would end the test's own process.
        assert!(earlier.end(Duration::ZERO));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed() {
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.message.contains("no end after 50ms"), "{error}");
    }
}
