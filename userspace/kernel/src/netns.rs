//! Work inside other network namespaces.

use std::{fs::File, io};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::sys;

/// Runs something inside a network namespace, on a thread that ends with it: a thread that failed to
/// come back would do its next work in the wrong place.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let inside = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    let result = std::thread::scope(|scope| scope.spawn(inside).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The cookie of a network namespace: unique since boot.
///
/// # Errors
/// When it is none.
pub fn cookie_of(netns: &File) -> io::Result<u64> {
    within(netns, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        sys::netns_cookie(&probe)
    })?
}
