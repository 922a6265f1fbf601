//! Placeholder until the configuration is merged.

/// The embedded backend's settings.
#[derive(Debug, Clone, Default)]
pub struct Memory {}

/// NATS settings.
#[derive(Debug, Clone, Default)]
pub struct Nats {}
