//! The HBONE tunnel: TCP connections as HTTP/2 CONNECT streams over mutual TLS 1.3.
//!
//! The interface is narrow on purpose: [`Pool::open`] opens a stream in a pooled tunnel,
//! [`Session`] accepts streams, and [`Stream::carry_then`] moves the bytes of one TCP connection through a
//! stream until both directions have ended. What happens between TLS and those three is nobody
//! else's business: [`Engine`] does it, for all tunnels of a thread.
//!
//! Everything here belongs to one thread and its current-thread runtime.

mod carry;
mod client;
mod code;
mod engine;
mod error;
mod fields;
mod frame;
mod hpack;
#[cfg(feature = "inspect")]
pub mod inspect;
mod join;
mod limits;
mod pool;
mod request;
mod server;
mod splice;
mod tls;

pub use carry::{Carried, CarryError, Meter, Stream, reset};
pub use client::Dialled;
pub use code::ErrorCode;
pub use engine::{AbortHandle, Engine, Listener};
pub use error::{OpenError, TunnelError};
pub use frame::Violation;
pub use join::join;
pub use pool::{Idle, Opened, Pool, TunnelKey, Watch};
pub use request::{Baggage, ConnectRequest, ForwardedFor, Traceparent};
pub use server::{Incoming, ServeError, Session};
pub use tls::Negotiated;
