//! Running a package client.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::{BrokerError, Places, find, process::end_child};

/// What an installer works with.
pub(super) struct Work<'a> {
    pub places: &'a Places,
    pub interrupted: &'a AtomicBool,
    /// Is given each line that the package client prints.
    pub progress: &'a mut dyn FnMut(&str),
}

impl Work<'_> {
    /// A program on PATH; without it the error says what needs it and how to get it.
    pub fn program(&self, name: &str, needed: &str) -> Result<PathBuf, BrokerError> {
        env::split_paths(&self.places.search_path)
            .map(|dir| dir.join(name))
            .find(|path| path.is_absolute() && find::is_executable(path))
            .ok_or_else(|| {
                BrokerError::environment(format!("there is no `{name}` on PATH: {needed}"))
            })
    }

    /// Runs a package client to its end, or until interrupted.
    pub fn run(&mut self, command: &mut Command, doing: &str) -> Result<(), BrokerError> {
        const LAST_LINES: usize = 20;
        let failed = |error| BrokerError::io(format_args!("running `{doing}`"))(error);
        let mut client = Client(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                // A group of its own, so that it can be ended with all that it has started.
                .process_group(0)
                .spawn()
                .map_err(failed)?,
        );
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = client.0.stdout.take() {
            send_lines(stdout, sender.clone());
        }
        if let Some(stderr) = client.0.stderr.take() {
            send_lines(stderr, sender);
        }
        let mut last = VecDeque::new();
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(BrokerError::interrupted());
            }
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    (self.progress)(&line);
                    last.push_back(line);
                    if last.len() > LAST_LINES {
                        last.pop_front();
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = client.0.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let last: Vec<_> = last.into();
        Err(BrokerError::environment(format!(
            "`{doing}` ended with {status}; it printed last:\n{}",
            last.join("\n")
        )))
    }
}

/// Reads lines on a thread of their own, until the stream ends.
fn send_lines(stream: impl Read + Send + 'static, sender: mpsc::Sender<String>) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            // Maven resets colours that it does not use.
            let text = String::from_utf8_lossy(&line).replace("\u{1b}[0m", "");
            line.clear();
            if !text.trim().is_empty() {
                let _ = sender.send(text.trim_end().to_owned());
            }
        }
    });
}

/// A package client; ended when dropped, also by a panic of `progress`.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        end_child(&mut self.0, Duration::from_secs(2));
    }
}
