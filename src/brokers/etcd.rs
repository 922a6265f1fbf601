//! etcd: no message broker, but the store of Sensu's own round robin, which is the baseline of the
//! scheduler.

use std::{env, ffi::OsString, time::Duration};

use serde::Deserialize;

use super::{
    BrokerError, BrokerKind, Install, Invocation, Launch, Readiness, SyncInterval, find, http,
    load::{Monitoring, Told, total},
};

pub(super) const ETCD: BrokerKind = BrokerKind {
    name: "etcd",
    pinned: "3.4.23",
    known: &["3.4.23"],
    binary: "etcd",
    override_env: "QUEUEPROOF_ETCD",
    install: Install::Debian { package: "etcd-server", path: "usr/bin/etcd" },
    version: |path| find::printed_version(path, &["--version"]),
    check: |_| Ok(()),
    needs: |_| Ok(()),
    // For clients and for other members, of which there are none.
    ports: 2,
    // Measured: ready after 60 ms, ended after 15 ms, both with an empty store.
    start_timeout: Duration::from_secs(30),
    stop_timeout: Duration::from_secs(10),
    usual_start: Duration::from_millis(60),
    url: |ports| format!("http://127.0.0.1:{}", ports[0]),
    admin_url: None,
    monitoring: Monitoring { port: 0, path: "/metrics", read: |text| Some(figures(text)) },
    invocation,
    probe,
    // How it is used, after what was wrong about that.
    noise: |line| line.is_empty() || line.starts_with("Usage:") || line.starts_with("  "),
};

#[derive(Deserialize)]
struct Health {
    health: String,
}

#[derive(Deserialize)]
struct Version {
    etcdserver: String,
}

#[derive(Deserialize)]
struct Member {
    name: String,
}

/// The last of equal flags wins (measured).
fn invocation(launch: &Launch) -> Result<Invocation, BrokerError> {
    let settings = &launch.settings;
    if !settings.extra.is_empty() {
        return Err(BrokerError::usage("etcd is given no configuration file; use its flags"));
    }
    if let Some(SyncInterval::Every(_)) = settings.sync {
        return Err(BrokerError::usage("etcd syncs what it writes before it confirms it, always"));
    }
    for flag in &settings.flags {
        check_flag(flag)?;
    }
    // It keeps as many entries of its log in memory: ten times as many by default.
    let mut args: Vec<OsString> = vec!["--snapshot-count=10000".into(), "--log-level=warn".into()];
    args.extend(settings.flags.iter().map(OsString::from));
    let [client, peer] = [0, 1].map(|i| format!("http://127.0.0.1:{}", launch.ports[i]));
    for (flag, value) in [
        ("name", launch.name.as_str()),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &format!("{}={peer}", launch.name)),
        ("initial-cluster-state", "new"),
        // The only one that later versions have, and that knows levels.
        ("logger", "zap"),
        ("log-outputs", "stderr"),
        // Within the store.
        ("wal-dir", ""),
    ] {
        args.push(format!("--{flag}={value}").into());
    }
    args.push("--data-dir".into());
    args.push(launch.dir.join("store").into());
    // A variable for a flag that is given is an error; one may name a file that wins over them all.
    let inherited = env::vars_os().map(|(name, _)| name);
    let mine = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("ETCD_"));
    Ok(Invocation {
        program: settings.binary.clone(),
        args,
        // Where it counts as experimental it demands to be told so; elsewhere it does not look.
        env: match env::consts::ARCH {
            "aarch64" => vec![("ETCD_UNSUPPORTED_ARCH", "arm64".into())],
            _ => Vec::new(),
        },
        without_env: inherited.filter(mine).collect(),
    })
}

