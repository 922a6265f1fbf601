//! A real standalone Pulsar for all tests of this binary: it takes ten seconds and half a gigabyte.

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A standalone; it and its data are gone when this is dropped.
pub struct Broker {
    home: PathBuf,
    process: Option<Child>,
    folder: TempDir,
    pub port: u16,
    pub web: u16,
    lines: Vec<String>,
    /// What the harness says of itself to the admin interface.
    header: String,
}

/// Where Pulsar is: named, or where queueproof installs it.
fn home() -> Option<PathBuf> {
    let named = env::var_os("QUEUEPROOF_PULSAR_HOME").map(PathBuf::from);
    let cache = env::var_os("QUEUEPROOF_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        cache.or_else(home).map(|cache| cache.join("queueproof"))
    });
    let installed = cache.and_then(|cache| fs::read_dir(cache.join("brokers/pulsar")).ok());
    let installed = installed.into_iter().flatten().filter_map(Result::ok).map(|v| v.path());
    named.into_iter().chain(installed).find(|home| home.join("bin/pulsar").is_file())
}

fn has_java() -> bool {
    let java = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let found = Command::new(java.unwrap_or_else(|| "java".into())).arg("-version").output();
    found.is_ok_and(|found| found.status.success())
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Broker {
    /// Starts one, or says loudly why not.
    pub fn start() -> Option<Broker> {
        let home = home().filter(|_| has_java());
        let Some(home) = home else {
            let required = env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|b| b == "pulsar"),
                "pulsar is required, and it or Java is not installed"
            );
            eprintln!("NOT RUN: no Pulsar is installed: queueproof brokers install pulsar");
            return None;
        };
        Some(Self::launch(home, Vec::new(), String::new()))
    }

    /// Another one of the same installation, with these lines of configuration.
    pub fn another(&self, lines: Vec<String>) -> Broker {
        Self::launch(self.home.clone(), lines, String::new())
    }

    /// Another one, that lets in who has this token.
    pub fn another_for(&self, lines: Vec<String>, token: &str) -> Broker {
        let header = format!("Authorization: Bearer {token}\r\n");
        Self::launch(self.home.clone(), lines, header)
    }

    fn launch(home: PathBuf, lines: Vec<String>, header: String) -> Broker {
        let folder = tempfile::tempdir().unwrap();
        // A port may be taken before the broker has it: then another is tried.
        let mut broker = Broker { home, process: None, folder, port: 0, web: 0, lines, header };
        for _ in 0..3 {
            (broker.port, broker.web) = (free_port(), free_port());
            if broker.run() {
                return broker;
            }
        }
        panic!("Pulsar did not start: {}", broker.last_words());
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Starts it, and waits until it is ready; `false` where it ended.
    fn run(&mut self) -> bool {
        let folder = self.folder.path();
        let mut config = fs::read_to_string(self.home.join("conf/standalone.conf")).unwrap();
        let ours = [
            "bindAddress=127.0.0.1".into(),
            "advertisedAddress=127.0.0.1".into(),
            // The bookie's, which would listen everywhere.
            "listeningInterface=lo".into(),
            format!("brokerServicePort={}", self.port),
            format!("webServicePort={}", self.web),
        ];
        for line in ours.iter().chain(&self.lines) {
            let key = line.split('=').next().unwrap();
            let others = config.lines().filter(|l| l.split('=').next() != Some(key));
            config = others.collect::<Vec<_>>().join("\n") + "\n" + line + "\n";
        }
        let path = folder.join("standalone.conf");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = Command::new(self.home.join("bin/pulsar"))
            .args(["standalone", "-nfw", "-nss", "--advertised-address", "127.0.0.1"])
            .arg("--metadata-dir")
            .arg(folder.join("metadata"))
            .arg("--bookkeeper-dir")
            .arg(folder.join("bookkeeper"))
            .args(["--bookkeeper-port", &free_port().to_string()])
            .env("PULSAR_STANDALONE_CONF", &path)
            .env("PULSAR_LOG_DIR", folder.join("logs"))
            .env("PULSAR_MEM", "-Xms256m -Xmx512m -XX:MaxDirectMemorySize=512m")
            .env("PULSAR_GC", "-XX:+UseSerialGC")
            .env("PULSAR_GC_LOG", "")
            // Its native libraries are unpacked there, and left.
            .env("PULSAR_EXTRA_OPTS", format!("-Djava.io.tmpdir={}", folder.display()))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        // From here on it is stopped, whatever happens.
        self.process = Some(process);
        let began = Instant::now();
        loop {
            // The namespaces that it makes at its first start are the last that it does.
            let ready = ["/brokers/health", "/namespaces/public/default"]
                .iter()
                .all(|path| self.get(&format!("/admin/v2{path}")).is_some_and(|(s, _)| s == 200));
            if ready {
                return true;
            }
            if self.process.as_mut().is_some_and(|p| p.try_wait().unwrap().is_some()) {
                return false;
            }
            let late = began.elapsed() > Duration::from_secs(180);
            assert!(!late, "Pulsar is not ready: {}", self.last_words());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn url(&self) -> String {
        format!("pulsar://127.0.0.1:{}", self.port)
    }

    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.web)
    }

    /// Asks the admin interface; its status and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.ask("GET", path, "")
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{body}",
            body.len(),
            self.header
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, body.into()))
    }

    /// Kills it without warning, and starts it again with its data.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        assert!(self.run(), "Pulsar did not start again");
    }

    /// A Pulsar proxy before it, that knows no other broker.
    pub fn proxy(&self) -> Proxy {
        let port = free_port();
        let config = [
            format!("brokerServiceURL={}", self.url()),
            format!("brokerWebServiceURL={}", self.admin_url()),
            "bindAddress=127.0.0.1".into(),
            "advertisedAddress=127.0.0.1".into(),
            format!("servicePort={port}"),
            format!("webServicePort={}", free_port()),
            format!("brokerProxyAllowedTargetPorts={}", self.port),
            "brokerProxyAllowedIPAddresses=127.0.0.1".into(),
            "clusterName=standalone".into(),
        ];
        let path = self.folder.path().join("proxy.conf");
        fs::write(&path, config.join("\n")).unwrap();
        let log = fs::File::create(self.folder.path().join("proxy.log")).unwrap();
        let process = Command::new(self.home.join("bin/pulsar"))
            .arg("proxy")
            .env("PULSAR_PROXY_CONF", &path)
            .env("PULSAR_LOG_DIR", self.folder.path().join("logs"))
            .env("PULSAR_MEM", "-Xms64m -Xmx128m -XX:MaxDirectMemorySize=128m")
            .env("PULSAR_GC", "-XX:+UseSerialGC")
            .env("PULSAR_GC_LOG", "")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut proxy = Proxy { process, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(self.folder.path().join("proxy.log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(60), "{}", log());
            assert!(proxy.process.try_wait().unwrap().is_none(), "{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        proxy
    }

    /// Runs one of its tools, and returns what it prints.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let run = Command::new(self.home.join("bin/pulsar"))
            .args(arguments)
            .env("PULSAR_LOG_DIR", self.folder.path().join("logs"))
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).unwrap().trim().into()
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Pulsar proxy; it is gone when this is dropped.
pub struct Proxy {
    process: Child,
    pub port: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A name that no other test has.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
