//! Brokers that outlive the command that started them, until they are stopped by name.
//!
//! Each has a directory in the state directory, that only the user can enter, with its log, its
//! store and a file that says which process it is. A process is known again by its id and the
//! moment it started, so that only what was started here is ever ended.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde::{Deserialize, Serialize};

use super::{
    BrokerError, BrokerKind, Places, StartSettings, absolute,
    instance::{Instance, LOG, Report, log_tail, private_dir},
    kind,
    process::ProcessId,
};

/// A background broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Background {
    /// The name that it is stopped by.
    pub name: String,
    /// The name of its [`BrokerKind`].
    pub kind: String,
    /// Its version in its own words; empty while it is being started.
    pub version: String,
    /// Where clients connect.
    pub url: String,
    /// Where its administrative interface is, if it has one.
    #[serde(default)]
    pub admin_url: Option<String>,
    /// The port of `url`.
    pub port: u16,
    /// Its executable.
    pub binary: PathBuf,
    /// Its directory: `broker.log`, and the messages in `store/`.
    pub dir: PathBuf,
    process: ProcessId,
    /// Whether it runs. One that does not has died, or was ended by somebody else; starting it
    /// again finds its store, stopping it removes what is left of it.
    #[serde(skip)]
    pub running: bool,
}

const STATE: &str = "state.json";

/// Starts a broker under this name, on a free port of 127.0.0.1, and waits until it takes
/// clients. If there is a store of that name (kept at a stop, or left by a broker that died) it is
/// used. If it usually takes a second or more to start, `tell` is given a line that says so.
///
/// # Errors
/// - Usage: the name is not 1 to 32 of `[a-zA-Z0-9_-]`, or a broker of that name runs.
/// - Environment: as for [`PrivateBroker::start`](super::PrivateBroker::start).
/// - Interrupted: `interrupted` became true. Nothing is left running then.
pub fn start(
    places: &Places,
    name: &str,
    kind: &'static BrokerKind,
    mut settings: StartSettings,
    interrupted: &AtomicBool,
    tell: &dyn Fn(&str),
) -> Result<Background, BrokerError> {
    check_name(name)?;
    let _lock = lock(places)?;
    let dir = root(places).join(name);
    if let Some(broker) = read(&dir)? {
        if broker.running {
            return Err(BrokerError::usage(format!(
                "a broker named `{name}` runs already: {} (process {})",
                broker.url,
                broker.pid()
            )));
        }
        remove_all_but_store(&dir)?;
    }
    settings.binary = absolute(&settings.binary)?;
    let had_store = dir.join("store").exists();
    private_dir(&dir)?;

    kind.tell_start(&settings.binary, tell);
    let entry = |report: Report| {
        Some(Background {
            name: name.to_owned(),
            kind: kind.name.to_owned(),
            version: report.version,
            url: report.url,
            admin_url: report.admin_url,
            port: report.ports[0],
            binary: settings.binary.clone(),
            dir: report.dir,
            process: report.process?,
            running: true,
        })
    };
    // Written before it is ready, so that it can be found and stopped should we be killed now.
    let mut spawned = |instance: &mut Instance| match entry(instance.report()) {
        Some(broker) => write(&broker),
        None => Ok(()), // It has died already: the start is about to fail.
    };
    let started = Instance::start(kind, settings.clone(), dir.clone(), interrupted, &mut spawned);
    let finished = started.and_then(|mut instance| {
        let broker = entry(instance.report()).ok_or_else(|| instance.died())?;
        write(&broker)?;
        instance.detach();
        Ok(broker)
    });
    if finished.is_err() {
        // The error in hand matters more than one of tidying up.
        let _ = if had_store { remove_all_but_store(&dir) } else { remove(&dir) };
    }
    finished
}

