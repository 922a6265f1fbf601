//! A real nsqd for one test.

use std::{
    env,
    net::SocketAddr,
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

/// An nsqd, or an nsqlookupd; it and its data are gone when this is dropped.
pub struct Server {
    process: Child,
    command: Box<Command>,
    pub tcp: SocketAddr,
    pub http: SocketAddr,
    folder: TempDir,
}

/// Where a program is: named, or on PATH.
fn binary(name: &str) -> Option<PathBuf> {
    let named = env::var_os(format!("QUEUEPROOF_{}", name.to_uppercase())).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(name));
    named.into_iter().chain(on_path).find(|path| path.is_file())
}

/// Whether there is an nsqd; said loudly where there is none, and an error where one is required.
pub fn is_there(what: &str) -> bool {
    if binary("nsqd").is_some() {
        return true;
    }
    let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|b| b == "nsq"), "nsq is required, and there is no nsqd");
    eprintln!(
        "NOT RUN against a real nsqd: {what}: none is on PATH, and QUEUEPROOF_NSQD names none"
    );
    false
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

impl Server {
    /// An nsqd with these flags.
    pub async fn nsqd(flags: &[&str]) -> Option<Server> {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().display().to_string();
        let own = ["-data-path", &data, "-https-address=", "-broadcast-address=127.0.0.1"];
        Self::start("nsqd", &[&own, flags].concat(), folder).await
    }

    /// An nsqlookupd.
    pub async fn nsqlookupd() -> Option<Server> {
        Self::start("nsqlookupd", &[], tempfile::tempdir().unwrap()).await
    }

    async fn start(name: &str, flags: &[&str], mut folder: TempDir) -> Option<Server> {
        let binary = binary(name)?;
        // A port may be taken before the server has it: then another is tried.
        for _ in 0..5 {
            let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
            let (tcp, http) = (address(free_port().await), address(free_port().await));
            let mut command = Box::new(Command::new(&binary));
            command
                .args(flags)
                .arg(format!("-tcp-address={tcp}"))
                .arg(format!("-http-address={http}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let process = command.spawn().unwrap();
            let mut server = Server { process, command, tcp, http, folder };
            if server.answers().await {
                return Some(server);
            }
            server.kill();
            folder = std::mem::replace(&mut server.folder, tempfile::tempdir().unwrap());
        }
        panic!("{name} did not start");
    }

    async fn answers(&mut self) -> bool {
        for _ in 0..500 {
            let both = (TcpStream::connect(self.tcp).await, TcpStream::connect(self.http).await);
            if let (Ok(_), Ok(_)) = both {
                return true;
            }
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Kills it, without a chance to tidy up.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again, with what it had.
    pub async fn again(&mut self) {
        self.process = self.command.spawn().unwrap();
        assert!(self.answers().await, "it did not start again");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks an HTTP interface.
pub async fn ask(http: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(http).await.unwrap();
    let question = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("chunked"), "{head}");
    body.into()
}

/// How many consumers nsqd counts on a channel.
pub async fn consumers(http: SocketAddr, topic: &str) -> u64 {
    let path = format!("/stats?format=json&include_mem=false&topic={topic}");
    let stats = ask(http, "GET", &path).await;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats["topics"][0]["channels"][0]["client_count"].as_u64().unwrap()
}
