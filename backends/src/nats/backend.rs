//! Streams and consumers of one connection.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    NatsSettings, Storage,
    connection::Connection,
    consumer::{DeadLetters, NatsConsumer},
    publisher::NatsPublisher,
};
use crate::{
    Access, BackendError, BoxFuture, Capabilities, Capability, Consumer, ConsumerOptions,
    DedupScope, Depth, Disconnect, ErrorKind, Limits, Publisher, PublisherOptions, QueueBackend,
    Retention, Start, SubscriptionSpec, Support, TopicSpec, check_name,
};

/// A connection to JetStream.
pub(super) struct NatsBackend {
    settings: Arc<NatsSettings>,
    connection: Arc<Connection>,
}

/// NATS's rule for names, as its documentation gives it.
const RULE: &str = "NATS takes no spaces, dots, stars, > and path separators in the name of a \
                    stream or consumer";

/// A consumer's metadata, where its dead-letter topic is written down for all connections.
const DEAD_LETTER_TOPIC: &str = "queueproof-dead-letter-topic";
const MAX_DELIVERIES: &str = "queueproof-max-deliveries";

impl NatsBackend {
    pub(super) fn new(settings: Arc<NatsSettings>, connection: Arc<Connection>) -> Self {
        NatsBackend { settings, connection }
    }

    async fn consumer_info(&self, topic: &str, name: &str) -> Result<Value, BackendError> {
        check_name("topic", topic, RULE)?;
        check_name("subscription", name, RULE)?;
        self.connection.ask(format!("$JS.API.CONSUMER.INFO.{topic}.{name}"), Value::Null).await
    }
}

/// What the backend declares, whatever the settings.
pub(super) fn declares() -> BTreeMap<Capability, Support> {
    let emulated = |how: &str| Support::Emulated { how: how.into() };
    let support = |capability| match capability {
        Capability::DedupSequence => Support::Unsupported {
            why: "JetStream deduplicates by Nats-Msg-Id, not by a producer's numbers".into(),
        },
        Capability::DeadLetter => emulated(
            "the client publishes to the dead-letter topic and terminates the delivery; one \
             that nobody settles is moved when a consumer asks after its last timeout",
        ),
        Capability::KeyOrder => Support::Unsupported {
            why: "JetStream keeps no order among the consumers that compete for a subscription"
                .into(),
        },
        Capability::DelayedPublish => Support::Unsupported {
            why: "JetStream's scheduled messages (2.12) are published a second time on another \
                  subject; this backend does not use them"
                .into(),
        },
        Capability::ExclusivePublisher => {
            Support::Unsupported { why: "JetStream elects no publisher".into() }
        }
        Capability::Keys => emulated("the key travels in the header Queueproof-Key"),
        _ => Support::Native,
    };
    Capability::ALL.into_iter().map(|c| (c, support(c))).collect()
}

