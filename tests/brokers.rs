//! Local brokers with a real nats-server: started, guarded, paused, killed, and left behind by
//! nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use queueproof::brokers::{
    BrokerKind, ErrorClass, Places, PrivateBroker, StartSettings, SyncInterval, Wanted, background,
    find, kind, list, version_of,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

/// How long something that takes milliseconds may take on a very slow day.
const PATIENCE: Duration = Duration::from_secs(30);

fn nats() -> &'static BrokerKind {
    kind("nats").unwrap()
}

/// The real nats-server of this machine. Where there is none, says so loudly; or panics, if
/// `QUEUEPROOF_REQUIRE` demands it.
fn nats_server() -> Option<PathBuf> {
    match find(&Places::from_env().unwrap(), nats(), &Wanted::default()) {
        Ok(found) => Some(found.path),
        Err(error) => {
            let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "nats"), "{error}");
            let name = thread::current().name().unwrap_or_default().to_owned();
            eprintln!("\n*** NOT RUN: {name}: {error}\n");
            None
        }
    }
}

/// Settings for a guarded broker in a directory that the test looks at afterwards.
fn settings(binary: &Path, parent: &Path) -> StartSettings {
    let mut settings = StartSettings::new(binary);
    settings.parent = Some(parent.to_owned());
    settings.guard = Some(env!("CARGO_BIN_EXE_queueproof").into());
    settings
}

/// Whether the process is there and not a zombie, which a test's own background broker becomes.
fn runs(id: u32) -> bool {
    let state = ps("stat=", id);
    !state.is_empty() && !state.starts_with('Z')
}

fn ps(what: &str, id: u32) -> String {
    let ps = Command::new("ps").args(["-o", what, "-p", &id.to_string()]).output().unwrap();
    String::from_utf8(ps.stdout).unwrap().trim().to_owned()
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The line that a NATS server greets with, within this time.
fn greeting(port: u16, patience: Duration) -> std::io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

// Private brokers.

#[test]
fn a_private_broker_takes_clients_and_leaves_no_process_and_no_file() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = PrivateBroker::start(nats(), settings(&binary, dir.path())).unwrap();
    let greeting = greeting(broker.port(), PATIENCE).unwrap();
    assert!(greeting.contains(r#""jetstream":true"#), "{greeting}");
    assert_eq!(broker.url(), format!("nats://127.0.0.1:{}", broker.port()));
    assert_eq!(broker.version(), version_of(nats(), &binary).unwrap());
    assert!(broker.log_tail().unwrap().contains("Server is ready"));
    assert!(broker.is_alive());
    assert_eq!(mode(broker.dir()), 0o700);
    assert!(broker.dir().starts_with(dir.path()));

    let id = broker.pid();
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
}

#[test]
fn without_a_guard_the_destructor_leaves_no_process_and_no_file() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    settings.guard = None;
    let broker = PrivateBroker::start(nats(), settings).unwrap();
    greeting(broker.port(), PATIENCE).unwrap();
    let id = broker.pid();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _broker = broker;
        panic!("on purpose");
    }));
    assert!(panic.is_err());
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
}

#[test]
fn brokers_started_at_the_same_time_do_not_disturb_each_other() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let settings = settings(&binary, dir.path());
    let brokers: Vec<_> = thread::scope(|scope| {
        let start = || PrivateBroker::start(nats(), settings.clone()).unwrap();
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    for (i, broker) in brokers.iter().enumerate() {
        greeting(broker.port(), PATIENCE).unwrap();
        for other in &brokers[..i] {
            assert_ne!(broker.port(), other.port());
            assert_ne!(broker.dir(), other.dir());
        }
    }
    drop(brokers);
    assert!(is_empty(dir.path()));
}

#[test]
fn a_paused_broker_answers_nobody_until_it_is_resumed() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = PrivateBroker::start(nats(), settings(&binary, dir.path())).unwrap();
    broker.pause().unwrap();
    assert!(broker.is_alive());
    assert!(greeting(broker.port(), Duration::from_millis(300)).is_err());
    broker.resume().unwrap();
    greeting(broker.port(), PATIENCE).unwrap();
    // A paused one ends all the same.
    broker.pause().unwrap();
    let id = broker.pid();
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
}

