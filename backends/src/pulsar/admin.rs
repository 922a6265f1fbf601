//! Pulsar's admin interface: namespaces, topics, subscriptions, and what they hold.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use super::{PulsarSettings, auth::Credentials};
use crate::{BackendError, Depth, ErrorKind, Retention, Start, http::Answer, http::Http};

/// The admin interface, for one namespace.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    http: Http,
    credentials: Arc<Credentials>,
    settings: Arc<PulsarSettings>,
    /// The broker's own settings, asked for once; `None` where it does not show them.
    configuration: Arc<OnceCell<Option<Value>>>,
}

/// What connecting found out about the broker and the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The broker's version.
    pub(super) version: String,
    /// Whether the broker deduplicates in the namespace; if not, why that was left so.
    pub(super) dedup: Result<(), String>,
    /// The broker's rule for delayed messages, where it tells.
    pub(super) delay: Option<DelayRule>,
}

/// The broker's rule for delayed messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DelayRule {
    /// How often it looks for messages that are due.
    pub(super) tick: Duration,
    /// Whether it never delivers early; if not, it does by up to a tick.
    pub(super) strict: bool,
    /// Whether it delays at all.
    pub(super) enabled: bool,
}

impl DelayRule {
    /// By how much a message may be delivered before it is due.
    pub(super) fn early(&self) -> Duration {
        if self.strict { Duration::ZERO } else { self.tick }
    }
}

/// What marks a namespace, or a topic, as made by this backend, and its retention.
const MADE: &str = "queueproof";
const RETENTION: &str = "queueproof-retention";

/// The namespace that is this backend's own, whoever made it.
const OWN_NAMESPACE: &str = "queueproof";

impl Admin {
    pub(super) fn new(
        settings: &Arc<PulsarSettings>,
        credentials: &Arc<Credentials>,
    ) -> Result<Self, BackendError> {
        let url = settings.admin_url.trim();
        if !(url.starts_with("http://") || url.starts_with("https://")) || url.contains('@') {
            return Err(BackendError::new(
                ErrorKind::InvalidArgument,
                "pulsar.admin_url begins with http:// or https://, and holds no credentials",
            ));
        }
        let http = Http::new(
            url,
            "Pulsar's admin interface (pulsar.admin_url)",
            &settings.tls,
            settings.connect_timeout,
            settings.request_timeout,
        )?;
        let (settings, credentials) = (Arc::clone(settings), Arc::clone(credentials));
        Ok(Admin { http, credentials, settings, configuration: Arc::default() })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, BackendError> {
        let authorization = self.credentials.header(self.settings.request_timeout).await?;
        let path = format!("/admin/v2{path}");
        self.http.ask(method, &path, body, authorization.as_deref()).await
    }

    /// `persistent/tenant/namespace`, with more behind it.
    fn topic_path(&self, rest: &str) -> String {
        format!("/persistent/{}/{}{rest}", self.settings.tenant, self.settings.namespace)
    }

    /// What an answer that is neither success nor foreseen means.
    fn failure(&self, doing: &str, answer: &Answer) -> BackendError {
        let kind = match answer.status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::CONFLICT => ErrorKind::Conflict,
            StatusCode::PRECONDITION_FAILED => ErrorKind::InvalidArgument,
            // What the broker's configuration switches off.
            StatusCode::METHOD_NOT_ALLOWED => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        };
        self.http.failure(kind, doing, answer)
    }

    /// Finds out whom we speak to, and makes the namespace where there is none.
    pub(super) async fn prepare(&self) -> Result<Found, BackendError> {
        let doing = "asking for the broker's version";
        let answer = self.ask(Method::GET, "/brokers/version", None).await?;
        let version = answer.body.trim().trim_matches('"').to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        if !answer.status.is_success() || version.is_empty() || !version.chars().all(plain) {
            return Err(self.http.failure(ErrorKind::WrongServer, doing, &answer));
        }
        let dedup = self.namespace().await?;
        Ok(Found { version, dedup, delay: self.delay_rule().await })
    }

