//! etcd.

use std::{process::Command, sync::atomic::AtomicBool, time::Duration};

use queueproof::brokers::{
    BrokerKind, ErrorClass, Places, SyncInterval, background, kind, version_of,
};
use rustix::process::{Signal, kill_process_group};
use tempfile::TempDir;

use crate::{
    PATIENCE, eventually, http, is_empty, listens_on_loopback, pid,
    private::{Helper, settings, start},
    processes_in, real, runs,
};

pub fn etcd() -> &'static BrokerKind {
    kind("etcd").unwrap()
}

/// What it answers to a request of its interface for clients: JSON, in which keys and values are
/// in base64.
pub fn ask(port: u16, path: &str, body: &str, patience: Duration) -> std::io::Result<String> {
    http(port, &format!("POST /v3/{path}"), body, patience)
}

/// Puts the value `v` at the key `k`.
pub fn put(port: u16, patience: Duration) -> bool {
    let answer = ask(port, "kv/put", r#"{"key":"aw==","value":"dg=="}"#, patience);
    answer.is_ok_and(|answer| answer.contains(" 200 OK") && answer.contains("revision"))
}

/// Whether that value is at that key.
fn has(port: u16) -> bool {
    let answer = ask(port, "kv/range", r#"{"key":"aw=="}"#, PATIENCE).unwrap();
    answer.contains(r#""value":"dg==""#)
}

#[test]
fn an_etcd_takes_clients_on_this_machine_alone_and_leaves_nothing() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    // Flags reach it, but do not move it.
    let elsewhere = |flag: &str| format!("-{flag}={}", outside.path().join(flag).display());
    settings.flags = ["data-dir", "wal-dir", "log-outputs"].map(elsewhere).to_vec();
    settings.flags.extend(["--name=x", "--max-txn-ops=1"].map(str::to_owned));
    let broker = start(etcd(), settings).unwrap();
    assert_eq!(broker.url(), format!("http://127.0.0.1:{}", broker.port()));
    assert_eq!(broker.version(), version_of(etcd(), &binary).unwrap());
    assert!(put(broker.port(), PATIENCE));
    assert!(has(broker.port()));
    let two = r#"{"success":[{"requestRange":{"key":"aw=="}},{"requestRange":{"key":"aw=="}}]}"#;
    let answer = ask(broker.port(), "kv/txn", two, PATIENCE).unwrap();
    assert!(answer.contains("too many operations in txn request"), "{answer}");
    listens_on_loopback(broker.pid(), 2);
    assert!(is_empty(outside.path()));
    assert!(broker.store_dir().join("member/wal").is_dir());
    assert!(broker.log_tail().unwrap().starts_with('{'));

    let (id, port) = (broker.pid(), broker.port());
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
    assert!(!put(port, PATIENCE));
}

#[test]
fn an_etcd_can_be_paused_and_killed_and_restarts_on_its_store_and_address() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(etcd(), settings(&binary, dir.path())).unwrap();
    let (url, port, first) = (broker.url().to_owned(), broker.port(), broker.pid());
    assert!(!has(port));
    assert!(put(port, PATIENCE));

    broker.pause().unwrap();
    assert!(!put(port, Duration::from_millis(300)));
    broker.resume().unwrap();
    assert!(put(port, PATIENCE));

    broker.kill9().unwrap();
    assert!(!runs(first));
    assert!(!put(port, PATIENCE));
    broker.restart().unwrap();
    assert_eq!((broker.url(), broker.port()), (url.as_str(), port));
    assert_ne!(broker.pid(), first);
    assert!(has(port), "what was confirmed is there after a crash");
    broker.restart().unwrap();
    assert!(has(port));
}

#[test]
fn a_killed_queueproof_leaves_no_etcd() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let helper = Helper::start(etcd(), dir.path(), &binary);
    kill_process_group(pid(helper.child.id()), Signal::KILL).unwrap();
    helper.leaves_nothing_in(dir.path());
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn an_etcd_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let start_with = |change: &dyn Fn(&mut queueproof::brokers::StartSettings)| {
        let mut settings = settings(&binary, dir.path());
        change(&mut settings);
        start(etcd(), settings).unwrap_err()
    };
    let error = start_with(&|settings| settings.flags = vec!["-no-such-flag=1".into()]);
    assert_eq!(error.class, ErrorClass::Environment);
    assert!(error.message.contains("no-such-flag"), "{error}");

    let second = Duration::from_secs(1);
    let error = start_with(&|settings| settings.sync = Some(SyncInterval::Every(second)));
    assert_eq!(error.class, ErrorClass::Usage);
    assert!(error.message.contains("before it confirms"), "{error}");
    let error = start_with(&|settings| settings.extra = "name: x".into());
    assert_eq!(error.class, ErrorClass::Usage);
    assert!(error.message.contains("flags"), "{error}");
    for (flag, words) in [
        ("--name", "-name=value"),
        ("gateway", "-name=value"),
        ("stray=1", "-name=value"),
        ("--config-file=/etc/etcd.yml", "where it listens"),
        ("--listen-client-urls=http://0.0.0.0:2379", "where it listens"),
        ("-listen-metrics-urls=http://0.0.0.0:2381", "where it listens"),
        ("--discovery-srv=example.com", "where it listens"),
        ("--proxy=on", "where it listens"),
    ] {
        let error = start_with(&|settings| settings.flags = vec![flag.into()]);
        assert_eq!(error.class, ErrorClass::Usage, "{flag}");
        assert!(error.message.contains(words), "{error}");
    }
    assert!(is_empty(dir.path()));
}

/// In the environment of the program that starts it.
#[test]
fn variables_for_an_etcd_of_the_users_own_do_not_reach_it() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("etcd.yml");
    std::fs::write(&file, "listen-client-urls: http://0.0.0.0:1\n").unwrap();
    let brokers = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_queueproof"))
            .args(["brokers"])
            .args(arguments)
            .env("QUEUEPROOF_STATE_DIR", dir.path().join("state"))
            .env("QUEUEPROOF_ETCD", &binary)
            // Each would be an error, or move it.
            .env("ETCD_CONFIG_FILE", &file)
            .env("ETCD_NAME", "mine")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (started, status) = (brokers(&["start", "etcd"]), brokers(&["status"]));
    let stopped = brokers(&["stop", "etcd"]);
    assert_eq!((started.0, status.0, stopped.0), (Some(0), Some(0), Some(0)));
    for told in [&started.1, &status.1] {
        assert!(told.contains("etcd 3.") && told.contains("http://127.0.0.1:"), "{told}");
    }
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_background_etcd_that_died_is_started_again_on_its_store() {
    let Some(binary) = real(etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let mut places = Places::from_env().unwrap();
    places.state = dir.path().join("state");
    let begin = |places: &Places| {
        let settings = queueproof::brokers::StartSettings::new(&binary);
        background::start(places, "one", etcd(), settings, &AtomicBool::new(false), &|_| {})
    };
    let broker = begin(&places).unwrap();
    assert!(put(broker.port, PATIENCE));
    kill_process_group(pid(broker.pid()), Signal::KILL).unwrap();
    eventually("it is dead", || !background::status(&places).unwrap()[0].running);
    // On other ports, and with another name.
    let again = begin(&places).map(|again| has(again.port));
    background::stop(&places, "one", false).unwrap();
    assert!(again.unwrap());
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}
