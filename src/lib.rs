//! Proves or refutes what a message broker promises, with evidence.

pub mod brokers;
pub mod results;
