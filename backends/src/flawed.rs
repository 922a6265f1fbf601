//! Flawed.
