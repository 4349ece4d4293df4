//! Logs, metrics and the telemetry endpoints.

pub mod access;
mod log;
pub mod metrics;
pub mod serve;
pub mod trace;

pub use log::{Error, LineFormat, init_logging};
