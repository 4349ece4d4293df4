//! Certificates from a CA in this process, and handshakes made with them.

mod authority;
mod ca_service;
mod handshake;
mod revocation;
mod rotation;
