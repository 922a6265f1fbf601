//! Where schedulers and agents write down what they do.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;

use super::Event;
use crate::history::nanos;

/// Takes events in the order of their completion, each with both its times: nanoseconds since the
/// start, on tokio's clock. Clones write to the same place.
#[derive(Clone)]
pub struct Recorder {
    start: Instant,
    out: Arc<Mutex<Out>>,
}

type Out = dyn FnMut((u64, u64), Event) + Send;

impl Recorder {
    /// Gives every event to `out`, with times since `start`.
    pub fn new(start: Instant, out: impl FnMut((u64, u64), Event) + Send + 'static) -> Self {
        Recorder { start, out: Arc::new(Mutex::new(out)) }
    }

    /// The time.
    pub fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    /// The instant of a time.
    pub fn instant(&self, time: u64) -> Instant {
        self.start + std::time::Duration::from_nanos(time)
    }

    /// Writes down an event that was invoked at `invoked` and completes now.
    pub fn record(&self, invoked: u64, event: Event) {
        self.record_at((invoked, self.now()), event);
    }

    /// Writes down an event with both its times.
    pub fn record_at(&self, at: (u64, u64), event: Event) {
        // An event is taken whole or not at all.
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out(at, event);
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
