//! What many scenarios play on: a connection, and a work queue made over it.

use super::{Connection, Publisher, Stage, Subscription, Topic};
use crate::history::Halt;

/// A work queue with the connection that made it.
pub struct Scene<'s> {
    /// The connection.
    pub director: Connection<'s>,
    /// The topic.
    pub topic: Topic,
    /// Its subscription.
    pub subscription: Subscription,
}

impl<'s> Scene<'s> {
    /// Connects, and makes a work queue.
    pub async fn new(stage: &'s Stage) -> Result<Self, Halt> {
        let director = stage.connect().await?;
        let (topic, subscription) = stage.work_queue(&director).await?;
        Ok(Scene { director, topic, subscription })
    }

    /// Opens a publisher on the director's connection.
    pub async fn publisher(&self) -> Result<Publisher<'s>, Halt> {
        self.director.publisher(&self.topic).await
    }

    /// Drains the queue by a consumer on a connection of its own.
    pub async fn drain(&self, stage: &'s Stage) -> Result<(), Halt> {
        stage.drain(&mut [stage.connect().await?.consumer(&self.subscription, 64).await?]).await
    }
}
