//! What crosses the wire arrives as it was, and what breaks the contract is refused by name.

mod refused;
mod round_trip;
