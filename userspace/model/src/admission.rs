//! Whether a connection may reach the application of a workload: what both doors of a pod ask, the
//! one for tunnels and the one for plaintext. Pure.

use sluice_abi::ports;

use crate::{
    SpiffeId, TrustDomain, Workload,
    authz::{Applicable, Connection, Judgement},
};

/// Why a connection is refused before any policy is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("port {0} is the proxy's own")]
    IllegalPort(u16),
    #[error("identities of the trust domain {0} are not accepted")]
    Untrusted(TrustDomain),
}

/// Judges a connection to a workload, of which `policies` are those that apply. Allocates only to
/// refuse.
///
/// # Errors
/// When no policy is asked.
pub fn judge(
    workload: &Workload,
    policies: &Applicable,
    connection: &Connection<'_>,
) -> Result<Judgement, Refusal> {
    let port = connection.destination.port();
    if ports::is_own(port) {
        return Err(Refusal::IllegalPort(port));
    }
    let domain = connection.source_identity.map(SpiffeId::trust_domain);
    match domain.filter(|domain| !workload.trusts(domain)) {
        Some(foreign) => Err(Refusal::Untrusted(foreign.clone())),
        None => Ok(policies.judge(connection)),
    }
}
