//! The control plane as its clients see it: real TLS connections on loopback, a real directory.

mod certificates;
mod discovery;
mod pages;
mod restart;
mod world;
