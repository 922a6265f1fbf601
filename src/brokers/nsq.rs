//! nsqd, NSQ's broker.

use std::{ffi::OsString, fs, net::TcpStream, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    BrokerError, BrokerKind, Install, Invocation, Launch, Readiness, SyncInterval, find, http,
    load::{Monitoring, Told},
};

pub(super) const NSQ: BrokerKind = BrokerKind {
    name: "nsq",
    pinned: "1.3.0",
    known: &["1.3.0"],
    binary: "nsqd",
    override_env: "QUEUEPROOF_NSQD",
    // Its module replaces others, which `go install` refuses.
    install: Install::Manual {
        how: "get nsqd from your system's packages or from the releases at https://nsq.io, then \
              put it on PATH, or name it in nsq.server.binary or QUEUEPROOF_NSQD",
    },
    version: |path| find::printed_version(path, &["--version"]),
    check: |_| Ok(()),
    needs: |_| Ok(()),
    ports: 2,
    // Measured: ready after 8 ms, ended after 3 ms, both with an empty store.
    start_timeout: Duration::from_secs(30),
    stop_timeout: Duration::from_secs(10),
    usual_start: Duration::from_millis(10),
    url: |ports| format!("nsq://127.0.0.1:{}", ports[0]),
    admin_url: Some(|ports| format!("http://127.0.0.1:{}", ports[1])),
    monitoring: Monitoring {
        port: 1,
        // Without its clients, of which there may be thousands.
        path: "/stats?format=json&include_clients=false&include_mem=false",
        read: figures,
    },
    invocation,
    probe,
    // How it is used, after what was wrong about that.
    noise: |line| ["Usage of", "  -", "    \t"].iter().any(|begin| line.starts_with(begin)),
};

#[derive(Deserialize)]
struct Info {
    version: String,
}

/// The last of equal flags wins, and each of them over a file that one of them names.
fn invocation(launch: &Launch) -> Result<Invocation, BrokerError> {
    if !launch.settings.extra.is_empty() {
        return Err(BrokerError::usage("nsqd is given no configuration file; use its flags"));
    }
    // Of another form one could swallow those that follow it.
    if let Some(flag) = launch.settings.flags.iter().find(|flag| !is_complete(flag)) {
        return Err(BrokerError::usage(format!(
            "`{flag}` is not a flag for nsqd as it is expected: -name=value"
        )));
    }
    let store = store(launch);
    fs::create_dir_all(&store)
        .map_err(BrokerError::io(format_args!("making `{}`", store.display())))?;
    // By default it looks at the timers of 20 channels every 100 ms, picked at random: with 60 of
    // them, as a suite has at the same time, one came 1.4 s late, with all of them 0.11 s (measured).
    // What is judged is a channel, not their number.
    let mut args: Vec<OsString> = vec!["-queue-scan-selection-count=10000".into()];
    args.extend(launch.settings.flags.iter().map(OsString::from));
    match launch.settings.sync {
        None => {}
        // With `-sync-every=1` a message that it had confirmed was lost by SIGKILL (measured).
        Some(SyncInterval::Always) => {
            return Err(BrokerError::usage("nsqd cannot sync messages before it confirms them"));
        }
        Some(SyncInterval::Every(interval)) => {
            args.push(format!("-sync-timeout={}ms", interval.as_millis().max(1)).into());
        }
    }
    args.push(format!("-tcp-address=127.0.0.1:{}", launch.ports[0]).into());
    args.push(format!("-http-address=127.0.0.1:{}", launch.ports[1]).into());
    // It listens there only when flags name a certificate.
    args.push("-https-address=127.0.0.1:0".into());
    args.push("-broadcast-address=127.0.0.1".into());
    args.push("-data-path".into());
    args.push(store.into());
    Ok(Invocation {
        program: launch.settings.binary.clone(),
        args,
        env: Vec::new(),
        without_env: Vec::new(),
    })
}

