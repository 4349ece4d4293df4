//! The certificate authority.

mod authority;
mod root;
mod service;

pub use authority::{Authority, ServerCertificate, ServerName, SignError};
pub use service::Certificates;
