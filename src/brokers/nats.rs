//! NATS with JetStream.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use serde::Deserialize;

use super::{
    BrokerError, BrokerKind, Install, Invocation, Launch, Readiness, SyncInterval, find,
    load::{Monitoring, Told},
};

pub(super) const NATS: BrokerKind = BrokerKind {
    name: "nats",
    pinned: "2.15.2",
    known: &["2.10.22", "2.11.8", "2.12.1", "2.15.2"],
    binary: "nats-server",
    override_env: "QUEUEPROOF_NATS_SERVER",
    install: Install::GoModule { module: "github.com/nats-io/nats-server/v2" },
    version: |path| find::printed_version(path, &["--version"]),
    check: |_| Ok(()),
    needs: |_| Ok(()),
    // For clients, and for its monitoring.
    ports: 2,
    // Measured: ready after 12 ms, ended after 2 ms, both with an empty store.
    start_timeout: Duration::from_secs(30),
    stop_timeout: Duration::from_secs(5),
    usual_start: Duration::from_millis(12),
    url: |ports| format!("nats://127.0.0.1:{}", ports[0]),
    admin_url: None,
    monitoring: Monitoring { port: 1, path: "/varz", read: figures },
    invocation,
    probe,
    noise: |_| false,
};

/// The first line that a server sends to whoever connects: `INFO {…}`.
#[derive(Deserialize)]
struct Info {
    server_name: String,
    version: String,
    #[serde(default)]
    jetstream: bool,
}

/// Flags win over the file (measured), so that nothing in `extra` moves the server off loopback,
/// and a path needs no quoting.
fn invocation(launch: &Launch) -> Result<Invocation, BrokerError> {
    let settings = &launch.settings;
    if !settings.flags.is_empty() {
        return Err(BrokerError::usage("nats-server is given no flags; use its configuration"));
    }
    let mut config = settings.extra.clone();
    if let (true, Some(sync)) = (settings.storage, settings.sync) {
        let interval = match sync {
            SyncInterval::Always => "always".to_owned(),
            SyncInterval::Every(interval) => format!("\"{}ms\"", interval.as_millis().max(1)),
        };
        config.push_str(&format!("\njetstream {{ sync_interval: {interval} }}\n"));
    }
    // Its port can be a flag; its address is the last that the file names (measured).
    config.push_str(&format!("\nhttp: \"127.0.0.1:{}\"\n", launch.ports[1]));
    let file = launch.dir.join("nats.conf");
    fs::write(&file, config)
        .map_err(BrokerError::io(format_args!("writing `{}`", file.display())))?;

    let mut args = vec!["-c".into(), file.into()];
    args.extend(["-a", "127.0.0.1", "-p"].map(Into::into));
    args.push(launch.ports[0].to_string().into());
    args.extend(["-m".into(), launch.ports[1].to_string().into()]);
    args.extend(["-n".into(), launch.name.clone().into()]);
    if settings.storage {
        args.extend(["-js".into(), "-sd".into(), launch.dir.join("store").into()]);
    }
    Ok(Invocation {
        program: launch.settings.binary.clone(),
        args,
        env: Vec::new(),
        without_env: Vec::new(),
    })
}

/// JetStream is up before the server listens (its own log says so), so that `INFO` is enough.
fn probe(launch: &Launch) -> Readiness {
    let info = match info(launch.ports[0]) {
        Ok(info) => info,
        Err(error) => return Readiness::NotYet(format!("no INFO line: {error}")),
    };
    if info.server_name != launch.name {
        return Readiness::NotYet("another server answers on its port".into());
    }
    if launch.settings.storage && !info.jetstream {
        return Readiness::Never("it came up without JetStream".into());
    }
    Readiness::Ready { version: info.version }
}

fn info(port: u16) -> io::Result<Info> {
    const PATIENCE: Duration = Duration::from_millis(500);
    const LONGEST_LINE: u64 = 64 * 1024;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    let json = line
        .strip_prefix("INFO ")
        .ok_or_else(|| io::Error::other("something that is not NATS answers"))?;
    Ok(serde_json::from_str(json)?)
}

/// Messages are all that clients send and are sent, acknowledgements and requests among them.
#[derive(Deserialize)]
struct Varz {
    connections: u64,
    in_msgs: u64,
    out_msgs: u64,
}

fn figures(varz: &str) -> Option<Told> {
    let varz: Varz = serde_json::from_str(varz).ok()?;
    Some(Told {
        connections: Some(varz.connections),
        messages_in: Some(varz.in_msgs),
        messages_out: Some(varz.out_msgs),
        ..Told::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_whole_server() {
        // Of nats-server 2.15.2, with what lies between left out.
        let varz = r#"{"server_id": "NA", "version": "2.15.2", "mem": 14753792, "cores": 2,
            "connections": 3, "total_connections": 9, "in_msgs": 100, "out_msgs": 250,
            "in_bytes": 500, "slow_consumers": 0}"#;
        let told = figures(varz).unwrap_or_default();
        assert_eq!(told.connections, Some(3));
        assert_eq!((told.messages_in, told.messages_out), (Some(100), Some(250)));
        assert_eq!(figures("404 page not found"), None);
    }
}
