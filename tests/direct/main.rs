//! In-process tests with real sockets on loopback: no root, no kernel half.
//!
//! A module per topic.
