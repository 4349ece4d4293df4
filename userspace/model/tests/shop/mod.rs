//! A small mesh to ask questions about.

use std::{net::IpAddr, sync::Arc};

use sluice_model::{
    Mesh, NetworkAddress, Service, ServiceKey, Uid, Update, Workload,
    service::{LoadBalancing, Port, Visibility},
    workload::{Health, Profile, TunnelProtocol},
};

pub(crate) fn workload(name: &str, ip: &str, protocol: TunnelProtocol) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    Workload {
        uid: Uid::pod("Kubernetes", "shop", name),
        own_name: None,
        ips: [ip.parse().unwrap()].into(),
        node: "a".into(),
        health: Health::Ready,
        profile: Arc::new(Profile {
            protocol,
            ..Profile::of(&identity.parse().unwrap())
        }),
    }
}

pub(crate) fn service(vip: &str) -> Service {
    Service {
        name: "catalog".into(),
        namespace: "shop".into(),
        hostname: "catalog.shop.svc.cluster.local".into(),
        vips: vec![address(vip)],
        ranges: vec![],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
        }],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        canonical: false,
        visibility: Visibility::Public,
    }
}

pub(crate) fn address(ip: &str) -> NetworkAddress {
    NetworkAddress::new("".into(), ip.parse::<IpAddr>().unwrap())
}

fn key() -> ServiceKey {
    service("10.96.0.1").key()
}

pub(crate) fn endpoint_of(mut workload: Workload) -> Workload {
    let port = Port {
        service_port: 80,
        target_port: 8080,
    };
    workload.profile_mut().services = [(key(), vec![port])].into_iter().collect();
    workload
}

pub(crate) fn mesh(updates: Vec<Update>) -> Mesh {
    updates.into_iter().collect()
}
