//! nsqd's and nsqlookupd's HTTP interfaces.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::address::in_query;
use crate::{
    BackendError, ErrorKind,
    http::{Answer, Http},
    tls::Tls,
};

/// One nsqd's HTTP interface.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    http: Http,
    at: String,
}

/// Who an nsqd says it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Info {
    pub(super) version: String,
    /// With `tcp_port`, how it is known to nsqlookupd.
    pub(super) broadcast_address: String,
    pub(super) tcp_port: i64,
}

/// What an nsqd takes, from its configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takes {
    /// The largest message, bytes.
    pub(super) message: u64,
    /// The largest body of a command, bytes.
    pub(super) body: u64,
    /// How many messages a topic or channel holds in memory.
    pub(super) memory_queue: u64,
    /// The longest delay of a message.
    pub(super) delay: Duration,
    /// The longest ack timeout, also with all its extensions.
    pub(super) ack_timeout: Duration,
    /// How many channels it looks through at a time for what is due.
    pub(super) scanned: u64,
    /// Whether clients must use TLS.
    pub(super) tls_required: bool,
}

/// A topic's counts.
#[derive(Debug, Deserialize)]
pub(super) struct TopicStats {
    pub(super) topic_name: String,
    /// Messages that its channels have not been given.
    pub(super) depth: u64,
    /// Messages ever published.
    pub(super) message_count: u64,
    #[serde(deserialize_with = "or_empty")]
    pub(super) channels: Vec<ChannelStats>,
}

/// A channel's counts.
#[derive(Debug, Deserialize)]
pub(super) struct ChannelStats {
    pub(super) channel_name: String,
    pub(super) depth: u64,
    pub(super) in_flight_count: u64,
    pub(super) deferred_count: u64,
}

#[derive(Deserialize)]
struct Stats {
    #[serde(deserialize_with = "or_empty")]
    topics: Vec<TopicStats>,
}

/// An nsqd that nsqlookupd knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Producer {
    pub(super) broadcast_address: String,
    pub(super) tcp_port: u16,
    pub(super) http_port: u16,
}

#[derive(Deserialize)]
struct Found {
    #[serde(deserialize_with = "or_empty")]
    producers: Vec<Producer>,
}

/// A list that Go writes as `null` when it is empty.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

/// What every nsqd since 0.3.7 tells of its configuration, with what it is unless set otherwise.
const SCANNED_BY_DEFAULT: u64 = 20;

impl Admin {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the settings of TLS cannot be used.
    pub(super) fn new(
        at: &str,
        what: &'static str,
        tls: &Tls,
        connect_timeout: Duration,
        request_timeout: Duration,
    ) -> Result<Self, BackendError> {
        let http = Http::new(at, what, tls, connect_timeout, request_timeout)?;
        Ok(Admin { http, at: at.trim_end_matches('/').into() })
    }

