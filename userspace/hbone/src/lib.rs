//! The HBONE tunnel: TCP connections as HTTP/2 CONNECT streams over mutual TLS 1.3.
//!
//! The interface is narrow on purpose: [`Pool::open`] opens a stream in a pooled tunnel,
//! [`Session`] accepts streams, and [`Stream::carry`] moves the bytes of one TCP connection through a
//! stream until both directions have ended. What happens between TLS and those three is nobody
//! else's business.
//!
//! Everything here belongs to one thread and its current-thread runtime.

mod alive;
mod carry;
mod client;
mod error;
mod limits;
mod pool;
mod queue;
mod request;
mod server;

pub use carry::{CarryError, Meter, Stream, join, reset};
pub use client::Dialled;
pub use error::OpenError;
pub use h2::Error as TunnelError;
pub use pool::{Idle, Opened, Pool, TunnelKey};
pub use request::{Baggage, ConnectRequest, ForwardedFor};
pub use server::{Incoming, ServeError, Session};
