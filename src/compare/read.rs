//! Reading saved results: the only part of a comparison that touches files. What is read was
//! written by others, perhaps with a hand that slipped or meant harm; a mistake is told with its
//! place.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::results::{Results, SCHEMA};

/// The largest file that is read, bytes. A run of all properties takes some 20 kB a target.
pub const MOST_BYTES: u64 = 16 << 20;

/// The most targets that a file may hold.
const MOST_TARGETS: usize = 100;

/// The most properties that a target may have.
const MOST_PROPERTIES: usize = 1000;

/// The longest name of a target, backend or property, bytes.
const LONGEST_NAME: usize = 200;

/// The longest part of a file that an error repeats, characters.
const LONGEST_QUOTE: usize = 300;

/// The name that stands for the standard input.
const STDIN: &str = "-";

/// Why results cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {error}; {EXPECTED}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// There is nothing in it.
    #[error("{file}:1:1: the file is empty; {EXPECTED}")]
    Empty {
        /// The file.
        file: String,
    },
    /// It is too large.
    #[error("{file}: over {} MiB; {EXPECTED}", MOST_BYTES >> 20)]
    TooLarge {
        /// The file.
        file: String,
    },
    /// It is not JSON, or has another shape than results have.
    #[error("{file}:{line}:{column}: {problem}; {EXPECTED}")]
    Malformed {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column, bytes from 1.
        column: usize,
        /// What is wrong there, and what was expected.
        problem: String,
    },
    /// It has the shape of results, and says what none can say.
    #[error("{file}: {problem}")]
    Contradiction {
        /// The file.
        file: String,
        /// Where and what.
        problem: String,
    },
    /// The standard input was named more than once.
    #[error("- stands for the standard input, which can be read once; it is named {0} times")]
    StdinTwice(usize),
}

/// What every message ends with.
const EXPECTED: &str = "expected results, as queueproof conform --format json prints them";

/// Reads files of results, each with its name; `-` is the standard input.
///
/// # Errors
/// The first that cannot be read, and why.
pub fn read(files: &[PathBuf]) -> Result<Vec<(String, Results)>, ReadError> {
    let stdin = files.iter().filter(|file| file.as_os_str() == STDIN).count();
    if stdin > 1 {
        return Err(ReadError::StdinTwice(stdin));
    }
    files.iter().map(|file| read_one(file)).collect()
}

fn read_one(path: &Path) -> Result<(String, Results), ReadError> {
    let (name, bytes) = match path.as_os_str() == STDIN {
        true => ("stdin".into(), bytes(io::stdin().lock())),
        false => (path.display().to_string(), File::open(path).and_then(bytes)),
    };
    let bytes = bytes.map_err(|error| ReadError::Io { file: name.clone(), error })?;
    let results = parse(&name, &bytes)?;
    Ok((name, results))
}

/// What there is to read, and one byte over the limit at most.
fn bytes(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Results from the bytes of a file.
///
/// # Errors
/// What is wrong with them, and where.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Results, ReadError> {
    let file = file.to_string();
    if bytes.len() as u64 > MOST_BYTES {
        return Err(ReadError::TooLarge { file });
    }
    if bytes.trim_ascii().is_empty() {
        return Err(ReadError::Empty { file });
    }
    // The schema first: another version's results may have other fields.
    if let Err(error) = serde_json::from_slice::<Versioned>(bytes) {
        return Err(malformed(file, "", &error));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let results: Results = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| malformed(file.clone(), &error.path().to_string(), error.inner()))?;
    match contradiction(&results) {
        Some(problem) => Err(ReadError::Contradiction { file, problem }),
        None => Ok(results),
    }
}

/// An error of JSON with its place.
fn malformed(file: String, path: &str, error: &serde_json::Error) -> ReadError {
    let words = error.to_string();
    let words = words.rsplit_once(" at line ").map_or(words.as_str(), |(words, _)| words);
    let problem = match path {
        "" | "." => quote(words),
        path => format!("{}: {}", quote(path), quote(words)),
    };
    ReadError::Malformed { file, line: error.line(), column: error.column(), problem }
}

/// A part of a file as an error may repeat it: not without end, and nothing that a terminal obeys.
fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(LONGEST_QUOTE).flat_map(visible).collect();
    if text.chars().nth(LONGEST_QUOTE).is_some() {
        quoted.push('…');
    }
    quoted
}

fn visible(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

/// What results of a run never say, and what no comparison could make sense of.
fn contradiction(results: &Results) -> Option<String> {
    let targets = results.targets.len();
    if targets == 0 || targets > MOST_TARGETS {
        return Some(format!("targets: there are {targets}; expected 1 to {MOST_TARGETS}"));
    }
    let properties = results.properties().map(|property| &property.id);
    let names = results.targets.iter().flat_map(|target| [&target.name, &target.backend]);
    if let Some(name) = names.chain(properties).find(|name| name.len() > LONGEST_NAME) {
        let length = name.len();
        return Some(format!(
            "{} is a name of {length} bytes; expected {LONGEST_NAME} at most",
            quote(name)
        ));
    }
    let mut names = HashSet::new();
    for (number, target) in results.targets.iter().enumerate() {
        if !names.insert((&target.name, &target.backend)) {
            let (name, backend) = (quote(&target.name), quote(&target.backend));
            return Some(format!(
                "targets[{number}]: {name} on {backend} is there before; expected each target once"
            ));
        }
        let properties = target.properties.len();
        if properties > MOST_PROPERTIES {
            return Some(format!(
                "targets[{number}].properties: there are {properties}; expected {MOST_PROPERTIES} \
                 at most"
            ));
        }
        let mut ids = HashSet::new();
        for (nth, property) in target.properties.iter().enumerate() {
            if !ids.insert(&property.id) {
                let id = quote(&property.id);
                return Some(format!(
                    "targets[{number}].properties[{nth}]: {id} is there before; expected each \
                     property once"
                ));
            }
        }
    }
    None
}

/// The one field that every version has.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Versioned {
    #[serde(deserialize_with = "known_schema", rename = "schema")]
    _schema: (),
}

