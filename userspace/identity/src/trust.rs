//! Whom we believe: trust anchors and revocation lists, replaceable while in use.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::watch;

use crate::{Error, RevocationLists, crypto::provider};

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
            WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
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

    /// Whether these are the same anchors, in whatever order.
    fn is_same(&self, other: &Self) -> bool {
        let within = |a: &Self, b: &Self| a.certificates.iter().all(|c| b.certificates.contains(c));
        within(self, other) && within(other, self)
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.certificates.len())
    }
}

/// The trust anchors and revocation lists in force. Clones share them, and handshakes look them up
/// anew, so a replacement holds at once for every configuration made from it. Nobody is believed
/// before there are anchors.
#[derive(Clone, Debug, Default)]
pub struct Trust(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    roots: ArcSwapOption<Roots>,
    lists: ArcSwap<RevocationLists>,
    /// Grows after every change.
    version: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Trust {
    pub fn new(roots: Roots) -> Self {
        let trust = Self::default();
        trust.replace(roots);
        trust
    }

    /// The anchors in force; `None` before there are any.
    pub fn roots(&self) -> Option<Arc<Roots>> {
        self.0.roots.load_full()
    }

    /// Puts other anchors in force. Returns whether they differ.
    pub fn replace(&self, roots: Roots) -> bool {
        let differ = !self.roots().is_some_and(|old| old.is_same(&roots));
        if differ {
            self.0.roots.store(Some(Arc::new(roots)));
            self.bump();
        }
        differ
    }

    /// The revocation lists in force.
    pub fn lists(&self) -> Arc<RevocationLists> {
        self.0.lists.load_full()
    }

    /// Puts other revocation lists in force.
    pub fn revoke(&self, lists: RevocationLists) {
        self.0.lists.store(Arc::new(lists));
        self.bump();
    }

    /// Differs after every change; cheap to ask.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Waits until the version is another than `seen`, and returns that one.
    pub async fn changed(&self, seen: u64) -> u64 {
        let mut changed = self.0.changed.subscribe();
        let version = changed.wait_for(|version| *version != seen).await;
        // The sender is ours, so there is one.
        version.map_or(seen, |version| *version)
    }

    fn bump(&self) {
        // Within the lock of the channel, so that its value never goes back.
        self.0.changed.send_modify(|version| {
            *version += 1;
            self.0.version.store(*version, Ordering::Release);
        });
    }
}
