//! Private brokers, and what is left of them when the process that started them is gone.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use queueproof::brokers::{
    BrokerError, BrokerKind, ErrorClass, PrivateBroker, StartSettings, SyncInterval, kind,
    version_of,
};
use rustix::process::{Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::{
    PATIENCE, eventually, greeting, is_empty, listens_on_loopback, mode, nats, nats_server, pid,
    ps, runs, sleeper,
};

/// Settings for a guarded broker in a directory that the test looks at afterwards.
pub fn settings(binary: &Path, parent: &Path) -> StartSettings {
    let mut settings = StartSettings::new(binary);
    settings.parent = Some(parent.to_owned());
    settings.guard = Some(env!("CARGO_BIN_EXE_queueproof").into());
    settings
}

pub fn start(
    kind: &'static BrokerKind,
    settings: StartSettings,
) -> Result<PrivateBroker, BrokerError> {
    PrivateBroker::start(kind, settings, &AtomicBool::new(false), &|_| {})
}

#[test]
fn a_private_broker_takes_clients_and_leaves_no_process_and_no_file() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
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
    let broker = start(nats(), settings).unwrap();
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
        let start = || start(nats(), settings.clone()).unwrap();
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
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    broker.pause().unwrap();
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
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
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
fn a_restart_waits_for_a_port_that_somebody_has_for_a_moment() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    broker.stop().unwrap();
    let somebody = TcpListener::bind(("127.0.0.1", broker.port())).unwrap();
    thread::scope(|scope| {
        let restart = scope.spawn(|| broker.restart());
        eventually("the restart was refused once", || {
            broker.log_tail().unwrap().contains("address already in use")
        });
        drop(somebody);
        restart.join().unwrap().unwrap();
    });
    greeting(broker.port(), PATIENCE).unwrap();
}

#[test]
fn a_broker_that_dies_by_itself_is_seen_to_be_dead() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    kill_process(pid(broker.pid()), Signal::KILL).unwrap();
    eventually("it is seen to be dead", || !broker.is_alive());
}

