//! Histories on disk: `DIR/run.json` says what was planned, `DIR/TARGET/GROUP/NAME.jsonl` what
//! was done.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use queueproof_backends::Capabilities;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{End, Header, History, Op, SCHEMA};
use crate::results::{Run, Tool};

/// The version of the schema of `run.json`.
const RUN_SCHEMA: &str = "queueproof/run/1";

/// What the history of a workload is called, in place of a property.
pub const SCHEDULE: &str = "schedule";

/// The longest line that is read, bytes; what queueproof writes is far below.
const MAX_LINE: u64 = 1 << 20;

/// What was planned and reached: with the histories, all that judging again needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The schema's version.
    pub schema: String,
    /// The program that ran.
    pub tool: Tool,
    /// The circumstances.
    pub run: Run,
    /// One entry a target, in their order.
    pub targets: Vec<TargetRecord>,
}

/// A target of a saved run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Its name.
    pub name: String,
    /// Its backend.
    pub backend: String,
    /// The broker's version.
    pub broker_version: String,
    /// Its settings, secrets masked.
    pub settings: serde_json::Value,
    /// What its backend declared; `None` if it was not reached.
    pub capabilities: Option<Capabilities>,
    /// Why it could not be reached.
    pub broken: Option<String>,
    /// Why it was not there at all, where that is no failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// The properties to check, in their order.
    pub properties: Vec<String>,
    /// Whether they are judged from the history of one workload, and not from one each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub schedule: bool,
}

/// Why a saved run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What it says is not understood.
    #[error("{}:{line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was expected, what was found.
        problem: String,
    },
}

impl RunRecord {
    /// A record of this program's run.
    pub fn new(run: Run, targets: Vec<TargetRecord>) -> Self {
        RunRecord { schema: RUN_SCHEMA.into(), tool: Tool::this(), run, targets }
    }

    /// Where the history of a target's property is, below the run's folder.
    pub fn history_path(folder: &Path, target: &str, property: &str) -> PathBuf {
        folder.join(target).join(format!("{property}.jsonl"))
    }

    /// Where the history of a target's workload is.
    pub fn schedule_path(folder: &Path, target: &str) -> PathBuf {
        Self::history_path(folder, target, SCHEDULE)
    }
}

/// Makes the folder of a run; one that holds another run is left alone.
///
/// # Errors
/// [`HistoryError::Io`].
pub fn begin_run(folder: &Path) -> Result<(), HistoryError> {
    let path = folder.join("run.json");
    if path.exists() {
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "this folder holds another run");
        return Err(HistoryError::Io { path, error: taken });
    }
    fs::create_dir_all(folder)
        .map_err(|error| HistoryError::Io { path: folder.to_path_buf(), error })
}

/// Writes the record of a run, replacing the one that is there in one step.
///
/// # Errors
/// [`HistoryError::Io`].
pub fn write_run(folder: &Path, record: &RunRecord) -> Result<(), HistoryError> {
    let path = folder.join("run.json");
    let write = || {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.persist(&path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|error| HistoryError::Io { path: path.clone(), error })
}

/// Reads the record of a run.
///
/// # Errors
/// [`HistoryError`], that names the file and the line.
pub fn read_run(folder: &Path) -> Result<RunRecord, HistoryError> {
    let path = folder.join("run.json");
    let malformed = |line, problem| HistoryError::Malformed { path: path.clone(), line, problem };
    let text = fs::read_to_string(&path)
        .map_err(|error| HistoryError::Io { path: path.clone(), error })?;
    let record: RunRecord =
        serde_json::from_str(&text).map_err(|e| malformed(e.line(), e.to_string()))?;
    if record.schema != RUN_SCHEMA {
        return Err(malformed(1, unknown_schema(&record.schema, RUN_SCHEMA)));
    }
    // The names become paths: a hostile record must not lead out of its folder.
    let plain = |name: &str| {
        Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)))
    };
    for name in record.targets.iter().flat_map(|t| t.properties.iter().chain([&t.name])) {
        if !plain(name) {
            return Err(malformed(1, format!("{name:?} is not a target's or property's name")));
        }
    }
    Ok(record)
}

/// Reads a history; one that breaks off in its last line ends before it, without an [`End`].
///
/// # Errors
/// [`HistoryError`], that names the file and the line.
pub fn read(path: &Path) -> Result<History, HistoryError> {
    let mut reader = Reader::open(path)?;
    let mut ops = Vec::new();
    while let Some(op) = reader.next_op()? {
        ops.push(op);
    }
    Ok(History { header: reader.header, ops, end: reader.end })
}

/// Reads a history operation by operation.
#[derive(Debug)]
pub struct Reader {
    /// The circumstances.
    pub header: Header,
    /// How it ended: known after the last operation; `None` if the record breaks off.
    pub end: Option<End>,
    lines: Lines,
}

impl Reader {
    /// Opens a history, and reads its header.
    ///
    /// # Errors
    /// [`HistoryError`], that names the file and the line.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let io = |error| HistoryError::Io { path: path.to_path_buf(), error };
        let mut lines = Lines {
            reader: BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?),
            path: path.to_path_buf(),
            number: 0,
            line: Vec::new(),
        };
        if !lines.advance()? || !lines.line.ends_with(b"\n") {
            // Killed before it was begun.
            let early = io::Error::new(io::ErrorKind::UnexpectedEof, "there is no whole header");
            return Err(io(early));
        }
        // The schema first: another version's header may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            schema: String,
        }
        let versioned: Versioned = lines.parse()?;
        if versioned.schema != SCHEMA {
            return Err(lines.malformed(unknown_schema(&versioned.schema, SCHEMA)));
        }
        Ok(Reader { header: lines.parse()?, end: None, lines })
    }

    /// The next operation; `None` after the last one.
    ///
    /// # Errors
    /// [`HistoryError`], that names the file and the line.
    pub fn next_op(&mut self) -> Result<Option<Op>, HistoryError> {
        while self.lines.advance()? {
            if self.end.is_some() {
                return Err(self.lines.malformed("nothing may follow the end".into()));
            }
            if self.lines.line.ends_with(b"\n") {
                // An end is told by its first key; operations are the rule.
                if self.lines.line.starts_with(b"{\"at\":[") {
                    return self.lines.parse().map(Some);
                }
                self.end = Some(self.lines.parse()?);
            }
        }
        Ok(None)
    }

    /// An error in the line that was read last.
    pub fn malformed(&self, problem: String) -> HistoryError {
        self.lines.malformed(problem)
    }
}

/// The lines of a file, each of bounded length.
#[derive(Debug)]
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: usize,
    line: Vec<u8>,
}

impl Lines {
    /// Reads the next line with its line feed (without: the file ends in it); false at the end.
    fn advance(&mut self) -> Result<bool, HistoryError> {
        self.line.clear();
        self.number += 1;
        let read = self.reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line);
        match read {
            Err(error) => Err(HistoryError::Io { path: self.path.clone(), error }),
            Ok(0) => Ok(false),
            Ok(n) if n as u64 == MAX_LINE => {
                Err(self.malformed("the line is over 1 MiB long".into()))
            }
            Ok(_) => Ok(true),
        }
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, HistoryError> {
        serde_json::from_slice(&self.line).map_err(|e| self.malformed(e.to_string()))
    }

    fn malformed(&self, problem: String) -> HistoryError {
        HistoryError::Malformed { path: self.path.clone(), line: self.number, problem }
    }
}

fn unknown_schema(found: &str, known: &str) -> String {
    format!("the schema is {found:?}, and this version of queueproof reads {known:?}")
}
