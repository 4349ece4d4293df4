//! Wire contracts: protobuf types and their conversion to the domain model.

pub mod convert;
mod generated;

/// Workloads and services.
pub mod workload {
    pub use crate::generated::istio::workload::*;

    /// The discovery type of [`Address`].
    pub const TYPE_URL: &str = "type.googleapis.com/istio.workload.Address";
}

/// Authorization policies.
pub mod security {
    pub use crate::generated::istio::security::*;

    /// The discovery type of [`Authorization`].
    pub const TYPE_URL: &str = "type.googleapis.com/istio.security.Authorization";
}

/// What Sluice adds to the resources of the contracts.
pub mod extension {
    pub use crate::generated::sluice::extension::*;
}

/// The delta discovery protocol, its client and its server.
pub mod discovery {
    pub use crate::generated::{
        envoy::{
            config::core::v3::{Locality, Node},
            service::discovery::v3::*,
        },
        google::rpc::Status,
    };
}

/// The certificate service, its client and its server.
pub mod ca {
    pub use crate::generated::istio::v1::auth::*;

    /// The key of a request's metadata that holds the SPIFFE ID to sign.
    pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
}

/// The export of traces by OTLP: its client.
pub mod traces {
    pub use crate::generated::opentelemetry::proto::collector::trace::v1::*;
}