    /// Makes sure that there is the namespace, and says whether the broker deduplicates in it.
    async fn namespace(&self) -> Result<Result<(), String>, BackendError> {
        let (tenant, namespace) = (&self.settings.tenant, &self.settings.namespace);
        let path = format!("/namespaces/{tenant}/{namespace}");
        let doing = format!("looking for the namespace {tenant}/{namespace}");
        let mut answer = self.ask(Method::GET, &path, None).await?;
        let patience = Instant::now() + self.settings.request_timeout;
        while answer.status == StatusCode::NOT_FOUND {
            self.make_namespace(&path).await?;
            answer = self.ask(Method::GET, &path, None).await?;
            // What several make at the same time is for a moment there for the one that asks to
            // make it, and not yet for the one that asks for it (seen with 4.0.8).
            if Instant::now() > patience {
                break;
            }
            if answer.status == StatusCode::NOT_FOUND {
                sleep(Duration::from_millis(50)).await;
            }
        }
        let policies = self.http.json(&doing, &answer)?;
        match policies["deduplicationEnabled"].as_bool() {
            Some(true) => return Ok(Ok(())),
            None if self.configured("brokerDeduplicationEnabled").await == Some("true") => {
                return Ok(Ok(()));
            }
            _ => {}
        }
        let own = namespace == OWN_NAMESPACE || policies["properties"][MADE].is_string();
        if !own {
            return Ok(Err(format!(
                "deduplication is off in the namespace {tenant}/{namespace}, which is not this program's own; switch it on (pulsar-admin namespaces set-deduplication {tenant}/{namespace} --enable) or name another one"
            )));
        }
        let on =
            self.ask(Method::POST, &format!("{path}/deduplication"), Some(&json!(true))).await?;
        match on.status.is_success() {
            true => Ok(Ok(())),
            false => Err(self.failure(&format!("switching deduplication on in {namespace}"), &on)),
        }
    }

    /// Makes the namespace whole, so that nobody sees it without its policies. What is not made by
    /// a call is not made by the way, and a topic that nobody uses is not deleted behind our back.
    async fn make_namespace(&self, path: &str) -> Result<(), BackendError> {
        let policies = json!({
            "deduplicationEnabled": true,
            "autoTopicCreationOverride": { "allowAutoTopicCreation": false },
            "autoSubscriptionCreationOverride": { "allowAutoSubscriptionCreation": false },
            "inactive_topic_policies": {
                "inactiveTopicDeleteMode": "delete_when_no_subscriptions",
                "maxInactiveDurationSeconds": 3600,
                "deleteWhileInactive": false,
            },
            "properties": { MADE: "made" },
        });
        let answer = self.ask(Method::PUT, path, Some(&policies)).await?;
        if answer.status.is_success() || answer.status == StatusCode::CONFLICT {
            return Ok(()); // Another connection was quicker.
        }
        let (tenant, namespace) = (&self.settings.tenant, &self.settings.namespace);
        Err(self.failure(&format!("making the namespace {tenant}/{namespace}"), &answer))
    }

    /// One of the broker's own settings, which only an administrator may read.
    async fn configured(&self, name: &str) -> Option<&str> {
        let configuration = self.configuration.get_or_init(|| async {
            let path = "/brokers/configuration/runtime";
            let answer = self.ask(Method::GET, path, None).await.ok()?;
            serde_json::from_str(&answer.body).ok()
        });
        configuration.await.as_ref()?[name].as_str()
    }

    async fn delay_rule(&self) -> Option<DelayRule> {
        let tick = self.configured("delayedDeliveryTickTimeMillis").await?.parse().ok()?;
        Some(DelayRule {
            tick: Duration::from_millis(tick),
            strict: self.configured("isDelayedDeliveryDeliverAtTimeStrict").await? == "true",
            enabled: self.configured("delayedDeliveryEnabled").await? == "true",
        })
    }

    /// Makes a topic, or finds it made in the same way.
    pub(super) async fn create_topic(
        &self,
        name: &str,
        retention: Retention,
    ) -> Result<(), BackendError> {
        let doing = format!("creating the topic {name}");
        let word = match retention {
            Retention::UntilAcked => "until-acked",
            Retention::Keep => "keep",
        };
        let path = self.topic_path(&format!("/{name}"));
        let answer = self.ask(Method::PUT, &path, Some(&json!({ RETENTION: word }))).await?;
        if answer.status == StatusCode::CONFLICT {
            let properties = self.topic_properties(name).await?;
            if properties.get(RETENTION).map(String::as_str) != Some(word) {
                let problem =
                    format!("{doing}: it exists, with another retention or not made here");
                return Err(BackendError::new(ErrorKind::Conflict, problem));
            }
        } else if !answer.status.is_success() {
            return Err(self.failure(&doing, &answer));
        }
        if retention == Retention::Keep {
            // Also where it exists: whoever made it may have been stopped between the two.
            let forever = json!({ "retentionTimeInMinutes": -1, "retentionSizeInMB": -1 });
            let path = format!("{path}/retention");
            let answer = self.ask(Method::POST, &path, Some(&forever)).await?;
            if !answer.status.is_success() {
                return Err(self.failure(&format!("{doing}: keeping its messages"), &answer));
            }
        }
        Ok(())
    }

