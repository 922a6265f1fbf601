//! A connection that writes down what is done to it.

use std::sync::Arc;

use queueproof_backends::{
    ConsumerOptions, Depth, Direction, ErrorKind, Link, PublisherOptions, QueueBackend, Retention,
    TopicSpec,
};

use super::{Consumer, Publisher, Stage, Subscription, Topic, broken, next};
use crate::history::{Halt, What};

/// A connection of the scenario.
pub struct Connection<'s> {
    pub(super) stage: &'s Stage,
    pub(super) id: u16,
    pub(super) backend: Arc<dyn QueueBackend>,
    link: Option<Arc<dyn Link>>,
}

impl<'s> Connection<'s> {
    pub(super) async fn open(stage: &'s Stage, link: Option<Arc<dyn Link>>) -> Result<Self, Halt> {
        let invoked = stage.now();
        let backend =
            stage.connector.connect(link.clone()).await.map_err(|e| broken("connecting", &e))?;
        next(&stage.counts.connections);
        let id = stage.counts.connections.get();
        stage.opened.borrow_mut().push((id, Arc::clone(&backend)));
        stage.record(id, invoked, What::Connect { link: link.is_some() });
        Ok(Connection { stage, id, backend, link })
    }

    /// Opens a publisher.
    pub async fn publisher(&self, topic: &Topic) -> Result<Publisher<'s>, Halt> {
        self.publisher_with(topic, PublisherOptions::default()).await
    }

    /// Opens a publisher with options.
    pub async fn publisher_with(
        &self,
        topic: &Topic,
        options: PublisherOptions,
    ) -> Result<Publisher<'s>, Halt> {
        let admitted = self.ask_publisher(topic, options).await?;
        admitted.ok_or_else(|| Halt::Broken("opening a publisher: its place is taken".into()))
    }

    /// Asks to open a publisher; `None` if its name or its access is taken.
    pub async fn ask_publisher(
        &self,
        topic: &Topic,
        options: PublisherOptions,
    ) -> Result<Option<Publisher<'s>>, Halt> {
        let invoked = self.stage.now();
        let name = options.name.clone();
        let inner = match self.backend.publisher(&topic.name, options).await {
            Ok(inner) => inner,
            Err(error) if error.kind == ErrorKind::Conflict => return Ok(None),
            Err(error) => return Err(broken("opening a publisher", &error)),
        };
        let id = next(&self.stage.counts.publishers);
        let what = What::Publisher { publisher: id, topic: topic.id, name };
        self.stage.record(self.id, invoked, what);
        Ok(Some(Publisher {
            stage: self.stage,
            connection: self.id,
            topic: topic.id,
            id,
            inner,
            next: 0,
        }))
    }

    /// Tries to make a topic of a name that no backend takes: whether it was refused as such.
    pub async fn refuses_topic(&self, name: &str) -> Result<bool, Halt> {
        let spec = TopicSpec {
            name: name.into(),
            retention: Retention::UntilAcked,
            dedup_window: None,
            max_messages: None,
        };
        match self.backend.create_topic(&spec).await {
            Err(error) if error.kind == ErrorKind::InvalidArgument => Ok(true),
            Err(error) => Err(broken("creating a topic of an illegal name", &error)),
            Ok(()) => Ok(false),
        }
    }

    /// Opens a consumer.
    pub async fn consumer(
        &self,
        subscription: &Subscription,
        prefetch: u32,
    ) -> Result<Consumer<'s>, Halt> {
        let confirm_acks = self.stage.has(queueproof_backends::Capability::ConfirmedAck);
        let invoked = self.stage.now();
        let inner = self
            .backend
            .consumer(
                &subscription.topic.name,
                &subscription.name,
                ConsumerOptions { prefetch, confirm_acks },
            )
            .await
            .map_err(|e| broken("opening a consumer", &e))?;
        let id = next(&self.stage.counts.consumers);
        let what = What::Consumer { consumer: id, subscription: subscription.id, prefetch };
        self.stage.record(self.id, invoked, what);
        Ok(Consumer {
            stage: self.stage,
            connection: self.id,
            backend: Arc::clone(&self.backend),
            subscription: subscription.clone(),
            id,
            inner,
        })
    }

    /// Asks how much a subscription holds.
    pub async fn depth(&self, subscription: &Subscription) -> Result<Depth, Halt> {
        let invoked = self.stage.now();
        let depth = self
            .backend
            .depth(&subscription.topic.name, &subscription.name)
            .await
            .map_err(|e| broken("asking for the depth", &e))?;
        let what = What::Depth {
            subscription: subscription.id,
            waiting: depth.waiting,
            unsettled: depth.unsettled,
            stored: depth.stored,
        };
        self.stage.record(self.id, invoked, what);
        Ok(depth)
    }

    /// How often it was lost so far.
    pub fn disconnects(&self) -> u64 {
        self.backend.disconnects()
    }

    /// Cuts the link.
    pub fn cut(&self) {
        self.fault(What::Cut, |link| link.cut());
    }

    /// Holds back what flows in a direction.
    pub fn hold(&self, direction: Direction) {
        self.fault(What::Hold(direction.into()), |link| link.hold(direction));
    }

    /// Lets everything flow again.
    pub fn heal(&self) {
        self.fault(What::Heal, |link| link.heal());
    }

    fn fault(&self, what: What, act: impl FnOnce(&dyn Link)) {
        if let Some(link) = &self.link {
            let invoked = self.stage.now();
            act(link.as_ref());
            self.stage.record(self.id, invoked, what);
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        let invoked = self.stage.now();
        let disconnects = self.backend.disconnects();
        self.stage.opened.borrow_mut().retain(|(id, _)| *id != self.id);
        self.backend.close().await;
        self.stage.record(self.id, invoked, What::Close { disconnects });
    }
}
