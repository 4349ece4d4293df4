//! In-process tests with real sockets on loopback: no root, no kernel half.
//!
//! A module per topic.

mod authority;
mod fixtures;
mod noise;
mod peers;
mod tunnel;
mod wire;
