//! Delta discovery: every ztunnel is sent what it does not have yet, and nothing else.

pub mod clients;
mod resources;
mod server;
mod subscription;
mod transport;

pub use clients::{Client, Clients};
pub use resources::{Resources, Type};
pub use server::Discovery;
