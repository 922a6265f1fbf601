//! Reading layers and laying one over the other.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_yaml::{Mapping, Value};

use super::Config;

/// The environment's variables, each with the key it sets.
pub const VARIABLES: &[(&str, &str)] = &[
    ("QUEUEPROOF_BACKEND", "backend"),
    ("QUEUEPROOF_URL", URL),
    ("QUEUEPROOF_PROFILE", "profile"),
    ("QUEUEPROOF_SEED", "seed"),
    ("QUEUEPROOF_JOBS", "jobs"),
    ("QUEUEPROOF_PROPERTY", "property"),
    ("QUEUEPROOF_FORMAT", "format"),
    ("QUEUEPROOF_OUT", "out"),
    ("QUEUEPROOF_COLOR", "color"),
    ("QUEUEPROOF_PREFIX", "prefix"),
];

/// What an address sets: its scheme tells which.
const URL: &str = "nats.url, pulsar.url or nsq.url";

/// The schemes of addresses, each with its backend.
const SCHEMES: &[(&str, &str)] = &[
    ("nats", "nats"),
    ("tls", "nats"),
    ("pulsar", "pulsar"),
    ("pulsar+ssl", "pulsar"),
    ("nsq", "nsq"),
    ("nsqs", "nsq"),
];

/// The variable that names the configuration file.
pub const FILE_VARIABLE: &str = "QUEUEPROOF_CONFIG";

/// A mistake in what the user wrote, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A mistake in these words.
    pub fn new(words: impl Into<String>) -> Self {
        ConfigError(words.into())
    }
}

/// What the user wrote, lowest layer first.
#[derive(Debug, Default)]
pub struct Layers {
    file: Option<PathBuf>,
    assignments: Vec<Assignment>,
}

/// One key set by a variable or a flag.
#[derive(Debug)]
struct Assignment {
    /// Where: `--seed`, `QUEUEPROOF_SEED`.
    origin: String,
    key: String,
    value: String,
}

/// The largest configuration file, bytes.
const MOST: u64 = 1 << 20;

impl Layers {
    /// The file, where there is one.
    pub fn file(&mut self, path: Option<PathBuf>) {
        self.file = path;
    }

    /// What the environment sets.
    ///
    /// # Errors
    /// An address of no backend.
    pub fn environment(&mut self, get: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        if self.file.is_none() {
            self.file = get(FILE_VARIABLE).filter(|f| !f.is_empty()).map(PathBuf::from);
        }
        for (variable, key) in VARIABLES {
            match get(variable).filter(|v| !v.is_empty()) {
                None => {}
                Some(url) if *key == URL => drop(self.set_url(variable, &url)?),
                Some(value) => self.set(variable, key, &value),
            }
        }
        Ok(())
    }

    /// Sets the address of the backend that its scheme belongs to, and tells which that is.
    ///
    /// # Errors
    /// For a scheme of no backend.
    pub fn set_url(&mut self, origin: &str, url: &str) -> Result<&'static str, ConfigError> {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        let found = SCHEMES.iter().find(|(known, _)| Some(*known) == scheme);
        let (_, backend) = found.ok_or_else(|| {
            let known: Vec<_> = SCHEMES.iter().map(|(scheme, _)| format!("{scheme}://")).collect();
            ConfigError::new(format!(
                "{origin}: an address begins with {}, as nats://127.0.0.1:4222",
                known.join(", ")
            ))
        })?;
        self.set(origin, &format!("{backend}.url"), url);
        Ok(backend)
    }

    /// Sets a key; later ones win.
    pub fn set(&mut self, origin: &str, key: &str, value: &str) {
        self.assignments.push(Assignment {
            origin: origin.into(),
            key: key.into(),
            value: value.into(),
        });
    }

    /// Sets what a `--set key=value` says.
    ///
    /// # Errors
    /// Where it is not of that form.
    pub fn set_flag(&mut self, text: &str) -> Result<(), ConfigError> {
        let (key, value) =
            text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                ConfigError::new(format!(
                    "--set {text:?}: expected key=value, as suite.messages=500"
                ))
            })?;
        self.set(&format!("--set {key}"), key, value);
        Ok(())
    }

    /// Lays all layers over the defaults.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn merge(&self) -> Result<Config, ConfigError> {
        let mut merged = serde_yaml::to_value(Config::default())
            .map_err(|e| ConfigError::new(format!("the defaults: {e}")))?;
        if let Some(path) = &self.file {
            lay(&mut merged, read(path)?);
        }
        for assignment in &self.assignments {
            lay(&mut merged, assignment.layer()?);
        }
        let config: Config = check(merged, &"the configuration")?;
        config.validate()?;
        Ok(config)
    }
}

impl Assignment {
    /// The layer of this one key.
    fn layer(&self) -> Result<Value, ConfigError> {
        if ["password", "token", "secret"].iter().any(|s| self.key.ends_with(&format!("auth.{s}")))
        {
            return Err(ConfigError::new(format!("{}: {SECRET}", self.origin)));
        }
        let nested = |value: Value| {
            self.key.rsplit('.').fold(value, |inner, key| {
                Value::Mapping(Mapping::from_iter([(Value::String(key.into()), inner)]))
            })
        };
        // `8` is a number where a number is wanted, and a text where a text is.
        let typed = serde_yaml::from_str(&self.value).ok().filter(|v: &Value| !v.is_mapping());
        let text = || nested(Value::String(self.value.clone()));
        let Some(typed) = typed.map(nested) else {
            return check::<Config>(text(), &self.origin).map(|_| text());
        };
        match check::<Config>(typed.clone(), &self.origin) {
            Ok(_) => Ok(typed),
            Err(error) => check::<Config>(text(), &self.origin).map(|_| text()).map_err(|_| error),
        }
    }
}

