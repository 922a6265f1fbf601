//! Credentials as the broker and the admin interface take them.

use std::{fmt, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use pulsar::authentication::{
    Authentication,
    oauth2::{OAuth2Authentication, OAuth2Params},
};
use tokio::{sync::Mutex, time::timeout};

use super::Auth;
use crate::{BackendError, ErrorKind};

/// Who to be, in the words of the wire. Shows nothing of a secret.
pub(super) enum Credentials {
    None,
    Token(String),
    Basic { user: String, password: String },
    OAuth2(Mutex<OAuth2>),
}

/// A token that is fetched from an issuer, kept, and fetched anew when it runs out.
pub(super) struct OAuth2 {
    client: Box<dyn Authentication>,
    /// Whether the client has read its file and found its issuer.
    ready: bool,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where a file cannot be named.
    pub(super) fn new(auth: &Auth) -> Result<Self, BackendError> {
        let invalid = |problem: String| BackendError::new(ErrorKind::InvalidArgument, problem);
        Ok(match auth {
            Auth::None => Credentials::None,
            Auth::Token(token) => {
                let token = token.trim();
                if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
                    return Err(invalid("pulsar.auth: the token is empty or not one".into()));
                }
                Credentials::Token(token.into())
            }
            Auth::Basic { user, password } => {
                Credentials::Basic { user: user.clone(), password: password.clone() }
            }
            Auth::OAuth2 { issuer_url, credentials_file, audience, scope } => {
                let file = std::path::absolute(credentials_file)
                    .ok()
                    .and_then(|file| reqwest::Url::from_file_path(file).ok());
                let file = file.ok_or_else(|| {
                    invalid(format!("{}: not the name of a file", credentials_file.display()))
                })?;
                let params = OAuth2Params {
                    issuer_url: issuer_url.clone(),
                    credentials_url: file.to_string(),
                    audience: audience.clone(),
                    scope: scope.clone(),
                };
                let client = OAuth2Authentication::client_credentials(params);
                Credentials::OAuth2(Mutex::new(OAuth2 { client, ready: false }))
            }
        })
    }

    /// The method's name and data for `CONNECT` and `AUTH_RESPONSE`; `None` without credentials.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] where an issuer gives no token, [`ErrorKind::Timeout`] where it
    /// does not answer within `limit`.
    pub(super) async fn data(
        &self,
        limit: Duration,
    ) -> Result<Option<(&'static str, Vec<u8>)>, BackendError> {
        Ok(match self {
            Credentials::None => None,
            Credentials::Token(token) => Some(("token", token.clone().into_bytes())),
            Credentials::Basic { user, password } => {
                Some(("basic", format!("{user}:{password}").into_bytes()))
            }
            Credentials::OAuth2(oauth2) => {
                let token = timeout(limit, oauth2.lock().await.token()).await;
                let token = token.map_err(|_| {
                    let problem = format!("the OAuth 2.0 issuer gave no token within {limit:?}");
                    BackendError::new(ErrorKind::Timeout, problem)
                })?;
                Some(("token", token?))
            }
        })
    }

    /// The `Authorization` header for the admin interface.
    ///
    /// # Errors
    /// As for [`data`](Self::data).
    pub(super) async fn header(&self, limit: Duration) -> Result<Option<String>, BackendError> {
        Ok(match self.data(limit).await? {
            None => None,
            Some(("basic", data)) => Some(format!("Basic {}", BASE64_STANDARD.encode(data))),
            Some((_, token)) => Some(format!("Bearer {}", String::from_utf8_lossy(&token).trim())),
        })
    }
}

impl OAuth2 {
    async fn token(&mut self) -> Result<Vec<u8>, BackendError> {
        let failed = |error: &dyn fmt::Display| {
            BackendError::new(ErrorKind::Unauthorized, format!("pulsar.auth: {error}"))
        };
        if !self.ready {
            self.client.initialize().await.map_err(|e| failed(&e))?;
            self.ready = true;
        }
        self.client.auth_data().await.map_err(|e| failed(&e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn each_kind_is_what_the_wire_wants_and_shows_nothing() {
        let limit = Duration::from_secs(1);
        let token = Credentials::new(&Auth::Token("a.b.c\n".into())).unwrap();
        assert_eq!(token.data(limit).await.unwrap(), Some(("token", b"a.b.c".to_vec())));
        assert_eq!(token.header(limit).await.unwrap().unwrap(), "Bearer a.b.c");
        let basic = Auth::Basic { user: "me".into(), password: "hunter2".into() };
        let basic = Credentials::new(&basic).unwrap();
        assert_eq!(basic.header(limit).await.unwrap().unwrap(), "Basic bWU6aHVudGVyMg==");
        assert!(!format!("{token:?}{basic:?}").contains("hunter2"));
        assert!(Credentials::new(&Auth::Token("a b".into())).is_err());
    }
}
