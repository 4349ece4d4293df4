//! Everything the mesh knows, as one immutable snapshot.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    Name, NetworkAddress, Service, ServiceKey, Uid, Workload,
    authz::{Applicable, Policy, PolicyKey},
    names::Names,
    policies::Policies,
    vips::Vips,
    workload::Health,
    workloads::{Entry, Slot, Workloads},
};

/// What the mesh knows at one moment: workloads, services and policies with their indices.
///
/// An [`Edit`] makes the next one. That is cheap: values are shared, only the indices are copied.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: Workloads,
    services: HashMap<ServiceKey, Arc<Service>>,
    vips: Vips,
    names: Names,
    /// In ascending order.
    endpoints: HashMap<ServiceKey, Arc<Vec<Slot>>>,
    policies: Policies,
}

/// One change to a [`Mesh`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    Workload(Arc<Workload>),
    Service(Service),
    Policy(Policy),
    RemoveWorkload(Uid),
    RemoveService(ServiceKey),
    RemovePolicy(PolicyKey),
}

impl From<Workload> for Update {
    fn from(workload: Workload) -> Self {
        Self::Workload(workload.into())
    }
}

/// What an address that an application dialled stands for.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A service's virtual address.
    Service(Arc<Service>),
    /// A workload's own address.
    Workload(Arc<Workload>),
    /// Nothing the mesh knows.
    Unknown,
}

/// An endpoint of a service, with the port to dial on it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub port: u16,
}

/// A mesh while changes are applied to it.
#[derive(Debug)]
#[must_use = "the changes are in force in what `finish` returns"]
pub struct Edit(Mesh);

impl Edit {
    /// Applies a change. Adding what is there already replaces it.
    pub fn apply(&mut self, update: Update) {
        let mesh = &mut self.0;
        match update {
            Update::Workload(workload) => mesh.insert_workload(workload),
            Update::Service(service) => mesh.insert_service(service),
            Update::Policy(policy) => mesh.policies.insert(policy),
            Update::RemoveWorkload(uid) => mesh.remove_workload(&uid),
            Update::RemoveService(key) => mesh.remove_service(&key),
            Update::RemovePolicy(key) => mesh.policies.remove(&key),
        }
    }

    /// The mesh as it is so far; policies that changed are not in force in it yet.
    pub fn mesh(&self) -> &Mesh {
        &self.0
    }

    /// The mesh with all changes.
    pub fn finish(mut self) -> Mesh {
        self.0.policies.settle();
        self.0
    }
}

impl FromIterator<Update> for Mesh {
    fn from_iter<T: IntoIterator<Item = Update>>(updates: T) -> Self {
        let mut edit = Self::default().edit();
        updates.into_iter().for_each(|update| edit.apply(update));
        edit.finish()
    }
}

impl Mesh {
    /// Begins to make the next mesh.
    pub fn edit(&self) -> Edit {
        Edit(self.clone())
    }

