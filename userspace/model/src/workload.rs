//! Workloads: what sends and receives traffic.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    hash::Hash,
    ops::{Deref, Index},
    sync::Arc,
};

use crate::{
    Ips, Name, SpiffeId, TrustDomain,
    authz::PolicyKey,
    identity::ParseSpiffeIdError,
    service::{GatewayAddress, Port, Service, ServiceKey},
};

/// A workload's unique name, `CLUSTER//Pod/NAMESPACE/NAME` for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub Name);

impl Uid {
    /// The uid of a pod.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }
}

impl Uid {
    /// What follows the last `/`.
    fn last_part(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// For [`Workload::own_name`]: the name, unless the uid ends in it.
    pub fn unless_last_part(&self, name: &str) -> Option<Box<Name>> {
        (self.last_part() != name).then(|| Box::new(name.into()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload, as the control plane describes it.
///
/// A node knows every workload of the mesh, so what many have in common is kept once: see
/// [`Interner`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: Uid,
    /// Absent when it is the last part of the uid, as for pods; ask [`Workload::name`].
    pub own_name: Option<Box<Name>>,
    /// Canonical addresses: no IPv4-mapped IPv6.
    pub ips: Ips,
    /// The node it runs on.
    pub node: Node,
    pub health: Health,
    pub profile: Arc<Profile>,
}

const _: () = assert!(size_of::<Workload>() <= 72);

/// The name of a node: thin, since each workload has one, and shared by all that run there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node(Arc<Box<str>>);

impl Deref for Node {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&str> for Node {
    fn from(name: &str) -> Self {
        Self(Arc::new(name.into()))
    }
}

/// What the pods of one deployment, and many others, have in common. A [`Workload`] shows it as its
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    pub namespace: Name,
    pub trust_domain: TrustDomain,
    /// The trust domains that are one, its own among them, so that what is said of one is said of
    /// all; empty where there is but one.
    pub equivalent_domains: Arc<[TrustDomain]>,
    pub service_account: Name,
    pub network: Name,
    pub cluster: Name,
    pub protocol: TunnelProtocol,
    /// It shares its node's network namespace, and so has no address of its own.
    pub host_network: bool,
    /// What to resolve for a workload without addresses.
    pub hostname: Option<Name>,
    /// The service identity shown in telemetry, from `service.istio.io/canonical-name`.
    pub canonical_name: Name,
    pub canonical_revision: Name,
    pub owner_kind: OwnerKind,
    /// The name of the Deployment, Job or other owner, or of the pod itself.
    pub owner_name: Name,
    /// The services it is an endpoint of, with its resolved ports.
    pub services: Memberships,
    pub waypoint: Option<GatewayAddress>,
    /// Policies that select this workload; policies of wider scope are not listed.
    pub policies: Vec<PolicyKey>,
    /// Where its own connections may go.
    pub egress: Egress,
    /// Its share of a service's connections.
    pub capacity: u32,
    pub locality: Locality,
}

impl Profile {
    /// What an identity alone says, and nothing else.
    pub fn of(identity: &SpiffeId) -> Self {
        Self {
            namespace: identity.namespace().clone(),
            trust_domain: identity.trust_domain().clone(),
            equivalent_domains: Arc::default(),
            service_account: identity.service_account().clone(),
            network: Name::default(),
            cluster: Name::default(),
            protocol: TunnelProtocol::None,
            host_network: false,
            hostname: None,
            canonical_name: Name::default(),
            canonical_revision: Name::default(),
            owner_kind: OwnerKind::Pod,
            owner_name: Name::default(),
            services: Memberships::default(),
            waypoint: None,
            policies: Vec::new(),
            egress: Egress::Anywhere,
            capacity: 1,
            locality: Locality::default(),
        }
    }
}

impl Deref for Workload {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl Workload {
    /// Its name, for people; [`Uid`] names it without doubt.
    pub fn name(&self) -> &str {
        match &self.own_name {
            Some(name) => name,
            None => self.uid.last_part(),
        }
    }

    /// What it has in common with others, to be changed for this one alone.
    pub fn profile_mut(&mut self) -> &mut Profile {
        Arc::make_mut(&mut self.profile)
    }

    /// Its identity.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of a SPIFFE ID.
    pub fn identity(&self) -> Result<SpiffeId, ParseSpiffeIdError> {
        SpiffeId::new(
            self.trust_domain.clone(),
            &self.namespace,
            &self.service_account,
        )
    }

    /// Whether an identity is one of [`Self::identities`].
    pub fn is(&self, identity: &SpiffeId) -> bool {
        self.trusts(identity.trust_domain())
            && *identity.namespace() == self.namespace
            && *identity.service_account() == self.service_account
    }

    /// Its identity in each of the trust domains that are one with its own.
    ///
    /// # Errors
    /// As [`Workload::identity`].
    pub fn identities(&self) -> Result<Vec<SpiffeId>, ParseSpiffeIdError> {
        let own = self.identity()?;
        let others = self.equivalent_domains.iter();
        let others = others.filter(|domain| **domain != self.trust_domain);
        let others: Vec<SpiffeId> = others.map(|domain| own.in_domain(domain.clone())).collect();
        Ok([vec![own], others].concat())
    }

    /// Whether it accepts identities of a trust domain.
    pub fn trusts(&self, domain: &TrustDomain) -> bool {
        *domain == self.trust_domain || self.equivalent_domains.contains(domain)
    }
}

/// Whether a workload is fit for new connections of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    #[default]
    Ready,
    /// It is about to end and still serves: for services that have nobody else left.
    Terminating,
    NotReady,
}

/// Where a workload's connections may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Egress {
    #[default]
    Anywhere,
    /// Only to what the mesh knows: Istio's `REGISTRY_ONLY`.
    Registry,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// In plaintext.
    #[default]
    None,
    /// Through a tunnel to its own address, port 15008.
    Hbone,
}

/// What kind of object owns a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OwnerKind {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// Where a workload runs, from Kubernetes' topology labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Name,
    pub zone: Name,
    pub subzone: Name,
}

/// The services that a workload is an endpoint of, each with the ports that it resolves itself.
///
/// Few, and one for each profile of the mesh: so no more than a sorted list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memberships(Box<[(ServiceKey, Box<[Port]>)]>);

impl Memberships {
    /// The ports of a service; `None` when the workload is no endpoint of it.
    pub fn get(&self, key: &ServiceKey) -> Option<&[Port]> {
        let place = self.0.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        Some(&self.0[place].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains_key(&self, key: &ServiceKey) -> bool {
        self.get(key).is_some()
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &ServiceKey> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ServiceKey, &[Port])> {
        self.0.iter().map(|(key, ports)| (key, &**ports))
    }
}

impl From<BTreeMap<ServiceKey, Vec<Port>>> for Memberships {
    fn from(sorted: BTreeMap<ServiceKey, Vec<Port>>) -> Self {
        let boxed = sorted
            .into_iter()
            .map(|(key, ports)| (key, ports.into_boxed_slice()));
        Self(boxed.collect())
    }
}

/// Of a service that comes twice, the last counts.
impl FromIterator<(ServiceKey, Vec<Port>)> for Memberships {
    fn from_iter<T: IntoIterator<Item = (ServiceKey, Vec<Port>)>>(services: T) -> Self {
        services.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl Index<&ServiceKey> for Memberships {
    type Output = [Port];

    /// # Panics
    /// When the workload is no endpoint of the service.
    fn index(&self, key: &ServiceKey) -> &[Port] {
        self.get(key).expect("an endpoint of the service")
    }
}

/// Keeps one of each profile and name, so that workloads and services that are alike share them.
#[derive(Debug, Default)]
pub struct Interner {
    profiles: HashSet<Arc<Profile>>,
    names: HashSet<Name>,
    nodes: HashSet<Node>,
    /// When to look for what nobody uses any more.
    sweep_at: usize,
}

impl Interner {
    /// Fewer are not worth a look.
    const FIRST_SWEEP: usize = 1024;

    /// The same workload, sharing what it can.
    pub fn share(&mut self, workload: Arc<Workload>) -> Arc<Workload> {
        let mut workload = Arc::unwrap_or_clone(workload);
        workload.node = self.node(workload.node);
        workload.profile = match self.profiles.get(&workload.profile) {
            Some(known) => known.clone(),
            None => {
                let profile = Arc::new(self.share_names(Arc::unwrap_or_clone(workload.profile)));
                self.profiles.insert(profile.clone());
                profile
            }
        };
        self.sweep();
        Arc::new(workload)
    }

    /// The same service, sharing what it can.
    pub fn share_service(&mut self, mut service: Service) -> Service {
        for name in [
            &mut service.name,
            &mut service.namespace,
            &mut service.hostname,
        ] {
            self.replace(name);
        }
        for vip in &mut service.vips {
            self.replace(&mut vip.network);
        }
        self.sweep();
        service
    }

    fn share_names(&mut self, mut profile: Profile) -> Profile {
        let Locality {
            region,
            zone,
            subzone,
        } = &mut profile.locality;
        for name in [
            &mut profile.namespace,
            &mut profile.service_account,
            &mut profile.network,
            &mut profile.cluster,
            &mut profile.canonical_name,
            &mut profile.canonical_revision,
            &mut profile.owner_name,
            region,
            zone,
            subzone,
        ]
        .into_iter()
        .chain(&mut profile.hostname)
        {
            self.replace(name);
        }
        profile.trust_domain = profile.trust_domain.shared(|name| self.name(name));
        for (key, _) in &mut profile.services.0 {
            self.replace(&mut key.namespace);
            self.replace(&mut key.hostname);
        }
        for policy in &mut profile.policies {
            self.replace(&mut policy.namespace);
            self.replace(&mut policy.name);
        }
        profile
    }

    fn replace(&mut self, name: &mut Name) {
        *name = self.name(std::mem::take(name));
    }

    fn name(&mut self, name: Name) -> Name {
        match self.names.get(&name) {
            Some(known) => known.clone(),
            None => {
                self.names.insert(name.clone());
                name
            }
        }
    }

    fn node(&mut self, node: Node) -> Node {
        match self.nodes.get(&node) {
            Some(known) => known.clone(),
            None => {
                self.nodes.insert(node.clone());
                node
            }
        }
    }

    fn len(&self) -> usize {
        self.profiles.len() + self.names.len() + self.nodes.len()
    }

    /// Forgets what nobody else uses, once much has been added.
    fn sweep(&mut self) {
        if self.len() <= self.sweep_at.max(Self::FIRST_SWEEP) {
            return;
        }
        // Profiles first: they use names.
        self.profiles
            .retain(|profile| Arc::strong_count(profile) > 1);
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.nodes.retain(|node| Arc::strong_count(&node.0) > 1);
        self.sweep_at = 2 * self.len();
    }
}
