//! What keeps a directory from being watched at all.

use std::path::PathBuf;

/// The directory cannot be a source. Errors in its files are [`crate::Diagnostic`]s instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operator named something that cannot be read.
    #[error(
        "cannot read the configuration directory {}; it must exist and be readable by this process",
        path.display()
    )]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The host refused a thread.
    #[error("cannot start the thread that watches {}", path.display())]
    Thread {
        path: PathBuf,
        source: std::io::Error,
    },
}