/// All that were started and not stopped, by name; also those that have died.
///
/// # Errors
/// Environment: the state directory, or a file in it, cannot be read.
pub fn status(places: &Places) -> Result<Vec<Background>, BrokerError> {
    let root = root(places);
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(BrokerError::io(root.display()))?,
    };
    let mut brokers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(BrokerError::io(root.display()))?;
        brokers.extend(read(&entry.path())?);
    }
    brokers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(brokers)
}

/// Ends a broker (gracefully, after the kind's `stop_timeout` by force) and removes its directory,
/// or with `keep_store` all of it but the store. Returns what it was; one that had died already
/// is removed alike.
///
/// # Errors
/// - Usage: there is none of this name.
/// - Environment: its state cannot be read, or it cannot be ended.
pub fn stop(places: &Places, name: &str, keep_store: bool) -> Result<Background, BrokerError> {
    check_name(name)?;
    let _lock = lock(places)?;
    let dir = root(places).join(name);
    let Some(broker) = read(&dir)? else {
        let names: Vec<_> = status(places)?.into_iter().map(|broker| broker.name).collect();
        let those = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(BrokerError::usage(format!(
            "no broker named `{name}` was started; started were: {those}"
        )));
    };
    if !broker.process.end(kind(&broker.kind)?.stop_timeout) {
        return Err(BrokerError::environment(format!(
            "the broker named `{name}` (process {}) could not be ended",
            broker.pid()
        )));
    }
    broker.process.reap();
    if keep_store {
        remove_all_but_store(&dir)?
    } else {
        remove(&dir)?
    }
    Ok(broker)
}

impl Background {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The end of what it logged: 20 lines, 64 KiB at most.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log_tail(&self) -> io::Result<String> {
        log_tail(&self.dir)
    }

    /// The file with all that it logged.
    pub fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }
}

fn root(places: &Places) -> PathBuf {
    places.state.join("brokers")
}

/// A name becomes a directory's.
fn check_name(name: &str) -> Result<(), BrokerError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=32).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(BrokerError::usage(format!(
        "`{name}` is not a broker's name; expected 1 to 32 letters, digits, `_` or `-`"
    )))
}

/// Starting and stopping wait for one another; the kernel releases the lock of who was killed.
fn lock(places: &Places) -> Result<File, BrokerError> {
    let root = root(places);
    private_dir(&root)?;
    let path = root.join(".lock");
    File::create(&path)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(BrokerError::io(format_args!("locking `{}`", path.display())))
}

fn read(dir: &Path) -> Result<Option<Background>, BrokerError> {
    let path = dir.join(STATE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        text => text.map_err(BrokerError::io(format_args!("reading `{}`", path.display())))?,
    };
    let mut broker: Background = serde_json::from_str(&text).map_err(|error| {
        BrokerError::environment(format!(
            "`{}` is not queueproof's ({error}); if it belongs to a broker that still runs, end \
             that, then remove the directory",
            path.display()
        ))
    })?;
    broker.running = broker.process.is_running();
    Ok(Some(broker))
}

/// Replaces the file as a whole, so that nobody ever reads half of it.
fn write(broker: &Background) -> Result<(), BrokerError> {
    let path = broker.dir.join(STATE);
    let part = broker.dir.join("state.json.new");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|file| Ok(serde_json::to_writer_pretty(file, broker)?))
        .and_then(|()| fs::rename(&part, &path))
        .map_err(BrokerError::io(format_args!("writing `{}`", path.display())))
}

fn remove(dir: &Path) -> Result<(), BrokerError> {
    fs::remove_dir_all(dir).map_err(BrokerError::io(format_args!("removing `{}`", dir.display())))
}

fn remove_all_but_store(dir: &Path) -> Result<(), BrokerError> {
    let failed = |error| BrokerError::io(format_args!("tidying `{}`", dir.display()))(error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            fs::remove_file(path).map_err(failed)?;
        } else if path.file_name().is_some_and(|name| name != "store") {
            fs::remove_dir_all(path).map_err(failed)?;
        }
    }
    Ok(())
}
