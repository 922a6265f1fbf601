//! From a plan to something that can be connected to.

use std::sync::Arc;

use queueproof_backends::{
    Capabilities, Connector,
    flawed::FlawedConnector,
    memory::{MemoryConnector, MemorySettings},
};

use crate::{
    brokers::PrivateBroker,
    plan::{BackendPlan, TargetPlan},
};

/// A target that can be connected to.
pub struct Target {
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

impl Target {
    /// Prepares a target, and starts a private broker where one is wanted.
    ///
    /// # Errors
    /// Why there is none, in words for the user.
    pub fn new(plan: &TargetPlan) -> Result<Self, String> {
        let (connector, broker): (Arc<dyn Connector>, _) = match &plan.backend {
            BackendPlan::Memory(_) => {
                (Arc::new(MemoryConnector::new(MemorySettings::default())), None)
            }
            BackendPlan::Nats(_) => return Err("not yet".into()),
        };
        let connector = match plan.flaw {
            Some(flaw) => Arc::new(FlawedConnector::new(connector, flaw)),
            None => connector,
        };
        Ok(Target { connector, broker })
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
