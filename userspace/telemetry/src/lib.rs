//! Logs, metrics and the telemetry endpoints.

pub mod access;
mod levels;
mod log;
pub mod metrics;
pub mod serve;
mod share;
pub mod spans;

pub use levels::{Levels, Refused};
pub use log::{Error, LineFormat, Log, init_logging};
