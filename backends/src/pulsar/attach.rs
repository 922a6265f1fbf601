//! Opening a consumer, and opening it again.

use std::{sync::Arc, time::Duration};

use pulsar::message::proto::{
    self, KeySharedMeta, KeySharedMode, ServerError, base_command::Type, command_subscribe::SubType,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    connection::{Kind, Lost, Owner, lock},
    pool::{Fault, PAUSE, Pool, patiently, refused},
    subscriber::{CLOSED, Open, Subscriber},
    wire,
};
use crate::{BackendError, ErrorKind};

/// Undoes an opening that was given up.
struct Opening(Option<Open>);

impl Opening {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            open.abandon();
        }
    }
}

impl Subscriber {
    /// Opens it, and lets the broker send as much as the prefetch holds.
    pub(super) async fn open(
        self: &Arc<Self>,
        pool: &Pool,
        deadline: Instant,
    ) -> Result<(), Fault> {
        patiently(deadline, || self.try_open(pool, deadline)).await
    }

    async fn try_open(self: &Arc<Self>, pool: &Pool, deadline: Instant) -> Result<(), Fault> {
        let (connection, generation) = pool.owner(&self.topic, deadline).await?;
        let open = Open { id: connection.id(), connection, generation };
        open.connection.register(Kind::Consumer, open.id, Arc::clone(self) as Arc<dyn Owner>);
        let opening = Opening(Some(open.clone()));
        let command = self.command(pool, open.id);
        let mut pending = open.connection.ask(generation, |request_id| {
            wire::command(Type::Subscribe, |c| {
                c.subscribe = Some(proto::CommandSubscribe { request_id, ..command });
            })
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(error) = pending.wait(left).await?.error {
            return Err(refused(error.error, error.message));
        }
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Lost::Closed.into()); // Given up meanwhile: what is open is closed again.
        }
        if state.closed_id == Some(open.id) {
            let words = "the broker closed the consumer as soon as it was open".into();
            return Err(Fault::Refused(ServerError::ServiceNotReady, words));
        }
        open.connection.send(generation, wire::flow(open.id, self.prefetch))?;
        state.owed = 0;
        state.open = Some(open);
        drop(state);
        opening.done();
        Ok(())
    }

    fn command(&self, pool: &Pool, consumer_id: u64) -> proto::CommandSubscribe {
        let sub_type = match self.terms.by_key {
            true => SubType::KeyShared,
            false => SubType::Shared,
        };
        proto::CommandSubscribe {
            topic: pool.full_name(&self.topic),
            subscription: self.subscription.clone(),
            sub_type: sub_type as i32,
            consumer_id,
            durable: Some(true),
            // It exists: where it does not, nothing is to come into being by the way.
            force_topic_creation: Some(false),
            key_shared_meta: self.terms.by_key.then(|| KeySharedMeta {
                key_shared_mode: KeySharedMode::AutoSplit as i32,
                ..KeySharedMeta::default()
            }),
            ..proto::CommandSubscribe::default()
        }
    }

    /// Opens it again whenever it is lost, and takes back what was held for too long, until it is
    /// closed or cannot be opened any more.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let next = lock(&self.state).deadlines.first_key_value().map(|((due, _), _)| *due);
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.retired.notified() => return,
                () = at(next) => {}
            }
            for given in self.expire() {
                self.bury_in_background(given);
            }
            let doomed = std::mem::take(&mut lock(&self.state).doomed);
            for given in doomed {
                self.bury_in_background(given);
            }
            let mut pause = Duration::ZERO;
            while lock(&self.state).open.is_none() {
                let Some(pool) = self.pool.upgrade().filter(|pool| !pool.is_closed()) else {
                    return self.end(BackendError::new(ErrorKind::Closed, CLOSED));
                };
                let again = async {
                    sleep(pause).await;
                    self.open_again(&pool).await
                };
                let opened = tokio::select! {
                    () = self.retired.notified() => return,
                    opened = again => opened,
                };
                if let Err(error) = opened {
                    tracing::debug!(topic = self.topic, %error, "opening a consumer again");
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Closed) {
                        return self.end(error);
                    }
                    pause = (pause * 2).clamp(PAUSE, Duration::from_secs(1));
                }
            }
        }
    }

    async fn open_again(self: &Arc<Self>, pool: &Pool) -> Result<(), BackendError> {
        let doing = format!("opening a consumer of {} of {}", self.subscription, self.topic);
        pool.base().up(self.limit).await.map_err(|lost| Fault::from(lost).explain(&doing))?;
        // Where subscriptions come into being by the way, one that is gone would come back empty.
        pool.admin.subscription_properties(&self.topic, &self.subscription).await?;
        let opened = self.open(pool, Instant::now() + self.limit).await;
        opened.map_err(|fault| fault.explain(&doing))
    }
}

/// Until a time, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
