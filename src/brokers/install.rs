//! Installing brokers into the cache, through the ordinary package client of their ecosystem.

use std::{
    collections::VecDeque,
    env,
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    BrokerError, BrokerKind, Install, Places, find,
    process::{end_child, wait_until},
};

/// A broker in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its version.
    pub version: String,
    /// The executable.
    pub path: PathBuf,
    /// Whether it was there before.
    pub already: bool,
}

/// What the names of half-made installations begin with.
const STAGING: &str = ".building-";

/// Installs a version (`None` for the pinned one) into the cache, beside others that are there.
/// It appears as a whole or not at all, and two who install at the same time do not disturb each
/// other. `progress` is given each line that the package client prints (names of packages, some
/// hundred in a minute for NATS).
///
/// # Errors
/// - Usage: `version` is not one.
/// - Environment: the package client is missing or fails (the message ends with its last lines),
///   or what it installed is of another version.
/// - Interrupted: `interrupted` became true; the package client is ended then.
pub fn install(
    places: &Places,
    kind: &BrokerKind,
    version: Option<&str>,
    interrupted: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<Installed, BrokerError> {
    let version = version.unwrap_or(kind.pinned);
    find::check_version(version)?;
    let path = find::cached(places, kind, version);
    let installed =
        |already| Installed { version: version.to_owned(), path: path.clone(), already };
    if find::is_executable(&path) {
        return Ok(installed(true));
    }

    let dir = find::kind_dir(places, kind);
    let failed =
        |error| BrokerError::io(format_args!("installing into `{}`", dir.display()))(error);
    fs::create_dir_all(&dir).map_err(failed)?;
    let _lock = lock(&dir.join(".lock"), interrupted, progress)?;
    if find::is_executable(&path) {
        return Ok(installed(true));
    }
    remove_leftovers(&dir);

    // Beside its final place, so that a rename puts the whole there at once.
    let staging = tempfile::Builder::new()
        .prefix(STAGING)
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(&dir)
        .map_err(failed)?;
    match kind.install {
        Install::GoModule { module } => {
            go_install(places, &format!("{module}@v{version}"), &staging, interrupted, progress)?;
        }
    }
    let told = find::version_of(kind, &staging.path().join(kind.binary))?;
    if told != version {
        return Err(BrokerError::environment(format!(
            "{} {version} was asked for, and what was installed says it is {told}",
            kind.name
        )));
    }
    let home = dir.join(version);
    if home.exists() {
        // Its executable is missing, or it would have been found above.
        fs::remove_dir_all(&home).map_err(failed)?;
    }
    fs::rename(staging.path(), &home).map_err(failed)?;
    let _ = staging.keep();
    Ok(installed(false))
}

/// Waits for the lock, which the kernel releases when its holder ends in whatever way.
fn lock(
    path: &Path,
    interrupted: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<File, BrokerError> {
    let doing = format!("locking `{}`", path.display());
    let file = File::create(path).map_err(BrokerError::io(&doing))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(error)) => return Err(BrokerError::io(&doing)(error)),
            Err(fs::TryLockError::WouldBlock) => {}
        }
        if !std::mem::replace(&mut told, true) {
            progress("waiting for another installation");
        }
        if wait_until(Duration::from_millis(100), || interrupted.load(Ordering::Relaxed)) {
            return Err(BrokerError::interrupted());
        }
    }
}

/// Who holds the lock knows that nobody works in these: their makers were killed.
fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn go_install(
    places: &Places,
    package: &str,
    into: &TempDir,
    interrupted: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<(), BrokerError> {
    let go = env::split_paths(&places.search_path)
        .map(|dir| dir.join("go"))
        .find(|path| path.is_absolute() && find::is_executable(path))
        .ok_or_else(|| {
            BrokerError::environment(format!(
                "`{package}` is built by Go, and there is no `go` on PATH: install Go from your \
                 system's packages or from https://go.dev/dl"
            ))
        })?;
    let mut command = Command::new(go);
    command
        .args(["install", "-v", package])
        .env("GOBIN", into.path())
        // A broker for this machine, that needs no C compiler to be built.
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .env("GIT_TERMINAL_PROMPT", "0");
    run_client(&mut command, &format!("go install {package}"), interrupted, progress)
}

/// Runs a package client to its end, or until interrupted.
fn run_client(
    command: &mut Command,
    doing: &str,
    interrupted: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<(), BrokerError> {
    const LAST_LINES: usize = 15;
    let failed = |error| BrokerError::io(format_args!("running `{doing}`"))(error);
    let mut client = Client(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own, so that it can be ended with all that it has started.
            .process_group(0)
            .spawn()
            .map_err(failed)?,
    );
    let (sender, lines) = mpsc::channel();
    if let Some(stderr) = client.0.stderr.take() {
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        });
    }
    let mut last = VecDeque::new();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(BrokerError::interrupted());
        }
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                progress(&line);
                last.push_back(line);
                if last.len() > LAST_LINES {
                    last.pop_front();
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = client.0.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let last: Vec<_> = last.into();
    Err(BrokerError::environment(format!(
        "`{doing}` ended with {status}; it printed last:\n{}",
        last.join("\n")
    )))
}

/// A package client; ended when dropped, also by a panic of `progress`.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        end_child(&mut self.0, Duration::from_secs(2));
    }
}
