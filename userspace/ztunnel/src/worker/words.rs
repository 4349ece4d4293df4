//! The kernel's errors in words that an operator can act on.

use std::io;

use super::pods::CONNECT_TIMEOUT;

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