const SECRET: &str = "a secret must not be written here; name a file or a variable that holds it \
                      (password_file, password_env, token_file, token_env, secret_file, secret_env)";

/// Reads a file strictly.
fn read(path: &Path) -> Result<Value, ConfigError> {
    parse(&text(path)?, &path.display())
}

/// The text of a file that a user wrote.
///
/// # Errors
/// Where it cannot be read, is too large, or is no text.
pub(crate) fn text(path: &Path) -> Result<String, ConfigError> {
    let at = path.display();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(|error| ConfigError::new(format!("{at}: {error}")))?;
    if bytes.len() as u64 > MOST {
        return Err(ConfigError::new(format!("{at}: over 1 MiB: not a configuration")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count() + 1;
        ConfigError::new(format!("{at}:{line}: byte {good} is not UTF-8 text"))
    })
}

/// Reads the text of a configuration strictly.
fn parse(text: &str, at: &dyn fmt::Display) -> Result<Value, ConfigError> {
    let value = syntax(text, at)?;
    if value.is_null() {
        return Ok(Value::Mapping(Mapping::new())); // empty, or nothing but comments
    }
    typed::<Config>(text, at).map(|_| value)
}

/// Reads a text strictly as a structure: positions are those of the text.
///
/// # Errors
/// The first mistake, with its place.
pub(crate) fn parse_as<T: serde::de::DeserializeOwned>(
    text: &str,
    at: &dyn fmt::Display,
) -> Result<T, ConfigError> {
    syntax(text, at)?;
    typed(text, at)
}

/// Refuses what is no YAML, or no honest one.
fn syntax(text: &str, at: &dyn fmt::Display) -> Result<Value, ConfigError> {
    shallow(text).map_err(|(line, problem)| ConfigError::new(format!("{at}:{line}: {problem}")))?;
    serde_yaml::from_str(text)
        .map_err(|e| ConfigError::new(format!("{}: {}", place(at, &e), plain(&e))))
}

fn typed<T: serde::de::DeserializeOwned>(
    text: &str,
    at: &dyn fmt::Display,
) -> Result<T, ConfigError> {
    let reader = serde_yaml::Deserializer::from_str(text);
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        ConfigError::new(format!("{}: {}", place(at, inner), explain(&path, &plain(inner))))
    })
}

/// Where in a text an error is.
fn place(at: &dyn fmt::Display, error: &serde_yaml::Error) -> String {
    match error.location() {
        Some(place) => format!("{at}:{}:{}", place.line(), place.column()),
        None => at.to_string(),
    }
}

/// How deep a configuration may nest; its own structure needs four.
const DEPTH: usize = 32;

/// Refuses what a parser would choke on: nesting without end, and anchors, whose aliases can blow
/// a small file up.
fn shallow(text: &str) -> Result<(), (usize, String)> {
    let mut open = 0_usize;
    for (line, number) in text.lines().zip(1..) {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        let dashes = content.chars().take_while(|c| matches!(c, '-' | ' ' | '?')).count();
        if content.starts_with('#') {
            continue;
        }
        open += content.matches(['[', '{']).count();
        if open > DEPTH || indent > 4 * DEPTH || dashes > 2 * DEPTH {
            return Err((number, format!("nested more than {DEPTH} deep: not a configuration")));
        }
        open -= open.min(content.matches([']', '}']).count());
        let begins = |mark: char| {
            content.split([' ', ',', '[', '{', '-']).any(|word| {
                word.strip_prefix(mark).is_some_and(|name| name.starts_with(char::is_alphanumeric))
            })
        };
        if begins('&') || begins('*') {
            return Err((number, "anchors and aliases are not supported".into()));
        }
    }
    Ok(())
}

/// Reads a value strictly.
pub(super) fn check<T: serde::de::DeserializeOwned>(
    value: Value,
    origin: &dyn fmt::Display,
) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        ConfigError::new(format!("{origin}: {}", explain(&path, &plain(error.inner()))))
    })
}

/// The words of an error without its place, which is told before it.
fn plain(error: &serde_yaml::Error) -> String {
    let words = error.to_string();
    let words = words.split(" at line ").next().unwrap_or_default();
    // The path is told too.
    words.rsplit(": ").next().filter(|w| w.contains('`')).unwrap_or(words).to_string()
}

/// Says what is wrong with a key, and what is meant perhaps.
fn explain(path: &str, words: &str) -> String {
    let Some(rest) = words.strip_prefix("unknown field `") else {
        // Some errors name their key themselves, and types as a program would.
        let words = words.strip_prefix(path).and_then(|w| w.strip_prefix(": ")).unwrap_or(words);
        let words =
            ["u8", "u32", "u64", "usize"].iter().fold(words.to_string(), |words, number| {
                words.replace(&format!("expected {number}"), "expected a whole number")
            });
        let words = words.replace("expected struct Config", "expected keys and values");
        return if path == "." { words } else { format!("{path}: {words}") };
    };
    let (unknown, expected) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
    if matches!(unknown, "password" | "token" | "secret") {
        return format!("{path}: {SECRET}");
    }
    let path = if path == "." { unknown } else { path };
    match super::resolve::nearest(unknown, known.iter().copied()) {
        Some(near) => format!("{path}: there is no such key; did you mean {near}?"),
        None => format!("{path}: there is no such key; there are {}", known.join(", ")),
    }
}

/// Lays one value over another: mappings key by key, anything else whole.
pub(super) fn lay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Mapping(under), Value::Mapping(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(place) => lay(place, value),
                    None => drop(under.insert(key, value)),
                }
            }
        }
        (_, Value::Null) => {}
        (under, over) => *under = over,
    }
}
