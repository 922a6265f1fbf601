//! The judges, tried on events that are played by hand: for each anomaly one that must be caught,
//! and what is nearly one and must not be.
#![allow(clippy::unwrap_used)]

mod copies;
mod crew;
mod failover;
mod late;
mod once;
mod play;
mod ticks;