impl QueueBackend for NatsBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            support: declares(),
            limits: Limits {
                min_payload: 0,
                max_payload: Some(self.connection.client.max_payload() as u64),
                dedup_scope: Some(DedupScope::Topic),
                disconnect: Disconnect::AfterAckTimeout,
                ack_timeout_resolution: Duration::from_millis(10),
                nack_delay_resolution: Duration::from_millis(10),
                dedup_window_resolution: Duration::from_millis(100),
                publish_delay_resolution: Duration::ZERO,
                publish_delay_early: Duration::ZERO,
                attempts_forget_disconnects: false,
                prefetch_counts_unsettled: false,
                memory_queue: None,
            },
        }
    }

    fn broker_version(&self) -> String {
        self.connection.client.server_info().version
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let name = &spec.name;
            check_name("topic", name, RULE)?;
            let storage = match self.settings.storage {
                Storage::File => "file",
                Storage::Memory => "memory",
            };
            let retention = match spec.retention {
                Retention::UntilAcked => "workqueue",
                Retention::Keep => "limits",
            };
            let mut config = json!({
                "name": name,
                "subjects": [name],
                "retention": retention,
                "storage": storage,
                "num_replicas": self.settings.replicas,
                "discard": "new",
                "max_msgs": spec.max_messages.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX)),
                // Left out, the server limits a stream to 1,000 consumers and shows no limit
                // (measured with 2.15.1).
                "max_consumers": 1_000_000,
            });
            if let Some(window) = spec.dedup_window {
                config["duplicate_window"] = nanos(window);
            }
            self.connection.ask(format!("$JS.API.STREAM.CREATE.{name}"), config).await.map(drop)
        })
    }

    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let (topic, name) = (&spec.topic, &spec.name);
            check_name("topic", topic, RULE)?;
            check_name("subscription", name, RULE)?;
            if spec.ordered_by_key {
                let why = "JetStream keeps no order by key among competing consumers";
                return Err(BackendError::new(ErrorKind::Unsupported, why));
            }
            let mut config = json!({
                "durable_name": name,
                "name": name,
                "deliver_policy": match spec.start { Start::Earliest => "all", Start::Latest => "new" },
                "ack_policy": "explicit",
                "ack_wait": nanos(spec.ack_timeout),
                "max_deliver": -1,
                "max_ack_pending": -1,
                "max_waiting": 100_000,
                "replay_policy": "instant",
            });
            if let Some(dead_letter) = &spec.dead_letter {
                if dead_letter.max_deliveries == 0 {
                    let problem = "a limit of deliveries must be 1 or more";
                    return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
                }
                config["metadata"] = json!({
                    DEAD_LETTER_TOPIC: dead_letter.topic,
                    MAX_DELIVERIES: dead_letter.max_deliveries.to_string(),
                });
            }
            let question = json!({ "stream_name": topic, "config": config, "action": "create" });
            let subject = format!("$JS.API.CONSUMER.CREATE.{topic}.{name}");
            match self.connection.ask(subject, question).await {
                // A work-queue stream delivers all that it holds, or nothing.
                Err(error) if error.context.contains("error 10101)") => Err(BackendError::new(
                    ErrorKind::Unsupported,
                    "a work-queue stream cannot begin with the next message",
                )),
                answer => answer.map(drop),
            }
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            check_name("topic", topic, RULE)?;
            match self.connection.ask(format!("$JS.API.STREAM.DELETE.{topic}"), Value::Null).await {
                Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                answer => answer.map(drop),
            }
        })
    }

    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>> {
        Box::pin(async move {
            let mut names: Vec<String> = Vec::new();
            loop {
                let question = json!({ "offset": names.len() });
                let page = self.connection.ask("$JS.API.STREAM.NAMES".into(), question).await?;
                let total = page["total"].as_u64().unwrap_or(0);
                let found = page["streams"].as_array().map_or(&[][..], Vec::as_slice);
                names.extend(found.iter().filter_map(|name| Some(name.as_str()?.to_string())));
                if found.is_empty() || names.len() as u64 >= total {
                    break;
                }
            }
            names.retain(|name| name.starts_with(prefix));
            names.sort();
            names.dedup();
            Ok(names)
        })
    }

    fn publisher<'a>(
        &'a self,
        topic: &'a str,
        options: PublisherOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Publisher>, BackendError>> {
        Box::pin(async move {
            check_name("topic", topic, RULE)?;
            if options.access != Access::Shared {
                let why = "JetStream elects no publisher";
                return Err(BackendError::new(ErrorKind::Unsupported, why));
            }
            self.connection.ask(format!("$JS.API.STREAM.INFO.{topic}"), Value::Null).await?;
            let limit = options.confirm_timeout.unwrap_or(self.settings.request_timeout);
            let connection = Arc::clone(&self.connection);
            Ok(Box::new(NatsPublisher::new(connection, topic, limit)) as Box<dyn Publisher>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
        options: ConsumerOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BackendError>> {
        Box::pin(async move {
            if options.prefetch == 0 {
                let problem = "a prefetch must be 1 or more";
                return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
            }
            let info = self.consumer_info(topic, subscription).await?;
            let metadata = &info["config"]["metadata"];
            let limit = metadata[MAX_DELIVERIES].as_str().and_then(|n| n.parse().ok());
            let dead_letters = metadata[DEAD_LETTER_TOPIC]
                .as_str()
                .zip(limit)
                .map(|(topic, max_deliveries)| DeadLetters { topic: topic.into(), max_deliveries });
            let connection = Arc::clone(&self.connection);
            let consumer =
                NatsConsumer::open(connection, topic, subscription, options, dead_letters).await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>> {
        Box::pin(async move {
            let info = self.consumer_info(topic, subscription).await?;
            let stream =
                self.connection.ask(format!("$JS.API.STREAM.INFO.{topic}"), Value::Null).await?;
            let number = |value: &Value, what: &str| {
                value.as_u64().ok_or_else(|| {
                    let problem = format!("the server's count of {what} messages is {value}");
                    BackendError::new(ErrorKind::WrongServer, problem)
                })
            };
            Ok(Depth {
                waiting: number(&info["num_pending"], "pending")?,
                unsettled: number(&info["num_ack_pending"], "unacknowledged")?,
                stored: Some(number(&stream["state"]["messages"], "stored")?),
            })
        })
    }

    fn disconnects(&self) -> u64 {
        self.connection.disconnects()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.connection.close())
    }
}

fn nanos(duration: Duration) -> Value {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX).into()
}
