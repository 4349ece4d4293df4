//! PeerAuthentication: whether a workload accepts plaintext.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use sluice_model::Name;

use super::patterns::{Parsed as _, Port};
use super::resource::Resource;
use super::selector::{self, RawSelector, Target};
use crate::{Code, report::Report};

/// Which peers workloads accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub namespace: Name,
    pub name: Name,
    /// The oldest of several for the same workload counts.
    pub created: Option<Timestamp>,
    /// Never [`Target::Refs`].
    pub target: Target,
    pub mode: MtlsMode,
    /// Exceptions by the workload's own port; empty unless the target is a selector.
    pub port_modes: BTreeMap<u16, MtlsMode>,
}

/// A mode of mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the wider scope says.
    #[default]
    Unset,
    /// Plaintext only, in theory; a workload of an ambient mesh still accepts tunnels.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

pub(super) type RawPeerAuthentication = Resource<RawSpec>;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSpec {
    #[serde(default)]
    selector: Option<RawSelector>,
    #[serde(default)]
    mtls: Option<RawMtls>,
    #[serde(default)]
    port_level_mtls: Option<BTreeMap<String, RawMtls>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct RawMtls {
    #[serde(default)]
    mode: Option<MtlsMode>,
}

impl RawMtls {
    fn mode(self) -> MtlsMode {
        self.mode.unwrap_or_default()
    }
}

pub(super) fn peer_authentication(
    raw: RawPeerAuthentication,
    report: &mut Report<'_>,
) -> PeerAuthentication {
    let spec = raw.spec.unwrap_or_default();
    let target = selector::selector(spec.selector, report);
    let mut port_modes = BTreeMap::new();
    for (text, mtls) in spec.port_level_mtls.into_iter().flatten() {
        let field = format!("spec.portLevelMtls[\"{text}\"]");
        match Port::parse(&text) {
            Ok(port) => {
                port_modes.insert(port, mtls.mode());
            }
            Err(message) => report.error(Code::InvalidValue, field, message),
        }
    }
    if !port_modes.is_empty() && target == Target::Namespace {
        report.error(
            Code::ConflictingFields,
            "spec.portLevelMtls",
            "ports are a workload's own: give spec.selector.matchLabels too",
        );
    }
    PeerAuthentication {
        namespace: report.namespace(),
        name: report.name(),
        created: raw.metadata.creation_timestamp.map(|time| time.0),
        target,
        mode: spec.mtls.unwrap_or_default().mode(),
        port_modes,
    }
}
