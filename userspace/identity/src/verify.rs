//! Verification of peers in both directions.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::verify_tls13_signature,
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sluice_model::{SpiffeId, TrustDomain};

use crate::{Error, Side, Trust, certificate, crypto::provider, trust::Roots};

/// How many of a peer's names an error repeats; a peer may present very many.
const NAMES_SHOWN: usize = 4;

/// Checks that a certificate chains to the roots, for server authentication and by time only.
pub(crate) fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots.store(),
        intermediates,
        now,
        provider().signature_verification_algorithms.all,
    )
}

/// Checks that a peer's certificate chains to the roots in force for its side of the connection,
/// and that nothing in the chain is revoked.
fn peer(
    trust: &Trust,
    side: Side,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let unknown = rustls::Error::from(rustls::CertificateError::UnknownIssuer);
    let roots = trust.roots().ok_or(unknown)?;
    vouched_for(side, leaf, intermediates, &roots, now)?;
    let chain = std::iter::once(leaf).chain(intermediates);
    let Some(revoked) = trust.lists().find(chain, &roots) else {
        return Ok(());
    };
    // The alert that follows tells the peer's operator; this line tells ours.
    let names = certificate::uri_sans(leaf).unwrap_or_default();
    let name = names.first().map_or("", |name| name.as_str());
    tracing::warn!(peer = name, "refused: {revoked}");
    Err(rustls::CertificateError::Revoked.into())
}

/// As [`chain`], for the side that the peer has taken.
pub(crate) fn vouched_for(
    side: Side,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    match side {
        Side::Server => chain(leaf, intermediates, roots, now),
        Side::Client => roots
            .client_verifier()
            .verify_client_cert(leaf, intermediates, now)
            .map(|_| ()),
    }
}

fn tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signed, algorithms)
}

/// Never asked: the configurations offer nothing but TLS 1.3.
fn tls12_signature() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
}

/// The methods about signatures, the same in the verifiers of both sides.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            tls12_signature()
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            tls13_signature(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Accepts a server that presents one of the expected identities. Its DNS name does not matter.
#[derive(Debug)]
pub(crate) struct ExpectPeer {
    pub(crate) trust: Trust,
    /// Nobody is accepted when it is empty.
    pub(crate) expected: Arc<[SpiffeId]>,
}

impl ServerCertVerifier for ExpectPeer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        peer(&self.trust, Side::Server, leaf, intermediates, now)?;
        let mut presented = certificate::uri_sans(leaf)?;
        let identities = presented.iter().filter_map(|uri| uri.parse().ok());
        if identities
            .into_iter()
            .any(|id: SpiffeId| self.expected.contains(&id))
        {
            return Ok(ServerCertVerified::assertion());
        }
        presented.truncate(NAMES_SHOWN);
        let expected = self.expected.iter().map(ToString::to_string).collect();
        Err(Error::UnexpectedPeer {
            presented,
            expected,
        }
        .into())
    }

    signatures!();
}

/// Accepts a client whose identity is of an accepted trust domain, and none without a certificate.
#[derive(Debug)]
pub(crate) struct RequirePeer {
    pub(crate) trust: Trust,
    pub(crate) accepted: Arc<[TrustDomain]>,
}

impl ClientCertVerifier for RequirePeer {
    /// None: names of anchors would tell strangers about the mesh, and change with the anchors.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        peer(&self.trust, Side::Client, leaf, intermediates, now)?;
        let identity = match certificate::peer_identity(std::slice::from_ref(leaf)) {
            Err(Error::NoPeerIdentity { mut presented }) => {
                presented.truncate(NAMES_SHOWN);
                return Err(Error::NoPeerIdentity { presented }.into());
            }
            other => other?,
        };
        if !self.accepted.contains(identity.trust_domain()) {
            return Err(Error::ForeignTrustDomain {
                identity,
                accepted: self.accepted.iter().map(ToString::to_string).collect(),
            }
            .into());
        }
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}
