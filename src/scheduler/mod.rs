//! The shared scheduler: Sensu's round-robin checks on any backend.
//!
//! A [`Workload`] says what is scheduled. Several schedulers, with no leader and no state shared but
//! the broker, compute every tick of every check from the clock and publish a request for it; the
//! agents of a pool take requests from its work queue, execute them and acknowledge. All they do
//! becomes [`Event`]s of a history, which the judges of [`crate::checker`] judge while it grows.

mod agenda;
mod agent;
mod cadence;
mod chance;
mod clock;
mod control;
mod crew;
mod engine;
mod envelope;
mod event;
mod figures;
mod flaw;
mod recorder;
mod replica;
#[cfg(feature = "etcd-ring")]
pub mod ring;
mod timeline;
mod workload;
mod world;

pub use cadence::{Cadence, Tick, Ticks};
pub use clock::Clock;
pub use control::BrokerControl;
pub use engine::{Setup, run};
pub use event::{AgentState, BrokerState, Event, Load, Request, SchedulerState};
pub use figures::Costs;
pub use flaw::Flaw;
pub use recorder::Recorder;
pub use timeline::{Action, FORMS, Moment};
pub use workload::{
    AgentGroup, Check, CheckGroup, Churn, Distribution, Schedulers, Strategy, Workload,
};

pub use world::topics;

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use super::*;

    /// One check a second for a minute, two schedulers, three agents.
    pub(crate) fn workload() -> Workload {
        Workload {
            duration: Duration::from_secs(60),
            epoch_unix_ms: 1_767_225_630_000, // 2026-01-01T00:00:30Z
            strategy: Strategy::DedupId,
            schedulers: Schedulers {
                count: 2,
                skew: Duration::ZERO,
                drift_ppm: 0,
                catch_up: true,
                in_flight: 256,
                retries: 3,
            },
            pools: vec!["linux".into()],
            checks: vec![CheckGroup {
                name: "check".into(),
                count: 1,
                namespace: "default".into(),
                pool: 0,
                cadence: Cadence::Interval { every: Duration::from_secs(1), splay: false },
                broadcast: false,
                expires: Duration::from_secs(60),
                timeout: Duration::from_secs(5),
            }],
            agents: vec![AgentGroup {
                count: 3,
                pools: vec![0],
                execution: Distribution::Constant(Duration::from_millis(100)),
                concurrency: 1,
                fails: 0.0,
                slow: false,
            }],
            connection_per_agent: false,
            agents_per_connection: 100,
            ack_timeout: Duration::from_secs(10),
            dedup_window: Duration::from_secs(120),
            tolerance: Duration::from_millis(500),
            churn: None,
            timeline: Vec::new(),
        }
    }
}
