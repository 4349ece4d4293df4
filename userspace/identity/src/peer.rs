//! A verified peer, for as long as its connection lasts.

use std::{cell::RefCell, time::SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_model::SpiffeId;

use crate::{Error, Revoked, Trust, certificate, certificate::Leaf, verify};

/// Which side of a connection a certificate was presented by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// A peer whose certificate a handshake has verified, and which is verified again when trust
/// changes. Belongs to one thread.
#[derive(Debug)]
pub struct Peer {
    identity: SpiffeId,
    side: Side,
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    verified: UnixTime,
    trust: Trust,
    /// The version of trust that it was judged by the last time, and how.
    verdict: RefCell<(u64, Result<(), Distrust>)>,
}

/// Why a peer is not believed any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("{1} of {0}")]
    Revoked(SpiffeId, Revoked),
    #[error("no trust anchor vouches for {0} any more")]
    Unvouched(SpiffeId),
}

impl Peer {
    /// The peer of a handshake that was done under `trust`, when its version was `version` or a
    /// later one.
    ///
    /// # Errors
    /// When the certificate cannot be read, or names no workload.
    pub fn new(
        side: Side,
        chain: &[CertificateDer<'_>],
        trust: Trust,
        version: u64,
    ) -> Result<Self, Error> {
        let identity = certificate::peer_identity(chain)?;
        let leaf = Leaf::parse(&chain[0]).map_err(Error::PeerCertificate)?;
        Ok(Self {
            identity,
            side,
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
            not_after: leaf.not_after,
            // It may have expired since, by the blink of an eye.
            verified: UnixTime::since_unix_epoch(certificate::since_1970(
                SystemTime::now().min(leaf.not_after),
            )),
            trust,
            verdict: RefCell::new((version, Ok(()))),
        })
    }

    /// The identity, proven by TLS.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// When its certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it would be believed if it presented its certificate now. That the certificate may
    /// have expired since does not count: connections outlive certificates.
    ///
    /// # Errors
    /// Why it would not.
    pub fn standing(&self) -> Result<(), Distrust> {
        let version = self.trust.version();
        let mut verdict = self.verdict.borrow_mut();
        if verdict.0 != version {
            *verdict = (version, self.judge());
        }
        verdict.1.clone()
    }

    fn judge(&self) -> Result<(), Distrust> {
        let unvouched = || Distrust::Unvouched(self.identity.clone());
        let [leaf, intermediates @ ..] = &*self.chain else {
            return Err(unvouched());
        };
        let roots = self.trust.roots().ok_or_else(unvouched)?;
        verify::vouched_for(self.side, leaf, intermediates, &roots, self.verified)
            .map_err(|_| unvouched())?;
        match self.trust.lists().find(self.chain.iter(), &roots) {
            Some(revoked) => Err(Distrust::Revoked(self.identity.clone(), revoked)),
            None => Ok(()),
        }
    }
}
