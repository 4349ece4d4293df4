//! Workload identities: keys, certificate requests, rotation, TLS configurations and the
//! verification of peers.
//!
//! [`Manager`] keeps an [`Svid`] for each identity that is in use, signed by a
//! [`CertificateAuthority`]. An [`Svid`] gives the TLS configurations of both directions.

mod addresses;
mod authority;
mod ca_client;
mod certificate;
mod control_plane;
mod crypto;
mod dial;
mod error;
mod manager;
mod peer;
mod revocation;
mod svid;
mod trust;
mod verify;

pub use addresses::Addresses;
pub use authority::{CertificateAuthority, Signing};
pub use ca_client::CaClient;
pub use certificate::{Description, describe, peer_identity, uri_sans};
pub use control_plane::{ControlPlane, Live};
pub use dial::{Dial, Dialling, Direct, socket_path};
pub use error::{CaProblem, Error, is_revoked, peer_error};
pub use manager::{CertificateState, CertificateStatus, Config, Manager};
pub use peer::{Distrust, Peer, Side};
pub use revocation::{Due, RevocationLists, Revoked};
pub use svid::{Svid, SvidParts};
pub use trust::{Roots, Trust};
