//! The certificate authority.

mod authority;
#[cfg(test)]
mod authority_tests;
mod material;
mod own;
mod service;
mod supplied;

pub use authority::{Authority, ServerCertificate, ServerName, SignError, Source};
pub use own::{Rotation, request_rotation};
pub use service::Certificates;
