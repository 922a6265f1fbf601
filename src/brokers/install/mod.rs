//! Installing brokers into the cache, through the ordinary package client of their ecosystem.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{BrokerError, BrokerKind, Install, Places, find, process, process::wait_until};

mod client;
mod debian;
mod go;
mod maven;

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
/// hundred in a minute for NATS; some lines for etcd; a dozen for Pulsar, whose archive of 245 MB Maven brings in
/// silence, and keeps a copy of in its local repository).
///
/// # Errors
/// - Usage: `version` is not one.
/// - Environment: queueproof cannot install this kind (the message says how to), the package
///   client or what the broker needs is missing, the client fails (the message ends with its last
///   lines), or what it installed is of another version.
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

    if let Install::Manual { how } = kind.install {
        return Err(BrokerError::environment(format!(
            "queueproof cannot install {}: {how}",
            kind.name
        )));
    }
    (kind.needs)(places)?;

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
    let scratch = staging.path();
    let mut work = client::Work { places, interrupted, progress };
    let made = match kind.install {
        Install::GoModule { module } => {
            let made = scratch.join("home");
            go::install(&mut work, &format!("{module}@v{version}"), &made, scratch)?;
            made
        }
        Install::Maven { artifact, form } => {
            maven::install(&mut work, &format!("{artifact}:{version}:{form}"), scratch)?
        }
        Install::Debian { package, path } => {
            debian::install(&mut work, package, version, path, scratch)?
        }
        // Has ended above.
        Install::Manual { .. } => scratch.to_owned(),
    };
    let told = find::version_of(kind, &made.join(kind.binary))?;
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
    fs::rename(&made, &home).map_err(failed)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{thread, time::Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::brokers::{
        ErrorClass,
        find::{installed, list, version_of},
        testing::{nats, places, script},
    };

    /// Places with a `go` on PATH that logs its arguments, runs `text`, then makes a nats-server
    /// of the version that it was asked for.
    fn fake_go(dir: &Path, text: &str) -> Places {
        let go = format!(
            r#"echo "$@" >> '{}'
            {text}
            version="${{3##*@v}}"
            printf '#!/bin/sh\necho nats-server: v%s\n' "$version" > "$GOBIN/nats-server"
            chmod 755 "$GOBIN/nats-server"
            echo "go: downloading something" >&2"#,
            dir.join("go.log").display()
        );
        script(&dir.join("go-bin/go"), &go);
        Places { search_path: dir.join("go-bin").into(), ..places(dir) }
    }

    fn install(places: &Places, version: Option<&str>) -> Result<Installed, BrokerError> {
        super::install(places, nats(), version, &AtomicBool::new(false), &mut |_| {})
    }

    fn nothing_but_the_lock_is_left(places: &Places) {
        let left = fs::read_dir(places.cache.join("brokers/nats")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    }

    #[test]
    fn versions_are_installed_side_by_side_and_once() {
        let dir = TempDir::new().unwrap();
        let places = fake_go(dir.path(), "");
        let mut told = Vec::new();
        let mut progress = |line: &str| told.push(line.to_owned());
        let pinned =
            super::install(&places, nats(), None, &AtomicBool::new(false), &mut progress).unwrap();
        assert_eq!(told, ["go: downloading something"]);
        assert_eq!(pinned.version, nats().pinned);
        assert!(!pinned.already);
        let other = install(&places, Some("2.10.22")).unwrap();
        assert_eq!(version_of(nats(), &other.path).unwrap(), "2.10.22");
        let again = install(&places, None).unwrap();
        assert_eq!(again, Installed { already: true, ..pinned.clone() });

        assert_eq!(installed(&places, nats()), ["2.10.22", nats().pinned]);
        let listing = list(&places).unwrap();
        assert_eq!(listing[0].used.as_ref().unwrap().path, pinned.path);
        assert_eq!(listing[0].version, Some(Ok(nats().pinned.to_owned())));
        let log = fs::read_to_string(dir.path().join("go.log")).unwrap();
        let module = "install -v github.com/nats-io/nats-server/v2";
        assert_eq!(log, format!("{module}@v2.15.2\n{module}@v2.10.22\n"));
    }

    #[test]
    fn two_that_install_at_the_same_time_build_once() {
        let dir = TempDir::new().unwrap();
        let places = fake_go(dir.path(), "sleep 0.3");
        let (one, two) = thread::scope(|scope| {
            let install = || install(&places, None).unwrap();
            let (one, two) = (scope.spawn(install), scope.spawn(install));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert_ne!(one.already, two.already);
        assert_eq!(one.path, two.path);
        let log = fs::read_to_string(dir.path().join("go.log")).unwrap();
        assert_eq!(log.lines().count(), 1);
    }

    #[test]
    fn a_failed_installation_shows_the_last_lines_and_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let text = "for i in $(seq 100); do echo line $i >&2; done; echo no network >&2; exit 7";
        let places = fake_go(dir.path(), text);
        let error = install(&places, None).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        for part in ["exit status: 7", "line 100", "no network"] {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(!error.message.contains("line 50"), "{error}");
        nothing_but_the_lock_is_left(&places);
    }

    #[test]
    fn another_version_than_asked_for_is_not_installed() {
        let dir = TempDir::new().unwrap();
        let places = fake_go(dir.path(), "set -- a b c@v9.9.9");
        let error = install(&places, None).unwrap_err();
        assert!(error.message.contains("9.9.9"), "{error}");
        nothing_but_the_lock_is_left(&places);
    }

    #[test]
    fn an_interrupted_installation_ends_its_client_and_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let started = dir.path().join("started");
        let text = format!("sleep 60 & touch '{}'; wait", started.display());
        let places = fake_go(dir.path(), &text);
        let interrupted = AtomicBool::new(false);
        let begun = Instant::now();
        let error = thread::scope(|scope| {
            let installing =
                scope.spawn(|| super::install(&places, nats(), None, &interrupted, &mut |_| {}));
            assert!(wait_until(Duration::from_secs(30), || started.exists()));
            interrupted.store(true, Ordering::Relaxed);
            installing.join().unwrap().unwrap_err()
        });
        assert_eq!(error.class, ErrorClass::Interrupted);
        // It waited for nobody's 60 s.
        assert!(begun.elapsed() < Duration::from_secs(50));
        nothing_but_the_lock_is_left(&places);
    }

    #[test]
    fn what_a_killed_installation_left_is_removed_by_the_next() {
        let dir = TempDir::new().unwrap();
        let places = fake_go(dir.path(), "");
        let kind_dir = places.cache.join("brokers/nats");
        let half = kind_dir.join(".building-half");
        fs::create_dir_all(&half).unwrap();
        fs::create_dir_all(kind_dir.join(nats().pinned)).unwrap(); // With nothing in it.
        install(&places, None).unwrap();
        assert!(!half.exists());
        assert_eq!(installed(&places, nats()), [nats().pinned]);
    }

    #[test]
    fn without_go_the_message_says_so() {
        let dir = TempDir::new().unwrap();
        let error = install(&places(dir.path()), None).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains("no `go` on PATH"), "{error}");
    }

    #[test]
    fn what_is_no_version_never_reaches_a_command_line() {
        let dir = TempDir::new().unwrap();
        let places = fake_go(dir.path(), "");
        for version in ["latest", "-toolexec=x", "2.15.2 x", "../../2.15.2", "2.15.2@x", ""] {
            let error = install(&places, Some(version)).unwrap_err();
            assert_eq!(error.class, ErrorClass::Usage);
            assert!(error.message.contains(&format!("`{version}`")), "{error}");
        }
        assert!(!dir.path().join("go.log").exists());
        assert!(!places.cache.exists());
    }

    #[test]
    fn what_no_package_client_has_is_not_installed_and_the_message_says_how_to_get_it() {
        let dir = TempDir::new().unwrap();
        let places = places(dir.path());
        let nsq = crate::brokers::kind("nsq").unwrap();
        let install = super::install(&places, nsq, None, &AtomicBool::new(false), &mut |_| {});
        let error = install.unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        for part in ["https://nsq.io", "packages", "PATH", "nsq.server.binary", "QUEUEPROOF_NSQD"] {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(!places.cache.exists());
    }
}
