//! Local brokers with a real nats-server: started, guarded, paused, killed, and left behind by
//! nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use queueproof::brokers::{BrokerKind, Places, Wanted, find, kind};
use rustix::process::Pid;

mod background;
mod private;

/// How long something that takes milliseconds may take on a very slow day.
const PATIENCE: Duration = Duration::from_secs(30);

fn nats() -> &'static BrokerKind {
    kind("nats").unwrap()
}

/// The real nats-server of this machine. Where there is none, says so loudly; or panics, if
/// `QUEUEPROOF_REQUIRE` demands it.
fn nats_server() -> Option<PathBuf> {
    match find(&Places::from_env().unwrap(), nats(), &Wanted::default()) {
        Ok(found) => Some(found.path),
        Err(error) => {
            let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "nats"), "{error}");
            let name = thread::current().name().unwrap_or_default().to_owned();
            // Not `eprintln!`, which the test harness swallows.
            let _ = writeln!(std::io::stderr(), "\n*** NOT RUN: {name}: {error}\n");
            None
        }
    }
}

/// Whether the process is there and not a zombie, which a test's own background broker becomes.
fn runs(id: u32) -> bool {
    let state = ps("stat=", id);
    !state.is_empty() && !state.starts_with('Z')
}

fn ps(what: &str, id: u32) -> String {
    let ps = Command::new("ps").args(["-o", what, "-p", &id.to_string()]).output().unwrap();
    String::from_utf8(ps.stdout).unwrap().trim().to_owned()
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The line that a NATS server greets with, within this time.
fn greeting(port: u16, patience: Duration) -> std::io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// Makes an executable that runs and never becomes ready. Another process writes it: a file that
/// this one holds open for writing, if only in a child forked meanwhile, could not be executed.
fn sleeper(dir: &Path) -> PathBuf {
    let path = dir.join("sleeper");
    let write = r#"printf '#!/bin/sh\nexec sleep 60\n' > "$1" && chmod 755 "$1""#;
    let sh = Command::new("sh").args(["-c", write, "sh"]).arg(&path).status();
    assert!(sh.unwrap().success());
    path
}
