//! Local brokers: finding, installing, starting, stopping, killing and pausing them.
//!
//! A [`PrivateBroker`] lives for one run, on a loopback port and in a temporary directory of its
//! own, and is gone after the run on every way out. A [`background`] broker lives until it is
//! stopped by name. What is special about one broker is a row of [`BROKERS`].
//!
//! Nothing here prints, and every call blocks: from async code call it through `spawn_blocking`
//! (`pause`, `resume` and `is_alive` take some 3 ms at most, measured, and so does `kill9`, but for
//! Pulsar's, whose memory takes 30 ms and more to be given back).

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub mod background;
mod etcd;
mod find;
mod guard;
mod http;
mod install;
mod instance;
mod java;
mod load;
mod nats;
mod nsq;
mod private;
mod process;
mod pulsar;

pub use find::{Found, Listing, Origin, Wanted, find, installed, list, version_of};
pub use guard::{GUARD_ARGUMENT, guard_main, own_guard};
pub use install::{Installed, install};
pub use private::PrivateBroker;

/// Every broker that queueproof can run, in the order of the tables.
pub static BROKERS: &[BrokerKind] = &[nats::NATS, pulsar::PULSAR, nsq::NSQ, etcd::ETCD];

/// One broker that queueproof can find, install and run.
#[derive(Debug)]
pub struct BrokerKind {
    /// Its name as a user types it, which is its backend's too (etcd has none: it is a store that
    /// the scheduler's baseline uses).
    pub name: &'static str,
    /// The version that `install` takes when none is asked for.
    pub pinned: &'static str,
    /// The versions that were seen to work (measured), oldest first.
    pub known: &'static [&'static str],
    /// The executable's path within its directory in the cache; its file name is what is looked
    /// for on PATH.
    pub binary: &'static str,
    /// The environment variable that names the executable to use.
    pub override_env: &'static str,
    /// Where `install` gets it.
    pub install: Install,
    /// The version that an executable is of.
    version: fn(&Path) -> Result<String, BrokerError>,
    /// Whether a file of its name is this broker at all, as far as its surroundings tell; if not,
    /// what it is instead.
    check: fn(&Path) -> Result<(), String>,
    /// Whether this machine has what it needs to run.
    needs: fn(&Places) -> Result<(), BrokerError>,
    /// How many ports it listens on; clients connect to the first.
    pub ports: usize,
    /// How long it may take from its start until it is ready, on a slow machine.
    pub start_timeout: Duration,
    /// How long it may take to end when asked to, before it is killed.
    pub stop_timeout: Duration,
    /// How long it usually takes to start, measured on 2 processors; from a second on a user is
    /// told that it is being waited for.
    pub usual_start: Duration,
    /// The URL for clients, given its ports.
    url: fn(&[u16]) -> String,
    /// The URL of its administrative interface, if it has one.
    admin_url: Option<fn(&[u16]) -> String>,
    /// Where it tells its own figures.
    monitoring: load::Monitoring,
    /// Writes its configuration files and says how to start it.
    invocation: fn(&Launch) -> Result<Invocation, BrokerError>,
    /// Asks it once, without waiting long, whether it is ready.
    probe: fn(&Launch) -> Readiness,
    /// Whether a line of its log tells nothing of why it failed.
    noise: fn(&str) -> bool,
}

/// Where a broker is installed from: the ordinary package client of its ecosystem.
#[derive(Debug)]
pub enum Install {
    /// `go install MODULE@vVERSION`.
    GoModule {
        /// The module's path, which is also that of its main package.
        module: &'static str,
    },
    /// An archive in a Maven repository that holds a single directory.
    Maven {
        /// Its group and its name: `GROUP:ARTIFACT`.
        artifact: &'static str,
        /// Its type and its classifier: `TYPE:CLASSIFIER`.
        form: &'static str,
    },
    /// A package of Debian, of which one file is taken; nothing is installed in the system.
    Debian {
        /// Its name.
        package: &'static str,
        /// The executable's path in it.
        path: &'static str,
    },
    /// No package client has it for every machine.
    Manual {
        /// How a user gets it, as the end of a sentence.
        how: &'static str,
    },
}

