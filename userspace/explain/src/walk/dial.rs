//! What the destination stands for, and so which addresses would be dialled.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_model::{Service, Workload, hosts::Asker, mesh};

use super::{From, Stop, Walk, of_family, unknown};
use crate::{Destination, Kind, question::Target};

impl<'a> Walk<'a> {
    pub(super) fn dials(
        &mut self,
        from: &From<'_>,
        destination: &Destination,
    ) -> Result<Vec<SocketAddr>, Stop> {
        let v4 = from.ip(true).is_none_or(|ip| ip.is_ipv4());
        let world = self.world;
        let addresses = match &destination.target {
            Target::Address(ip) => {
                self.say(Kind::Destination, self.stands_for(*ip));
                vec![*ip]
            }
            Target::Host(host) => self.host(host, from, v4)?,
            Target::Pod { namespace, name } => self.addresses_of_pod(namespace, name, v4)?,
            Target::Service { namespace, name } => match world.service(namespace, name) {
                Some(service) => self.addresses_of_service(service, v4)?,
                None => return Err(self.missing(format!("service {namespace}/{name}"))),
            },
            Target::Object { namespace, name } => {
                let has_pod = world.pod(namespace, name).is_some();
                match world.service(namespace, name) {
                    Some(service) => {
                        if has_pod {
                            let ask = format!("ask for pod/{namespace}/{name}");
                            self.say(Kind::Note, format!("a pod has that name too: {ask}"));
                        }
                        self.addresses_of_service(service, v4)?
                    }
                    None if has_pod => self.addresses_of_pod(namespace, name, v4)?,
                    None => {
                        return Err(self.missing(format!("service or pod {namespace}/{name}")));
                    }
                }
            }
        };
        let port = destination.port;
        Ok(addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect())
    }

    fn stands_for(&self, ip: IpAddr) -> String {
        match self.world.mesh.destination(self.world.network, ip) {
            mesh::Destination::Service(service) => format!("{ip} is service {}", service.key()),
            mesh::Destination::Workload(workload) => {
                format!("{ip} is {}", self.world.describe(&workload))
            }
            mesh::Destination::Unknown => format!("{ip} is nothing that the mesh knows"),
        }
    }

    fn host(&mut self, host: &str, from: &From<'_>, v4: bool) -> Result<Vec<IpAddr>, Stop> {
        let asker = Asker {
            namespace: from.workload.map_or("", |workload| &workload.namespace),
            network: self.world.network,
            cluster_domain: self.world.cluster_domain,
        };
        let Some(found) = self.world.mesh.host(host, &asker) else {
            return Err(unknown(format!(
                "the mesh knows no address of {host}: what it stands for is for other name servers \
                 to say; ask again with an address"
            )));
        };
        self.addresses_of_service(&found.service, v4)
    }

    /// A virtual address, or, of a headless service, those of all its endpoints.
    fn addresses_of_service(&mut self, service: &Service, v4: bool) -> Result<Vec<IpAddr>, Stop> {
        let name = format!("service {}", service.key());
        let addresses = self.world.mesh.addresses_of(service, self.world.network);
        let Some(chosen) = of_family(&addresses, v4) else {
            return Err(unknown(format!(
                "{name} has neither an address of its own nor an endpoint: its name leads nowhere"
            )));
        };
        let has_vip = service
            .vips
            .iter()
            .any(|vip| vip.network == *self.world.network);
        if !has_vip {
            let says = format!(
                "{name}, which is headless: its name stands for its {} endpoints",
                addresses.len()
            );
            self.say(Kind::Destination, says);
            return Ok(addresses);
        }
        self.say(Kind::Destination, format!("{name}, at {chosen}"));
        Ok(vec![chosen])
    }

    fn addresses_of_pod(
        &mut self,
        namespace: &str,
        name: &str,
        v4: bool,
    ) -> Result<Vec<IpAddr>, Stop> {
        let pod = self.pod(namespace, name)?;
        self.say(Kind::Destination, self.world.describe(pod));
        match of_family(&pod.ips, v4) {
            Some(ip) => Ok(vec![ip]),
            None => Err(unknown(format!("{namespace}/{name} has no address yet"))),
        }
    }

    /// The pod of a name, or else who might have been meant.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> Result<&'a Arc<Workload>, Stop> {
        if let Some(pod) = self.world.pod(namespace, name) {
            return Ok(pod);
        }
        let all = self.world.mesh.workloads();
        let mut others: Vec<&str> = all
            .filter(|one| *one.namespace == *namespace)
            .map(|one| one.name())
            .collect();
        others.sort_unstable();
        let Stop { outcome, reason } = self.missing(format!("pod {namespace}/{name}"));
        let more = if others.len() > 5 { ", …" } else { "" };
        others.truncate(5);
        let others = match &*others {
            [] => format!("nothing of namespace {namespace} is"),
            some => format!("of namespace {namespace}, {}{more} are", some.join(", ")),
        };
        Err(Stop {
            outcome,
            reason: format!("{reason}; {others}"),
        })
    }

    fn missing(&self, what: String) -> Stop {
        unknown(if self.world.whole {
            format!("no {what} is known")
        } else {
            format!("no {what} is known to the ztunnel that was asked, which learns on demand")
        })
    }
}
