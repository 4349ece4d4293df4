//! Defaults of the contract, and the errors that an operator of a control plane reads.

use prost::Message as _;
use sluice_model::{
    Service, Update, Workload,
    authz::{Policy, StringMatch, Term, Values},
    workload::{Health, TunnelProtocol},
};
use sluice_proto::{
    convert::names,
    security::{self, string_match::MatchType},
    workload as wire,
};

fn pod() -> wire::Workload {
    wire::Workload {
        uid: "cluster//Pod/shop/web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    }
}

fn catalog() -> wire::Service {
    wire::Service {
        name: "catalog".into(),
        namespace: "shop".into(),
        hostname: "catalog.shop.svc".into(),
        ..Default::default()
    }
}

fn policy(a_match: security::Match) -> security::Authorization {
    security::Authorization {
        name: "allow-web".into(),
        namespace: "shop".into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause {
                matches: vec![a_match],
            }],
        }],
        ..Default::default()
    }
}

fn workload_error(change: impl FnOnce(&mut wire::Workload)) -> String {
    let mut workload = pod();
    change(&mut workload);
    Workload::try_from(workload).unwrap_err().to_string()
}

fn service_error(change: impl FnOnce(&mut wire::Service)) -> String {
    let mut service = catalog();
    change(&mut service);
    Service::try_from(service).unwrap_err().to_string()
}

fn port(service_port: u32, target_port: u32) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
        app_protocol: 0,
    }
}

#[test]
fn absent_fields_have_the_contracts_defaults() {
    let workload = Workload::try_from(pod()).unwrap();
    assert_eq!(
        workload.identity().unwrap().to_string(),
        "spiffe://cluster.local/ns/shop/sa/default"
    );
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.health, Health::Ready);
    assert_eq!(workload.protocol, TunnelProtocol::None);
}

