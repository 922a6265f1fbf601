//! Apache Pulsar, standalone: broker, bookie and metadata in one process of Java.

use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    BrokerError, BrokerKind, Install, Invocation, Launch, Places, Readiness, SyncInterval, find,
    http, java,
    load::{Monitoring, Told, total},
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
    // For clients, for the administrative interface, and for its own bookie.
    ports: 3,
    // Measured: ready after 6 s (12 s beside other work), ended after 0.4 s.
    start_timeout: Duration::from_secs(120),
    stop_timeout: Duration::from_secs(10),
    usual_start: Duration::from_secs(7),
    url: |ports| format!("pulsar://127.0.0.1:{}", ports[0]),
    admin_url: Some(|ports| format!("http://127.0.0.1:{}", ports[1])),
    monitoring: Monitoring { port: 1, path: "/metrics/", read: |text| Some(figures(text)) },
    invocation,
    probe,
    noise,
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

/// The distribution's own configuration with changes.
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

    // Such a line would swallow the next one, which may be the address to listen on.
    if let Some(line) = settings.extra.lines().find(|l| l.ends_with('\\') || l.contains('\r')) {
        return Err(BrokerError::usage(format!(
            "{line:?} is not one line of Pulsar's configuration: it goes on in the next"
        )));
    }

    let own = conf(&home);
    let text = fs::read_to_string(&own)
        .map_err(BrokerError::io(format_args!("reading `{}`", own.display())))?;
    let file = launch.dir.join("standalone.conf");
    let doing = format!("writing into `{}`", launch.dir.display());
    fs::write(&file, layered(&[&text, &settings.extra, &changes(launch)]))
        .map_err(BrokerError::io(&doing))?;
    let [log, tmp, store] = ["log", "tmp", "store"].map(|name| launch.dir.join(name));
    for dir in [&log, &tmp] {
        fs::create_dir_all(dir).map_err(BrokerError::io(&doing))?;
    }

    // Without the worker for functions, and without the storage for streams.
    let mut args = ["standalone", "-nfw", "-nss", "--metadata-dir"].map(Into::into).to_vec();
    args.push(store.join("metadata").into());
    args.push("--bookkeeper-dir".into());
    args.push(store.join("bookkeeper").into());
    args.push("--bookkeeper-port".into());
    args.push(launch.ports[2].to_string().into());
    let mut options = format!("-Djava.io.tmpdir={} {OPTIONS}", tmp.display());
    for flag in &settings.flags {
        // What else is there would be taken for what Java shall run.
        if !flag.starts_with('-') || flag.contains(char::is_whitespace) {
            return Err(BrokerError::usage(format!(
                "`{flag}` is not an option of Java as it is expected: in one word, as -Xmx1g"
            )));
        }
        options.push(' ');
        options.push_str(flag);
    }
    let mine = |name: &str| ["PULSAR_", "BOOKIE_", "BK_"].iter().any(|own| name.starts_with(own));
    let inherited = env::vars_os().map(|(name, _)| name);
    let without_env = inherited.filter(|name| name.to_str().is_some_and(mine)).collect();
    let env = vec![
        ("PULSAR_STANDALONE_CONF", file.into()),
        ("PULSAR_LOG_DIR", log.into()),
        ("PULSAR_MEM", "-Xms256m -Xmx512m -XX:MaxDirectMemorySize=512m".into()),
        ("PULSAR_GC", "-XX:+UseSerialGC".into()),
        // None, which an empty text would not mean.
        ("PULSAR_GC_LOG", " ".into()),
        ("PULSAR_EXTRA_OPTS", options.into()),
    ];
    // Not the link that may lead to it: the script looks for the distribution beside itself.
    Ok(Invocation { program: binary, args, env, without_env })
}

/// Options of the Java machine. The first two are the distribution's own. Compiled lightly, Pulsar
/// is ready after 6 s of a processor instead of 12, in 0.35 GB instead of 1.4 GB (measured, with
/// `UseSerialGC` against the distribution's `UseZGC`), and in its first minute it is not slower:
/// 40,000 messages a second singly against 31,000, 198,000 in batches against 202,000.
const OPTIONS: &str = "-Dpulsar.allocator.exit_on_oom=true \
                       -Dio.netty.recycler.maxCapacityPerThread=4096 \
                       -XX:TieredStopAtLevel=1 -XX:-UsePerfData";

