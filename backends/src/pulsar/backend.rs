//! Topics and subscriptions of one connection.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    admin::Found, capabilities, consumer::PulsarConsumer, pool::Pool, producer::Producer,
    publisher::PulsarPublisher, subscriber::Subscriber, terms::Terms,
};
use crate::{
    Access, BackendError, BoxFuture, Capabilities, Consumer, ConsumerOptions, Depth, ErrorKind,
    Publisher, PublisherOptions, QueueBackend, SubscriptionSpec, TopicSpec, check_name,
};

/// A connection to Pulsar.
pub(super) struct PulsarBackend {
    pool: Arc<Pool>,
    found: Found,
    /// The largest message that the broker takes, bytes.
    max_message: usize,
}

/// Pulsar's rule for names, as its documentation gives it.
const RULE: &str = "Pulsar takes no slashes and no control characters in the name of a topic or \
                    subscription";

impl PulsarBackend {
    pub(super) fn new(pool: Arc<Pool>, found: Found) -> Self {
        let max_message = pool.base().max_message();
        PulsarBackend { pool, found, max_message }
    }

    fn check_open(&self) -> Result<(), BackendError> {
        match self.pool.is_closed() {
            true => Err(BackendError::new(ErrorKind::Closed, "the connection is closed")),
            false => Ok(()),
        }
    }
}

impl QueueBackend for PulsarBackend {
    fn capabilities(&self) -> Capabilities {
        capabilities::declare(&self.found, self.max_message, self.pool.settings.batching)
    }

    fn broker_version(&self) -> String {
        self.found.version.clone()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.check_open()?;
            check_name("topic", &spec.name, RULE)?;
            if spec.max_messages.is_some() {
                let why = capabilities::NO_LIMIT;
                return Err(BackendError::new(ErrorKind::Unsupported, why));
            }
            self.pool.admin.create_topic(&spec.name, spec.retention).await
        })
    }

    fn create_subscription<'a>(
        &'a self,
        spec: &'a SubscriptionSpec,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.check_open()?;
            check_name("topic", &spec.topic, RULE)?;
            check_name("subscription", &spec.name, RULE)?;
            if let Some(dead_letter) = &spec.dead_letter {
                check_name("dead-letter topic", &dead_letter.topic, RULE)?;
            }
            let properties = Terms::properties(spec)?;
            let admin = &self.pool.admin;
            admin.create_subscription(&spec.topic, &spec.name, spec.start, properties).await
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            self.check_open()?;
            check_name("topic", topic, RULE)?;
            self.pool.admin.delete_topic(topic).await
        })
    }

    fn topics<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, BackendError>> {
        Box::pin(async move {
            self.check_open()?;
            let mut names = self.pool.admin.topics().await?;
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
            self.check_open()?;
            check_name("topic", topic, RULE)?;
            if let Some(name) = &options.name {
                check_name("publisher", name, RULE)?;
            }
            // Where topics come into being by the way, a producer would make one.
            self.pool.admin.topic_properties(topic).await?;
            let settings = &self.pool.settings;
            let limit = options.confirm_timeout.unwrap_or(settings.request_timeout);
            let producer = Producer::new(topic, options.name, options.access);
            let patience = settings.request_timeout;
            loop {
                match producer.open(&self.pool, Instant::now() + patience).await {
                    Ok(()) => break,
                    // It was in the queue, and the connection was lost: it queues again.
                    Err(fault)
                        if options.access == Access::WaitForExclusive
                            && fault.is_loss()
                            && !self.pool.is_closed() => {}
                    Err(fault) => {
                        return Err(fault.explain(&format!("opening a publisher on {topic}")));
                    }
                }
            }
            let keeping = Arc::clone(&producer).keep(Arc::downgrade(&self.pool), patience);
            self.pool.spawn(keeping);
            let pool = Arc::clone(&self.pool);
            let dedup = self.found.dedup.clone();
            let publisher = PulsarPublisher::new(pool, producer, limit, dedup);
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
            self.check_open()?;
            check_name("topic", topic, RULE)?;
            check_name("subscription", subscription, RULE)?;
            if options.prefetch == 0 {
                let problem = "a prefetch must be 1 or more";
                return Err(BackendError::new(ErrorKind::InvalidArgument, problem));
            }
            let properties = self.pool.admin.subscription_properties(topic, subscription).await?;
            let manners = (options.prefetch, options.confirm_acks);
            let terms = Terms::read(&properties);
            let subscriber = Subscriber::new(&self.pool, topic, subscription, terms, manners);
            let deadline = Instant::now() + self.pool.settings.request_timeout;
            subscriber.open(&self.pool, deadline).await.map_err(|fault| {
                fault.explain(&format!("opening a consumer of {subscription} of {topic}"))
            })?;
            self.pool.spawn(Arc::clone(&subscriber).keep());
            let consumer = PulsarConsumer::new(Arc::clone(&self.pool), subscriber);
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn depth<'a>(
        &'a self,
        topic: &'a str,
        subscription: &'a str,
    ) -> BoxFuture<'a, Result<Depth, BackendError>> {
        Box::pin(async move {
            self.check_open()?;
            check_name("topic", topic, RULE)?;
            check_name("subscription", subscription, RULE)?;
            // The admin interface answers by itself: this connection's own socket has to, too.
            let limit = self.pool.settings.request_timeout;
            self.pool
                .round_trip(limit)
                .await
                .map_err(|fault| fault.explain("making sure that the connection is up"))?;
            self.pool.admin.depth(topic, subscription).await
        })
    }

    fn disconnects(&self) -> u64 {
        self.pool.disconnects()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.pool.close())
    }
}
