//! Whom we believe: trust anchors, replaceable while in use.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{Error, verify};

/// An immutable set of trust anchors, at least one.
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    client_verifier: Arc<dyn ClientCertVerifier>,
}

impl Roots {
    /// The certificates in a PEM text; other PEM sections are passed over.
    ///
    /// # Errors
    /// When there is none, or one cannot be an anchor.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .enumerate()
            .map(|(index, certificate)| {
                certificate.map_err(|e| Error::BadRoot {
                    index,
                    reason: e.to_string(),
                })
            })
            .collect::<Result<_, _>>()?;
        Self::new(certificates)
    }

    /// Certificates in DER.
    ///
    /// # Errors
    /// When there is none, or one cannot be an anchor.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            store.add(certificate.clone()).map_err(|e| Error::BadRoot {
                index,
                reason: e.to_string(),
            })?;
        }
        let store = Arc::new(store);
        // Building fails for an empty store only.
        let client_verifier =
            WebPkiClientVerifier::builder_with_provider(store.clone(), verify::provider())
                .build()
                .map_err(|_| Error::NoRoots)?;
        Ok(Self {
            certificates,
            store,
            client_verifier,
        })
    }

    /// The anchors, as they were given.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(crate) fn store(&self) -> &RootCertStore {
        &self.store
    }

    pub(crate) fn client_verifier(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.client_verifier
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.certificates.len())
    }
}

/// The trust anchors in force. Clones share them, and handshakes look them up anew, so a
/// replacement holds at once for every configuration made from it.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ArcSwap<Roots>>);

impl Trust {
    pub fn new(roots: Roots) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(roots)))
    }

    pub fn current(&self) -> Arc<Roots> {
        self.0.load_full()
    }

    /// Puts other anchors in force. Returns whether they differ.
    pub fn replace(&self, roots: Roots) -> bool {
        let differ = self.0.load().certificates != roots.certificates;
        if differ {
            self.0.store(Arc::new(roots));
        }
        differ
    }
}