/// Refuses what another major version wrote, and what is no results.
fn known_schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let schema = String::deserialize(deserializer)?;
    // A minor version, should there ever be one, only adds fields.
    let minor = schema.strip_prefix(SCHEMA).is_some_and(|rest| rest.starts_with('.'));
    if schema == SCHEMA || minor {
        return Ok(());
    }
    Err(D::Error::custom(format!(
        "the schema is {schema:?}, and this version of queueproof compares {SCHEMA:?}"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = r#"{"schema": "queueproof/results/1",
        "tool": {"name": "queueproof", "version": "0.1.0"},
        "run": {"seed": 7, "started_at": "2026-05-01T12:00:00Z", "duration_ms": 1,
                "host": {"os": "linux", "arch": "x86_64", "cpus": 2}},"#;

    fn target(name: &str, properties: &str) -> String {
        format!(
            r#"{{"name": "{name}", "backend": "nats", "broker_version": "", "settings": null,
                "capabilities": null, "properties": [{properties}]}}"#
        )
    }

    fn property(id: &str, verdict: &str) -> String {
        format!(
            r#"{{"id": "{id}", "group": "g", "verdict": "{verdict}", "reason": "",
                "anomalies": [], "observed": {{}}, "key_figure": "", "duration_ms": 1}}"#
        )
    }

    fn with(targets: &[String]) -> String {
        format!("{HEAD}\n\"targets\": [{}]}}", targets.join(","))
    }

    fn error(text: &str) -> String {
        parse("a.json", text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_is_told_with_its_place_and_what_was_expected() {
        let good = with(&[target("nats", &property("g/1", "pass"))]);
        assert!(parse("a.json", good.as_bytes()).is_ok());
        let cases = [
            ("", "a.json:1:1: the file is empty"),
            (" \n\t", "a.json:1:1: the file is empty"),
            ("no such broker", "a.json:1:2: expected ident"),
            ("[1, 2]", "a.json:1:2: invalid type: integer `1`, expected a string"),
            ("7", "a.json:1:1: invalid type: integer `7`, expected an object"),
            ("{}", "a.json:1:2: missing field `schema`"),
            (r#"{"schema": 1}"#, "a.json:1:12: invalid type: integer `1`, expected a string"),
            (HEAD, "a.json:4:70: EOF while parsing"),
            (&good[..good.len() - 1], "EOF while parsing an object"),
            (&format!("{good} {good}"), "trailing characters"),
            (
                &good.replace("results/1", "results/2"),
                "a.json:1:33: the schema is \"queueproof/results/2\", and this version of \
                 queueproof compares \"queueproof/results/1\"",
            ),
            (&good.replace("results/1", "results/10"), "queueproof/results/10"),
            (&good.replace("results/1", "history/1"), "queueproof/history/1"),
            (
                &good.replace("pass", "passed"),
                "a.json:6:100: targets[0].properties[0].verdict: unknown variant `passed`, \
                 expected one of `pass`",
            ),
            (&good.replace("\"seed\": 7", "\"seed\": -7"), "run.seed: invalid value"),
        ];
        for (text, expected) in cases {
            let error = error(text);
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.ends_with(EXPECTED), "{error}");
        }
    }

    #[test]
    fn what_no_run_can_say_is_refused() {
        let nats = || target("nats", &property("g/1", "pass"));
        let cases = [
            (with(&[]), "a.json: targets: there are 0; expected 1 to 100"),
            (with(&[nats(), nats()]), "targets[1]: nats on nats is there before"),
            (
                with(&[target(
                    "nats",
                    &[property("g/1", "pass"), property("g/1", "fail")].join(","),
                )]),
                "targets[0].properties[1]: g/1 is there before",
            ),
            (with(&[target(&"n".repeat(201), "")]), "is a name of 201 bytes; expected 200 at most"),
            (
                with(&(0..101).map(|n| target(&n.to_string(), "")).collect::<Vec<_>>()),
                "there are 101; expected 1 to 100",
            ),
        ];
        for (text, expected) in cases {
            let error = error(&text);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let later = with(&[target("nats", &property("g/1", "pass"))])
            .replace("results/1\"", "results/1.3\", \"new\": [1, {}]");
        assert!(parse("a.json", later.as_bytes()).is_ok());
    }

    #[test]
    fn an_error_repeats_nothing_without_end_and_nothing_that_a_terminal_obeys() {
        let error = error(&format!(r#"{{"schema": "\u001b[2J{}"}}"#, "q".repeat(10_000)));
        assert!(error.len() < 700 && !error.contains('\u{1b}') && error.contains('…'), "{error}");
    }

    #[test]
    fn too_large_a_file_is_not_read_to_its_end() {
        let endless = bytes(io::repeat(b' ')).unwrap();
        assert_eq!(endless.len() as u64, MOST_BYTES + 1);
        let error = parse("a.json", &endless).unwrap_err().to_string();
        assert!(error.starts_with("a.json: over 16 MiB"), "{error}");
    }
}
