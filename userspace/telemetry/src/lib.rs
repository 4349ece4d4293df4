//! Logs, metrics and the telemetry endpoints.

pub mod access;
mod levels;
mod log;
pub mod metrics;
pub mod serve;
pub mod trace;

pub use levels::{Levels, Refused};
pub use log::{Error, LineFormat, init_logging};
