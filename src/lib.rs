//! Proves or refutes what a message broker promises, with evidence.

pub mod brokers;
pub mod checker;
pub mod config;
pub mod conformance;
pub mod history;
pub mod message;
pub mod names;
pub mod plan;
pub mod results;
pub mod runner;
pub mod target;
