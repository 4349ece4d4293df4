//! The kinds of objects that are read, each as a type that cannot be wrong.

mod authorization_policy;
mod endpoint_slice;
mod export;
mod external;
mod mesh_config;
mod namespace;
mod node;
mod outbound;
mod patterns;
mod peer_authentication;
mod pod;
mod resource;
mod selector;
mod service;
mod service_entry;
mod sidecar;
mod workload_entry;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;
use sluice_model::Name;

pub(crate) use authorization_policy::parse_dry_run;
pub use authorization_policy::{
    Action, Attribute, AuthorizationPolicy, Condition, Operation, Rule, Source, Terms,
};
pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
pub use export::ExportTo;
pub use external::{External, ExternalAddress};
pub use mesh_config::MeshConfig;
pub(crate) use mesh_config::is_mesh_config;
pub use namespace::{Namespace, ServiceAccount};
pub use node::Node;
pub use outbound::OutboundPolicy;
pub use patterns::AccountName;
pub use peer_authentication::{MtlsMode, PeerAuthentication};
pub use pod::{ContainerPort, DataplaneMode, Owner, Phase, Pod};
pub use selector::{Target, TargetRef};
pub use service::{Addressing, Protocol, Service, ServicePort, TargetPort, TrafficDistribution};
pub use service_entry::{EntryPort, Resolution, ServiceEntry};
pub use sidecar::Sidecar;
pub use workload_entry::WorkloadEntry;

use crate::{Diagnostic, Located, Origin, decode::decode, report::Report};

/// Labels or a label selector.
pub type Labels = BTreeMap<Name, Name>;

/// Whether labels carry everything that a selector asks for.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// A kind of object that Sluice reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    AuthorizationPolicy,
    PeerAuthentication,
    Node,
    ServiceEntry,
    WorkloadEntry,
    Sidecar,
    /// Only the one named `istio`, with the settings of the mesh.
    ConfigMap,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::Node,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::Sidecar,
        Self::ConfigMap,
    ];

    /// The name in an object's `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Node => "Node",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// The values of `apiVersion` that are read.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace
            | Self::ServiceAccount
            | Self::Pod
            | Self::Service
            | Self::Node
            | Self::ConfigMap => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::AuthorizationPolicy | Self::PeerAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            Self::Sidecar | Self::ServiceEntry | Self::WorkloadEntry => &[
                "networking.istio.io/v1",
                "networking.istio.io/v1beta1",
                "networking.istio.io/v1alpha3",
            ],
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object of any kind, with its place.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Namespace(Arc<Located<Namespace>>),
    ServiceAccount(Arc<Located<ServiceAccount>>),
    Pod(Arc<Located<Pod>>),
    Service(Arc<Located<Service>>),
    EndpointSlice(Arc<Located<EndpointSlice>>),
    AuthorizationPolicy(Arc<Located<AuthorizationPolicy>>),
    PeerAuthentication(Arc<Located<PeerAuthentication>>),
    Node(Arc<Located<Node>>),
    ServiceEntry(Arc<Located<ServiceEntry>>),
    WorkloadEntry(Arc<Located<WorkloadEntry>>),
    Sidecar(Arc<Located<Sidecar>>),
    MeshConfig(Arc<Located<MeshConfig>>),
}

impl Object {
    pub(crate) fn origin(&self) -> &Origin {
        match self {
            Self::Namespace(o) => &o.origin,
            Self::ServiceAccount(o) => &o.origin,
            Self::Pod(o) => &o.origin,
            Self::Service(o) => &o.origin,
            Self::EndpointSlice(o) => &o.origin,
            Self::AuthorizationPolicy(o) => &o.origin,
            Self::PeerAuthentication(o) => &o.origin,
            Self::Node(o) => &o.origin,
            Self::ServiceEntry(o) => &o.origin,
            Self::WorkloadEntry(o) => &o.origin,
            Self::Sidecar(o) => &o.origin,
            Self::MeshConfig(o) => &o.origin,
        }
    }
}

/// Reads an object of a known kind; `None` when anything about it is an error.
pub(crate) fn parse(
    kind: Kind,
    value: &Value,
    origin: Origin,
) -> (Option<Object>, Vec<Diagnostic>) {
    match kind {
        Kind::Namespace => one(value, origin, namespace::namespace, Object::Namespace),
        Kind::ServiceAccount => {
            let convert = namespace::service_account;
            one(value, origin, convert, Object::ServiceAccount)
        }
        Kind::Pod => one(value, origin, pod::pod, Object::Pod),
        Kind::Service => one(value, origin, service::service, Object::Service),
        Kind::EndpointSlice => {
            let convert = endpoint_slice::endpoint_slice;
            one(value, origin, convert, Object::EndpointSlice)
        }
        Kind::AuthorizationPolicy => {
            let convert = authorization_policy::authorization_policy;
            one(value, origin, convert, Object::AuthorizationPolicy)
        }
        Kind::PeerAuthentication => {
            let convert = peer_authentication::peer_authentication;
            one(value, origin, convert, Object::PeerAuthentication)
        }
        Kind::Node => one(value, origin, node::node, Object::Node),
        Kind::ServiceEntry => {
            let convert = service_entry::service_entry;
            one(value, origin, convert, Object::ServiceEntry)
        }
        Kind::WorkloadEntry => {
            let convert = workload_entry::workload_entry;
            one(value, origin, convert, Object::WorkloadEntry)
        }
        Kind::Sidecar => one(value, origin, sidecar::sidecar, Object::Sidecar),
        Kind::ConfigMap => {
            let (text, origin) = mesh_config::open(value, origin);
            let convert =
                |raw, report: &mut Report<'_>| mesh_config::mesh_config(raw, text, report);
            one(value, origin, convert, Object::MeshConfig)
        }
    }
}

fn one<R: serde::de::DeserializeOwned, T>(
    value: &Value,
    origin: Origin,
    convert: impl FnOnce(R, &mut Report<'_>) -> T,
    wrap: impl FnOnce(Arc<Located<T>>) -> Object,
) -> (Option<Object>, Vec<Diagnostic>) {
    let mut report = Report::new(&origin);
    report.dns_name("metadata.name", &origin.object.name);
    if !origin.object.namespace.is_empty() {
        report.dns_name("metadata.namespace", &origin.object.namespace);
    }
    let raw = decode::<R>(value, &mut report);
    // A misspelt field is missing too; to report that as well would only distract.
    let raw = raw.filter(|_| !report.has_errors());
    let converted = raw.map(|raw| convert(raw, &mut report));
    let converted = converted.filter(|_| !report.has_errors());
    let diagnostics = report.into_diagnostics();
    let object = converted.map(|value| wrap(Arc::new(Located { value, origin })));
    (object, diagnostics)
}

fn labels(raw: Option<BTreeMap<String, String>>) -> Labels {
    raw.unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}