/// Written by hand from the contract's field numbers, so that a slip in a `.proto` file shows.
#[test]
fn field_numbers_are_the_contracts() {
    let workload = [
        &b"\xa2\x01\x01u"[..],       // uid = 20
        b"\x1a\x04\x0a\x00\x00\x01", // addresses = 3
        b"\x28\x01",                 // tunnel_protocol = 5, HBONE
        b"\x88\x01\x01",             // status = 17, UNHEALTHY
        b"\x82\x01\x03a/b",          // authorization_policies = 16
        b"\xda\x01\x02\x08\x07",     // capacity = 27, of 7
    ]
    .concat();
    // Address.workload = 1
    let bytes = [&[0x0a, u8::try_from(workload.len()).unwrap()], &*workload].concat();
    let Ok(Update::Workload(workload)) = wire::Address::decode(&*bytes).unwrap().try_into() else {
        panic!("not a workload");
    };
    assert_eq!(&*workload.uid.0, "u");
    assert_eq!(
        *workload.ips,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(workload.protocol, TunnelProtocol::Hbone);
    assert_eq!(workload.policies[0].to_string(), "a/b");
    assert_eq!(workload.health, Health::NotReady);
    assert_eq!(workload.capacity, 7);
}

#[test]
fn mapped_addresses_become_ipv4() {
    let mapped = |ip: &str| {
        let ip: std::net::Ipv6Addr = ip.parse().unwrap();
        ip.octets().to_vec()
    };
    let mut workload = pod();
    workload.addresses = vec![mapped("::ffff:10.1.2.3")];
    let workload = Workload::try_from(workload).unwrap();
    assert_eq!(workload.ips[0].to_string(), "10.1.2.3");

    let range = |ip, length| security::Address {
        address: mapped(ip),
        length,
    };
    let policy = Policy::try_from(policy(security::Match {
        source_ips: vec![range("::ffff:10.1.0.0", 112), range("::", 0)],
        ..Default::default()
    }))
    .unwrap();
    let ranges = ["10.1.0.0/16", "::/0"].map(|range| range.parse().unwrap());
    assert_eq!(
        policy.rules[0].clauses[0].matches[0].terms(),
        [Term::any_of(Values::SourceIps(ranges.into()))]
    );
}

#[test]
fn workload_errors_name_the_field() {
    for (change, expected) in [
        (
            (|w| w.addresses = vec![vec![1, 2, 3, 4, 5]]) as fn(&mut wire::Workload),
            "workload cluster//Pod/shop/web: addresses[0]: 5 bytes is not an IP address",
        ),
        (|w| w.uid.clear(), "workload : uid: missing"),
        (
            |w| w.tunnel_protocol = 2,
            "workload cluster//Pod/shop/web: tunnel_protocol: LEGACY_ISTIO_MTLS is not supported",
        ),
        (
            |w| w.tunnel_protocol = 9,
            "workload cluster//Pod/shop/web: tunnel_protocol: 9 is not a value of the contract",
        ),
        (
            |w| w.authorization_policies = vec!["shop/a".into(), "b".into()],
            "workload cluster//Pod/shop/web: authorization_policies[1]: \"b\" is not NAMESPACE/NAME",
        ),
        (
            |w| {
                let ports = vec![port(80, 8080), port(70_000, 1)];
                w.services = [("shop/c".to_owned(), wire::PortList { ports })].into();
            },
            "workload cluster//Pod/shop/web: services[\"shop/c\"].ports[1].service_port: \
             70000 is not a port (1 to 65535)",
        ),
        (
            |w| w.waypoint = Some(wire::GatewayAddress::default()),
            "workload cluster//Pod/shop/web: waypoint.destination: missing",
        ),
    ] {
        assert_eq!(workload_error(change), expected);
    }
    let trust_domain = workload_error(|w| w.trust_domain = "a/b".into());
    assert!(
        trust_domain.contains("trust_domain: \"a/b\""),
        "{trust_domain}"
    );
}

#[test]
fn service_errors_name_the_field() {
    let address = |address: &[u8], length| wire::NetworkAddress {
        network: String::new(),
        address: address.to_vec(),
        length,
    };
    assert_eq!(
        service_error(|s| s.ports = vec![port(80, 0), port(0, 80)]),
        "service shop/catalog.shop.svc: ports[1].service_port: 0 is not a port (1 to 65535)"
    );
    assert_eq!(
        service_error(|s| s.addresses = vec![address(&[10, 0, 0, 0], Some(33))]),
        "service shop/catalog.shop.svc: addresses[0]: /33 is longer than the address 10.0.0.0"
    );
    assert_eq!(
        workload_error(|w| {
            let destination =
                wire::gateway_address::Destination::Address(address(&[10; 4], Some(8)));
            w.waypoint = Some(wire::GatewayAddress {
                destination: Some(destination),
                hbone_mtls_port: 15008,
            });
        }),
        "workload cluster//Pod/shop/web: waypoint.address: the range 10.0.0.0/8 cannot be used \
         here, only a single address"
    );
}

#[test]
fn an_address_with_a_prefix_is_a_range() {
    let address = |ip: &str, length| wire::NetworkAddress {
        network: String::new(),
        address: match ip.parse().unwrap() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        },
        length: Some(length),
    };
    let mut service = catalog();
    service.addresses = vec![
        address("10.0.0.1", 32),
        address("10.0.1.7", 24),
        address("fd00::1", 128),
        address("fd00:1::1", 32),
        address("::ffff:10.1.2.3", 112),
        address("::ffff:10.1.2.3", 128),
        address("0.0.0.0", 0),
    ];
    let service = Service::try_from(service).unwrap();
    let vips: Vec<_> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["/10.0.0.1", "/fd00::1", "/10.1.2.3"]);
    let ranges: Vec<_> = service.ranges.iter().map(ToString::to_string).collect();
    assert_eq!(
        ranges,
        ["/10.0.1.0/24", "/fd00:1::/32", "/10.1.0.0/16", "/0.0.0.0/0"]
    );
}

#[test]
fn an_unknown_matcher_fails_its_policy() {
    let strings = vec![
        security::StringMatch {
            match_type: Some(MatchType::Presence(())),
        },
        security::StringMatch { match_type: None },
    ];
    let broken = policy(security::Match {
        not_principals: strings.clone(),
        ..Default::default()
    });
    assert_eq!(
        Policy::try_from(broken).unwrap_err().to_string(),
        "policy shop/allow-web: rules[0].clauses[0].matches[0].not_principals[1]: missing"
    );
    let good = policy(security::Match {
        principals: strings[..1].to_vec(),
        ..Default::default()
    });
    let good = Policy::try_from(good).unwrap();
    assert_eq!(
        good.rules[0].clauses[0].matches[0].terms(),
        [Term::any_of(Values::Principals(
            [StringMatch::Presence].into()
        ))]
    );
}

#[test]
fn resource_names_tell_services_from_pods() {
    let service = names::parse_service("shop/catalog.shop.svc").unwrap();
    assert_eq!(service.to_string(), "shop/catalog.shop.svc");
    for other in ["cluster//Pod/shop/web", "uuid", "/x", "shop/", "a/b/c"] {
        assert_eq!(names::parse_service(other), None, "{other}");
    }
}