    /// Its address, for messages.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Answer, BackendError> {
        let answer = self.http.ask(method, path, None, None).await;
        answer.map_err(|error| match error.context.contains("TLS_REQUIRED") {
            true => BackendError::new(
                ErrorKind::Unsupported,
                format!(
                    "nsqd at {} demands TLS also for HTTP (-tls-required): set nsq.http_url to \
                     its -https-address, as https://127.0.0.1:4152",
                    self.at
                ),
            ),
            false => error,
        })
    }

    async fn read<T: DeserializeOwned>(&self, doing: &str, path: &str) -> Result<T, BackendError> {
        let answer = self.ask(Method::GET, path).await?;
        let value = self.http.json(doing, &answer)?;
        serde_json::from_value(value).map_err(|error| {
            let problem = format!("{doing}: {} does not answer as nsqd does: {error}", self.at);
            BackendError::new(ErrorKind::WrongServer, problem)
        })
    }

    /// Who it is.
    pub(super) async fn info(&self) -> Result<Info, BackendError> {
        self.read("asking nsqd who it is", "/info").await
    }

    /// What it takes.
    pub(super) async fn takes(&self) -> Result<Takes, BackendError> {
        let number = async |name: &str| {
            let doing = format!("asking nsqd for its {name}");
            let value: Value = self.read(&doing, &format!("/config/{name}")).await?;
            value.as_u64().ok_or_else(|| {
                BackendError::new(ErrorKind::WrongServer, format!("{doing}: it says {value}"))
            })
        };
        let (message, body, memory_queue, delay, ack_timeout) = futures::try_join!(
            number("max_msg_size"),
            number("max_body_size"),
            number("mem_queue_size"),
            number("max_req_timeout"),
            number("max_msg_timeout"),
        )?;
        // Not all versions have these.
        let (scanned, tls_required) =
            futures::join!(number("queue_scan_selection_count"), number("tls_required"));
        Ok(Takes {
            message,
            body,
            memory_queue,
            delay: Duration::from_nanos(delay),
            ack_timeout: Duration::from_nanos(ack_timeout),
            scanned: scanned.unwrap_or(SCANNED_BY_DEFAULT),
            tls_required: tls_required.is_ok_and(|required| required > 0),
        })
    }

    async fn stats(&self, query: &str) -> Result<Vec<TopicStats>, BackendError> {
        let path = format!("/stats?format=json&include_clients=false&include_mem=false{query}");
        Ok(self.read::<Stats>("asking nsqd for its counts", &path).await?.topics)
    }

    /// All topics.
    pub(super) async fn topics(&self) -> Result<Vec<TopicStats>, BackendError> {
        self.stats("").await
    }

    /// One topic; `None` if there is none of the name.
    pub(super) async fn topic(&self, topic: &str) -> Result<Option<TopicStats>, BackendError> {
        let mut found = self.stats(&format!("&topic={}", in_query(topic))).await?;
        found.retain(|stats| stats.topic_name == topic);
        Ok(found.pop())
    }

    async fn change(&self, doing: &str, path: &str) -> Result<(), BackendError> {
        let answer = self.ask(Method::POST, path).await?;
        match answer.status {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => Err(self.http.failure(ErrorKind::NotFound, doing, &answer)),
            StatusCode::BAD_REQUEST => {
                Err(self.http.failure(ErrorKind::InvalidArgument, doing, &answer))
            }
            _ => Err(self.http.failure(ErrorKind::Other, doing, &answer)),
        }
    }

    /// Creates a topic, or finds it there.
    pub(super) async fn create_topic(&self, topic: &str) -> Result<(), BackendError> {
        let doing = format!("creating topic {topic}");
        self.change(&doing, &format!("/topic/create?topic={}", in_query(topic))).await
    }

    /// Creates a channel, or finds it there. When it returns, what is published reaches it.
    pub(super) async fn create_channel(
        &self,
        topic: &str,
        channel: &str,
    ) -> Result<(), BackendError> {
        let doing = format!("creating channel {channel} of topic {topic}");
        let (topic, channel) = (in_query(topic), in_query(channel));
        self.change(&doing, &format!("/channel/create?topic={topic}&channel={channel}")).await
    }

    /// Deletes a topic with everything in it; one that does not exist is no error.
    pub(super) async fn delete_topic(&self, topic: &str) -> Result<(), BackendError> {
        let doing = format!("deleting topic {topic}");
        let path = format!("/topic/delete?topic={}", in_query(topic));
        match self.change(&doing, &path).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Asks nsqlookupd for every nsqd that has a topic.
    pub(super) async fn lookup(&self, topic: &str) -> Result<Vec<Producer>, BackendError> {
        let path = format!("/lookup?topic={}", in_query(topic));
        let answer = self.ask(Method::GET, &path).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let doing = "asking nsqlookupd for a topic";
        let value = self.http.json(doing, &answer)?;
        let found: Found = serde_json::from_value(value).map_err(|error| {
            let problem = format!("{doing}: {} is not nsqlookupd: {error}", self.at);
            BackendError::new(ErrorKind::WrongServer, problem)
        })?;
        Ok(found.producers)
    }
}
