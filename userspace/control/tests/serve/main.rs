//! The control plane as its clients see it: real connections on loopback, a real directory.

mod certificates;
mod debounce;
mod discovery;
mod kubernetes;
mod local;
mod log;
mod on_demand;
mod pages;
mod restart;
mod world;
