//! Topics and channels of one connection.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Shared,
    address::{RULE, off_the_wire, on_the_wire},
    capabilities::capabilities,
    connect::{Met, Terms},
    connection::Connection,
    consumer::gone,
    publisher::NsqPublisher,
    roster,
    wire::millis,
};
use crate::{
    Access, BackendError, BoxFuture, Capabilities, Consumer, ConsumerOptions, Depth, ErrorKind,
    Link, Publisher, PublisherOptions, QueueBackend, Start, SubscriptionSpec, TopicSpec,
    check_name,
};

/// A connection to NSQ.
pub(super) struct NsqBackend {
    shared: Arc<Shared>,
    terms: Terms,
    version: String,
    connection: Arc<Connection>,
}

fn unsupported(why: impl Into<String>) -> BackendError {
    BackendError::new(ErrorKind::Unsupported, why)
}

fn invalid(problem: impl Into<String>) -> BackendError {
    BackendError::new(ErrorKind::InvalidArgument, problem)
}

/// The shortest ack timeout that nsqd takes.
const SHORTEST: Duration = Duration::from_secs(1);

impl NsqBackend {
    pub(super) fn new(
        shared: Arc<Shared>,
        terms: Terms,
        met: Met,
        link: Option<Arc<dyn Link>>,
    ) -> Self {
        let limit = shared.settings.request_timeout;
        let version = met.greeting.version;
        let connection = Arc::new(Connection::new(met.node, met.info, limit, link));
        NsqBackend { shared, terms, version, connection }
    }

    fn wire(&self, what: &str, name: &str) -> Result<String, BackendError> {
        on_the_wire(what, name, self.shared.settings.ephemeral)
    }

    /// Whether a subscription that begins so can be created now, and finds what it should.
    async fn may_begin(
        &self,
        spec: &SubscriptionSpec,
        topic: &str,
        channel: &str,
    ) -> Result<(), BackendError> {
        let deadline = Instant::now() + self.connection.limit;
        loop {
            let Some(stats) = self.connection.node.admin.topic(topic).await? else {
                let problem = format!("there is no topic {}", spec.topic);
                return Err(BackendError::new(ErrorKind::NotFound, problem));
            };
            let exists = stats.channels.iter().any(|c| c.channel_name == channel);
            let others = stats.channels.iter().any(|c| c.channel_name != channel);
            let (name, timeout) = (&spec.name, spec.ack_timeout);
            self.shared.remembered.may_create(&spec.topic, name, timeout, others)?;
            if exists {
                return Ok(());
            }
            match spec.start {
                Start::Earliest if !others || stats.message_count == 0 => return Ok(()),
                Start::Earliest => {
                    return Err(unsupported(
                        "nsqd gives what a topic holds to its first channel alone: a later one \
                         begins with the next message",
                    ));
                }
                Start::Latest if stats.depth == 0 => return Ok(()),
                Start::Latest if !others => {
                    return Err(unsupported(
                        "nsqd gives what a topic holds to its first channel: that cannot begin \
                         with the next message",
                    ));
                }
                // The other channels are just being given what was published before.
                Start::Latest if Instant::now() < deadline => {
                    sleep(Duration::from_millis(1)).await;
                }
                Start::Latest => {
                    let problem = format!(
                        "topic {} still holds messages of before after {:?}",
                        spec.topic, self.connection.limit
                    );
                    return Err(BackendError::new(ErrorKind::Timeout, problem));
                }
            }
        }
    }
}

impl QueueBackend for NsqBackend {
    fn capabilities(&self) -> Capabilities {
        capabilities(&self.shared.settings, &self.terms)
    }

