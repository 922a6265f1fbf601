//! What a run does to its broker's process, and writes down.

use std::sync::Arc;

use super::{BrokerState, Event, Load, Recorder};
use crate::history::Halt;

/// What can be done to a broker's process. The calls block.
pub trait BrokerControl: Send + Sync {
    /// Stops it and starts it again on the same store.
    ///
    /// # Errors
    /// Why that failed, in words.
    fn restart(&self) -> Result<(), String>;

    /// What it has used.
    fn load(&self) -> Load;
}

/// Stops the broker and starts it again.
///
/// # Errors
/// Why that failed, or that it is not ours to restart.
pub(super) async fn restart(
    broker: Option<&Arc<dyn BrokerControl>>,
    recorder: &Recorder,
) -> Result<(), Halt> {
    let Some(broker) = broker.cloned() else {
        return Err(Halt::Undecided("the broker is not ours to restart".into()));
    };
    let now = recorder.now();
    recorder.record_at((now, now), Event::Broker(BrokerState::Stopped));
    let restarted = tokio::task::spawn_blocking(move || broker.restart()).await;
    let restarted = restarted.unwrap_or_else(|error| Err(error.to_string()));
    restarted.map_err(|why| Halt::Broken(format!("restarting the broker: {why}")))?;
    recorder.record(now, Event::Broker(BrokerState::Started));
    Ok(())
}

/// Samples what the broker has used.
pub(super) async fn sample(broker: Option<&Arc<dyn BrokerControl>>, recorder: &Recorder) {
    let Some(broker) = broker.cloned() else { return };
    let now = recorder.now();
    // A task that cannot be joined has no answer, and there are other samples.
    if let Ok(load) = tokio::task::spawn_blocking(move || broker.load()).await {
        recorder.record(now, Event::Load(load));
    }
}
