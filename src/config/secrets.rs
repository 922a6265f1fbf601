//! Secrets: read when they are needed, and shown to nobody.

use std::{
    env,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::ConfigError;

/// The most bytes that a file with a secret may have.
const MOST: u64 = 64 << 10;

/// Reads a secret that is in a file or in a variable: `key` and `what` name the settings
/// `KEY.WHAT_file` and `KEY.WHAT_env`.
///
/// # Errors
/// Where both are given, or it cannot be read.
pub(crate) fn secret(
    key: &str,
    what: &str,
    file: &Option<PathBuf>,
    variable: &Option<String>,
) -> Result<Option<String>, ConfigError> {
    match (file, variable) {
        (Some(_), Some(_)) => {
            Err(ConfigError::new(format!("{key}: {what}_file and {what}_env exclude each other")))
        }
        (Some(file), None) => read_secret(&format!("{key}.{what}_file"), file).map(Some),
        (None, Some(variable)) => match env::var(variable) {
            Ok(secret) if !secret.is_empty() => Ok(Some(secret)),
            _ => Err(ConfigError::new(format!(
                "{key}.{what}_env: the variable {variable} is not set, or not text"
            ))),
        },
        (None, None) => Ok(None),
    }
}

/// Reads a file with a secret, without the line end at its end.
///
/// # Errors
/// Where it cannot be read, is empty, over 64 KiB or no text.
pub(crate) fn read_secret(key: &str, path: &Path) -> Result<String, ConfigError> {
    let problem = |why: String| ConfigError::new(format!("{key}: {}: {why}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(|error| problem(error.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(problem("over 64 KiB: not a secret".into()));
    }
    let text = String::from_utf8(bytes).map_err(|_| problem("not UTF-8 text".into()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(problem("empty".into()));
    }
    Ok(text.to_string())
}