    /// A topic's properties.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the topic.
    pub(super) async fn topic_properties(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let path = self.topic_path(&format!("/{name}/properties"));
        self.properties(&format!("looking for the topic {name}"), &path).await
    }

    /// A subscription's properties.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without it or its topic.
    pub(super) async fn subscription_properties(
        &self,
        topic: &str,
        name: &str,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let path = self.topic_path(&format!("/{topic}/subscription/{name}/properties"));
        self.properties(&format!("looking for the subscription {name} of {topic}"), &path).await
    }

    async fn properties(
        &self,
        doing: &str,
        path: &str,
    ) -> Result<BTreeMap<String, String>, BackendError> {
        let answer = self.ask(Method::GET, path, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(self.failure(doing, &answer));
        }
        let value = self.http.json(doing, &answer)?;
        // None at all may come as `null`.
        let entries = value.as_object().into_iter().flatten();
        Ok(entries.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect())
    }

    /// Makes a subscription, or finds it made with the same properties.
    pub(super) async fn create_subscription(
        &self,
        topic: &str,
        name: &str,
        start: Start,
        properties: BTreeMap<String, String>,
    ) -> Result<(), BackendError> {
        let doing = format!("creating the subscription {name} of {topic}");
        // Where topics come into being by the way, a subscription would make one.
        self.topic_properties(topic).await?;
        let at = match start {
            Start::Earliest => -1,
            Start::Latest => i64::MAX,
        };
        let body = json!({
            "ledgerId": at,
            "entryId": at,
            "partitionIndex": -1,
            "properties": properties,
        });
        let path = self.topic_path(&format!("/{topic}/subscription/{name}"));
        let answer = self.ask(Method::PUT, &path, Some(&body)).await?;
        if answer.status == StatusCode::CONFLICT {
            return match self.subscription_properties(topic, name).await? == properties {
                true => Ok(()),
                false => {
                    let problem = format!("{doing}: it exists with another specification");
                    Err(BackendError::new(ErrorKind::Conflict, problem))
                }
            };
        }
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.failure(&doing, &answer)),
        }
    }

    /// Deletes a topic with all that is on it.
    pub(super) async fn delete_topic(&self, name: &str) -> Result<(), BackendError> {
        let path = self.topic_path(&format!("/{name}?force=true"));
        let answer = self.ask(Method::DELETE, &path, None).await?;
        match answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
            true => Ok(()),
            false => Err(self.failure(&format!("deleting the topic {name}"), &answer)),
        }
    }

    /// The names of the namespace's topics.
    pub(super) async fn topics(&self) -> Result<Vec<String>, BackendError> {
        let doing = "listing topics";
        let answer = self.ask(Method::GET, &self.topic_path(""), None).await?;
        let list = self.http.json(doing, &answer)?;
        let names = list.as_array().into_iter().flatten().filter_map(|name| {
            let name = name.as_str()?.rsplit('/').next()?;
            Some(name.to_string())
        });
        Ok(names.collect())
    }

    /// What a subscription holds.
    pub(super) async fn depth(&self, topic: &str, name: &str) -> Result<Depth, BackendError> {
        let doing = format!("asking for the depth of {name} of {topic}");
        let query = "getPreciseBacklog=true&subscriptionBacklogSize=false";
        let path = self.topic_path(&format!("/{topic}/stats?{query}"));
        let answer = self.ask(Method::GET, &path, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(self.failure(&doing, &answer));
        }
        let stats = self.http.json(&doing, &answer)?;
        let subscription = &stats["subscriptions"][name];
        if subscription.is_null() {
            let problem = format!("{doing}: there is no such subscription");
            return Err(BackendError::new(ErrorKind::NotFound, problem));
        }
        let number = |what: &str| {
            subscription[what].as_u64().ok_or_else(|| {
                let problem = format!("{doing}: the broker's {what} is {}", subscription[what]);
                BackendError::new(ErrorKind::WrongServer, problem)
            })
        };
        let (backlog, unsettled) = (number("msgBacklog")?, number("unackedMessages")?);
        // Entries and messages, where several messages share an entry.
        Ok(Depth { waiting: backlog.saturating_sub(unsettled), unsettled, stored: None })
    }
}
