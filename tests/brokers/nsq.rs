//! nsqd.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::AtomicBool,
    time::Duration,
};

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

fn nsq() -> &'static BrokerKind {
    kind("nsq").unwrap()
}

/// What the protocol answers to a no-operation and a publish; that is its `OK`, with its frame.
fn publish(port: u16, patience: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"  V2NOP\nPUB a_topic\n\0\0\0\x05hello")?;
    let mut answer = vec![0; 10];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn an_nsqd_takes_clients_on_this_machine_alone_and_leaves_nothing() {
    let Some(binary) = real(nsq()) else { return };
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    // Flags reach it, but do not move it.
    let flags = ["-tcp-address=0.0.0.0:4150", "--http-address=0.0.0.0:4151", "-data-path=/"];
    settings.flags = flags.map(str::to_owned).to_vec();
    settings.flags.push("-mem-queue-size=7".into());
    let broker = start(nsq(), settings).unwrap();
    assert_eq!(broker.url(), format!("nsq://127.0.0.1:{}", broker.port()));
    assert_eq!(broker.version(), version_of(nsq(), &binary).unwrap());
    assert!(publish(broker.port(), PATIENCE).unwrap().ends_with(b"OK"));
    let admin = port(broker.admin_url().unwrap());
    assert_ne!(admin, broker.port());
    assert_eq!(broker.admin_url().unwrap(), format!("http://127.0.0.1:{admin}"));
    let answer = http(admin, "GET /config/mem_queue_size", "", PATIENCE).unwrap();
    assert!(answer.ends_with("\r\n\r\n7"), "{answer}");
    listens_on_loopback(broker.pid(), 2);

    let id = broker.pid();
    drop(broker);
    assert!(!runs(id));
    assert!(is_empty(dir.path()));
    assert!(http(admin, "GET /ping", "", PATIENCE).is_err());
}

#[test]
fn an_nsqd_can_be_paused_and_killed_and_restarts_on_its_store_and_address() {
    let Some(binary) = real(nsq()) else { return };
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&binary, dir.path());
    // What is only in memory goes with the process.
    settings.flags = ["-mem-queue-size=0", "-sync-every=1"].map(str::to_owned).to_vec();
    let broker = start(nsq(), settings).unwrap();
    let (url, admin) = (broker.url().to_owned(), broker.admin_url().unwrap().to_owned());
    publish(broker.port(), PATIENCE).unwrap();

    broker.pause().unwrap();
    assert!(publish(broker.port(), Duration::from_millis(300)).is_err());
    assert!(http(port(&admin), "GET /ping", "", Duration::from_millis(300)).is_err());
    broker.resume().unwrap();
    publish(broker.port(), PATIENCE).unwrap();

    // It syncs after it has confirmed.
    eventually("two messages are in the store", || {
        let index = fs::read_to_string(broker.store_dir().join("a_topic.diskqueue.meta.dat"));
        let depth = index.unwrap_or_default().lines().next().and_then(|n| n.parse::<u32>().ok());
        depth >= Some(2)
    });
    broker.kill9().unwrap();
    assert!(publish(broker.port(), PATIENCE).is_err());
    broker.restart().unwrap();
    assert_eq!((broker.url(), broker.admin_url().unwrap()), (url.as_str(), admin.as_str()));
    let stats = http(port(&admin), "GET /stats?format=json&topic=a_topic", "", PATIENCE).unwrap();
    // Also the one that nobody confirmed may have been stored.
    let kept = [2, 3].map(|depth| format!(r#""depth":{depth},"#));
    assert!(kept.iter().any(|kept| stats.contains(kept)), "{stats}");
}

#[test]
fn a_killed_queueproof_leaves_no_nsqd() {
    let Some(binary) = real(nsq()) else { return };
    let dir = TempDir::new().unwrap();
    let helper = Helper::start(nsq(), dir.path(), &binary);
    kill_process_group(pid(helper.child.id()), Signal::KILL).unwrap();
    helper.leaves_nothing_in(dir.path());
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn an_nsqd_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(binary) = real(nsq()) else { return };
    let dir = TempDir::new().unwrap();
    let mut wrong_flag = settings(&binary, dir.path());
    wrong_flag.flags = vec!["-no-such-flag=1".into()];
    let error = start(nsq(), wrong_flag).unwrap_err();
    assert_eq!(error.class, ErrorClass::Environment);
    assert!(error.message.contains("no-such-flag"), "{error}");

    let mut lines = settings(&binary, dir.path());
    lines.extra = "mem_queue_size = 1".into();
    let mut sync = settings(&binary, dir.path());
    sync.sync = Some(SyncInterval::Always);
    let mut incomplete = settings(&binary, dir.path());
    incomplete.flags = vec!["-log-prefix".into()];
    let mut stray = settings(&binary, dir.path());
    stray.flags = vec!["stray=1".into()];
    for (settings, words) in [
        (lines, "flags"),
        (sync, "before it confirms"),
        (incomplete, "-name=value"),
        (stray, "-name=value"),
    ] {
        let error = start(nsq(), settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Usage);
        assert!(error.message.contains(words), "{error}");
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn a_background_nsqd_tells_its_administrative_address() {
    let Some(binary) = real(nsq()) else { return };
    let dir = TempDir::new().unwrap();
    let mut places = Places::from_env().unwrap();
    places.state = dir.path().join("state");
    let settings = queueproof::brokers::StartSettings::new(&binary);
    let never = AtomicBool::new(false);
    let told = std::cell::RefCell::new(Vec::new());
    let tell = |line: &str| told.borrow_mut().push(line.to_owned());
    let broker = background::start(&places, "one", nsq(), settings, &never, &tell).unwrap();
    let status = background::status(&places).unwrap();
    let answer = http(port(broker.admin_url.as_ref().unwrap()), "GET /ping", "", PATIENCE);
    background::stop(&places, "one", false).unwrap();
    assert_eq!(status[0].admin_url, broker.admin_url);
    assert!(answer.unwrap().ends_with("OK"));
    // It is up at once: nobody needs to be told that it is being waited for.
    assert!(told.borrow().is_empty());
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}
