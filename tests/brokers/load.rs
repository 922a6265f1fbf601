//! What a broker costs, of real brokers under real traffic. Pulsar's is in its own tests, which
//! start it anyway.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Instant,
};

use queueproof::{
    brokers::{BrokerKind, PrivateBroker, kind},
    scheduler::Load,
};
use tempfile::TempDir;

use crate::{
    PATIENCE, etcd, eventually, nats, nats_server,
    private::{settings, start},
    real,
};

/// Waits until the load is as it should be; what it was last is told otherwise.
fn eventually_has(broker: &PrivateBroker, what: &str, check: impl Fn(&Load) -> bool) -> Load {
    let mut load = broker.load();
    let deadline = Instant::now() + PATIENCE;
    while !check(&load) {
        assert!(Instant::now() < deadline, "not {what}: {load:?}");
        load = broker.load();
    }
    load
}

/// A client of NATS that is subscribed to `s`.
fn nats_client(broker: &PrivateBroker) -> BufReader<TcpStream> {
    let mut client = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"CONNECT {\"verbose\":false}\r\nSUB s 1\r\nPING\r\n").unwrap();
    let mut client = BufReader::new(client);
    wait_for(&mut client, "PONG");
    client
}

/// Publishes to `s`, in which it has an interest itself, and waits until all of it came.
fn nats_messages(client: &mut BufReader<TcpStream>, count: usize) {
    client.get_ref().write_all("PUB s 5\r\nhello\r\n".repeat(count).as_bytes()).unwrap();
    client.get_ref().write_all(b"PING\r\n").unwrap();
    wait_for(client, "PONG");
}

fn wait_for(client: &mut BufReader<TcpStream>, word: &str) {
    let mut line = String::new();
    while line.trim_end() != word {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
}

#[test]
fn what_a_nats_server_costs_adds_up_over_restarts() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    let idle = broker.load();
    assert_eq!(
        (idle.connections, idle.messages_in, idle.messages_out),
        (Some(0), Some(0), Some(0))
    );
    let mut client = nats_client(&broker);
    nats_messages(&mut client, 300);
    let used = eventually_has(&broker, "300 messages", |load| load.messages_out == Some(300));
    assert_eq!((used.messages_in, used.connections), (Some(300), Some(1)));
    if cfg!(target_os = "linux") {
        assert!(used.resident > Some(5_000_000), "{used:?}");
        assert!(used.written.is_some(), "{used:?}");
        // The kernel counts hundredths of a second.
        eventually("it used its processor", || {
            nats_messages(&mut client, 1000);
            broker.load().cpu > used.cpu
        });
    }

    // What came since the last look is not lost.
    let before = broker.load();
    nats_messages(&mut client, 20);
    broker.kill9().unwrap();
    let dead = broker.load();
    let plus = |count: Option<u64>, more| count.map(|count| count + more);
    assert_eq!(dead.messages_in, plus(before.messages_in, 20));
    assert!(dead.cpu >= before.cpu);
    assert_eq!((dead.resident, dead.connections), (None, None));
    broker.restart().unwrap();
    let again = broker.load();
    assert_eq!((again.messages_in, again.connections), (dead.messages_in, Some(0)));
    assert!(again.cpu >= dead.cpu, "{dead:?} {again:?}");
    nats_messages(&mut nats_client(&broker), 5);
    eventually_has(&broker, "5 messages more", |load| {
        load.messages_in == plus(dead.messages_in, 5)
    });
}

#[test]
fn the_load_of_a_broker_that_hangs_is_what_it_was_and_told_soon() {
    let Some(binary) = nats_server() else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(nats(), settings(&binary, dir.path())).unwrap();
    let mut client = nats_client(&broker);
    nats_messages(&mut client, 10);
    let used = eventually_has(&broker, "10 messages", |load| load.messages_in == Some(10));
    broker.pause().unwrap();
    let asked = Instant::now();
    let hangs = broker.load();
    assert!(asked.elapsed() < PATIENCE / 10);
    assert_eq!(hangs.messages_in, Some(10));
    assert_eq!(hangs.resident.is_some(), used.resident.is_some());
    broker.resume().unwrap();
}