/// How to run a broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartSettings {
    /// The executable, as [`find`] found it.
    pub binary: PathBuf,
    /// Where a private broker's temporary directory is made; `None` for the system's place. A
    /// background broker has its own place.
    pub parent: Option<PathBuf>,
    /// Whether it keeps messages at all (NATS: whether JetStream is on). Without, it is the server
    /// that lacks what the backend needs. The others always do.
    pub storage: bool,
    /// When stored messages are synced to the disk; `None` for the broker's default. For nsqd that
    /// concerns what exceeds its memory queue, which alone reaches the disk, and
    /// [`SyncInterval::Always`] is an error, since it syncs after it has confirmed. For etcd any
    /// other is one.
    pub sync: Option<SyncInterval>,
    /// Lines for the broker's configuration file, in its own language. Addresses, name and store
    /// directory are queueproof's, whatever these lines say. nsqd and etcd are started without such
    /// a file: for them they are an error.
    pub extra: String,
    /// Further options of the process: flags of nsqd or etcd, each as `-name=value`, or those of
    /// Pulsar's Java machine, as `-Xmx1g`, which win over queueproof's own. NATS has none: for it
    /// they are an error. Addresses and store directory are queueproof's, whatever these say; for
    /// etcd, some that say otherwise are an error.
    pub flags: Vec<String>,
    /// The queueproof executable that guards a private broker (see [`PrivateBroker`]); `None` for
    /// no guard. A background broker has none.
    pub guard: Option<PathBuf>,
}

/// When a broker syncs what it stored to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncInterval {
    /// Before it confirms.
    Always,
    /// At this interval, 1 ms or more.
    Every(Duration),
}

/// Where brokers are looked for, installed and kept.
#[derive(Debug, Clone)]
pub struct Places {
    /// Installed brokers: `brokers/KIND/VERSION/` below it.
    pub cache: PathBuf,
    /// Background brokers: `brokers/NAME/` below it.
    pub state: PathBuf,
    /// The directories searched for brokers and package clients, as in PATH.
    pub search_path: OsString,
    /// Where Java is, as in JAVA_HOME; `None` for the one of the search path.
    pub java_home: Option<PathBuf>,
    /// Executables named by the environment, by the kind's name.
    pub overrides: BTreeMap<String, PathBuf>,
}

/// What went wrong with a local broker. Its message is complete: it names what was looked at and
/// what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct BrokerError {
    /// Whose fault it is.
    pub class: ErrorClass,
    /// What happened, for a user. Never a secret.
    pub message: String,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// What was asked for cannot be: exit code 2.
    Usage,
    /// The machine lacks something, or the broker does not do as it should: exit code 3.
    Environment,
    /// The user broke it off.
    Interrupted,
}

/// One broker process to be: the row's functions work on it.
#[derive(Debug)]
struct Launch {
    settings: StartSettings,
    /// The directory for its configuration, log and store.
    dir: PathBuf,
    /// Where it shall listen, on 127.0.0.1.
    ports: Vec<u16>,
    /// A name that no other broker has, to tell it from whoever else might listen there.
    name: String,
}

/// How to start a broker.
struct Invocation {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    /// What it must not inherit of the environment.
    without_env: Vec<OsString>,
}

/// What a broker answered when asked whether it is ready.
enum Readiness {
    /// It takes clients; its version in its own words.
    Ready { version: String },
    /// Not yet, for this reason.
    NotYet(String),
    /// It will never be, for this reason.
    Never(String),
}

/// The kind of this name.
///
/// # Errors
/// Usage: there is no such kind; the message names those that there are.
pub fn kind(name: &str) -> Result<&'static BrokerKind, BrokerError> {
    BROKERS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<_> = BROKERS.iter().map(|kind| kind.name).collect();
        BrokerError::usage(format!(
            "queueproof cannot run a broker named `{name}`; it can run: {}",
            names.join(", ")
        ))
    })
}

