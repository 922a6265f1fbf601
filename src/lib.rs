//! Proves or refutes what a message broker promises, with evidence.

pub mod brokers;
pub mod checker;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod config;
pub mod conformance;
pub mod flaw;
pub mod history;
pub mod judge;
pub mod message;
pub mod names;
pub mod plan;
pub mod progress;
pub mod report;
pub mod results;
pub mod runner;
pub mod schedule;
pub mod scheduler;
pub mod scorecard;
pub mod target;
