//! `sock_create` on the broker's cgroup: flags the ztunnel's own sockets at birth, so that capture
//! leaves them alone. An application cannot make such a socket.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::maps::{PROXY, storage_set};

/// Lets the socket be created.
const PROCEED: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn sluice_create(context: SockContext) -> i32 {
    // Without memory for the flag the socket is an ordinary one: capture would then loop it back
    // and its connect would fail, which is the closed side.
    storage_set(&PROXY, context.sock, &1);
    PROCEED
}