    fn broker_version(&self) -> String {
        self.version.clone()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            let topic = self.wire("topic", &spec.name)?;
            if spec.max_messages.is_some() {
                return Err(unsupported("nsqd has no limit of the messages in a topic"));
            }
            if spec.dedup_window.is_some() {
                return Err(unsupported("nsqd does not deduplicate"));
            }
            let admin = &self.connection.node.admin;
            let new = admin.topic(&topic).await?.is_none();
            self.shared.remembered.topic(&spec.name, spec.retention, new)?;
            admin.create_topic(&topic).await
        })
    }

    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            let topic = self.wire("topic", &spec.topic)?;
            let channel = self.wire("subscription", &spec.name)?;
            if spec.dead_letter.is_some() {
                return Err(unsupported("nsqd has no dead-letter topics"));
            }
            if spec.ordered_by_key {
                return Err(unsupported("an NSQ message has no key to order by"));
            }
            let longest = self.terms.takes.ack_timeout;
            if !(SHORTEST..=longest).contains(&spec.ack_timeout) {
                return Err(invalid(format!(
                    "an ack timeout of {:?}: nsqd takes {SHORTEST:?} to {longest:?} \
                     (-max-msg-timeout)",
                    spec.ack_timeout
                )));
            }
            self.may_begin(spec, &topic, &channel).await?;
            for node in roster::nodes(&self.shared, &self.connection, &topic).await? {
                node.admin.create_channel(&topic, &channel).await?;
            }
            // A whole number of milliseconds, as nsqd will be told.
            let ack_timeout = Duration::from_millis(millis(spec.ack_timeout));
            self.shared.remembered.channel(&spec.topic, &spec.name, ack_timeout);
            sleep(self.shared.settings.new_channel_wait).await;
            Ok(())
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            check_name("topic", topic, RULE)?;
            // Whichever way it was made.
            let mut names = vec![topic.to_string()];
            names.extend(on_the_wire("topic", topic, true));
            for name in names {
                for node in roster::nodes(&self.shared, &self.connection, &name).await? {
                    node.admin.delete_topic(&name).await?;
                }
            }
            self.shared.remembered.forget(topic);
            Ok(())
        })
    }

    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            self.connection.probe().await?;
            let topics = self.connection.node.admin.topics().await?;
            let names = topics.iter().map(|topic| off_the_wire(&topic.topic_name));
            let mut names: Vec<String> =
                names.filter(|name| name.starts_with(prefix)).map(String::from).collect();
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
            self.connection.require_open()?;
            let name = self.wire("topic", topic)?;
            if options.access != Access::Shared {
                return Err(unsupported("nsqd lets everybody publish at the same time"));
            }
            // nsqd would make a topic that is not there.
            if self.connection.node.admin.topic(&name).await?.is_none() {
                let problem = format!("there is no topic {topic}");
                return Err(BackendError::new(ErrorKind::NotFound, problem));
            }
            let limit = options.confirm_timeout.unwrap_or(self.connection.limit);
            let connection = Arc::clone(&self.connection);
            let publisher = NsqPublisher::open(connection, name, self.terms.takes, limit).await?;
            Ok(Box::new(publisher) as Box<dyn Publisher>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
        options: ConsumerOptions,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            let names = (self.wire("topic", topic)?, self.wire("subscription", subscription)?);
            if options.prefetch == 0 {
                return Err(invalid("a prefetch must be 1 or more"));
            }
            let ack_timeout = self.shared.remembered.ack_timeout(topic, subscription);
            let wanted = roster::Wanted {
                names,
                ack_timeout,
                options,
                longest_delay: self.terms.takes.delay,
            };
            let consumer = roster::open(&self.shared, &self.connection, wanted).await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>> {
        Box::pin(async move {
            self.connection.require_open()?;
            let name = self.wire("topic", topic)?;
            let channel = self.wire("subscription", subscription)?;
            self.connection.probe().await?;
            let mut found = false;
            let mut depth = Depth { waiting: 0, unsettled: 0, stored: None };
            for node in roster::nodes(&self.shared, &self.connection, &name).await? {
                let Some(stats) = node.admin.topic(&name).await? else { continue };
                let mut channels = stats.channels.iter();
                let Some(counts) = channels.find(|c| c.channel_name == channel) else { continue };
                found = true;
                // What the topic has not yet passed on to its channels waits for this one too.
                depth.waiting += stats.depth + counts.depth + counts.deferred_count;
                depth.unsettled += counts.in_flight_count;
            }
            if found { Ok(depth) } else { Err(gone(topic, subscription)) }
        })
    }

    fn disconnects(&self) -> u64 {
        self.connection.disconnects()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.connection.close())
    }
}