impl BrokerKind {
    /// Says that this broker is being started, if that takes long.
    fn tell_start(&self, binary: &Path, tell: &dyn Fn(&str)) {
        if self.usual_start < Duration::from_secs(1) {
            return;
        }
        let version = (self.version)(binary).map(|version| format!(" {version}"));
        tell(&format!(
            "{}{}: starting (some {} s)",
            self.name,
            version.unwrap_or_default(),
            self.usual_start.as_secs()
        ));
    }
}

impl StartSettings {
    /// Runs this executable with the broker's defaults, guarded if this program can guard.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        StartSettings {
            binary: binary.into(),
            parent: None,
            storage: true,
            sync: None,
            extra: String::new(),
            flags: Vec::new(),
            guard: own_guard(),
        }
    }
}

impl Places {
    /// The user's own: the platform's cache and state directories, or those that
    /// `QUEUEPROOF_CACHE_DIR` and `QUEUEPROOF_STATE_DIR` name; PATH; and the overrides of
    /// [`BROKERS`]. A variable that is empty counts as unset.
    ///
    /// # Errors
    /// Environment: the user has no home directory.
    pub fn from_env() -> Result<Self, BrokerError> {
        let var = |name| env::var_os(name).filter(|value| !value.is_empty());
        let dirs = directories::ProjectDirs::from("", "", "queueproof");
        let dir = |name, own: fn(&directories::ProjectDirs) -> &Path| {
            let own = dirs.as_ref().map(|dirs| own(dirs).to_owned());
            let dir = var(name).map(PathBuf::from).or(own).ok_or_else(|| {
                BrokerError::environment(format!("no home directory is known: set {name}"))
            })?;
            absolute(&dir)
        };
        let mut overrides = BTreeMap::new();
        for kind in BROKERS {
            if let Some(path) = var(kind.override_env) {
                overrides.insert(kind.name.to_owned(), absolute(Path::new(&path))?);
            }
        }
        Ok(Places {
            cache: dir("QUEUEPROOF_CACHE_DIR", |dirs| dirs.cache_dir())?,
            state: dir("QUEUEPROOF_STATE_DIR", |dirs| {
                dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir())
            })?,
            search_path: var("PATH").unwrap_or_default(),
            java_home: java::home(),
            overrides,
        })
    }
}

impl BrokerError {
    fn usage(message: impl Into<String>) -> Self {
        BrokerError { class: ErrorClass::Usage, message: message.into() }
    }

    fn environment(message: impl Into<String>) -> Self {
        BrokerError { class: ErrorClass::Environment, message: message.into() }
    }

    fn interrupted() -> Self {
        BrokerError { class: ErrorClass::Interrupted, message: "interrupted".into() }
    }

    /// For `map_err`: an input or output error, with what was being done.
    fn io(doing: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| BrokerError::environment(format!("{doing}: {error}"))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, BrokerError> {
    std::path::absolute(path).map_err(BrokerError::io(format_args!("`{}`", path.display())))
}

/// Whether a process of this id runs; what is left of a dead one does not.
pub fn is_process_running(pid: u32) -> bool {
    process::ProcessId::of(pid).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing {
    use std::{collections::BTreeMap, ffi::OsString, path::Path, process::Command};

    use super::{BrokerKind, Places, kind};

    pub fn nats() -> &'static BrokerKind {
        kind("nats").unwrap()
    }

    /// Places below a test's directory, with nothing on PATH.
    pub fn places(dir: &Path) -> Places {
        Places {
            cache: dir.join("cache"),
            state: dir.join("state"),
            search_path: OsString::new(),
            java_home: None,
            overrides: BTreeMap::new(),
        }
    }

    /// Writes an executable script. Another process does it: a file that this one holds open for
    /// writing, if only because a child was forked meanwhile, could not be executed.
    pub fn script(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#;
        let sh = Command::new("sh").args(["-c", write, "sh", text]).arg(path).status();
        assert!(sh.unwrap().success());
    }

    /// An executable that says it is this version.
    pub fn fake_server(path: &Path, version: &str) {
        script(path, &format!("echo 'nats-server: v{version}'"));
    }

    /// A `java` that says this about its version.
    pub fn fake_java(path: &Path, told: &str) {
        script(path, &format!("echo '{told}' >&2"));
    }
}
