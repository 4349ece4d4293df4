//! Where outbound connections go, by what the mesh knows.

mod shop;

use sluice_model::{
    Mesh, OrigDst, Uid, Update, Workload,
    route::{Client, Hop, Refusal, Route, outbound},
    service::{GatewayAddress, GatewayDestination, Mode},
    workload::{Egress, Health, TunnelProtocol},
};

use shop::{address, endpoint_of, mesh, service, workload};

/// Who asks where it does not matter.
fn client_workload() -> Workload {
    workload("client", "10.0.0.200", TunnelProtocol::Hbone)
}

fn route(mesh: &Mesh, dst: &str) -> Route {
    let network = "".into();
    let client = Client {
        network: &network,
        workload: &client_workload(),
    };
    outbound(mesh, client, OrigDst(dst.parse().unwrap()), &[], 0.0)
}

fn hop(route: Route) -> Hop {
    match route {
        Route::Hbone(hop) => hop,
        other => panic!("no tunnel: {other:?}"),
    }
}

fn refusal(route: Route) -> Refusal {
    match route {
        Route::Refuse(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn unknown_destinations_pass_through_untouched() {
    let Route::Plain {
        to,
        workload: None,
        service: None,
    } = route(&mesh(vec![]), "1.2.3.4:443")
    else {
        panic!("not passed through")
    };
    assert_eq!(to.to_string(), "1.2.3.4:443");
}

#[test]
fn a_restricted_workload_reaches_only_what_the_mesh_knows() {
    let mut own = workload("web", "10.0.0.1", TunnelProtocol::Hbone);
    own.profile_mut().egress = Egress::Registry;
    let mesh = mesh(vec![
        Update::from(workload("db", "10.0.0.2", TunnelProtocol::None)),
        Update::from(endpoint_of(workload(
            "c1",
            "10.0.0.3",
            TunnelProtocol::Hbone,
        ))),
        Update::Service(service("10.96.0.1")),
    ]);
    let network = "".into();
    let client = Client {
        network: &network,
        workload: &own,
    };
    let to = |dst: &str| outbound(&mesh, client, OrigDst(dst.parse().unwrap()), &[], 0.0);
    assert!(matches!(to("10.0.0.2:6379"), Route::Plain { .. }));
    hop(to("10.96.0.1:80"));
    let refused = refusal(to("1.2.3.4:443"));
    assert_eq!(
        refused,
        Refusal::NotInRegistry("1.2.3.4:443".parse().unwrap(), own.uid.clone())
    );
    let text = refused.to_string();
    for word in ["1.2.3.4:443", "Kubernetes//Pod/shop/web", "REGISTRY_ONLY"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_peer_may_prove_its_identity_in_any_of_the_trust_domains_that_are_one() {
    let mut db = workload("db", "10.0.0.2", TunnelProtocol::Hbone);
    let domains = ["cluster.local", "old.example"];
    db.profile_mut().equivalent_domains = domains.map(|domain| domain.parse().unwrap()).into();
    let hop = hop(route(&mesh(vec![Update::from(db)]), "10.0.0.2:6379"));
    let expected: Vec<_> = hop.expected.iter().map(ToString::to_string).collect();
    assert_eq!(
        expected,
        domains.map(|domain| format!("spiffe://{domain}/ns/shop/sa/db"))
    );
}

#[test]
fn a_workload_in_the_mesh_is_reached_by_its_own_tunnel_and_identity() {
    let mesh = mesh(vec![Update::from(workload(
        "db",
        "10.0.0.2",
        TunnelProtocol::Hbone,
    ))]);
    let hop = hop(route(&mesh, "10.0.0.2:6379"));
    assert_eq!(hop.tunnel.to_string(), "10.0.0.2:15008");
    assert_eq!(hop.authority.to_string(), "10.0.0.2:6379");
    assert_eq!(
        hop.expected,
        ["spiffe://cluster.local/ns/shop/sa/db".parse().unwrap()]
    );
}

#[test]
fn ipv6_authorities_have_brackets() {
    let mesh = mesh(vec![Update::from(workload(
        "db",
        "fd00::2",
        TunnelProtocol::Hbone,
    ))]);
    assert_eq!(
        hop(route(&mesh, "[fd00::2]:6379")).authority.to_string(),
        "[fd00::2]:6379"
    );
}

#[test]
fn a_workload_outside_the_mesh_is_reached_in_plaintext() {
    let mesh = mesh(vec![Update::from(workload(
        "db",
        "10.0.0.2",
        TunnelProtocol::None,
    ))]);
    let Route::Plain {
        to,
        workload: Some(db),
        ..
    } = route(&mesh, "10.0.0.2:6379")
    else {
        panic!("not plain")
    };
    assert_eq!(
        (to.to_string().as_str(), db.name()),
        ("10.0.0.2:6379", "db")
    );
}

#[test]
fn a_workload_may_answer_with_its_identity_in_any_equivalent_trust_domain() {
    let mut db = workload("db", "10.0.0.2", TunnelProtocol::Hbone);
    let domains = ["cluster.local", "old.example"].map(|domain| domain.parse().unwrap());
    db.profile_mut().equivalent_domains = domains.into();
    let mesh = mesh(vec![Update::from(db)]);
    let hop = hop(route(&mesh, "10.0.0.2:6379"));
    let expected = [
        "spiffe://cluster.local/ns/shop/sa/db",
        "spiffe://old.example/ns/shop/sa/db",
    ];
    assert_eq!(hop.expected, expected.map(|id| id.parse().unwrap()));
}

#[test]
fn a_vip_leads_to_an_endpoint_and_its_target_port() {
    let mut sans = service("10.96.0.1");
    sans.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/alias".parse().unwrap()];
    let mesh = mesh(vec![
        Update::Service(sans),
        Update::from(endpoint_of(workload(
            "c1",
            "10.0.0.3",
            TunnelProtocol::Hbone,
        ))),
    ]);
    let hop = hop(route(&mesh, "10.96.0.1:80"));
    assert_eq!(hop.authority.to_string(), "10.0.0.3:8080");
    let expected: Vec<_> = hop.expected.iter().map(ToString::to_string).collect();
    assert_eq!(
        expected,
        [
            "spiffe://cluster.local/ns/shop/sa/alias",
            "spiffe://cluster.local/ns/shop/sa/c1"
        ]
    );
}

/// The endpoint of the service at 10.96.0.1:80 that is chosen after those that were tried.
fn chosen(mesh: &Mesh, tried: &[Uid]) -> Result<Uid, Refusal> {
    let network = "".into();
    let client = Client {
        network: &network,
        workload: &client_workload(),
    };
    let dst = OrigDst("10.96.0.1:80".parse().unwrap());
    match outbound(mesh, client, dst, tried, 0.0) {
        Route::Hbone(hop) => Ok(hop.workload.uid.clone()),
        Route::Plain { workload, .. } => Ok(workload.unwrap().uid.clone()),
        Route::Named(named) => Ok(named.workload.uid.clone()),
        Route::Refuse(refusal) => Err(refusal),
    }
}

#[test]
fn no_endpoint_is_tried_twice_whatever_way_leads_to_it() {
    let tunnelled = endpoint_of(workload("c1", "10.0.0.3", TunnelProtocol::Hbone));
    let plain = endpoint_of(workload("c2", "10.0.0.4", TunnelProtocol::None));
    let mut ending = endpoint_of(workload("c3", "10.0.0.5", TunnelProtocol::Hbone));
    ending.health = Health::Terminating;
    let mesh = mesh(vec![
        Update::Service(service("10.96.0.1")),
        Update::from(ending.clone()),
        Update::from(tunnelled.clone()),
        Update::from(plain.clone()),
    ]);
    let mut tried = Vec::new();
    for _ in 0..3 {
        tried.push(chosen(&mesh, &tried).unwrap());
    }
    // What is about to end is the last resort.
    assert_eq!(tried.last(), Some(&ending.uid));
    tried.sort();
    assert_eq!(tried, [tunnelled.uid, plain.uid, ending.uid]);
    let none = Refusal::NoEndpoint("catalog.shop.svc.cluster.local".into(), 80);
    assert_eq!(chosen(&mesh, &tried), Err(none));
}

#[test]
fn an_address_of_a_range_leads_to_the_service_and_passthrough_to_itself() {
    let range = sluice_model::NetworkRange::new("".into(), "192.0.2.0/24".parse().unwrap());
    let mut ranged = service("10.96.0.1");
    ranged.ranges = vec![range];
    let backend = endpoint_of(workload("c1", "10.0.0.3", TunnelProtocol::Hbone));
    let updates = vec![Update::Service(ranged.clone()), Update::from(backend)];
    assert_eq!(
        hop(route(&mesh(updates), "192.0.2.77:80"))
            .authority
            .to_string(),
        "10.0.0.3:8080"
    );
    ranged.load_balancing.mode = Mode::Passthrough;
    let Route::Plain { to, service, .. } =
        route(&mesh(vec![Update::Service(ranged)]), "192.0.2.77:9999")
    else {
        panic!("not plain")
    };
    assert_eq!(to.to_string(), "192.0.2.77:9999");
    assert_eq!(&*service.unwrap().name, "catalog");
}

#[test]
fn a_host_without_address_is_resolved_and_dialled_in_the_family_that_was_asked_for() {
    let mut host = endpoint_of(workload("db", "10.0.0.3", TunnelProtocol::None));
    host.ips = sluice_model::Ips::default();
    host.profile_mut().hostname = Some("db.example.com".into());
    let updates = vec![
        Update::Service(service("10.96.0.1")),
        Update::from(host.clone()),
    ];
    let Route::Named(named) = route(&mesh(updates), "10.96.0.1:80") else {
        panic!("not by name")
    };
    assert_eq!((&*named.host, named.port), ("db.example.com", 8080));
    let addresses = ["fd00::1", "10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
    let order = |roll| {
        named
            .order(&addresses, roll)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        order(0.0),
        ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"]
    );
    assert_eq!(
        order(0.9),
        ["10.0.0.2:8080", "10.0.0.1:8080", "[fd00::1]:8080"]
    );
    assert!(named.order(&[], 0.5).is_empty());
    // One that should be reached by a tunnel is not reached otherwise.
    host.profile_mut().protocol = TunnelProtocol::Hbone;
    let mesh = mesh(vec![
        Update::Service(service("10.96.0.1")),
        Update::from(host),
    ]);
    let refused = refusal(route(&mesh, "10.96.0.1:80"));
    assert!(matches!(refused, Refusal::NoAddress(..)), "{refused}");
}

#[test]
fn nothing_healthy_is_a_refusal_that_names_the_service() {
    let mut sick = endpoint_of(workload("c1", "10.0.0.3", TunnelProtocol::Hbone));
    sick.health = Health::NotReady;
    let mesh = mesh(vec![
        Update::Service(service("10.96.0.1")),
        Update::from(sick),
    ]);
    let expected = Refusal::NoEndpoint("catalog.shop.svc.cluster.local".into(), 80);
    assert_eq!(refusal(route(&mesh, "10.96.0.1:80")), expected);
    let wrong_port = Refusal::NoEndpoint("catalog.shop.svc.cluster.local".into(), 81);
    assert_eq!(refusal(route(&mesh, "10.96.0.1:81")), wrong_port);
}

#[test]
fn loopback_would_be_ourselves() {
    assert_eq!(
        refusal(route(&mesh(vec![]), "127.0.0.1:15001")),
        Refusal::Recursive
    );
    assert_eq!(
        refusal(route(&mesh(vec![]), "[::1]:15001")),
        Refusal::Recursive
    );
}

#[test]
fn a_service_waypoint_gets_the_vip_and_a_missing_one_refuses() {
    let mut fronted = service("10.96.0.1");
    fronted.waypoint = Some(GatewayAddress {
        destination: GatewayDestination::Address(address("10.0.0.9")),
        hbone_port: 15008,
    });
    let backend = endpoint_of(workload("c1", "10.0.0.3", TunnelProtocol::Hbone));
    let mut updates = vec![Update::Service(fronted), Update::from(backend)];
    let refused = refusal(route(&mesh(updates.clone()), "10.96.0.1:80"));
    assert!(
        matches!(refused, Refusal::UnknownWaypoint(_)),
        "{refused:?}"
    );
    let waypoint = workload("waypoint", "10.0.0.9", TunnelProtocol::None);
    updates.push(Update::from(waypoint.clone()));
    let mesh = mesh(updates);
    let through = hop(route(&mesh, "10.96.0.1:80"));
    assert_eq!(through.tunnel.to_string(), "10.0.0.9:15008");
    assert_eq!(through.authority.to_string(), "10.96.0.1:80");
    // The waypoint itself goes on to the endpoint.
    let network = "".into();
    let client = Client {
        network: &network,
        workload: &waypoint,
    };
    let dst = OrigDst("10.96.0.1:80".parse().unwrap());
    assert_eq!(
        hop(outbound(&mesh, client, dst, &[], 0.0))
            .authority
            .to_string(),
        "10.0.0.3:8080"
    );
}
