//! From a plan to something that can be connected to.

use std::sync::{Arc, atomic::AtomicBool};

use queueproof_backends::{
    Capabilities, Connector,
    flawed::FlawedConnector,
    memory::{MemoryConnector, MemorySettings},
};

use crate::{
    brokers::PrivateBroker,
    flaw::Flaw,
    plan::{BackendPlan, TargetPlan},
};

#[cfg(feature = "etcd-ring")]
mod etcd;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nsq")]
mod nsq;
#[cfg(any(feature = "nats", feature = "pulsar", feature = "nsq", feature = "etcd-ring"))]
mod private;
#[cfg(feature = "pulsar")]
mod pulsar;

#[cfg(feature = "etcd-ring")]
pub use etcd::{ReachedEtcd, reach_etcd};

/// A target that can be connected to.
pub struct Reached {
    /// What opens connections.
    pub connector: Arc<dyn Connector>,
    /// The broker that was started for it alone; it stops when this is dropped.
    pub broker: Option<PrivateBroker>,
}

/// What a target says about itself.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The broker's version.
    pub broker_version: String,
    /// What the backend declares.
    pub capabilities: Capabilities,
}

/// Why a target cannot be connected to, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreached {
    /// Its broker is not on this machine.
    Absent(String),
    /// Something is wrong.
    Broken(String),
}

/// Who waits for a target, and how to tell it to stop waiting.
#[derive(Clone, Copy)]
pub struct Waiting<'w> {
    /// Becomes true when the user breaks off.
    pub interrupted: &'w AtomicBool,
    /// Is told what takes long.
    pub tell: &'w dyn Fn(&str),
}

impl Reached {
    /// Prepares a target, and starts a private broker where one is wanted.
    ///
    /// # Errors
    /// Why there is none.
    pub fn new(plan: &TargetPlan, waiting: Waiting<'_>) -> Result<Self, Unreached> {
        // A build with the embedded backend alone waits for nobody.
        let _ = waiting;
        let reached = match &plan.backend {
            BackendPlan::Memory(memory) => {
                let settings =
                    MemorySettings { max_payload: memory.max_payload, ..MemorySettings::default() };
                Reached { connector: Arc::new(MemoryConnector::new(settings)), broker: None }
            }
            #[cfg(feature = "nats")]
            BackendPlan::Nats(nats) => nats::reach(nats, waiting)?,
            #[cfg(feature = "pulsar")]
            BackendPlan::Pulsar(pulsar) => pulsar::reach(pulsar, waiting)?,
            #[cfg(feature = "nsq")]
            BackendPlan::Nsq(nsq) => nsq::reach(nsq, waiting)?,
            BackendPlan::EtcdRing(_) => {
                let why = "a ring in etcd is no queue, but a baseline of the scheduler";
                return Err(Unreached::Broken(why.into()));
            }
            #[allow(unreachable_patterns)]
            other => {
                let why = format!("this build of queueproof is without {}", other.name());
                return Err(Unreached::Broken(why));
            }
        };
        Ok(match plan.flaw.and_then(Flaw::backend) {
            Some(flaw) => {
                let connector = Arc::new(FlawedConnector::new(reached.connector, flaw));
                Reached { connector, ..reached }
            }
            None => reached,
        })
    }

    /// Connects once and asks what is there.
    ///
    /// # Errors
    /// Why it cannot be reached.
    pub fn introduce(&self) -> Result<Introduction, String> {
        let runtime = runtime(false).map_err(|e| format!("no runtime can be made: {e}"))?;
        runtime.block_on(async {
            let connection = self.connector.connect(None).await.map_err(|e| e.to_string())?;
            let introduction = Introduction {
                broker_version: connection.broker_version(),
                capabilities: connection.capabilities(),
            };
            connection.close().await;
            Ok(introduction)
        })
    }
}

/// A single-threaded runtime, on a simulated clock if wanted.
pub(crate) fn runtime(simulated: bool) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(simulated).build()
}