#[test]
fn a_broker_that_was_killed_or_stopped_restarts_on_its_store_and_port() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = PrivateBroker::start(nats(), settings(&binary, dir.path())).unwrap();
    let (url, first) = (broker.url().to_owned(), broker.pid());
    let kept = broker.store_dir().join("jetstream/kept");
    fs::write(&kept, "").unwrap();

    broker.kill9().unwrap();
    assert!(!runs(first));
    assert!(!broker.is_alive());
    assert!(broker.pause().unwrap_err().message.contains("is not running"));
    broker.restart().unwrap();
    assert!(broker.is_alive());
    assert_ne!(broker.pid(), first);
    assert_eq!(broker.url(), url);
    greeting(broker.port(), PATIENCE).unwrap();
    assert!(kept.exists());

    broker.stop().unwrap();
    assert!(!broker.is_alive());
    assert!(broker.log_tail().unwrap().contains("Server Exiting"));
    broker.stop().unwrap();
    broker.restart().unwrap();
    // Also while it runs.
    broker.restart().unwrap();
    greeting(broker.port(), PATIENCE).unwrap();
    assert!(kept.exists());
}

#[test]
fn a_broker_that_dies_by_itself_is_seen_to_be_dead() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = PrivateBroker::start(nats(), settings(&binary, dir.path())).unwrap();
    kill_process(pid(broker.pid()), Signal::KILL).unwrap();
    eventually("it is seen to be dead", || !broker.is_alive());
}

#[test]
fn a_broker_without_storage_has_no_jetstream() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    settings.storage = false;
    let broker = PrivateBroker::start(nats(), settings).unwrap();
    let greeting = greeting(broker.port(), PATIENCE).unwrap();
    assert!(!greeting.contains(r#""jetstream":true"#), "{greeting}");
}

#[test]
fn extra_lines_reach_the_server_but_do_not_move_it() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    for sync in [SyncInterval::Always, SyncInterval::Every(Duration::from_millis(250))] {
        let mut settings = settings(&binary, dir.path());
        settings.sync = Some(sync);
        settings.extra = "listen: \"0.0.0.0:4222\"\nmax_payload: 4321".into();
        let broker = PrivateBroker::start(nats(), settings).unwrap();
        let greeting = greeting(broker.port(), PATIENCE).unwrap();
        assert!(greeting.contains(r#""max_payload":4321"#), "{greeting}");
        let log = broker.log_tail().unwrap();
        assert!(log.contains(&format!("connections on 127.0.0.1:{}", broker.port())), "{log}");
    }
}

#[test]
fn a_broker_that_cannot_start_shows_its_log_and_leaves_nothing() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let mut guarded = settings(&binary, dir.path());
    guarded.extra = "no_such_key: 1".into();
    let direct = StartSettings { guard: None, ..guarded.clone() };
    for settings in [guarded, direct] {
        let error = PrivateBroker::start(nats(), settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains("unknown field \"no_such_key\""), "{error}");
        assert!(error.message.contains("before it was ready"), "{error}");
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn an_executable_that_is_no_broker_is_an_error_of_the_environment() {
    let dir = TempDir::new().unwrap();
    for (binary, expected) in [("/bin/echo", "exit status: 0"), ("/no/such", "No such file")] {
        let settings = settings(Path::new(binary), dir.path());
        let error = PrivateBroker::start(nats(), settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains(binary), "{error}");
        assert!(error.message.contains(expected), "{error}");
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_guard_that_is_no_queueproof_is_an_error() {
    let dir = TempDir::new().unwrap();
    let mut settings = settings(Path::new("/bin/sh"), dir.path());
    for guard in ["/bin/true", "/no/such"] {
        settings.guard = Some(guard.into());
        let error = PrivateBroker::start(nats(), settings.clone()).unwrap_err();
        assert!(error.message.contains("guard"), "{error}");
        assert!(is_empty(dir.path()));
    }
}

// What is left of a broker when the process that started it is gone.

/// Set for the process that [`Helper`] starts: where it makes its broker.
const HELPER_DIR: &str = "QUEUEPROOF_TEST_HELPER_DIR";

/// A process of its own with a private broker: this test program, running `the_helper`.
struct Helper {
    child: Child,
    broker: u32,
    guard: u32,
    port: u16,
}

impl Helper {
    fn start(dir: &Path) -> Helper {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["the_helper", "--exact", "--ignored", "--nocapture"])
            .env(HELPER_DIR, dir)
            .stdout(Stdio::piped())
            // As at a terminal: a group to which Ctrl-C goes.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let told = lines.find_map(|line| {
            let (_, told) = line.split_once("broker: ")?;
            let (pid, port) = told.split_once(' ')?;
            Some((pid.parse().ok()?, port.parse().ok()?))
        });
        let (broker, port) = told.expect("the helper tells about its broker");
        Helper { child, broker, guard: ps("ppid=", broker).parse().unwrap(), port }
    }

    fn leaves_nothing_in(mut self, dir: &Path) {
        self.child.wait().unwrap();
        eventually("the guard ends", || !runs(self.guard));
        assert!(!runs(self.broker));
        assert!(is_empty(dir));
    }
}

#[test]
#[ignore = "started by other tests, as a process of its own"]
#[allow(clippy::print_stdout)]
fn the_helper() {
    let Some(dir) = env::var_os(HELPER_DIR) else { return };
    let Some(binary) = nats_server() else { return };
    let broker = PrivateBroker::start(nats(), settings(&binary, Path::new(&dir))).unwrap();
    println!("broker: {} {}", broker.pid(), broker.port());
    thread::sleep(2 * PATIENCE);
}

#[test]
fn a_killed_queueproof_leaves_no_process_and_no_file() {
    if nats_server().is_none() {
        return;
    }
    let dir = TempDir::new().unwrap();
    for signal in [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP] {
        let helper = Helper::start(dir.path());
        greeting(helper.port, PATIENCE).unwrap();
        // To the group, as the terminal sends it.
        kill_process_group(pid(helper.child.id()), signal).unwrap();
        helper.leaves_nothing_in(dir.path());
    }
}

#[test]
fn a_guard_outlives_the_signals_of_a_terminal_and_obeys_sigterm() {
    if nats_server().is_none() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut helper = Helper::start(dir.path());
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT] {
        kill_process(pid(helper.guard), signal).unwrap();
    }
    greeting(helper.port, PATIENCE).unwrap();
    kill_process(pid(helper.guard), Signal::TERM).unwrap();
    eventually("the broker is gone", || !runs(helper.broker) && is_empty(dir.path()));
    helper.child.kill().unwrap();
    helper.leaves_nothing_in(dir.path());
}

#[test]
fn what_a_killed_guard_held_is_removed_all_the_same() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = PrivateBroker::start(nats(), settings(&binary, dir.path())).unwrap();
    let id = broker.pid();
    kill_process(pid(ps("ppid=", id).parse().unwrap()), Signal::KILL).unwrap();
    eventually("the guard does not answer", || !broker.is_alive());
    let error = broker.restart().unwrap_err();
    assert!(error.message.contains("guard does not answer"), "{error}");
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
}

