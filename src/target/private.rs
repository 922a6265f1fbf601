//! A broker for one target alone.

use super::{Unreached, Waiting};
use crate::brokers::{self, BrokerError, Places, PrivateBroker, StartSettings, Wanted};

/// Starts a broker for this run alone, with these changes to its settings.
pub(super) fn private(
    name: &str,
    wanted: &Wanted,
    waiting: Waiting<'_>,
    change: impl FnOnce(&mut StartSettings),
) -> Result<PrivateBroker, Unreached> {
    let broken = |error: BrokerError| Unreached::Broken(error.to_string());
    let kind = brokers::kind(name).map_err(broken)?;
    let places = Places::from_env().map_err(broken)?;
    let found = brokers::find(&places, kind, wanted).map_err(|error| match error.class {
        // What was asked for by name must be there.
        brokers::ErrorClass::Environment if *wanted == Wanted::default() => {
            Unreached::Absent(error.to_string())
        }
        _ => broken(error),
    })?;
    let mut settings = StartSettings::new(found.path);
    change(&mut settings);
    PrivateBroker::start(kind, settings, waiting.interrupted, waiting.tell).map_err(broken)
}
