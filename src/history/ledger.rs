//! Where a scenario writes down what it does.

use std::{io, path::Path};

use tokio::time::Instant;

use super::{End, Halt, Header, History, Op, What, Writer, nanos};

/// Collects a history, and writes it to a file as it grows.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    header: Header,
    ops: Vec<Op>,
    file: Option<Writer>,
}

impl Ledger {
    /// An empty ledger whose clock starts now, kept in `path` too where one is given.
    ///
    /// # Errors
    /// Where the file cannot be made, or exists.
    pub fn new(header: Header, path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(|path| Writer::create(path, &header)).transpose()?;
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
            file.op(&op);
        }
        self.ops.push(op);
    }

    /// Closes the ledger.
    pub fn finish(self, halt: Option<Halt>) -> History {
        let end = End { at: self.now(), halt };
        let end = match self.file {
            Some(file) => file.finish(end),
            None => end,
        };
        History { header: self.header, ops: self.ops, end: Some(end) }
    }
}
