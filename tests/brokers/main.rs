//! Local brokers, real ones: started, guarded, paused, killed, and left behind by
//! nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use queueproof::brokers::{BrokerKind, Places, Wanted, find, kind};
use rustix::process::Pid;

mod background;
mod etcd;
mod load;
mod nsq;
mod private;
mod pulsar;

/// How long something that takes milliseconds may take on a very slow day.
const PATIENCE: Duration = Duration::from_secs(30);

fn nats() -> &'static BrokerKind {
    kind("nats").unwrap()
}

/// The real nats-server of this machine, as [`real`].
fn nats_server() -> Option<PathBuf> {
    real(nats())
}

/// The real broker of this machine. Where there is none, says so loudly; or panics, if
/// `QUEUEPROOF_REQUIRE` demands it.
fn real(kind: &BrokerKind) -> Option<PathBuf> {
    match find(&Places::from_env().unwrap(), kind, &Wanted::default()) {
        Ok(found) => Some(found.path),
        Err(error) => {
            let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == kind.name), "{error}");
            let name = thread::current().name().unwrap_or_default().to_owned();
            // Not `eprintln!`, which the test harness swallows.
            let _ = writeln!(std::io::stderr(), "\n*** NOT RUN: {name}: {error}\n");
            None
        }
    }
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

/// The processes whose command line has this directory.
fn processes_in(dir: &Path) -> Vec<String> {
    let ps = Command::new("ps").args(["ax", "-ww", "-o", "pid=,args="]).output().unwrap();
    let all = String::from_utf8_lossy(&ps.stdout).into_owned();
    let dir = dir.to_str().unwrap();
    all.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect()
}

/// Where a process listens over TCP, as the kernel says it.
#[cfg(target_os = "linux")]
fn listens(id: u32) -> Vec<std::net::SocketAddr> {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    let fds = fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let sockets: Vec<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let mut addresses = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (local, state, inode) = (fields[1], fields[3], fields[9]);
            if state != "0A" || !sockets.contains(&format!("socket:[{inode}]")) {
                continue;
            }
            // Words of 32 bits, each in the order of this machine.
            let (ip, port) = local.split_once(':').unwrap();
            let words = (0..ip.len() / 8).map(|i| &ip[8 * i..8 * i + 8]);
            let bytes: Vec<u8> = words
                .flat_map(|word| u32::from_str_radix(word, 16).unwrap().to_ne_bytes())
                .collect();
            let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
                Ok(four) => IpAddr::from(Ipv4Addr::from(four)),
                Err(_) => {
                    let six = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).unwrap());
                    six.to_ipv4_mapped().map_or(IpAddr::from(six), IpAddr::from)
                }
            };
            addresses.push((ip, u16::from_str_radix(port, 16).unwrap()).into());
        }
    }
    addresses
}

/// Asserts that a process listens at these many addresses, all of them on this machine only.
fn listens_on_loopback(id: u32, count: usize) {
    #[cfg(target_os = "linux")]
    {
        let addresses = listens(id);
        assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
        assert_eq!(addresses.len(), count, "{addresses:?}");
    }
    let _ = (id, count);
}

/// What a request over HTTP to 127.0.0.1 answers, status line and headers included.
fn http(port: u16, request: &str, body: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "{request} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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

/// Makes an executable that runs and never becomes ready. Another process writes it: a file that
/// this one holds open for writing, if only in a child forked meanwhile, could not be executed.
fn sleeper(dir: &Path) -> PathBuf {
    let path = dir.join("sleeper");
    let write = r#"printf '#!/bin/sh\nexec sleep 60\n' > "$1" && chmod 755 "$1""#;
    let sh = Command::new("sh").args(["-c", write, "sh"]).arg(&path).status();
    assert!(sh.unwrap().success());
    path
}