// Background brokers.

fn places(dir: &Path) -> Places {
    Places {
        cache: dir.join("cache"),
        state: dir.join("state"),
        search_path: OsString::new(),
        overrides: BTreeMap::new(),
    }
}

/// Starts a background broker; it is stopped also when the test fails.
struct Started<'a>(&'a Places, background::Background);

impl<'a> Started<'a> {
    fn start(places: &'a Places, name: &str, binary: &Path) -> Started<'a> {
        let settings = StartSettings::new(binary);
        let never = AtomicBool::new(false);
        let broker = background::start(places, name, nats(), settings, &never).unwrap();
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
    let taken = background::start(&places, "one", nats(), again, &AtomicBool::new(false));
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
    let start = background::start(&places, "bad", nats(), settings, &AtomicBool::new(false));
    let error = start.unwrap_err();
    assert!(error.message.contains("no_such_key"), "{error}");
    assert!(!places.state.join("brokers/bad").exists());
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let places = places(dir.path());
    // Runs, and never becomes ready.
    let sleeper = dir.path().join("sleeper");
    fs::write(&sleeper, "#!/bin/sh\nexec sleep 60\n").unwrap();
    fs::set_permissions(&sleeper, fs::Permissions::from_mode(0o755)).unwrap();
    let interrupted = Arc::new(AtomicBool::new(false));
    let start = thread::spawn({
        let (places, interrupted) = (places.clone(), Arc::clone(&interrupted));
        move || {
            let settings = StartSettings::new(sleeper);
            background::start(&places, "slow", nats(), settings, &interrupted)
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
        let start = background::start(&places, name, nats(), settings, &AtomicBool::new(false));
        assert_eq!(start.unwrap_err().class, ErrorClass::Usage, "{name}");
    }
    assert!(!places.state.exists());
}