/// What differs from the distribution's configuration. The bookie takes a port that is given only
/// if it may take any, and listens on every address unless an interface is named (measured). A
/// topic is there when it was made, and stays until it is deleted. The status file is never looked
/// for: its name is what the broker is known by.
fn changes(launch: &Launch) -> String {
    let mut lines = format!(
        "bindAddress=127.0.0.1\n\
         advertisedAddress=127.0.0.1\n\
         bindAddresses=\n\
         brokerServicePort={}\n\
         webServicePort={}\n\
         listeningInterface={LOOPBACK}\n\
         allowLoopback=true\n\
         allowEphemeralPorts=true\n\
         httpServerEnabled=false\n\
         statusFilePath={}\n\
         allowAutoTopicCreation=false\n\
         brokerDeleteInactiveTopicsEnabled=false\n",
        launch.ports[0], launch.ports[1], launch.name,
    );
    // Measured: of 10 messages one after another each was synced, without this one time in all.
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

/// Texts of settings as one, in which later ones win: each setting is there once, since of two the
/// broker takes the last, and its bookie the first (measured).
fn layered(texts: &[&str]) -> String {
    let lines: Vec<_> = texts.iter().flat_map(|text| text.lines()).collect();
    let mut seen = HashSet::new();
    let kept = lines.iter().rev().filter(|line| key(line).is_none_or(|key| seen.insert(key)));
    let mut kept: Vec<_> = kept.copied().collect();
    kept.reverse();
    kept.push("");
    kept.join("\n")
}

/// The setting that a line is for; a comment is for none.
fn key(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let key = line.split(|c: char| c.is_whitespace() || matches!(c, '=' | ':')).next()?;
    (!key.is_empty() && !key.starts_with(['#', '!'])).then_some(key)
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
        Ok((401 | 403, _)) => Err(Readiness::Never(
            "asks for credentials, and queueproof has none for a Pulsar of its own".into(),
        )),
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

/// What goes on, and where in its sources: some hundred lines a start.
fn noise(line: &str) -> bool {
    let text = line.trim_start();
    text.is_empty()
        || text.starts_with("at ")
        || text.starts_with("... ")
        || line.contains(" INFO ")
        || line.contains(" WARN ")
        // Always, at a first start.
        || line.contains("this is okay if it is the first time")
}

/// Its own topics and its own connections to itself are among them, messages that come over HTTP are
/// not (measured). What was on a topic is forgotten with it.
fn figures(metrics: &str) -> Told {
    Told {
        connections: total(metrics, "pulsar_active_connections"),
        messages_in: total(metrics, "pulsar_in_messages_total"),
        messages_out: total(metrics, "pulsar_out_messages_total"),
        ..Told::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_all_topics() {
        // Of Pulsar 4.0.8, with the topics' names shortened.
        let metrics = r#"# TYPE pulsar_in_messages_total gauge
pulsar_in_messages_total{cluster="standalone",namespace="public/q",topic="persistent://a"} 50
pulsar_in_messages_total{cluster="standalone",namespace="public/q",topic="persistent://b"} 1
# TYPE pulsar_out_messages_total gauge
pulsar_out_messages_total{cluster="standalone",topic="persistent://a",subscription="agents"} 40
# TYPE pulsar_active_connections gauge
pulsar_active_connections{cluster="standalone", broker="127.0.0.1", metric="connections"} 7
"#;
        let told = figures(metrics);
        assert_eq!(told.connections, Some(7));
        assert_eq!((told.messages_in, told.messages_out), (Some(51), Some(40)));
    }

    #[test]
    fn of_settings_that_are_given_twice_the_later_stays() {
        let own = "# a=comment\nport=1\nother=own\n\nlast=line";
        let layered = layered(&[own, " port = 2\nnew:thing\nnew=once", "port=3\n"]);
        assert_eq!(layered, "# a=comment\nother=own\n\nlast=line\nnew=once\nport=3\n");
    }

    #[test]
    fn a_path_that_is_split_or_expanded_is_refused() {
        for path in ["/tmp/a b", "/tmp/a*", "/tmp/a?b", "/tmp/[a]", "/tmp/a\\b", "/a\tb"] {
            assert!(check_path(Path::new(path)).is_err(), "{path}");
        }
        assert!(check_path(Path::new("/tmp/.tmpA-1_2/ü/4.0.8")).is_ok());
    }
}
