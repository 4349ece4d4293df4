//! What keeps the control plane from starting.

use std::{io, net::SocketAddr, path::PathBuf};

/// The operator's configuration, or the host, does not let the control plane start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of YAML cannot be a source.
    #[error(transparent)]
    Objects(#[from] sluice_objects::Error),
    /// A file or directory of the operator's.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The key or certificate of the authority, as found in the state directory.
    #[error(
        "{} is not usable: {why}; restore it, or remove ca-key.pem and root-cert.pem to begin with \
         a new root that every ztunnel must be given",
        path.display()
    )]
    Root { path: PathBuf, why: String },
    /// The operator's certificate authority.
    #[error("{} cannot be used by the certificate authority: {why}", path.display())]
    SuppliedCa { path: PathBuf, why: String },
    /// A root cannot be replaced now.
    #[error("the root cannot be replaced: {}: {why}", path.display())]
    Rotation { path: PathBuf, why: String },
    /// A name that cannot stand in a certificate.
    #[error("{name:?} cannot be a server name; give a DNS name or an IP address")]
    ServerName { name: String },
    /// The listen address.
    #[error("cannot listen on {address}; is it this host's, and not in use?")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    /// Our own fault, or the host's: cryptography failed.
    #[error("cannot {action}")]
    Crypto {
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn crypto(
        action: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| Self::Crypto { action, source }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
