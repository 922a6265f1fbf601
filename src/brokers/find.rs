//! Which executable is used, and why.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    BrokerError, BrokerKind, Install, Places, absolute,
    background::{self, Background},
    process,
};

/// What to look for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The executable that the settings name; no other is looked for then.
    pub binary: Option<PathBuf>,
    /// The version, as `2.15.2`; `None` for any.
    pub version: Option<String>,
}

/// An executable that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The executable, absolute.
    pub path: PathBuf,
    /// Where it was found.
    pub origin: Origin,
}

/// Where an executable was found, in the order of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The settings name it.
    Setting,
    /// The kind's environment variable names it.
    Environment,
    /// It is on PATH.
    Path,
    /// queueproof installed it.
    Cache,
}

/// What there is of one kind.
#[derive(Debug)]
pub struct Listing {
    /// The kind.
    pub kind: &'static BrokerKind,
    /// The versions in the cache, oldest first.
    pub installed: Vec<String>,
    /// What would be used when nothing is asked for.
    pub used: Result<Found, BrokerError>,
    /// The version of `used`, or why it does not tell.
    pub version: Option<Result<String, BrokerError>>,
    /// The background brokers that were started and not stopped, also those that have died.
    pub running: Vec<Background>,
}

/// Finds a broker's executable: the one that the settings name, else the one that the environment
/// names, else the first on PATH, else in the cache (the pinned version before the newest). If a
/// version is wanted, those on the way that are of another one are passed over.
///
/// # Errors
/// - Usage: the settings or the environment name a file that is no executable, or the settings
///   one of another version; the wanted version is not one.
/// - Environment: there is none; the message names every place looked at and how to install one.
pub fn find(places: &Places, kind: &BrokerKind, wanted: &Wanted) -> Result<Found, BrokerError> {
    if let Some(version) = &wanted.version {
        check_version(version)?;
    }
    let version = wanted.version.as_deref();
    if let Some(path) = &wanted.binary {
        let path = absolute(path)?;
        named(kind, &path, "the settings")?;
        return match other_version(kind, &path, version) {
            None => Ok(Found { path, origin: Origin::Setting }),
            Some(other) => Err(BrokerError::usage(format!(
                "the settings ask for {} {} and name `{}`, which {other}",
                kind.name,
                version.unwrap_or_default(),
                path.display()
            ))),
        };
    }

    let mut looked_at = vec!["the settings: name no executable".to_owned()];
    match places.overrides.get(kind.name) {
        None => looked_at.push(format!("{}: not set", kind.override_env)),
        Some(path) => {
            named(kind, path, kind.override_env)?;
            match other_version(kind, path, version) {
                None => return Ok(Found { path: path.clone(), origin: Origin::Environment }),
                Some(other) => looked_at.push(format!("{}: {other}", kind.override_env)),
            }
        }
    }

    let name = Path::new(kind.binary).file_name().unwrap_or_default();
    let before = looked_at.len();
    for dir in env::split_paths(&places.search_path).filter(|dir| dir.is_absolute()) {
        let path = dir.join(name);
        if !is_executable(&path) {
            continue;
        }
        let other = (kind.check)(&path).err().or_else(|| other_version(kind, &path, version));
        match other {
            None => return Ok(Found { path, origin: Origin::Path }),
            Some(other) => looked_at.push(format!("PATH: `{}` {other}", path.display())),
        }
    }
    if looked_at.len() == before {
        looked_at.push(format!("PATH: no `{}` on it", name.display()));
    }

    if let Install::Manual { how } = kind.install {
        let what =
            version.map_or(kind.name.to_owned(), |version| format!("{} {version}", kind.name));
        return Err(BrokerError::environment(format!(
            "no {what} broker was found; looked at\n  - {}\n{how}",
            looked_at.join("\n  - ")
        )));
    }
    let in_cache = match version {
        Some(version) => vec![version.to_owned()],
        None => {
            let mut versions = installed(places, kind);
            versions.reverse();
            versions.insert(0, kind.pinned.to_owned());
            versions
        }
    };
    for version in &in_cache {
        let path = cached(places, kind, version);
        if is_executable(&path) {
            return Ok(Found { path, origin: Origin::Cache });
        }
    }
    let path = cached(places, kind, &in_cache[0]);
    looked_at.push(format!("the cache: no `{}`", path.display()));

    let (what, option) = match version {
        Some(version) => (format!("{} {version}", kind.name), format!(" --version {version}")),
        None => (kind.name.to_owned(), String::new()),
    };
    Err(BrokerError::environment(format!(
        "no {what} broker was found; looked at\n  - {}\ninstall one with: queueproof brokers \
         install {}{option}",
        looked_at.join("\n  - "),
        kind.name,
    )))
}