#[test]
fn what_an_nsqd_costs_grows_with_its_traffic() {
    let nsq: &BrokerKind = kind("nsq").unwrap();
    let Some(binary) = real(nsq) else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(kind("nsq").unwrap(), settings(&binary, dir.path())).unwrap();
    let idle = broker.load();
    assert_eq!((idle.messages_in, idle.messages_out), (Some(0), Some(0)));
    let client = |first: &[u8]| {
        let mut client = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(&[b"  V2", first].concat()).unwrap();
        let mut answer = [0; 10];
        client.read_exact(&mut answer).unwrap();
        assert!(answer.ends_with(b"OK"));
        client
    };
    // One waits for a consumer to come, and to be ready for it.
    let publisher = client(b"PUB t\n\0\0\0\x05hello");
    let mut consumer = client(b"SUB t c\n");
    let waits = eventually_has(&broker, "a message", |load| load.messages_in == Some(1));
    assert_eq!(waits.messages_out, Some(0));
    consumer.write_all(b"RDY 1\n").unwrap();
    eventually_has(&broker, "a delivery", |load| load.messages_out == Some(1));
    if cfg!(target_os = "linux") {
        assert_eq!((idle.connections, waits.connections), (Some(0), Some(2)));
        drop((publisher, consumer));
        eventually_has(&broker, "left alone", |load| load.connections == Some(0));
    }
}

#[test]
fn what_an_etcd_costs_grows_with_its_leases_watchers_and_changes() {
    let Some(binary) = real(etcd::etcd()) else { return };
    let dir = TempDir::new().unwrap();
    let broker = start(etcd::etcd(), settings(&binary, dir.path())).unwrap();
    let port = broker.port();
    let idle = broker.load();
    assert_eq!((idle.messages_in, idle.messages_out), (Some(0), Some(0)));
    assert_eq!((idle.leases, idle.watchers), (Some(0), Some(0)));

    let mut watcher = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let body = r#"{"create_request":{"key":"aw=="}}"#;
    write!(
        watcher,
        "POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let watched = eventually_has(&broker, "watched", |load| load.watchers == Some(1));
    for _ in 0..20 {
        assert!(etcd::put(port, PATIENCE));
    }
    for id in 1..=3 {
        let lease = format!(r#"{{"TTL":3600,"ID":{id}}}"#);
        etcd::ask(port, "lease/grant", &lease, PATIENCE).unwrap();
    }
    let used = eventually_has(&broker, "told", |load| load.messages_out == Some(20));
    assert_eq!((used.messages_in, used.leases), (Some(20), Some(3)));
    if cfg!(target_os = "linux") {
        // The watcher, and what the interface for JSON needs to reach the server.
        assert!(watched.connections > idle.connections, "{idle:?} {watched:?}");
        assert!(used.cpu >= idle.cpu && used.resident > Some(5_000_000));
        if !is_in_memory(dir.path()) {
            assert!(used.written > idle.written, "{idle:?} {used:?}");
        }
    }

    // Leases outlive a restart, and so does the count of them.
    broker.restart().unwrap();
    let restarted = broker.load();
    assert_eq!((restarted.leases, restarted.watchers), (Some(3), Some(0)));
    assert_eq!(restarted.messages_in, Some(20));
    etcd::ask(port, "kv/lease/revoke", r#"{"ID":2}"#, PATIENCE).unwrap();
    eventually_has(&broker, "rid of a lease", |load| load.leases == Some(2));
}

fn is_in_memory(dir: &Path) -> bool {
    let stat = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output().unwrap();
    String::from_utf8_lossy(&stat.stdout).contains("tmpfs")
}