/// Refuses what would make it listen elsewhere, and could not be taken back by a later flag: an
/// empty list of addresses changes nothing, and beside a file no flag counts (measured).
fn check_flag(flag: &str) -> Result<(), BrokerError> {
    let Some((name, _)) = flag.split_once('=').filter(|(name, _)| name.starts_with('-')) else {
        return Err(BrokerError::usage(format!(
            "`{flag}` is not a flag of etcd as it is expected: -name=value"
        )));
    };
    let name = name.trim_start_matches('-');
    let moves = ["listen-", "discovery", "proxy"].iter().any(|begin| name.starts_with(begin));
    if moves || name == "config-file" {
        return Err(BrokerError::usage(format!(
            "etcd is not given `{flag}`: where it listens, and with whom, is queueproof's to say"
        )));
    }
    Ok(())
}

/// Known by its name, which it tells other members: it is made for each start.
fn probe(launch: &Launch) -> Readiness {
    const PATIENCE: Duration = Duration::from_millis(500);
    fn ask<T: for<'a> Deserialize<'a>>(port: u16, path: &str) -> Result<T, String> {
        match http::get(port, path, PATIENCE) {
            Ok((200, body)) => serde_json::from_str(&body).map_err(|e| format!("GET {path}: {e}")),
            Ok((status, _)) => Err(format!("GET {path} answers {status}")),
            Err(error) => Err(format!("GET {path}: {error}")),
        }
    }
    let [client, peer] = [launch.ports[0], launch.ports[1]];
    let ready = || {
        let members: Vec<Member> = ask(peer, "/members")?;
        if !members.iter().any(|member| member.name == launch.name) {
            return Err("it does not tell its name, or another server answers on its port".into());
        }
        // Which has read from the store what its only member agreed to.
        let Health { health } = ask(client, "/health")?;
        if health != "true" {
            return Err(format!("GET /health answers {health}"));
        }
        ask(client, "/version").map(|version: Version| version.etcdserver)
    };
    match ready() {
        Ok(version) => Readiness::Ready { version },
        Err(why) => Readiness::NotYet(why),
    }
}

/// It counts no connections. A lease that expired is counted as revoked, too; one that the store
/// had when it started is not counted as granted (measured).
fn figures(metrics: &str) -> Told {
    let sum = |a: &str, b: &str| Some(total(metrics, a)? + total(metrics, b)?);
    let leases = |what: &str| {
        total(metrics, &format!("etcd_debugging_lease_{what}_total"))
            .and_then(|count| i64::try_from(count).ok())
    };
    Told {
        messages_in: sum("etcd_mvcc_put_total", "etcd_mvcc_delete_total"),
        messages_out: total(metrics, "etcd_debugging_mvcc_events_total"),
        leases: leases("granted").zip(leases("revoked")).map(|(granted, ended)| granted - ended),
        watchers: total(metrics, "etcd_debugging_mvcc_watcher_total"),
        ..Told::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_changes_of_keys_events_watchers_and_leases_that_live() {
        // Of etcd 3.4.23: of six leases one has expired.
        let metrics = "# TYPE etcd_debugging_lease_granted_total counter\n\
            etcd_debugging_lease_granted_total 6\n\
            etcd_debugging_lease_renewed_total 17\n\
            etcd_debugging_lease_revoked_total 1\n\
            etcd_debugging_mvcc_delete_total 1\n\
            etcd_debugging_mvcc_events_total 4\n\
            etcd_debugging_mvcc_put_total 3\n\
            etcd_debugging_mvcc_slow_watcher_total 0\n\
            etcd_debugging_mvcc_watcher_total 2\n\
            etcd_debugging_server_lease_expired_total 1\n\
            etcd_mvcc_delete_total 1\n\
            etcd_mvcc_put_total 3\n";
        let told = figures(metrics);
        assert_eq!((told.messages_in, told.messages_out), (Some(4), Some(4)));
        assert_eq!((told.leases, told.watchers), (Some(5), Some(2)));
        let restarted = metrics.replace("granted_total 6", "granted_total 0");
        assert_eq!(figures(&restarted).leases, Some(-1));
        assert_eq!(figures(""), Told::default());
    }
}
