//! Workload identities: keys, certificate requests, rotation, TLS configurations and the
//! verification of peers.
//!
//! [`Manager`] keeps an [`Svid`] for each identity that is in use, signed by a
//! [`CertificateAuthority`]. An [`Svid`] gives the TLS configurations of both directions.

mod authority;
mod ca_client;
mod certificate;
mod control_plane;
mod error;
mod manager;
mod svid;
mod trust;
mod verify;

pub use authority::{CertificateAuthority, Signing};
pub use ca_client::CaClient;
pub use certificate::{peer_identity, uri_sans};
pub use control_plane::{ControlPlane, Live};
pub use error::{CaProblem, Error, peer_error};
pub use manager::{CertificateState, CertificateStatus, Manager};
pub use svid::{Svid, SvidParts};
pub use trust::{Roots, Trust};