/// What there is of each kind.
///
/// # Errors
/// As for [`background::status`].
pub fn list(places: &Places) -> Result<Vec<Listing>, BrokerError> {
    let background = background::status(places)?;
    let listing = |kind: &'static BrokerKind| {
        let used = find(places, kind, &Wanted::default());
        let version = used.as_ref().ok().map(|found| version_of(kind, &found.path));
        let running = background.iter().filter(|broker| broker.kind == kind.name);
        let installed = installed(places, kind);
        Listing { kind, installed, used, version, running: running.cloned().collect() }
    };
    Ok(super::BROKERS.iter().map(listing).collect())
}

/// The versions in the cache, oldest first.
pub fn installed(places: &Places, kind: &BrokerKind) -> Vec<String> {
    let entries = fs::read_dir(kind_dir(places, kind)).into_iter().flatten().flatten();
    let mut versions: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| check_version(name).is_ok() && is_executable(&cached(places, kind, name)))
        .collect();
    versions.sort_by_cached_key(|version| precedence(version));
    versions
}

/// The version that an executable is of.
///
/// # Errors
/// Environment: it cannot be run, does not end within 20 s, or names no version.
pub fn version_of(kind: &BrokerKind, path: &Path) -> Result<String, BrokerError> {
    (kind.version)(path)
}

/// The first version among the words that an executable prints.
pub(super) fn printed_version(path: &Path, args: &[&str]) -> Result<String, BrokerError> {
    let output = process::output(Command::new(path).args(args), Duration::from_secs(20))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    words.find(|word| check_version(word).is_ok()).map(str::to_owned).ok_or_else(|| {
        BrokerError::environment(format!(
            "`{} {}` names no version",
            path.display(),
            args.join(" ")
        ))
    })
}

/// Where a version of a kind is, or would be.
pub(super) fn cached(places: &Places, kind: &BrokerKind, version: &str) -> PathBuf {
    kind_dir(places, kind).join(version).join(kind.binary)
}

pub(super) fn kind_dir(places: &Places, kind: &BrokerKind) -> PathBuf {
    places.cache.join("brokers").join(kind.name)
}

/// A version becomes a directory's name and part of a command line: three numbers, then perhaps
/// `-` and dotted letters and digits, 64 characters at most, and nothing else.
pub(super) fn check_version(version: &str) -> Result<(), BrokerError> {
    let (numbers, suffix) = version.split_once('-').unwrap_or((version, "0"));
    let numbers: Vec<_> = numbers.split('.').collect();
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let sound = version.len() <= 64
        && numbers.len() == 3
        && numbers.iter().all(number)
        && suffix.split('.').all(word);
    if sound {
        return Ok(());
    }
    Err(BrokerError::usage(format!("`{version}` is not a version; expected one like `2.15.2`")))
}

/// Newer versions compare greater; a pre-release comes before its release.
fn precedence(version: &str) -> (Vec<u64>, bool, String) {
    let (numbers, suffix) = version.split_once('-').unwrap_or((version, ""));
    let numbers = numbers.split('.').map(|number| number.parse().unwrap_or(u64::MAX)).collect();
    (numbers, suffix.is_empty(), suffix.to_owned())
}

