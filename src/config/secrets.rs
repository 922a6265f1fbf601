//! Secrets: read when they are needed, and shown to nobody.

use std::{env, fs::File, io::Read, path::Path};

use queueproof_backends::nats::Auth;

use super::{ConfigError, Nats};

/// The most bytes that a file with a secret may have.
const MOST: u64 = 64 << 10;

/// What was read; its `Debug` shows the kind alone.
#[derive(Debug, Clone)]
pub struct NatsSecrets(pub Auth);

impl Nats {
    /// Reads the credentials that the settings refer to.
    ///
    /// # Errors
    /// Where they cannot be read, or contradict each other.
    pub fn read_secrets(&self) -> Result<NatsSecrets, ConfigError> {
        let auth = &self.auth;
        let either =
            |what: &str, file: &Option<std::path::PathBuf>, variable: &Option<String>| match (
                file, variable,
            ) {
                (Some(_), Some(_)) => Err(ConfigError::new(format!(
                    "nats.auth: {what}_file and {what}_env exclude each other"
                ))),
                (Some(file), None) => read(&format!("nats.auth.{what}_file"), file).map(Some),
                (None, Some(variable)) => match env::var(variable) {
                    Ok(secret) if !secret.is_empty() => Ok(Some(secret)),
                    _ => Err(ConfigError::new(format!(
                        "nats.auth.{what}_env: the variable {variable} is not set, or not text"
                    ))),
                },
                (None, None) => Ok(None),
            };
        let password = either("password", &auth.password_file, &auth.password_env)?;
        let token = either("token", &auth.token_file, &auth.token_env)?;
        let file = |key: &str, path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|path| read(&format!("nats.auth.{key}"), path)).transpose()
        };
        let seed = file("nkey_seed_file", &auth.nkey_seed_file)?;
        let credentials = file("credentials_file", &auth.credentials_file)?;
        let jwt = file("jwt_file", &auth.jwt_file)?;
        let kind = match (auth.user.clone(), password, token, seed, credentials, jwt) {
            (None, None, None, None, None, None) => Auth::None,
            (Some(user), Some(password), None, None, None, None) => {
                Auth::UserPassword { user, password }
            }
            (Some(_), None, ..) => {
                return Err(ConfigError::new(
                    "nats.auth.user needs nats.auth.password_file or nats.auth.password_env",
                ));
            }
            (None, Some(_), ..) => {
                return Err(ConfigError::new("a password in nats.auth needs nats.auth.user"));
            }
            (None, None, Some(token), None, None, None) => Auth::Token(token),
            (None, None, None, Some(seed), None, None) => Auth::NkeySeed(seed),
            (None, None, None, None, Some(credentials), None) => Auth::Credentials(credentials),
            (None, None, None, Some(seed), None, Some(jwt)) => Auth::Jwt { jwt, seed },
            (None, None, None, None, None, Some(_)) => {
                return Err(ConfigError::new("nats.auth.jwt_file needs nats.auth.nkey_seed_file"));
            }
            _ => {
                return Err(ConfigError::new(
                    "nats.auth names several kinds of credentials; one is needed",
                ));
            }
        };
        Ok(NatsSecrets(kind))
    }
}

/// Reads a file with a secret, without the line end at its end.
fn read(key: &str, path: &Path) -> Result<String, ConfigError> {
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
