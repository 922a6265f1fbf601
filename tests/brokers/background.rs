//! Background brokers.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use queueproof::brokers::{ErrorClass, Places, StartSettings, background, list, version_of};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::{PATIENCE, eventually, greeting, mode, nats, nats_server, pid, runs, sleeper};

fn places(dir: &Path) -> Places {
    Places {
        cache: dir.join("cache"),
        state: dir.join("state"),
        search_path: OsString::new(),
        java_home: None,
        overrides: BTreeMap::new(),
    }
}

/// Starts a background broker; it is stopped also when the test fails.
struct Started<'a>(&'a Places, background::Background);

impl<'a> Started<'a> {
    fn start(places: &'a Places, name: &str, binary: &Path) -> Started<'a> {
        let settings = StartSettings::new(binary);
        let never = AtomicBool::new(false);
        let broker = background::start(places, name, nats(), settings, &never, &|_| {}).unwrap();
        Started(places, broker)
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let _ = background::stop(self.0, &self.1.name, false);
    }
}

#[test]
fn a_background_broker_runs_until_it_is_stopped_by_name() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    assert_eq!(background::status(&places).unwrap().len(), 0);

    let started = ["one", "two"].map(|name| Started::start(&places, name, &binary));
    let [one, two] = [&started[0].1, &started[1].1];
    for broker in [one, two] {
        greeting(broker.port, PATIENCE).unwrap();
        assert_eq!(mode(&broker.dir), 0o700);
        assert_eq!(mode(&broker.dir.join("state.json")), 0o600);
    }
    let again = StartSettings::new(&binary);
    let taken = background::start(&places, "one", nats(), again, &AtomicBool::new(false), &|_| {});
    let taken = taken.unwrap_err();
    assert_eq!(taken.class, ErrorClass::Usage);
    assert!(taken.message.contains(&one.url), "{taken}");

    let status = background::status(&places).unwrap();
    let told: Vec<_> = status.iter().map(|b| (b.name.as_str(), b.pid(), b.running)).collect();
    assert_eq!(told, [("one", one.pid(), true), ("two", two.pid(), true)]);
    assert_eq!(status[0].url, one.url);
    assert_eq!(status[0].version, version_of(nats(), &binary).unwrap());
    assert!(status[0].log_tail().unwrap().contains("Server is ready"));
    assert_eq!(list(&places).unwrap()[0].running.len(), 2);

    assert!(background::stop(&places, "one", false).unwrap().running);
    assert!(!runs(one.pid()));
    assert!(!one.dir.exists());
    greeting(two.port, PATIENCE).unwrap();
    background::stop(&places, "two", false).unwrap();
    assert!(!two.dir.exists());

    let unknown = background::stop(&places, "one", false).unwrap_err();
    assert_eq!(unknown.class, ErrorClass::Usage);
    assert!(unknown.message.contains("`one`"), "{unknown}");
}

#[test]
fn a_store_outlives_its_background_broker_when_asked_or_when_that_died() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    let died = || !background::status(&places).unwrap()[0].running;

    let first = Started::start(&places, "kept", &binary);
    let kept = first.1.dir.join("store/jetstream/kept");
    fs::write(&kept, "").unwrap();
    background::stop(&places, "kept", true).unwrap();
    assert_eq!(background::status(&places).unwrap().len(), 0);
    assert!(kept.exists());

    let second = Started::start(&places, "kept", &binary);
    kill_process(pid(second.1.pid()), Signal::KILL).unwrap();
    eventually("it is seen to have died", died);
    let third = Started::start(&places, "kept", &binary);
    assert!(kept.exists());
    assert_ne!(third.1.pid(), second.1.pid());

    kill_process(pid(third.1.pid()), Signal::KILL).unwrap();
    eventually("it is seen to have died", died);
    assert!(!background::stop(&places, "kept", false).unwrap().running);
    assert!(!third.1.dir.exists());
}

#[test]
fn stopping_ends_no_process_that_was_given_a_dead_brokers_id() {
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    let mut stranger = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
    let home = places.state.join("brokers/old");
    fs::create_dir_all(&home).unwrap();
    let state = serde_json::json!({
        "name": "old", "kind": "nats", "version": "2.15.2", "url": "nats://127.0.0.1:20000",
        "port": 20000, "binary": "/nats-server", "dir": home,
        "process": {"pid": stranger.id(), "started": "at another time"},
    });
    fs::write(home.join("state.json"), state.to_string()).unwrap();
    let status = background::status(&places);
    let stopped = background::stop(&places, "old", false);
    let unharmed = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(!status.unwrap()[0].running);
    assert!(!stopped.unwrap().running);
    assert!(!home.exists());
    assert!(unharmed);
}

#[test]
fn a_background_broker_that_cannot_start_shows_its_log_and_leaves_nothing() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    let mut settings = StartSettings::new(&binary);
    settings.extra = "no_such_key: 1".into();
    let start =
        background::start(&places, "bad", nats(), settings, &AtomicBool::new(false), &|_| {});
    let error = start.unwrap_err();
    assert!(error.message.contains("no_such_key"), "{error}");
    assert!(!places.state.join("brokers/bad").exists());
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    let sleeper = sleeper(dir.path());
    let interrupted = Arc::new(AtomicBool::new(false));
    let start = thread::spawn({
        let (places, interrupted) = (places.clone(), Arc::clone(&interrupted));
        move || {
            let settings = StartSettings::new(sleeper);
            background::start(&places, "slow", nats(), settings, &interrupted, &|_| {})
        }
    });
    // While it is being started it is known already, should queueproof be killed now.
    eventually("it is known", || !background::status(&places).unwrap().is_empty());
    let broker = background::status(&places).unwrap().remove(0);
    interrupted.store(true, Ordering::Relaxed);
    assert_eq!(start.join().unwrap().unwrap_err().class, ErrorClass::Interrupted);
    assert!(broker.running);
    assert!(!runs(broker.pid()));
    assert!(!broker.dir.exists());
}

#[test]
fn a_damaged_state_file_is_named() {
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    let file = places.state.join("brokers/x/state.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "{\"name\":").unwrap();
    for error in [
        background::status(&places).unwrap_err(),
        background::stop(&places, "x", false).unwrap_err(),
        list(&places).unwrap_err(),
    ] {
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains(file.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_name_that_is_no_file_name_is_refused() {
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    for name in ["", "..", "a/b", "a b", &"x".repeat(33)] {
        let error = background::stop(&places, name, false).unwrap_err();
        assert_eq!(error.class, ErrorClass::Usage, "{name}");
        let settings = StartSettings::new("/bin/true");
        let start =
            background::start(&places, name, nats(), settings, &AtomicBool::new(false), &|_| {});
        assert_eq!(start.unwrap_err().class, ErrorClass::Usage, "{name}");
    }
    assert!(!places.state.exists());
}
