//! Sluice's eBPF programs: one file per hook, each a shim that reads its context, asks a verdict of
//! `sluice_abi`, and carries it out.
#![no_std]
#![no_main]

mod connect;
mod ctx;
mod dns;
mod events;
mod flows;
mod maps;
mod neighbour;
mod peername;
mod proxy;
mod sk_lookup;
mod sockops;

/// The kernel offers the helpers used here to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
