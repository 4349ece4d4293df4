//! The node proxy, in two processes.
//!
//! The [`broker`] has the privileges: it owns the eBPF programs, finds and enrols pods, and opens
//! every socket that must live in a pod's network namespace. The [`worker`] has none: it parses all
//! that comes from a network. They speak over a [`link`] that also carries descriptors.

pub mod broker;
pub mod link;
pub mod nameservers;
mod one_line;
mod rest;
pub mod worker;

pub use one_line::one_line;
