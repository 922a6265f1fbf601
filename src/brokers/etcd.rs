//! etcd: no message broker, but the store of Sensu's own round robin, which is the baseline of the
//! scheduler.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{BrokerError, BrokerKind, Install, Invocation, Launch, Readiness, find, http};

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
    ports: 2,
    // Measured: ready after 0.6 s, most of which is its election of itself.
    start_timeout: Duration::from_secs(30),
    stop_timeout: Duration::from_secs(10),
    usual_start: Duration::from_millis(600),
    url: |ports| format!("http://127.0.0.1:{}", ports[0]),
    admin_url: None,
    invocation,
    probe,
    noise: |_| false,
};

#[derive(Deserialize)]
struct Version {
    etcdserver: String,
}

#[derive(Deserialize)]
struct Health {
    health: String,
}

/// Its flags win over the environment; a file of settings it is not given.
fn invocation(launch: &Launch) -> Result<Invocation, BrokerError> {
    let settings = &launch.settings;
    if !settings.extra.is_empty() {
        return Err(BrokerError::usage("etcd is given no configuration file; use its flags"));
    }
    if settings.sync.is_some() {
        return Err(BrokerError::usage("etcd syncs what it writes before it confirms it, always"));
    }
    let [client, peer] = [launch.ports[0], launch.ports[1]];
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let store: PathBuf = launch.dir.join("store");
    let mut args: Vec<std::ffi::OsString> = settings.flags.iter().map(Into::into).collect();
    args.push(format!("--name={}", launch.name).into());
    args.push(format!("--listen-client-urls={client}").into());
    args.push(format!("--advertise-client-urls={client}").into());
    args.push(format!("--listen-peer-urls={peer}").into());
    args.push(format!("--initial-advertise-peer-urls={peer}").into());
    args.push(format!("--initial-cluster={}={peer}", launch.name).into());
    args.push("--initial-cluster-state=new".into());
    args.push("--log-level=warn".into());
    args.push("--data-dir".into());
    args.push(store.into());
    Ok(Invocation {
        program: settings.binary.clone(),
        args,
        env: vec![(
            "ETCD_UNSUPPORTED_ARCH",
            std::env::consts::ARCH.replace("aarch64", "arm64").into(),
        )],
        without_env: Vec::new(),
    })
}

/// Known by its name, which it tells in its metrics: it is made for each.
fn probe(launch: &Launch) -> Readiness {
    const PATIENCE: Duration = Duration::from_millis(500);
    let port = launch.ports[0];
    let ask = |path: &str| match http::get(port, path, PATIENCE) {
        Ok((200, body)) => Ok(body),
        Ok((status, _)) => Err(format!("GET {path} answers {status}")),
        Err(error) => Err(format!("GET {path}: {error}")),
    };
    let ready = || {
        let health = ask("/health")?;
        let health: Health =
            serde_json::from_str(&health).map_err(|e| format!("GET /health: {e}"))?;
        if health.health != "true" {
            return Err("it says that it is not healthy".into());
        }
        let version = ask("/version")?;
        let version: Version =
            serde_json::from_str(&version).map_err(|e| format!("GET /version: {e}"))?;
        Ok(version.etcdserver)
    };
    match ready() {
        Ok(version) => Readiness::Ready { version },
        Err(why) => Readiness::NotYet(why),
    }
}
