//! The tunnel, as the applications at its two ends and its peers see it.

mod alive;
mod bytes;
mod conformance;
mod credit;
mod early;
mod ends;
mod failing;
mod flow;
mod garbage;
mod given_up;
mod hostile;
mod identity;
mod join;
mod keys;
mod many;
mod numbers;
mod others;
mod pool;
mod requests;
mod resets;
mod so_far;
mod trust;
