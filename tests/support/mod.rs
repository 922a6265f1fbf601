//! What the suites over real and lying servers share.

use std::sync::atomic::AtomicBool;

use libtest_mimic::Failed;
use queueproof::{
    brokers::{self, Places, PrivateBroker, StartSettings, Wanted},
    config,
    conformance::Property,
    flaw::Flaw,
    plan::{BackendPlan, Plan, Suite, TargetPlan},
    results::PropertyResult,
    runner,
};
use tokio_util::sync::CancellationToken;

/// A broker for all cases; `None`, loudly, where none is installed.
pub fn broker(name: &str, suite: &str) -> Option<PrivateBroker> {
    let start = || {
        let kind = brokers::kind(name)?;
        let found = brokers::find(&Places::from_env()?, kind, &Wanted::default())?;
        let mut settings = StartSettings::new(found.path);
        settings.guard = Some(env!("CARGO_BIN_EXE_queueproof").into());
        PrivateBroker::start(kind, settings, &AtomicBool::new(false), &|_| ())
    };
    match start() {
        Ok(broker) => Some(broker),
        Err(error) => {
            let required = std::env::var("QUEUEPROOF_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|b| b == name), "{name} is required, and: {error}");
            eprintln!("\nNOT RUN: {suite}. {error}\n");
            None
        }
    }
}

/// NATS at an address.
pub fn nats_at(url: String) -> BackendPlan {
    BackendPlan::Nats(Box::new(config::Nats { url: Some(url), ..config::Nats::default() }))
}

/// Plays one property.
pub fn play(
    backend: BackendPlan,
    property: &'static Property,
    flaw: Option<Flaw>,
) -> Result<PropertyResult, Failed> {
    let plan = Plan {
        seed: 7,
        jobs: 1,
        prefix: "qp".into(),
        out: None,
        targets: vec![TargetPlan {
            name: backend.name().into(),
            backend,
            settings: serde_json::Value::Null,
            suite: Suite::quick(),
            flaw,
            optional: false,
            properties: vec![property],
        }],
    };
    let mut results = runner::run(&plan, &CancellationToken::new(), &|_| ())
        .map_err(|e| Failed::from(e.to_string()))?;
    results.targets.pop().and_then(|mut t| t.properties.pop()).ok_or_else(|| "no result".into())
}
