//! The control plane: reads configuration, serves xDS and the certificate authority.

pub mod addresses;
pub mod analysis;
pub mod auth;
pub mod ca;
pub mod conditions;
mod error;
pub mod feed;
pub mod memory;
pub mod metrics;
pub mod server;
mod state;
pub mod status;
pub mod translate;
pub mod xds;

pub use error::Error;