#[test]
fn a_broker_without_storage_has_no_jetstream() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    settings.storage = false;
    let broker = start(nats(), settings).unwrap();
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
        settings.extra = "listen: \"0.0.0.0:4222\"\nhttp: \"0.0.0.0:8222\"\nmonitor_port: 8223\n\
                          max_payload: 4321"
            .into();
        let broker = start(nats(), settings).unwrap();
        let greeting = greeting(broker.port(), PATIENCE).unwrap();
        assert!(greeting.contains(r#""max_payload":4321"#), "{greeting}");
        let log = broker.log_tail().unwrap();
        assert!(log.contains(&format!("connections on 127.0.0.1:{}", broker.port())), "{log}");
        listens_on_loopback(broker.pid(), 2);
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
        let error = start(nats(), settings).unwrap_err();
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
        let error = start(nats(), settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        assert!(error.message.contains(binary), "{error}");
        assert!(error.message.contains(expected), "{error}");
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn an_interrupt_while_a_broker_is_started_ends_it_at_once() {
    let (dir, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let guarded = settings(&sleeper(elsewhere.path()), dir.path());
    let direct = StartSettings { guard: None, ..guarded.clone() };
    for settings in [guarded, direct] {
        let interrupted = AtomicBool::new(false);
        let begun = Instant::now();
        let error = thread::scope(|scope| {
            let start = scope
                .spawn(|| PrivateBroker::start(nats(), settings.clone(), &interrupted, &|_| {}));
            eventually("it is being started", || has_log(dir.path()));
            interrupted.store(true, Ordering::Relaxed);
            start.join().unwrap().unwrap_err()
        });
        assert_eq!(error.class, ErrorClass::Interrupted);
        // Neither for the sleeper's 60 s was waited, nor for a NATS server's 30 s.
        assert!(begun.elapsed() < Duration::from_secs(25));
        assert!(is_empty(dir.path()));
    }
}

/// Whether a broker's process was started below this directory.
pub fn has_log(dir: &Path) -> bool {
    let mut brokers = fs::read_dir(dir).unwrap();
    brokers.any(|broker| broker.unwrap().path().join("broker.log").exists())
}

#[test]
fn a_guard_that_is_no_queueproof_is_an_error() {
    let dir = TempDir::new().unwrap();
    let mut settings = settings(Path::new("/bin/sh"), dir.path());
    for guard in ["/bin/true", "/no/such"] {
        settings.guard = Some(guard.into());
        let error = start(nats(), settings.clone()).unwrap_err();
        assert!(error.message.contains("guard"), "{error}");
        assert!(is_empty(dir.path()));
    }
}

// What is left of a broker when the process that started it is gone.

/// Set for the process that runs [`the_helper`]: where it makes its broker, and of what.
const HELPER_DIR: &str = "QUEUEPROOF_TEST_HELPER_DIR";
const HELPER_BINARY: &str = "QUEUEPROOF_TEST_HELPER_BINARY";
const HELPER_KIND: &str = "QUEUEPROOF_TEST_HELPER_KIND";

/// A process of its own with a private broker: this test program, running `the_helper`.
pub struct Helper {
    pub child: Child,
    pub broker: u32,
    guard: u32,
    port: u16,
}

impl Helper {
    pub fn start(kind: &BrokerKind, dir: &Path, binary: &Path) -> Helper {
        let mut child = Helper::process(kind, dir, binary);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let told = lines.find_map(|line| {
            let (_, told) = line.split_once("broker: ")?;
            let (pid, port) = told.split_once(' ')?;
            Some((pid.parse().ok()?, port.parse().ok()?))
        });
        let (broker, port) = told.expect("the helper tells about its broker");
        Helper { child, broker, guard: ps("ppid=", broker).parse().unwrap(), port }
    }

    fn process(kind: &BrokerKind, dir: &Path, binary: &Path) -> Child {
        Command::new(env::current_exe().unwrap())
            .args(["private::the_helper", "--exact", "--ignored", "--nocapture"])
            .env(HELPER_DIR, dir)
            .env(HELPER_BINARY, binary)
            .env(HELPER_KIND, kind.name)
            .stdout(Stdio::piped())
            // As at a terminal: a group to which Ctrl-C goes.
            .process_group(0)
            .spawn()
            .unwrap()
    }

    pub fn leaves_nothing_in(mut self, dir: &Path) {
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
    let [Some(dir), Some(binary)] = [HELPER_DIR, HELPER_BINARY].map(env::var_os) else { return };
    let kind = kind(&env::var(HELPER_KIND).unwrap()).unwrap();
    let settings = settings(Path::new(&binary), Path::new(&dir));
    let broker = start(kind, settings).unwrap();
    println!("broker: {} {}", broker.pid(), broker.port());
    thread::sleep(2 * PATIENCE);
}

#[test]
fn a_killed_queueproof_leaves_no_process_and_no_file() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    for signal in [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP] {
        let helper = Helper::start(nats(), dir.path(), &binary);
        greeting(helper.port, PATIENCE).unwrap();
        // To the group, as the terminal sends it.
        kill_process_group(pid(helper.child.id()), signal).unwrap();
        helper.leaves_nothing_in(dir.path());
    }
}

#[test]
fn a_queueproof_killed_while_it_starts_a_broker_leaves_nothing() {
    let (dir, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut helper = Helper::process(nats(), dir.path(), &sleeper(elsewhere.path()));
    eventually("the broker is being started", || !is_empty(dir.path()));
    helper.kill().unwrap();
    helper.wait().unwrap();
    // Its directory goes last.
    eventually("nothing is left", || is_empty(dir.path()));
}

#[test]
fn a_guard_outlives_the_signals_of_a_terminal_and_obeys_sigterm() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let mut helper = Helper::start(nats(), dir.path(), &binary);
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
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    let id = broker.pid();
    kill_process(pid(ps("ppid=", id).parse().unwrap()), Signal::KILL).unwrap();
    eventually("the guard does not answer", || !broker.is_alive());
    let error = broker.restart().unwrap_err();
    assert!(error.message.contains("guard does not answer"), "{error}");
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
}