    /// What `ip` stands for when it is dialled. A VIP wins over a workload's address, and that over a
    /// service's range.
    pub fn destination(&self, network: &Name, ip: IpAddr) -> Destination {
        let address = NetworkAddress::new(network.clone(), ip);
        if let Some(service) = self.vips.exact(&address) {
            return Destination::Service(service.clone());
        }
        if let Some(workload) = self.workloads.by_address(network, address.ip) {
            return Destination::Workload(workload.clone());
        }
        match self.vips.within(&address) {
            Some(service) => Destination::Service(service.clone()),
            None => Destination::Unknown,
        }
    }

    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        Some(&self.workloads.get(uid)?.workload)
    }

    pub fn workload_at(&self, network: &Name, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_address(network, ip.to_canonical())
    }

    /// Every address of a network, and every range, that stands for something here and not in
    /// another mesh. It is cheap when one of them was made from the other: what they share is not
    /// looked at.
    pub fn addresses_beyond<'a>(
        &'a self,
        other: &'a Self,
        network: &'a Name,
    ) -> impl Iterator<Item = IpNet> + 'a {
        let vips = self.vips.addresses();
        let vips = vips.filter(move |vip| vip.network == *network);
        let workloads = self.workloads.addresses_beyond(&other.workloads, network);
        let single = vips.map(|vip| vip.ip).chain(workloads);
        let single = single.filter(move |ip| !other.has_address(network, *ip));
        let ranges = self.vips.ranges();
        let ranges = ranges
            .filter(move |range| range.network == *network && !other.vips.has_range(range))
            .map(|range| range.range);
        single.map(IpNet::from).chain(ranges)
    }

    /// How many single addresses stand for something, in all networks; one that does so twice
    /// counts twice.
    pub fn address_count(&self) -> usize {
        self.vips.addresses().len() + self.workloads.address_count()
    }

    /// How many ranges stand for something, in all networks.
    pub fn range_count(&self) -> usize {
        self.vips.ranges().len()
    }

    /// Whether just this address stands for something.
    fn has_address(&self, network: &Name, ip: IpAddr) -> bool {
        let vip = || self.vips.exact(&NetworkAddress::new(network.clone(), ip));
        self.workloads.by_address(network, ip).is_some() || vip().is_some()
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that a host name means to a client of this namespace: its own namespace's first,
    /// then any that others let it see. A name of its own wins over a wildcard.
    pub fn resolve(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        self.names.resolve(host, client_namespace)
    }

    /// The addresses that a service's host name stands for: its VIPs, or where it has none, those of
    /// the endpoints that may be used.
    pub fn addresses_of(&self, service: &Service, network: &Name) -> Vec<IpAddr> {
        let own = service.vips.iter().filter(|vip| vip.network == *network);
        let own: Vec<IpAddr> = own.map(|vip| vip.ip).collect();
        if !own.is_empty() {
            return own;
        }
        let slots = self.endpoints.get(&service.key());
        let slots = slots.iter().flat_map(|slots| slots.iter());
        let usable: Vec<&Workload> = slots
            .filter_map(|slot| Some(&*self.workloads.at(*slot)?.workload))
            .filter(|workload| workload.network == *network)
            .collect();
        let of = |wanted: fn(Health) -> bool| -> Vec<IpAddr> {
            let chosen = usable.iter().filter(|workload| wanted(workload.health));
            chosen
                .flat_map(|workload| workload.ips.iter().copied())
                .collect()
        };
        if service.load_balancing.allow_unhealthy {
            return of(|_| true);
        }
        let ready = of(|health| health == Health::Ready);
        if ready.is_empty() {
            return of(|health| health == Health::Terminating);
        }
        ready
    }

    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// A number that a workload alone has for as long as it is in the mesh, whatever it changes to;
    /// numbers are less than a small multiple of the most workloads that there ever were.
    pub fn place(&self, uid: &Uid) -> Option<usize> {
        self.workloads.slot(uid).map(Slot::index)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The endpoints of a service that serve `service_port`, in a stable order.
    pub fn endpoints(&self, service: &Service, service_port: u16) -> Vec<Endpoint> {
        let key = service.key();
        let Some(slots) = self.endpoints.get(&key) else {
            return Vec::new();
        };
        slots
            .iter()
            .filter_map(|slot| Some(&self.workloads.at(*slot)?.workload))
            .filter_map(|workload| {
                let port = target_port(service, workload, &key, service_port)?;
                Some(Endpoint {
                    workload: workload.clone(),
                    port,
                })
            })
            .collect()
    }

    /// The policies that apply to a workload; `None` when there is no such workload.
    pub fn policies_of(&self, uid: &Uid) -> Option<Applicable> {
        let Entry { workload, listed } = self.workloads.get(uid)?;
        Some(self.policies.applicable(&workload.namespace, *listed))
    }

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        // Before the old one goes, so that a list that both have stays as it is.
        let listed = self.policies.list(&workload.policies);
        self.remove_workload(&workload.uid);
        let slot = self.workloads.insert(Entry {
            workload: workload.clone(),
            listed,
        });
        for key in workload.services.keys() {
            let slots = Arc::make_mut(self.endpoints.entry(key.clone()).or_default());
            if let Err(place) = slots.binary_search(&slot) {
                slots.insert(place, slot);
            }
        }
    }

    fn remove_workload(&mut self, uid: &Uid) {
        let Some((slot, Entry { workload, listed })) = self.workloads.remove(uid) else {
            return;
        };
        self.policies.unlist(listed);
        for key in workload.services.keys() {
            let Some(slots) = self.endpoints.get_mut(key) else {
                continue;
            };
            let slots = Arc::make_mut(slots);
            if let Ok(place) = slots.binary_search(&slot) {
                slots.remove(place);
            }
            if slots.is_empty() {
                self.endpoints.remove(key);
            }
        }
    }

    fn insert_service(&mut self, service: Service) {
        let key = service.key();
        self.remove_service(&key);
        let service = Arc::new(service);
        self.vips.insert(&service);
        self.names.insert(&service);
        self.services.insert(key, service);
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(service) = self.services.remove(key) {
            self.vips.remove(&service);
            self.names.remove(&service);
        }
    }
}

/// The workload's own mapping of a port wins over the service's, since named ports may differ from
/// workload to workload.
fn target_port(
    service: &Service,
    workload: &Workload,
    key: &ServiceKey,
    service_port: u16,
) -> Option<u16> {
    let own = workload
        .services
        .get(key)?
        .iter()
        .find(|p| p.service_port == service_port);
    let shared = || {
        service
            .ports
            .iter()
            .find(|p| p.service_port == service_port)
    };
    let port = own.or_else(shared)?;
    Some(if port.target_port == 0 {
        service_port
    } else {
        port.target_port
    })
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
