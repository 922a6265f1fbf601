//! From a plan to something that can be connected to.

use std::sync::{Arc, atomic::AtomicBool};

use queueproof_backends::{
    Capabilities, Connector,
    flawed::FlawedConnector,
    memory::{MemoryConnector, MemorySettings},
    nats::{NatsConnector, NatsSettings, Storage, Tls},
};

use crate::{
    brokers::{self, Places, PrivateBroker, StartSettings, SyncInterval, Wanted},
    config,
    plan::{BackendPlan, TargetPlan},
};

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

impl Reached {
    /// Prepares a target, and starts a private broker where one is wanted.
    ///
    /// # Errors
    /// Why there is none, in words for the user.
    pub fn new(plan: &TargetPlan) -> Result<Self, String> {
        let (connector, broker): (Arc<dyn Connector>, _) = match &plan.backend {
            BackendPlan::Memory(memory) => {
                let settings =
                    MemorySettings { max_payload: memory.max_payload, ..MemorySettings::default() };
                (Arc::new(MemoryConnector::new(settings)), None)
            }
            BackendPlan::Nats(nats) => {
                let broker = match &nats.url {
                    Some(_) => None,
                    None => Some(private_nats(nats)?),
                };
                let url = nats.url.clone().or_else(|| Some(broker.as_ref()?.url().to_string()));
                let settings = nats_settings(nats, url.unwrap_or_default())?;
                let connector = NatsConnector::new(settings).map_err(|e| e.to_string())?;
                (Arc::new(connector), broker)
            }
        };
        let connector = match plan.flaw {
            Some(flaw) => Arc::new(FlawedConnector::new(connector, flaw)),
            None => connector,
        };
        Ok(Reached { connector, broker })
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

/// Starts a NATS server for this run alone.
fn private_nats(nats: &config::Nats) -> Result<PrivateBroker, String> {
    let kind = brokers::kind("nats").map_err(|e| e.to_string())?;
    let wanted =
        Wanted { binary: nats.server.binary.clone(), version: nats.server.version.clone() };
    let places = Places::from_env().map_err(|e| e.to_string())?;
    let found = brokers::find(&places, kind, &wanted).map_err(|e| e.to_string())?;
    let mut settings = StartSettings::new(found.path);
    settings.sync = match nats.server.sync_interval.as_deref() {
        None => None,
        Some("always") => Some(SyncInterval::Always),
        Some(text) => Some(SyncInterval::Every(humantime::parse_duration(text).map_err(|e| {
            format!("nats.server.sync_interval: {text:?} is neither \"always\" nor a duration: {e}")
        })?)),
    };
    PrivateBroker::start(kind, settings, &AtomicBool::new(false), &|line| tracing::info!("{line}"))
        .map_err(|e| e.to_string())
}

/// The backend's settings; secrets are read here.
fn nats_settings(nats: &config::Nats, url: String) -> Result<NatsSettings, String> {
    let secrets = nats.read_secrets().map_err(|e| e.to_string())?;
    Ok(NatsSettings {
        url,
        storage: match nats.storage {
            config::Storage::File => Storage::File,
            config::Storage::Memory => Storage::Memory,
        },
        replicas: nats.replicas,
        connect_timeout: nats.connect_timeout,
        request_timeout: nats.request_timeout,
        auth: secrets.0,
        tls: Tls {
            required: nats.tls.required,
            ca_file: nats.tls.ca_file.clone(),
            client: nats.tls.cert_file.clone().zip(nats.tls.key_file.clone()),
            first: nats.tls.first,
        },
    })
}

/// A single-threaded runtime, on a simulated clock if wanted.
pub(crate) fn runtime(simulated: bool) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(simulated).build()
}
