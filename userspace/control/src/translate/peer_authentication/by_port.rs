//! What a port of a pod accepts, and which PeerAuthentication says so: for people who ask.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use sluice_model::authz::Connection;
use sluice_objects::{Located, Objects, PeerAuthentication, Pod, kinds::MtlsMode};

use super::{Effective, Peer, Scopes, conflicts, is_strict};
use crate::translate::Config;

/// Whether a port of a pod demands mutual TLS.
#[derive(Clone, Copy, Debug)]
pub struct PortMtls<'a> {
    pub strict: bool,
    /// What says so, and for whom; absent where nothing says anything.
    pub from: Option<(&'a Located<PeerAuthentication>, Reach)>,
}

/// For whom a PeerAuthentication says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Mesh,
    Namespace,
    Workload,
    Port,
}

/// What is in force for a port of a pod that is part of the mesh.
pub fn mtls<'a>(objects: &'a Objects, config: &Config, pod: &Pod, port: u16) -> PortMtls<'a> {
    let scopes = Scopes::of(objects, config);
    let strict = match scopes.effective(pod) {
        Effective::Permissive => false,
        Effective::Strict => true,
        Effective::ByPort(policy) => {
            let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let plaintext = Connection {
                source_identity: None,
                source_ip: nowhere,
                destination: SocketAddr::new(nowhere, port),
                equivalent: &[],
            };
            policy.rules.iter().any(|rule| rule.is_met_by(&plaintext))
        }
    };
    PortMtls {
        strict,
        from: scopes.says(pod, port, strict),
    }
}

impl<'a> Scopes<'a> {
    /// The narrowest that says what is in force.
    fn says(&self, pod: &Pod, port: u16, strict: bool) -> Option<(&'a Peer, Reach)> {
        let mut own = self.selectors.iter();
        let own = own.find(|peer| conflicts::is_for(peer, pod)).copied();
        let of_port = own.and_then(|peer| Some((*peer.port_modes.get(&port)?, peer, Reach::Port)));
        let namespace = self.namespaces.get(&pod.namespace).copied();
        let by_mode = [
            (own, Reach::Workload),
            (namespace, Reach::Namespace),
            (self.mesh, Reach::Mesh),
        ];
        let by_mode = by_mode
            .into_iter()
            .filter_map(|(peer, reach)| Some((peer?.mode, peer?, reach)));
        let mut all = of_port.into_iter().chain(by_mode);
        // A mode for a port that is not in force, as DISABLE below an inherited STRICT, says nothing.
        let says = |mode: MtlsMode| mode != MtlsMode::Unset && is_strict(mode, !strict) == strict;
        let (_, peer, reach) = all.find(|(mode, ..)| says(*mode))?;
        Some((peer, reach))
    }
}

impl fmt::Display for PortMtls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((peer, reach)) = self.from else {
            return f.write_str("no PeerAuthentication");
        };
        let whom = match reach {
            Reach::Mesh => "the mesh",
            Reach::Namespace => "its namespace",
            Reach::Workload => "the workload",
            Reach::Port => "the port",
        };
        let origin = &peer.origin;
        let (file, line) = (origin.file.display(), origin.line());
        write!(f, "{} ({file}:{line}), for {whom}", origin.object)
    }
}