/// Says what a file is instead, if a version is wanted and it is not of it.
fn other_version(kind: &BrokerKind, path: &Path, wanted: Option<&str>) -> Option<String> {
    let wanted = wanted?;
    match version_of(kind, path) {
        Ok(version) if version == wanted => None,
        Ok(version) => Some(format!("is {version}")),
        Err(error) => Some(format!("does not tell its version ({error})")),
    }
}

/// A file that somebody named on purpose must be there.
fn named(kind: &BrokerKind, path: &Path, by: &str) -> Result<(), BrokerError> {
    let what = match (is_executable(path), path.exists()) {
        (true, _) => match (kind.check)(path) {
            Ok(()) => return Ok(()),
            Err(what) => what,
        },
        (false, true) => "is not an executable file".into(),
        (false, false) => "does not exist".into(),
    };
    Err(BrokerError::usage(format!("{by} names `{}`, which {what}", path.display())))
}

pub(super) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::brokers::{
        ErrorClass, kind,
        testing::{fake_server, nats, places},
    };

    #[test]
    fn the_setting_comes_before_the_environment_before_path_before_the_cache() {
        let dir = TempDir::new().unwrap();
        let mut places = places(dir.path());
        let mut wanted = Wanted::default();
        let at = |place: &str| dir.path().join(place).join("nats-server");
        let fake = |place: &str| {
            fake_server(&at(place), "2.1.0");
            at(place)
        };
        let is = |places: &Places, wanted: &Wanted, origin, path| {
            assert_eq!(find(places, nats(), wanted).unwrap(), Found { path, origin });
        };

        fake("cache/brokers/nats/2.9.0");
        fs::create_dir_all(at("cache/brokers/nats/2.99.0").parent().unwrap()).unwrap();
        let newest = fake("cache/brokers/nats/2.20.0");
        assert_eq!(installed(&places, nats()), ["2.9.0", "2.20.0"]);
        is(&places, &wanted, Origin::Cache, newest);
        let pinned = fake(&format!("cache/brokers/nats/{}", nats().pinned));
        is(&places, &wanted, Origin::Cache, pinned);

        fs::create_dir_all(at("first")).unwrap(); // A directory of that name is no executable.
        let on_path = fake("second");
        let search = ["first", "second"].map(|name| dir.path().join(name));
        places.search_path = env::join_paths(search).unwrap();
        is(&places, &wanted, Origin::Path, on_path);

        places.overrides.insert("nats".into(), fake("env"));
        is(&places, &wanted, Origin::Environment, at("env"));
        wanted.binary = Some(fake("setting"));
        is(&places, &wanted, Origin::Setting, at("setting"));
    }

    #[test]
    fn a_wanted_version_passes_over_others() {
        let dir = TempDir::new().unwrap();
        let mut places = places(dir.path());
        let on_path = dir.path().join("path/nats-server");
        fake_server(&on_path, "2.11.8");
        places.search_path = dir.path().join("path").into();
        let cached = dir.path().join("cache/brokers/nats/2.12.1/nats-server");
        fake_server(&cached, "2.12.1");
        let find = |version: &str, binary: Option<&PathBuf>| {
            let wanted = Wanted { version: Some(version.into()), binary: binary.cloned() };
            find(&places, nats(), &wanted)
        };

        assert_eq!(find("2.11.8", None).unwrap().path, on_path);
        assert_eq!(find("2.11.8", Some(&on_path)).unwrap().path, on_path);
        assert_eq!(find("2.12.1", None).unwrap().path, cached);
        let error = find("2.10.22", None).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        for part in ["is 2.11.8", "queueproof brokers install nats --version 2.10.22"] {
            assert!(error.message.contains(part), "{error}");
        }
        // A contradiction in what was asked for.
        assert_eq!(find("2.12.1", Some(&on_path)).unwrap_err().class, ErrorClass::Usage);
        assert_eq!(find("--help", None).unwrap_err().class, ErrorClass::Usage);
    }

    #[test]
    fn a_missing_broker_is_an_error_that_names_every_place_and_the_remedy() {
        let dir = TempDir::new().unwrap();
        let places = places(dir.path());
        let error = find(&places, nats(), &Wanted::default()).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        let cached = dir.path().join("cache/brokers/nats/2.15.2/nats-server");
        for part in [
            "the settings",
            "QUEUEPROOF_NATS_SERVER: not set",
            "PATH: no `nats-server`",
            cached.to_str().unwrap(),
            "queueproof brokers install nats",
        ] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        assert_eq!(list(&places).unwrap()[0].used, Err(error));
        assert!(kind("natz").unwrap_err().message.contains("nats"));
    }

    #[test]
    fn what_queueproof_cannot_install_is_not_said_to_be_installable() {
        let dir = TempDir::new().unwrap();
        let wanted = Wanted { binary: None, version: Some("1.3.0".into()) };
        let error = find(&places(dir.path()), kind("nsq").unwrap(), &wanted).unwrap_err();
        for part in ["no nsq 1.3.0 broker", "PATH: no `nsqd`", "QUEUEPROOF_NSQD", "https://nsq.io"]
        {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(!error.message.contains("brokers install"), "{error}");
    }

    #[test]
    fn a_stranger_of_the_same_name_is_passed_over_on_path_and_refused_when_named() {
        let dir = TempDir::new().unwrap();
        let mut places = places(dir.path());
        let pulsar = kind("pulsar").unwrap();
        let editor = dir.path().join("usr/bin/pulsar");
        fake_server(&editor, "1.117.0");
        places.search_path = dir.path().join("usr/bin").into();
        let error = find(&places, pulsar, &Wanted::default()).unwrap_err();
        for part in ["is not in a distribution of Apache Pulsar", "brokers install pulsar"] {
            assert!(error.message.contains(part), "{error}");
        }
        let named = Wanted { binary: Some(editor), version: None };
        let error = find(&places, pulsar, &named).unwrap_err();
        assert_eq!(error.class, ErrorClass::Usage);
        assert!(error.message.contains("not in a distribution of Apache Pulsar"), "{error}");
    }

    #[test]
    fn an_executable_that_was_named_must_be_one() {
        let dir = TempDir::new().unwrap();
        let mut places = places(dir.path());
        let file = dir.path().join("no-executable");
        fs::write(&file, "").unwrap();
        for path in [file, dir.path().join("missing")] {
            let wanted = Wanted { binary: Some(path.clone()), version: None };
            let error = find(&places, nats(), &wanted).unwrap_err();
            assert_eq!(error.class, ErrorClass::Usage);
            assert!(error.message.contains(path.to_str().unwrap()), "{error}");
            places.overrides.insert("nats".into(), path);
            let error = find(&places, nats(), &Wanted::default()).unwrap_err();
            assert_eq!(error.class, ErrorClass::Usage);
            assert!(error.message.contains("QUEUEPROOF_NATS_SERVER"), "{error}");
        }
    }

    #[test]
    fn a_version_is_three_numbers_and_perhaps_a_suffix() {
        for version in ["2.15.2", "0.0.0", "2.12.0-RC.1", "2.11.0-preview-2.x"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        let long = format!("1.2.3-{}", "a".repeat(60));
        for version in [
            "",
            "latest",
            "2",
            "2.15",
            "2.15.2.1",
            "v2.15.2",
            "-2.15.2",
            "2.15.2-",
            "2.15.2-a..b",
            "2.15.2/../..",
            "../2.15.2",
            "2.15.2 -x",
            "2.15.2\n",
            "2.15.2@latest",
            "2.15.2+meta",
            "２.15.2",
            "+1.2.3",
            &long,
        ] {
            assert!(check_version(version).is_err(), "{version:?}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let mut versions = ["2.9.1", "2.12.0", "2.10.22", "2.12.0-RC.1", "10.0.0"];
        versions.sort_by_cached_key(|version| precedence(version));
        assert_eq!(versions, ["2.9.1", "2.10.22", "2.12.0-RC.1", "2.12.0", "10.0.0"]);
    }
}
