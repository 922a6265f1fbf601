//! A real NATS server for one test.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// A server; it and its data are gone when this is dropped.
pub struct Server {
    process: Child,
    port: u16,
    monitor: u16,
    _folder: TempDir,
}

/// Where a server is: named, on PATH, or where queueproof installs it.
fn binary() -> Option<PathBuf> {
    let named = env::var_os("QUEUEPROOF_NATS_SERVER").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let cache = env::var_os("QUEUEPROOF_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        cache.or_else(home).map(|cache| cache.join("queueproof"))
    });
    let installed = cache.and_then(|cache| fs::read_dir(cache.join("brokers/nats")).ok());
    let installed = installed.into_iter().flatten().filter_map(Result::ok);
    let installed = installed.map(|version| version.path().join("nats-server"));
    named.into_iter().chain(on_path).chain(installed).find(|path| path.is_file())
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

impl Server {
    /// With JetStream and these lines of configuration.
    pub async fn start(lines: &[&str]) -> Option<Server> {
        Self::launch(&lines.join("\n"), true).await
    }

    pub async fn start_with(config: &str) -> Option<Server> {
        Self::launch(config, true).await
    }

    pub async fn start_without_jetstream() -> Option<Server> {
        Self::launch("", false).await
    }

    async fn launch(config: &str, jetstream: bool) -> Option<Server> {
        let Some(binary) = binary() else {
            let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|b| b == "nats"),
                "nats is required, and not installed"
            );
            eprintln!("NOT RUN: no nats-server is installed: queueproof brokers install nats");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // A port may be taken before the server has it: then another is tried.
        for _ in 0..5 {
            let (port, monitor) = (free_port().await, free_port().await);
            let store = folder.path().join("store");
            let mut text =
                format!("host: 127.0.0.1\nport: {port}\nhttp: 127.0.0.1:{monitor}\n{config}\n");
            if jetstream {
                text.push_str(&format!(
                    "jetstream {{\n  store_dir: {:?}\n}}\n",
                    store.display().to_string()
                ));
            }
            let path = folder.path().join("nats.conf");
            fs::write(&path, text).unwrap();
            let mut process = Command::new(&binary)
                .arg("-c")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            for _ in 0..500 {
                if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    return Some(Server { process, port, monitor, _folder: folder });
                }
                if process.try_wait().unwrap().is_some() {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("the server did not start");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How many clients are connected.
    pub async fn connections(&self) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitor)).await.unwrap();
        stream.write_all(b"GET /connz HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        body["num_connections"].as_u64().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
