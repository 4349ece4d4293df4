//! What can go wrong with identities, by whose fault.

use std::{fmt, io, sync::Arc, time::Duration};

use sluice_model::SpiffeId;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The operator's fault.
    #[error("no certificate among the trust anchors; give at least one in PEM")]
    NoRoots,
    #[error("trust anchor {index} (from 0) is not a usable certificate: {reason}")]
    BadRoot { index: usize, reason: String },
    #[error("no revocation list in it; give at least one, in PEM or in DER")]
    NoRevocationLists,
    #[error("revocation list {index} (from 0) cannot be used: {reason}")]
    BadRevocationList { index: usize, reason: String },
    #[error("control plane address {0:?} cannot be used; give https://HOST:PORT or unix:///PATH")]
    ControlPlaneAddress(String),
    #[error("TLS to the control plane cannot be set up; check its trust anchors and server name")]
    ControlPlaneTls(#[source] tonic::transport::Error),
    #[error("the control plane's address is https://, but no trust anchors for it are configured")]
    ControlPlaneRoots,
    #[error("the token for the control plane holds a character that a header may not")]
    Token,

    // The CA's fault, or that of the way to it.
    #[error("the CA cannot be reached; check its address and trust anchors: {0}")]
    CaUnavailable(#[source] Box<tonic::Status>),
    #[error(
        "the CA refuses to sign; check this node's token, and that a pod of the identity runs \
         here: {0}"
    )]
    CaRefused(#[source] Box<tonic::Status>),
    #[error("the CA answered for {identity} with {problem}")]
    CaAnswer {
        identity: SpiffeId,
        problem: CaProblem,
    },

    // The peer's fault.
    #[error("peer's certificate cannot be read: {0}")]
    PeerCertificate(String),
    #[error("peer presented no SPIFFE identity, only [{}]", .presented.join(", "))]
    NoPeerIdentity { presented: Vec<String> },
    #[error("peer presented {identity}, which is not of the trust domain {}", .accepted.join(" or "))]
    ForeignTrustDomain {
        identity: SpiffeId,
        accepted: Vec<String>,
    },
    #[error("peer presented [{}], expected one of [{}]", .presented.join(", "), .expected.join(", "))]
    UnexpectedPeer {
        presented: Vec<String>,
        expected: Vec<String>,
    },

    // What a connection is told.
    #[error(
        "no certificate for {identity} after {waited:?}: {}",
        .source.as_ref().map_or_else(|| "the CA has not answered yet".to_owned(), |e| e.to_string())
    )]
    NoCertificate {
        identity: SpiffeId,
        waited: Duration,
        /// The last attempt's failure, if one ended.
        source: Option<Arc<Error>>,
    },
    #[error("the certificate of {0} was given up: no workload of it is left on this node")]
    Forgotten(SpiffeId),

    // Ours.
    #[error("no key or certificate request could be made")]
    Generate(#[from] rcgen::Error),
    #[error("no TLS configuration could be made for {identity}")]
    Tls {
        identity: SpiffeId,
        source: rustls::Error,
    },
}

/// What is wrong with a certificate that the CA signed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CaProblem {
    #[error("no certificate")]
    Empty,
    #[error("a chain without roots: leaf and roots are needed")]
    NoRoots,
    #[error("something that is not a certificate in element {index} of the chain: {reason}")]
    Malformed { index: usize, reason: String },
    #[error("a certificate of another identity: [{}]", .0.join(", "))]
    OtherIdentity(Vec<String>),
    #[error("a certificate of another key than the request's")]
    OtherKey,
    #[error("a certificate that has expired already")]
    Expired,
    #[error("a certificate that its own roots do not vouch for: {0}")]
    Unvouched(rustls::Error),
}

/// Our error within a failed TLS handshake, when verification of the peer's identity caused it.
pub fn peer_error(error: &io::Error) -> Option<&Error> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref().map(|Worded(error)| error)
        }
        _ => None,
    }
}

/// Whether a TLS handshake failed because the peer's certificate is revoked.
pub fn is_revoked(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    let revoked = rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked);
    error.is_some_and(|error: &rustls::Error| *error == revoked)
}

/// As rustls wants it from a verifier.
impl From<Error> for rustls::Error {
    fn from(error: Error) -> Self {
        rustls::CertificateError::Other(rustls::OtherError(Arc::new(Worded(error)))).into()
    }
}

/// An error that shows its words where rustls shows `Debug` output to operators.
#[derive(thiserror::Error)]
#[error(transparent)]
struct Worded(Error);

impl fmt::Debug for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
