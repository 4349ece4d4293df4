//! How the socket of a control plane on this machine is opened.

use std::{fmt, io, pin::Pin};

use tokio::net::UnixStream;

/// The scheme of a socket's path.
const SCHEME: &str = "unix://";

/// A socket that is about to be opened.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send + 'a>>;

/// Opens the socket of a control plane on this machine.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens a socket by its path.
    fn dial<'a>(&'a self, path: &'a str) -> Dialling<'a>;
}

/// For a process that may open it itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Dial for Direct {
    fn dial<'a>(&'a self, path: &'a str) -> Dialling<'a> {
        Box::pin(UnixStream::connect(path))
    }
}

/// The path of an address `unix:///PATH`; `None` for an address of another kind.
pub fn socket_path(address: &str) -> Option<&str> {
    address
        .strip_prefix(SCHEME)
        .filter(|path| path.starts_with('/'))
}
