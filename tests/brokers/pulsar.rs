//! Apache Pulsar. One at a time: each takes some seconds of two processors to start.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    env, fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use queueproof::brokers::{BrokerKind, ErrorClass, PrivateBroker, StartSettings, kind, version_of};
use rustix::process::{Signal, kill_process_group};
use tempfile::TempDir;

use crate::{
    PATIENCE, eventually, http, is_empty, listens_on_loopback, pid,
    private::{Helper, has_log, settings, start},
    processes_in, real, runs,
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn pulsar() -> &'static BrokerKind {
    kind("pulsar").unwrap()
}

/// The real Pulsar, for this test alone.
fn alone() -> Option<(PathBuf, MutexGuard<'static, ()>)> {
    let binary = real(pulsar())?;
    Some((binary, ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn admin_port(broker: &PrivateBroker) -> u16 {
    broker.admin_url().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

const TOPIC: &str = "/admin/v2/persistent/public/default/a-topic";

/// Makes a topic with a subscription, and publishes to it.
fn publish(broker: &PrivateBroker) {
    let admin = admin_port(broker);
    for made in [TOPIC.to_owned(), format!("{TOPIC}/subscription/a-subscription")] {
        let answer = http(admin, &format!("PUT {made}"), "", PATIENCE).unwrap();
        assert!(answer.contains(" 204 "), "{answer}");
    }
    let message = r#"{"producerName":"p","messages":[{"payload":"hello"}]}"#;
    let topic = "/topics/persistent/public/default/a-topic";
    let answer = http(admin, &format!("POST {topic}"), message, PATIENCE).unwrap();
    assert!(answer.contains(r#""errorCode":0"#), "{answer}");
}

/// The message that was published.
fn published(broker: &PrivateBroker) -> String {
    let first = format!("GET {TOPIC}/subscription/a-subscription/position/1");
    http(admin_port(broker), &first, "", PATIENCE).unwrap()
}

/// The names in the installation, and in its directories.
fn installation(binary: &Path) -> BTreeSet<PathBuf> {
    let home = binary.parent().unwrap().parent().unwrap();
    let names = |dir: &Path| -> Vec<_> {
        fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let top = names(home);
    top.iter().flat_map(|dir| names(dir)).chain(top.clone()).collect()
}

#[test]
fn a_private_pulsar_takes_clients_on_this_machine_alone_and_leaves_nothing() {
    let Some((binary, _alone)) = alone() else { return };
    let before = installation(&binary);
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    // Lines reach it, but do not move it.
    settings.extra = "bindAddress=0.0.0.0\nbindAddresses=x:pulsar://0.0.0.0:6655\n\
                      webServicePort=8080\nlisteningInterface=\nhttpServerEnabled=true\n\
                      maxProducersPerTopic=4321"
        .into();
    let told = RefCell::new(Vec::new());
    let tell = |line: &str| told.borrow_mut().push(line.to_owned());
    let broker = PrivateBroker::start(pulsar(), settings, &AtomicBool::new(false), &tell).unwrap();
    let version = version_of(pulsar(), &binary).unwrap();
    assert_eq!(told.borrow().len(), 1);
    assert!(told.borrow()[0].starts_with(&format!("pulsar {version}: starting")));
    assert_eq!(broker.version(), version);
    assert_eq!(broker.url(), format!("pulsar://127.0.0.1:{}", broker.port()));
    let admin = admin_port(&broker);
    assert_eq!(broker.admin_url().unwrap(), format!("http://127.0.0.1:{admin}"));
    let runtime = "GET /admin/v2/brokers/configuration/runtime";
    let runtime = http(admin, runtime, "", PATIENCE).unwrap();
    assert!(runtime.contains(r#""maxProducersPerTopic":"4321""#), "{runtime}");
    listens_on_loopback(broker.pid(), 3);

    // At once, since it said that it is ready.
    let idle = broker.load();
    publish(&broker);
    assert!(published(&broker).ends_with("hello"));
    // It counts what clients publish, as it does itself to see that it is healthy, and not what
    // comes over HTTP.
    http(admin, "GET /admin/v2/brokers/health", "", PATIENCE).unwrap();
    assert!(idle.connections.is_some(), "{idle:?}");
    eventually("a message is counted", || {
        broker.load().messages_in == idle.messages_in.map(|count| count + 1)
    });
    let used = broker.load();
    if cfg!(target_os = "linux") {
        assert!(used.cpu > idle.cpu && used.resident > Some(100_000_000), "{idle:?} {used:?}");
        assert!(used.written >= idle.written);
    }
    // What is not there is not made by asking for it.
    let other = "POST /topics/persistent/public/default/other";
    let message = r#"{"producerName":"p","messages":[{"payload":"hello"}]}"#;
    let answer = http(admin, other, message, PATIENCE).unwrap();
    assert!(!answer.contains(r#""errorCode":0"#), "{answer}");

    let id = broker.pid();
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
    assert!(http(admin, "GET /", "", PATIENCE).is_err());
    assert_eq!(installation(&binary), before);
}

#[test]
fn a_pulsar_can_be_paused_and_killed_and_restarts_on_its_store_and_address() {
    let Some((binary, _alone)) = alone() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(pulsar(), settings(&binary, dir.path())).unwrap();
    let (url, admin) = (broker.url().to_owned(), broker.admin_url().unwrap().to_owned());
    publish(&broker);

    broker.pause().unwrap();
    let version = "GET /admin/v2/brokers/version";
    assert!(http(admin_port(&broker), version, "", Duration::from_millis(500)).is_err());
    broker.resume().unwrap();
    http(admin_port(&broker), version, "", PATIENCE).unwrap();

    let first = broker.pid();
    let before = broker.load();
    broker.kill9().unwrap();
    assert!(!runs(first));
    // The restart meets somebody who has one of its ports for the moment.
    let somebody = TcpListener::bind(("127.0.0.1", admin_port(&broker))).unwrap();
    thread::scope(|scope| {
        let restart = scope.spawn(|| broker.restart());
        eventually("the restart was refused once", || {
            let log = fs::read_to_string(broker.dir().join("broker.log")).unwrap();
            log.contains("Address already in use") && !broker_runs_in(&broker)
        });
        drop(somebody);
        restart.join().unwrap().unwrap();
    });
    assert_ne!(broker.pid(), first);
    assert_eq!((broker.url(), broker.admin_url().unwrap()), (url.as_str(), admin.as_str()));
    let after = broker.load();
    assert!(after.messages_in >= before.messages_in && before.messages_in.is_some());
    assert!(after.cpu >= before.cpu, "{before:?} {after:?}");
    let found = published(&broker);
    assert!(found.ends_with("hello"), "{found}");
    listens_on_loopback(broker.pid(), 3);

    broker.stop().unwrap();
    assert!(!broker.is_alive());
    broker.restart().unwrap();
    assert!(published(&broker).ends_with("hello"));
}

fn broker_runs_in(broker: &PrivateBroker) -> bool {
    !processes_in(broker.dir()).is_empty()
}

#[test]
fn a_killed_queueproof_leaves_no_pulsar() {
    let Some((binary, _alone)) = alone() else { return };
    let dir = TempDir::new().unwrap();
    let helper = Helper::start(pulsar(), dir.path(), &binary);
    kill_process_group(pid(helper.child.id()), Signal::KILL).unwrap();
    helper.leaves_nothing_in(dir.path());
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn an_interrupt_while_a_pulsar_starts_ends_it_at_once() {
    let Some((binary, _alone)) = alone() else { return };
    let dir = TempDir::new().unwrap();
    let settings = settings(&binary, dir.path());
    let interrupted = AtomicBool::new(false);
    let begun = Instant::now();
    let error = thread::scope(|scope| {
        let start =
            scope.spawn(|| PrivateBroker::start(pulsar(), settings.clone(), &interrupted, &|_| {}));
        eventually("it is being started", || has_log(dir.path()));
        thread::sleep(Duration::from_millis(500));
        interrupted.store(true, Ordering::Relaxed);
        start.join().unwrap().unwrap_err()
    });
    assert_eq!(error.class, ErrorClass::Interrupted);
    assert!(begun.elapsed() < pulsar().start_timeout / 2);
    assert!(is_empty(dir.path()));
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_pulsar_that_cannot_start_says_why_among_all_that_java_says() {
    let Some((binary, _alone)) = alone() else { return };
    let dir = TempDir::new().unwrap();
    for (extra, flags, why) in [
        ("numIOThreads=abc", vec![], r#"NumberFormatException: For input string: "abc""#),
        ("", vec!["-XX:NoSuchOption".to_owned()], "Unrecognized VM option"),
    ] {
        let mut settings = settings(&binary, dir.path());
        settings.extra = extra.into();
        settings.flags = flags;
        let error = start(pulsar(), settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains(why), "{error}");
        assert!(error.message.contains("before it was ready"), "{error}");
        assert!(!error.message.contains("\tat "), "{error}");
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn what_is_not_an_option_of_java_is_refused() {
    let dir = TempDir::new().unwrap();
    let binary = distribution(&dir.path().join("pulsar"), "exit 7");
    for flag in ["some.Class", "-Da=b some.Class", ""] {
        let mut settings = StartSettings::new(&binary);
        settings.parent = Some(dir.path().join("run"));
        fs::create_dir_all(dir.path().join("run")).unwrap();
        settings.flags = vec![flag.into()];
        let error = start(pulsar(), settings).unwrap_err();
        assert!(is_empty(&dir.path().join("run")));
        // Where there is no Java, that is said first.
        if error.class == ErrorClass::Usage {
            assert!(error.message.contains(&format!("`{flag}`")), "{error}");
        } else {
            assert!(error.message.contains("Java"), "{error}");
        }
    }
}

// With a distribution that is only made to look like one: these run everywhere.

/// A distribution of version 4.0.9 whose start script does this.
fn distribution(dir: &Path, script: &str) -> PathBuf {
    for part in ["bin", "conf", "lib"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    fs::write(dir.join("conf/standalone.conf"), "bindAddress=0.0.0.0\nlast=line").unwrap();
    fs::write(dir.join("lib/org.apache.pulsar-pulsar-broker-4.0.9.jar"), "").unwrap();
    fs::write(dir.join("lib/org.apache.pulsar-pulsar-broker-common-4.0.8.jar"), "").unwrap();
    executable(&dir.join("bin/pulsar"), script)
}

/// A home of a Java that says this about its version.
fn java(dir: &Path, version: &str) -> PathBuf {
    fs::create_dir_all(dir.join("bin")).unwrap();
    let told = format!("echo 'openjdk version \"{version}\" 2025-04-15' >&2");
    executable(&dir.join("bin/java"), &told);
    dir.to_owned()
}

/// Another process writes it, as for [`crate::sleeper`].
fn executable(path: &Path, text: &str) -> PathBuf {
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#;
    let sh = Command::new("sh").args(["-c", write, "sh", text]).arg(path).status();
    assert!(sh.unwrap().success());
    path.to_owned()
}

/// `queueproof brokers start pulsar`, with this executable and this Java.
fn start_by_command(dir: &Path, binary: &Path, java: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_queueproof"))
        .args(["brokers", "start", "pulsar"])
        .env("QUEUEPROOF_STATE_DIR", dir.join("state"))
        .env("QUEUEPROOF_CACHE_DIR", dir.join("cache"))
        .env("QUEUEPROOF_PULSAR", binary)
        .env("JAVA_HOME", java)
        .env("PULSAR_EXTRA_OPTS", "inherited")
        .env("PULSAR_CLIENT_CONF", "inherited")
        .env("PULSAR_MEM", "inherited")
        .output()
        .unwrap()
}

#[test]
fn a_pulsar_inherits_no_settings_of_another_one() {
    let dir = TempDir::new().unwrap();
    let script = r#"env | grep '^PULSAR_' >&2; echo "arguments: $*"
        sort "$PULSAR_STANDALONE_CONF" | grep -c bindAddress=
        grep -e last= -e bindAddress= "$PULSAR_STANDALONE_CONF"; exit 7"#;
    let binary = distribution(&dir.path().join("pulsar"), script);
    let output = start_by_command(dir.path(), &binary, &java(&dir.path().join("java"), "17.0.1"));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("pulsar 4.0.9: starting"), "{told}");
    assert!(!told.contains("inherited"), "{told}");
    for part in [
        "exit status: 7",
        "arguments: standalone -nfw -nss --metadata-dir /",
        "PULSAR_MEM=-Xms",
        // The distribution's settings, but for those that are queueproof's.
        "\n1\nlast=line\nbindAddress=127.0.0.1\n",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(is_empty_but_for_the_lock(&dir.path().join("state/brokers")));
}

fn is_empty_but_for_the_lock(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().all(|entry| entry.unwrap().file_name() == ".lock")
}

#[test]
fn without_a_java_that_it_can_use_pulsar_is_not_started() {
    let dir = TempDir::new().unwrap();
    let binary = distribution(&dir.path().join("pulsar"), "echo started >&2; exit 7");
    let old = java(&dir.path().join("old"), "11.0.22");
    for (java, words) in [(old, "is Java 11"), (dir.path().join("none"), "without")] {
        let output = start_by_command(dir.path(), &binary, &java);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{told}");
        for part in [words, "JAVA_HOME", "Java 17 or later is needed"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("started"), "{told}");
        assert!(is_empty_but_for_the_lock(&dir.path().join("state/brokers")));
    }
}

#[test]
fn a_path_that_the_start_script_would_break_is_named_before_anything_starts() {
    let dir = TempDir::new().unwrap();
    let binary = distribution(&dir.path().join("pulsar"), "exit 7");
    let spaced = dir.path().join("with a space");
    fs::create_dir(&spaced).unwrap();
    let mut settings = StartSettings::new(&binary);
    settings.parent = Some(spaced.clone());
    let error = start(pulsar(), settings).unwrap_err();
    for part in [spaced.to_str().unwrap(), "TMPDIR"] {
        assert!(error.message.contains(part), "{error}");
    }
    assert!(is_empty(&spaced));
}

#[test]
fn a_link_to_a_start_script_is_followed() {
    let dir = TempDir::new().unwrap();
    let binary = distribution(&dir.path().join("pulsar"), "echo \"I am $0\"; exit 7");
    let link = dir.path().join("link");
    symlink(&binary, &link).unwrap();
    assert_eq!(version_of(pulsar(), &link).unwrap(), "4.0.9");
    let output = start_by_command(dir.path(), &link, &java(&dir.path().join("java"), "21"));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let real = fs::canonicalize(&binary).unwrap();
    assert!(told.contains(&format!("I am {}", real.display())), "{told}");
}
