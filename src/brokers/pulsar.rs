//! Apache Pulsar, standalone: broker, bookie and metadata in one process of Java.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    BrokerError, BrokerKind, Install, Invocation, Launch, Places, Readiness, SyncInterval, find,
    http, java,
};

pub(super) const PULSAR: BrokerKind = BrokerKind {
    name: "pulsar",
    pinned: "4.0.8",
    known: &["4.0.8"],
    binary: "bin/pulsar",
    override_env: "QUEUEPROOF_PULSAR",
    install: Install::Maven {
        artifact: "org.apache.pulsar:pulsar-server-distribution",
        form: "tar.gz:bin",
    },
    version,
    check: |path| home(path).map(drop),
    needs: |places: &Places| {
        java::check(places.java_home.as_deref(), &places.search_path, JAVA)
            .map_err(|error| BrokerError::environment(format!("Pulsar cannot run: {error}")))
    },
    ports: 2,
    // Measured: ready after 6 s, ended after 0.6 s.
    start_timeout: Duration::from_secs(120),
    stop_timeout: Duration::from_secs(10),
    usual_start: Duration::from_secs(7),
    url: |ports| format!("pulsar://127.0.0.1:{}", ports[0]),
    admin_url: Some(|ports| format!("http://127.0.0.1:{}", ports[1])),
    invocation,
    probe,
};

/// The version of Java that it needs, by its start script.
const JAVA: u32 = 17;

/// The directory of the distribution that a start script is in.
fn home(binary: &Path) -> Result<PathBuf, String> {
    let real = fs::canonicalize(binary).map_err(|error| error.to_string())?;
    let home = real.parent().and_then(Path::parent).filter(|home| conf(home).is_file());
    home.map(Path::to_owned).ok_or_else(|| {
        "is not in a distribution of Apache Pulsar (whose `bin/pulsar` has `conf/standalone.conf` \
         beside its `bin`)"
            .into()
    })
}

fn conf(home: &Path) -> PathBuf {
    home.join("conf/standalone.conf")
}

/// By the name of the broker's own library: `bin/pulsar version` would start a Java for it, and
/// make a directory in the distribution.
fn version(binary: &Path) -> Result<String, BrokerError> {
    const BEFORE: &str = "org.apache.pulsar-pulsar-broker-";
    let not = |why: String| BrokerError::environment(format!("`{}` {why}", binary.display()));
    let lib = home(binary).map_err(not)?.join("lib");
    let entries =
        fs::read_dir(&lib).map_err(BrokerError::io(format_args!("reading `{}`", lib.display())))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut versions = names.filter_map(|name| {
        let version = name.strip_prefix(BEFORE)?.strip_suffix(".jar")?;
        find::check_version(version).is_ok().then(|| version.to_owned())
    });
    versions.next().ok_or_else(|| not(format!("names no version: no `lib/{BEFORE}VERSION.jar`")))
}

