//! Where a scenario writes down what it does.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    time::{Duration, Instant as RealInstant},
};

use serde::Serialize;
use tokio::time::Instant;

use super::{End, Halt, Header, History, Op, What, nanos};

/// Collects a history, and writes it to a file as it grows.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    header: Header,
    ops: Vec<Op>,
    file: Option<Sink>,
}

/// The file of a ledger. What it cannot take it remembers, to be told once at the end.
#[derive(Debug)]
struct Sink {
    out: BufWriter<File>,
    flushed: RealInstant,
    error: Option<io::Error>,
}

/// How much of a history a killed run may lose.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

impl Ledger {
    /// An empty ledger whose clock starts now, kept in `path` too where one is given.
    ///
    /// # Errors
    /// Where the file cannot be made, or exists.
    pub fn new(header: Header, path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            None => None,
            Some(path) => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                let mut sink = Sink {
                    out: BufWriter::with_capacity(1 << 16, File::create_new(path)?),
                    flushed: RealInstant::now(),
                    error: None,
                };
                sink.line(&header);
                sink.flush();
                Some(sink)
            }
        };
        Ok(Ledger { start: Instant::now(), header, ops: Vec::new(), file })
    }

    /// When it was opened.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The time, nanoseconds since the ledger was opened, on tokio's clock.
    pub fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    /// Writes down an operation that was invoked at `invoked` and completes now.
    pub fn record(&mut self, by: u16, invoked: u64, what: What) {
        let now = self.now();
        self.record_at(by, (invoked, now), what);
    }

    /// Writes down an operation with both its times.
    pub fn record_at(&mut self, by: u16, at: (u64, u64), what: What) {
        let op = Op { at, by, what };
        if let Some(file) = &mut self.file {
            file.line(&op);
        }
        self.ops.push(op);
    }

    /// Closes the ledger.
    pub fn finish(mut self, halt: Option<Halt>) -> History {
        let mut end = End { at: self.now(), halt };
        if let Some(file) = &mut self.file {
            file.line(&end);
            file.flush();
            if let Some(error) = &file.error {
                end.halt = Some(Halt::Broken(format!("the history could not be written: {error}")));
            }
        }
        History { header: self.header, ops: self.ops, end: Some(end) }
    }
}

impl Sink {
    fn line(&mut self, line: &impl Serialize) {
        let written = serde_json::to_writer(&mut self.out, line)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"));
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
        if self.flushed.elapsed() > FLUSH_EVERY {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.flushed = RealInstant::now();
        if let Err(error) = self.out.flush() {
            self.error.get_or_insert(error);
        }
    }
}
