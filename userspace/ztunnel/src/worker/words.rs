//! The kernel's errors in words that an operator can act on.

use std::io;

use super::{PATIENCE, pods::CONNECT_TIMEOUT};

/// The broker has enrolled a pod of which the control plane says nothing.
pub(super) const UNKNOWN_WORKLOAD: &str = "the workload is not known to the control plane; does it read \
                                           the same objects as this node, and has the pod an address?";

/// Nothing is known of the mesh.
pub(super) fn not_synced() -> String {
    format!(
        "the mesh is not known yet: no snapshot from the control plane within {PATIENCE:?}; can it be \
         reached, and does it take this node's token?"
    )
}

/// Why a connect failed.
pub(super) fn connect(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused: nothing listens there".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "no route to it from the pod".into()
        }
        io::ErrorKind::TimedOut => format!("no answer within {CONNECT_TIMEOUT:?}"),
        io::ErrorKind::PermissionDenied => "forbidden by a firewall in the pod's namespace".into(),
        _ => error.to_string(),
    }
}