/// The distribution's own configuration with changes at its end, which win.
fn invocation(launch: &Launch) -> Result<Invocation, BrokerError> {
    let settings = &launch.settings;
    let binary = fs::canonicalize(&settings.binary)
        .map_err(BrokerError::io(format_args!("`{}`", settings.binary.display())))?;
    for path in [&binary, &launch.dir] {
        check_path(path)?;
    }
    java::check(java::home().as_deref(), &env::var_os("PATH").unwrap_or_default(), JAVA)
        .map_err(|error| BrokerError::environment(format!("Pulsar cannot run: {error}")))?;
    let home = home(&binary).map_err(|why| {
        BrokerError::environment(format!("`{}` {why}", settings.binary.display()))
    })?;

    let own = conf(&home);
    let text = fs::read_to_string(&own)
        .map_err(BrokerError::io(format_args!("reading `{}`", own.display())))?;
    let file = launch.dir.join("standalone.conf");
    let doing = format!("writing into `{}`", launch.dir.display());
    fs::write(&file, format!("{text}\n{}\n{}", settings.extra, changes(launch)))
        .map_err(BrokerError::io(&doing))?;
    let [log, tmp, store] = ["log", "tmp", "store"].map(|name| launch.dir.join(name));
    for dir in [&log, &tmp] {
        fs::create_dir_all(dir).map_err(BrokerError::io(&doing))?;
    }

    let mut args = ["standalone", "-nfw", "-nss", "--metadata-dir"].map(Into::into).to_vec();
    args.push(store.join("metadata").into());
    args.push("--bookkeeper-dir".into());
    args.push(store.join("bookkeeper").into());
    let options = format!("-Djava.io.tmpdir={} -XX:-UsePerfData", tmp.display());
    let env = vec![
        ("PULSAR_STANDALONE_CONF", file.into()),
        ("PULSAR_LOG_DIR", log.into()),
        ("PULSAR_MEM", "-Xms256m -Xmx512m -XX:MaxDirectMemorySize=512m".into()),
        ("PULSAR_GC", "-XX:+UseSerialGC".into()),
        ("PULSAR_GC_LOG", " ".into()),
        ("PULSAR_EXTRA_OPTS", options.into()),
    ];
    Ok(Invocation { args, env })
}

/// What differs from the distribution's configuration.
fn changes(launch: &Launch) -> String {
    let mut lines = format!(
        "bindAddress=127.0.0.1\n\
         advertisedAddress=127.0.0.1\n\
         bindAddresses=\n\
         brokerServicePort={}\n\
         webServicePort={}\n\
         listeningInterface={LOOPBACK}\n\
         allowLoopback=true\n\
         statusFilePath={}\n\
         allowAutoTopicCreation=false\n\
         brokerDeleteInactiveTopicsEnabled=false\n",
        launch.ports[0], launch.ports[1], launch.name,
    );
    match launch.settings.sync {
        None => {}
        Some(SyncInterval::Always) => lines.push_str("journalSyncData=true\n"),
        Some(SyncInterval::Every(interval)) => lines.push_str(&format!(
            "journalSyncData=false\njournalPageCacheFlushIntervalMSec={}\n",
            interval.as_millis().max(1)
        )),
    }
    lines
}

/// The loopback interface's name.
const LOOPBACK: &str = if cfg!(target_os = "macos") { "lo0" } else { "lo" };

/// Its start script does not quote paths.
fn check_path(path: &Path) -> Result<(), BrokerError> {
    let shown = path.to_string_lossy();
    let breaks = |c: char| c.is_whitespace() || matches!(c, '*' | '?' | '[' | '\\');
    if !shown.contains(breaks) {
        return Ok(());
    }
    Err(BrokerError::environment(format!(
        "Pulsar's start script cannot handle the path `{shown}`: it must be without spaces, `*`, \
         `?`, `[` and `\\` (temporary directories are made below TMPDIR, background brokers below \
         QUEUEPROOF_STATE_DIR)"
    )))
}

/// Ready is what has stored and read back a message of its own (its health check does) and has
/// made the namespace that it makes last.
fn probe(launch: &Launch) -> Readiness {
    const PATIENCE: Duration = Duration::from_secs(2);
    let ask = |path: &str| match http::get(launch.ports[1], path, PATIENCE) {
        Ok((200, body)) => Ok(body),
        Ok((status, _)) => Err(Readiness::NotYet(format!("GET {path} answers {status}"))),
        Err(error) => Err(Readiness::NotYet(format!("GET {path}: {error}"))),
    };
    let ready = || {
        if !ask("/admin/v2/brokers/configuration/runtime")?.contains(&launch.name) {
            return Err(Readiness::NotYet("another server answers on its port".into()));
        }
        ask("/admin/v2/namespaces/public/default")?;
        ask("/admin/v2/brokers/health")?;
        ask("/admin/v2/brokers/version")
    };
    match ready() {
        Ok(version) => Readiness::Ready { version: version.trim().to_owned() },
        Err(not) => not,
    }
}
