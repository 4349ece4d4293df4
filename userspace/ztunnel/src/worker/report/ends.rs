//! Who is at the two ends of a connection, and what the client called, as far as anybody knows.

use std::{net::SocketAddr, sync::Arc};

use sluice_hbone::Baggage;
use sluice_model::{Name, Service, SpiffeId, Workload};
use sluice_telemetry::{
    access::Peer,
    metrics::{self, ServiceLabels},
};

use crate::{
    link::PodInfo,
    worker::{address::Address, spans::SpanEnd},
};

/// What the client called. Metrics show more of a service than its name.
#[derive(Debug)]
pub(super) enum Addressed {
    /// An address.
    Nothing,
    Service(Arc<Service>),
    /// What the peer names, and nobody here knows.
    Host(Name),
}

impl From<Option<&Arc<Service>>> for Addressed {
    fn from(service: Option<&Arc<Service>>) -> Self {
        service.cloned().map_or(Self::Nothing, Self::Service)
    }
}

impl Addressed {
    /// Empty when there is none.
    pub(super) fn hostname(&self) -> Name {
        match self {
            Self::Nothing => Name::default(),
            Self::Service(service) => service.hostname.clone(),
            Self::Host(name) => name.clone(),
        }
    }

    pub(super) fn labels(&self) -> ServiceLabels {
        match self {
            Self::Service(service) => ServiceLabels::from(&**service),
            Self::Nothing | Self::Host(_) => ServiceLabels {
                hostname: self.hostname(),
                ..ServiceLabels::default()
            },
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct End {
    pub(super) addr: Address,
    /// Proven.
    pub(super) principal: Option<SpiffeId>,
    is: Known,
}

/// Who an end is.
#[derive(Debug)]
enum Known {
    Nothing,
    /// The name of a pod.
    Pod(Name),
    Claimed(Box<Claims>),
    /// Metrics show its owner's name, the access log its own.
    Workload(Arc<Workload>),
}

/// What an end says of itself, or is known of it, for as long as its workload is not.
#[derive(Debug, Default)]
struct Claims {
    labels: metrics::Peer,
    pod: Name,
}

impl End {
    pub(super) fn unknown(addr: SocketAddr) -> Self {
        Self {
            addr: addr.into(),
            principal: None,
            is: Known::Nothing,
        }
    }

    pub(super) fn describe(&mut self, workload: &Arc<Workload>) {
        self.is = Known::Workload(workload.clone());
    }

    /// It is this pod, whatever else will be known of it.
    pub(super) fn is_pod(&mut self, info: &PodInfo) {
        self.is = Known::Claimed(Box::new(Claims {
            labels: metrics::Peer {
                namespace: info.namespace.clone(),
                ..metrics::Peer::default()
            },
            pod: info.name.clone(),
        }));
    }

    /// It is the pod of this name, of which nothing else is known.
    pub(super) fn is_called(&mut self, pod: Name) {
        self.is = Known::Pod(pod);
    }

    /// What a peer says of itself, until we know better.
    pub(super) fn claims(&mut self, baggage: &Baggage) {
        let field = |key| baggage.get(key).unwrap_or_default().into();
        self.is = Known::Claimed(Box::new(Claims {
            labels: metrics::Peer {
                cluster: field("k8s.cluster.name"),
                namespace: field("k8s.namespace.name"),
                canonical_service: field("service.name"),
                canonical_revision: field("service.version"),
                ..metrics::Peer::default()
            },
            pod: Name::default(),
        }));
    }

    pub(super) fn labels(&self) -> metrics::Peer {
        let principal = self.principal.as_ref();
        let labels = match &self.is {
            Known::Workload(workload) => return metrics::Peer::new(workload, principal),
            Known::Claimed(claims) => claims.labels.clone(),
            Known::Nothing | Known::Pod(_) => metrics::Peer::default(),
        };
        metrics::Peer {
            principal: principal.cloned(),
            ..labels
        }
    }

    /// Empty when it is not known.
    fn namespace(&self) -> &str {
        match &self.is {
            Known::Workload(workload) => &workload.namespace,
            Known::Claimed(claims) => &claims.labels.namespace,
            Known::Nothing | Known::Pod(_) => "",
        }
    }

    /// Empty when it is not known.
    fn cluster(&self) -> &str {
        match &self.is {
            Known::Workload(workload) => &workload.cluster,
            Known::Claimed(claims) => &claims.labels.cluster,
            Known::Nothing | Known::Pod(_) => "",
        }
    }

    /// The pod, if it is one.
    fn name(&self) -> &str {
        match &self.is {
            Known::Workload(workload) => workload.name(),
            Known::Claimed(claims) => &claims.pod,
            Known::Pod(name) => name,
            Known::Nothing => "",
        }
    }

    /// `NAMESPACE/NAME` of its pod, or of its workload.
    pub(super) fn full_name(&self) -> Option<String> {
        let (namespace, name) = (self.namespace(), self.name());
        let known = !namespace.is_empty() && !name.is_empty();
        known.then(|| format!("{namespace}/{name}"))
    }

    pub(super) fn span(&self) -> SpanEnd<'_> {
        SpanEnd {
            addr: self.addr.into(),
            workload: self.name(),
            namespace: self.namespace(),
            principal: self.principal.as_ref(),
        }
    }

    pub(super) fn access(&self) -> Peer<'_> {
        Peer {
            addr: self.addr.into(),
            workload: Some(self.name()),
            namespace: Some(self.namespace()),
            cluster: Some(self.cluster()),
            identity: self.principal.as_ref(),
        }
    }
}
