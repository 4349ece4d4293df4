//! What the build script made of the `.proto` files.

#![expect(
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code follows its generator's taste"
)]

include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
