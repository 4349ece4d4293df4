//! What proves the receiver of spans, read once for all workers: they have no files.

use std::{
    fs,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use sluice_identity::Roots;

use crate::link::{Link, ToWorker, memory};

/// Where distributions keep the certificates of public authorities, in PEM.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The certificates that a receiver of spans must be signed by, in PEM.
pub(super) struct ReceiverRoots(OwnedFd);

impl ReceiverRoots {
    /// Those of a file, or else the system's.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn read(given: Option<&Path>) -> Result<Self> {
        let pem = match given {
            Some(path) => {
                let pem = fs::read(path).with_context(|| format!("read {}", path.display()))?;
                Roots::from_pem(&pem).with_context(|| format!("use {}", path.display()))?;
                pem
            }
            // Any of them may be one that we cannot use; the others count.
            None => match SYSTEM.iter().find_map(|path| fs::read(path).ok()) {
                Some(pem) => pem,
                None => bail!("the system has no root certificates; give --otlp-root FILE"),
            },
        };
        let memory = memory::write("receiver-roots", |file| file.write_all(&pem))?;
        Ok(Self(memory))
    }

    /// Gives them to a worker that starts.
    pub(super) fn send(&self, link: &Link) -> Result<()> {
        link.send(&ToWorker::ReceiverRoots, &[self.0.as_fd()])?;
        Ok(())
    }
}