fn is_complete(flag: &str) -> bool {
    flag.starts_with('-') && flag.split_once('=').is_some_and(|(name, _)| name.len() > 1)
}

fn store(launch: &Launch) -> PathBuf {
    launch.dir.join("store")
}

/// Known by its data directory, which it tells: it is made for each broker.
fn probe(launch: &Launch) -> Readiness {
    const PATIENCE: Duration = Duration::from_millis(500);
    let [tcp, http] = [launch.ports[0], launch.ports[1]];
    let ask = |path: &str| match http::get(http, path, PATIENCE) {
        Ok((200, body)) => Ok(body),
        Ok((status, _)) => Err(format!("GET {path} answers {status}")),
        Err(error) => Err(format!("GET {path}: {error}")),
    };
    let ready = || {
        ask("/ping")?;
        let info = ask("/info")?;
        let info: Info = serde_json::from_str(&info).map_err(|e| format!("GET /info: {e}"))?;
        if ask("/config/data_path")? != store(launch).to_string_lossy() {
            return Err("another server answers on its port".into());
        }
        TcpStream::connect(("127.0.0.1", tcp)).map_err(|e| format!("TCP: {e}"))?;
        Ok(info.version)
    };
    match ready() {
        Ok(version) => Readiness::Ready { version },
        Err(why) => Readiness::NotYet(why),
    }
}

#[derive(Deserialize)]
struct Stats {
    topics: Vec<Topic>,
}

#[derive(Deserialize)]
struct Topic {
    message_count: u64,
    channels: Vec<Channel>,
}

/// Messages came into a channel, to wait in its queue (`depth`) or until their time has come; what
/// was handed back or timed out did so again.
#[derive(Deserialize)]
struct Channel {
    message_count: u64,
    requeue_count: u64,
    timeout_count: u64,
    deferred_count: u64,
    depth: u64,
}

/// It tells how many connections it has only with each of them, and counts no deliveries: those are
/// what left a channel's queue. What it found in its store when it started it does not count.
fn figures(stats: &str) -> Option<Told> {
    let stats: Stats = serde_json::from_str(stats).ok()?;
    let delivered = |channel: &Channel| {
        let queued = channel.message_count + channel.requeue_count + channel.timeout_count;
        queued.saturating_sub(channel.deferred_count + channel.depth)
    };
    let channels = stats.topics.iter().flat_map(|topic| &topic.channels);
    Some(Told {
        messages_in: Some(stats.topics.iter().map(|topic| topic.message_count).sum()),
        messages_out: Some(channels.map(delivered).sum()),
        ..Told::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_what_left_the_queues_of_channels() {
        // Of nsqd 1.3.0: of five messages each was delivered; one was handed back and waits.
        let stats = r#"{"version":"1.3.0","health":"OK","start_time":1795640687,"topics":[
            {"topic_name":"t","channels":[{"channel_name":"ch","depth":0,"backend_depth":0,
            "in_flight_count":3,"deferred_count":1,"message_count":5,"requeue_count":1,
            "timeout_count":0,"client_count":1,"clients":null,"paused":false}],"depth":0,
            "backend_depth":0,"message_count":5,"message_bytes":25,"paused":false}],
            "producers":null}"#;
        let told = figures(stats).unwrap_or_default();
        assert_eq!((told.messages_in, told.messages_out), (Some(5), Some(5)));
        // It is delivered again, and times out; then two more come, and wait.
        let later = stats.replace(r#""deferred_count":1"#, r#""deferred_count":0"#);
        let later = later.replace(r#""timeout_count":0"#, r#""timeout_count":1"#);
        let later = later.replace(r#""message_count":5"#, r#""message_count":7"#);
        let later = later.replace(r#""depth":0"#, r#""depth":3"#);
        let told = figures(&later).unwrap_or_default();
        assert_eq!((told.messages_in, told.messages_out), (Some(7), Some(6)));
        assert_eq!(figures("{}"), None);
    }
}
