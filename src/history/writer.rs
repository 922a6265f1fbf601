//! Writing a history as it grows.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{End, Halt, Header, Op};

/// The file of a history. What it cannot take it remembers, to be told once at the end.
#[derive(Debug)]
pub struct Writer {
    out: BufWriter<File>,
    flushed: Instant,
    error: Option<io::Error>,
}

/// How much of a history a killed run may lose.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

impl Writer {
    /// Makes the file, with its folders, and begins it.
    ///
    /// # Errors
    /// Where it cannot be made, or exists.
    pub fn create(path: &Path, header: &Header) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut writer = Writer {
            out: BufWriter::with_capacity(1 << 16, File::create_new(path)?),
            flushed: Instant::now(),
            error: None,
        };
        writer.line(header);
        writer.flush();
        Ok(writer)
    }

    /// Adds an operation.
    pub fn op(&mut self, op: &Op) {
        self.line(op);
    }

    /// Ends the file; a history that could not be written is broken.
    pub fn finish(mut self, mut end: End) -> End {
        self.line(&end);
        self.flush();
        if let Some(error) = &self.error {
            end.halt = Some(Halt::Broken(format!("the history could not be written: {error}")));
        }
        end
    }

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
        self.flushed = Instant::now();
        if let Err(error) = self.out.flush() {
            self.error.get_or_insert(error);
        }
    }
}
