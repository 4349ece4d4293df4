//! Asking for a certificate, and checking what came.

use std::{pin::Pin, time::SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use sluice_model::SpiffeId;

use crate::{
    Error, Roots, Svid, Trust,
    certificate::{self, Leaf},
    error::CaProblem,
    verify,
};

/// A request under way. Its outcome is the chain in PEM: the leaf, each intermediate, and the roots
/// in the last element.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Vec<String>, Error>> + Send + 'a>>;

/// Who signs certificates.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Asks for a certificate for a PKCS #10 request in PEM, on behalf of `identity`.
    fn sign<'a>(&'a self, request: &'a str, identity: &'a SpiffeId) -> Signing<'a>;
}

/// A key and a request for its certificate.
pub(crate) struct Request {
    key: KeyPair,
    pub(crate) pem: String,
}

impl Request {
    /// Makes a key on P-256, and a request with an empty subject and the identity as its only name.
    pub(crate) fn new(identity: &SpiffeId) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { key, pem })
    }

    /// Makes an identity of the CA's answer. The roots in it come into force for `trust`.
    pub(crate) fn accept(
        &self,
        identity: &SpiffeId,
        answer: &[String],
        trust: &Trust,
    ) -> Result<Svid, Error> {
        let refuse = |problem| Error::CaAnswer {
            identity: identity.clone(),
            problem,
        };
        let (mut chain, roots) = split(answer).map_err(refuse)?;
        let leaf = self.check_leaf(identity, &chain).map_err(refuse)?;
        let roots = Roots::new(roots)?;
        let intermediates = chain.split_off(1);
        // Clocks differ: a certificate that becomes valid in a moment is no reason to refuse it.
        let when = SystemTime::now().max(leaf.not_before);
        let when = UnixTime::since_unix_epoch(certificate::since_1970(when));
        verify::chain(&chain[0], &intermediates, &roots, when)
            .map_err(|e| refuse(CaProblem::Unvouched(e)))?;
        chain.extend(intermediates);
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let svid = Svid::new(identity.clone(), chain, &key, trust.clone())?;
        if trust.replace(roots) {
            tracing::info!("trust anchors changed");
        }
        Ok(svid)
    }

    fn check_leaf(
        &self,
        identity: &SpiffeId,
        chain: &[CertificateDer<'_>],
    ) -> Result<Leaf, CaProblem> {
        let first = chain.first().ok_or(CaProblem::Empty)?;
        let leaf =
            Leaf::parse(first).map_err(|reason| CaProblem::Malformed { index: 0, reason })?;
        // Peers go by the first name that is an identity, so it must be the one.
        let named: Option<SpiffeId> = leaf.uris.iter().find_map(|uri| uri.parse().ok());
        if named.as_ref() != Some(identity) {
            return Err(CaProblem::OtherIdentity(leaf.uris));
        }
        use rcgen::PublicKeyData as _;
        if leaf.public_key != self.key.subject_public_key_info() {
            return Err(CaProblem::OtherKey);
        }
        if leaf.not_after <= SystemTime::now() {
            return Err(CaProblem::Expired);
        }
        Ok(leaf)
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// The chain that we present, and the roots. The last element may hold several roots.
fn split(answer: &[String]) -> Result<(Certificates, Certificates), CaProblem> {
    let parse = |(index, pem): (usize, &String)| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|c| {
                c.map_err(|e| CaProblem::Malformed {
                    index,
                    reason: e.to_string(),
                })
            })
            .collect::<Result<Certificates, _>>()
    };
    let mut elements = answer
        .iter()
        .enumerate()
        .map(parse)
        .collect::<Result<Vec<_>, _>>()?;
    let roots = elements.pop().ok_or(CaProblem::Empty)?;
    if elements.is_empty() || roots.is_empty() {
        return Err(CaProblem::NoRoots);
    }
    Ok((elements.concat(), roots))
}
