//! Tests on the real kernel: pods in network namespaces and cgroups, real eBPF. They need root.
//!
//! A module per topic. A test is a function that calls [`sluice_tests::scenario::scenario`]; it
//! makes its own nodes and pods, so that all run in parallel.

mod admin;
mod bypass;
mod bytes;
mod capture;
mod catalog;
mod configuration;
mod control_plane;
mod dns;
mod drift;
mod egress;
mod envoy;
mod harness;
mod identity;
mod kept;
mod kernel;
mod membership;
mod memory;
mod metrics;
mod observe;
mod on_demand;
mod peers;
mod policy;
mod ports;
mod processes;
mod revocation;
mod same_node;
mod services;
mod snapshot;
mod stranger;
mod topology;
mod trace;
