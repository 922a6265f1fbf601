//! The embedded broker's link: what a cut or stalled network does, without a network.

use std::{
    any::Any,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::time::Instant;

use super::{Shared, client::Channel, lock};
use crate::{Direction, Link};

/// A link to the embedded broker.
#[derive(Clone)]
pub struct MemoryLink {
    broker: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

/// Something that waits on its way: it is run when the link heals, and dropped when it is cut.
pub(super) type Held = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    cut: bool,
    to_broker: Option<Vec<Held>>,
    to_client: Option<Vec<Held>>,
    channels: Vec<Weak<Channel>>,
}

impl MemoryLink {
    pub(super) fn new(broker: Arc<Shared>) -> Self {
        MemoryLink { broker, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn carries(&self, channel: &Arc<Channel>) {
        let channels = &mut self.state().channels;
        // As often as the list would double: connections come and go.
        if channels.len() == channels.capacity() {
            channels.retain(|channel| channel.strong_count() > 0);
            channels.reserve(channels.len() + 1);
        }
        channels.push(Arc::downgrade(channel));
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state().cut
    }

    /// Whether deliveries are held back.
    pub(super) fn holds_deliveries(&self) -> bool {
        let state = self.state();
        state.cut || state.to_client.is_some()
    }

    /// Puts something into the way to the broker if that is held; else gives it back.
    pub(super) fn hold_to_broker(&self, held: Held) -> Option<Held> {
        match &mut self.state().to_broker {
            Some(queue) => {
                queue.push(held);
                None
            }
            None => Some(held),
        }
    }

    /// The same on the way back.
    pub(super) fn hold_to_client(&self, held: Held) -> Option<Held> {
        match &mut self.state().to_client {
            Some(queue) => {
                queue.push(held);
                None
            }
            None => Some(held),
        }
    }

    fn channels(state: &State) -> Vec<Arc<Channel>> {
        state.channels.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Link for MemoryLink {
    fn address(&self) -> Option<SocketAddr> {
        None
    }

    fn cut(&self) {
        let (lost, channels) = {
            let mut state = self.state();
            if std::mem::replace(&mut state.cut, true) {
                return;
            }
            let lost = (state.to_broker.take(), state.to_client.take());
            (lost, Self::channels(&state))
        };
        drop(lost);
        for channel in channels {
            if channel.was_cut() {
                lock(&self.broker).disconnect(channel.id(), Instant::now());
            }
        }
    }

    fn hold(&self, direction: Direction) {
        let mut state = self.state();
        match direction {
            Direction::ToBroker => state.to_broker.get_or_insert_default(),
            Direction::ToClient => state.to_client.get_or_insert_default(),
        };
    }

    fn heal(&self) {
        let (to_broker, to_client, channels) = {
            let mut state = self.state();
            state.cut = false;
            (state.to_broker.take(), state.to_client.take(), Self::channels(&state))
        };
        // What was held goes first, in its order.
        for held in to_client.into_iter().flatten().chain(to_broker.into_iter().flatten()) {
            held();
        }
        for channel in channels {
            channel.ring();
        }
    }

    fn as_any(&self) -> &dyn Any {
        super::any(self)
    }
}

impl fmt::Debug for MemoryLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryLink")
    }
}
