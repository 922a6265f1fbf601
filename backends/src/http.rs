//! A broker's administrative interface over HTTP.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use crate::{BackendError, ErrorKind, error::chain, tls::Tls};

/// One interface at one address.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    /// `http://host:port`, without a slash at the end.
    base: String,
    /// What it is, for messages: `Pulsar's admin interface`.
    what: &'static str,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Http {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the settings of TLS cannot be used.
    pub(crate) fn new(
        base: &str,
        what: &'static str,
        tls: &Tls,
        connect_timeout: Duration,
        request_timeout: Duration,
    ) -> Result<Self, BackendError> {
        let client = Client::builder()
            .use_preconfigured_tls((*tls.config()?).clone())
            // A broker is reached directly, whatever the environment says of proxies.
            .no_proxy()
            // No socket outlives its request: one would belong to the runtime that opened it, and
            // a connection that was closed must leave none.
            .pool_max_idle_per_host(0)
            .connect_timeout(connect_timeout)
            .timeout(request_timeout)
            .build()
            .map_err(|e| BackendError::new(ErrorKind::Other, format!("{what}: {e}")))?;
        Ok(Http { client, base: base.trim_end_matches('/').into(), what })
    }

    /// Asks, and waits for the whole answer. `authorization` is the header of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] or [`ErrorKind::Timeout`], in words that name the address, and
    /// [`ErrorKind::Unauthorized`] for the statuses 401 and 403. Any other status is an answer.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        authorization: Option<&str>,
    ) -> Result<Answer, BackendError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let answer = async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>(Answer {
                status: response.status(),
                body: response.text().await?,
            })
        };
        let answer = answer.await.map_err(|error| {
            let kind = match error.is_timeout() {
                true => ErrorKind::Timeout,
                false => ErrorKind::Unreachable,
            };
            let words = chain(&error.without_url());
            BackendError::new(kind, format!("{} at {}: {words}", self.what, self.base))
        })?;
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let problem = format!(
                "{} at {} refused the credentials: {} {}",
                self.what,
                self.base,
                answer.status,
                short(&answer.body)
            );
            return Err(BackendError::new(ErrorKind::Unauthorized, problem));
        }
        Ok(answer)
    }

    /// An answer that means failure, as an error of this kind.
    pub(crate) fn failure(&self, kind: ErrorKind, doing: &str, answer: &Answer) -> BackendError {
        let (status, body) = (answer.status, short(&answer.body));
        BackendError::new(kind, format!("{doing}: {} answered {status}: {body}", self.what))
    }

    /// The answer's JSON.
    ///
    /// # Errors
    /// [`ErrorKind::WrongServer`] where it is none, or the status is not a success.
    pub(crate) fn json(&self, doing: &str, answer: &Answer) -> Result<Value, BackendError> {
        if !answer.status.is_success() {
            return Err(self.failure(ErrorKind::WrongServer, doing, answer));
        }
        serde_json::from_str(&answer.body).map_err(|error| {
            let problem = format!("{doing}: {} answers no JSON: {error}", self.what);
            BackendError::new(ErrorKind::WrongServer, problem)
        })
    }
}

/// The beginning of a body, on one line: an error page must not fill the screen.
fn short(body: &str) -> String {
    let line: String = body.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
