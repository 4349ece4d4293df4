use sluice_model::{
    NetworkAddress, Update, Workload,
    authz::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, Term, Values},
    service::{self, GatewayAddress, GatewayDestination, LoadBalancing},
    workload::Health,
};

use super::*;

#[path = "../../../model/tests/shop/mod.rs"]
mod shop;

use shop::{endpoint_of, mesh, service, workload};

const WEB: PodId = PodId(1);
const CATALOG: PodId = PodId(2);
const DIRECT: &str = "10.0.0.2:8080";
const VIP: &str = "10.96.0.1:80";

fn member(id: PodId, name: &str, ips: &[&str]) -> Member {
    Member {
        info: PodInfo {
            id,
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
            netns: u64::from(id.0),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        },
        uid: Uid::pod("Kubernetes", "shop", name),
        identity: format!("spiffe://cluster.local/ns/shop/sa/{name}")
            .parse()
            .unwrap(),
    }
}

fn here() -> Members {
    let mut members = Members::default();
    members.add(member(WEB, "web", &["10.0.0.1"]));
    members.add(member(CATALOG, "catalog", &["10.0.0.2"]));
    members
}

fn catalog() -> Workload {
    endpoint_of(workload("catalog", "10.0.0.2", TunnelProtocol::Hbone))
}

/// A client and a server of this node, a service before it, and what is said beside or instead.
fn shop(more: Vec<Update>) -> Mesh {
    let mut updates = vec![
        Update::Workload(workload("web", "10.0.0.1", TunnelProtocol::Hbone).into()),
        Update::Workload(catalog().into()),
        Update::Service(service("10.96.0.1")),
    ];
    updates.extend(more);
    mesh(updates)
}

fn far() -> Workload {
    endpoint_of(workload("far", "10.0.0.9", TunnelProtocol::Hbone))
}

fn wish(mesh: &Mesh, members: &Members, dialled: &str) -> Vec<Neighbours> {
    let view = View {
        mesh,
        network: &"".into(),
        members,
    };
    let (permission, route) = Standing::default().wish(view, WEB, dialled.parse().unwrap());
    let permission = permission.map(|one| Neighbours::Allow(vec![one]));
    let route = route.map(|one| Neighbours::Route(vec![one]));
    permission.into_iter().chain(route).collect()
}

fn permission() -> Neighbours {
    Neighbours::Allow(vec![Permission {
        client: WEB,
        to: DIRECT.parse().unwrap(),
        server: CATALOG,
    }])
}

fn route() -> Neighbours {
    Neighbours::Route(vec![Route {
        client: WEB,
        dialled: VIP.parse().unwrap(),
        to: DIRECT.parse().unwrap(),
    }])
}

fn deny(values: Values) -> Update {
    let one: Match = [Term::any_of(values)].into();
    Update::Policy(Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: "test".into(),
        },
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: [Rule::from_iter([Clause::from(one)])].into(),
        dry_run: false,
    })
}

#[test]
fn a_pod_and_a_service_before_it_are_reached_straight() {
    let mesh = shop(vec![]);
    assert_eq!(wish(&mesh, &here(), DIRECT), [permission()]);
    assert_eq!(wish(&mesh, &here(), VIP), [permission(), route()]);
}

#[test]
fn what_policy_denies_is_not() {
    let port = |port| shop(vec![deny(Values::DestinationPorts([port].into()))]);
    assert_eq!(wish(&port(8080), &here(), DIRECT), []);
    assert_eq!(wish(&port(80), &here(), DIRECT), [permission()]);
    let source = shop(vec![deny(Values::SourceIps(
        ["10.0.0.1/32".parse().unwrap()].into(),
    ))]);
    assert_eq!(wish(&source, &here(), VIP), []);
}

#[test]
fn who_is_not_surely_meant_is_not() {
    let none = |mesh: &Mesh, members: &Members, dialled: &str| {
        assert_eq!(wish(mesh, members, dialled), [], "{dialled}");
    };
    let mesh = shop(vec![]);
    // The mesh's own ports, a pod of another node, the client itself, a stranger.
    for dialled in [
        "10.0.0.2:15008",
        "10.0.0.9:8080",
        "10.0.0.1:80",
        "192.0.2.1:80",
    ] {
        none(
            &shop(vec![Update::Workload(far().into())]),
            &here(),
            dialled,
        );
    }
    none(&mesh, &Members::default(), DIRECT);
    // The client may come from either of two addresses.
    let mut members = here();
    members.add(member(WEB, "web", &["10.0.0.1", "10.0.0.11"]));
    none(&mesh, &members, DIRECT);
    // The mesh expects somebody else at the address, or a pod without a tunnel.
    let mut members = here();
    members.add(member(CATALOG, "orders", &["10.0.0.2"]));
    none(&mesh, &members, DIRECT);
    let mut impostor = catalog();
    impostor.profile_mut().service_account = "orders".into();
    none(
        &shop(vec![Update::Workload(impostor.into())]),
        &here(),
        DIRECT,
    );
    let plain = endpoint_of(workload("catalog", "10.0.0.2", TunnelProtocol::None));
    none(&shop(vec![Update::Workload(plain.into())]), &here(), DIRECT);
}

#[test]
fn where_there_is_a_choice_the_ztunnel_chooses() {
    let two = |far: Workload, load_balancing| {
        let mut service = service("10.96.0.1");
        service.load_balancing = load_balancing;
        shop(vec![Update::Workload(far.into()), Update::Service(service)])
    };
    let standard = LoadBalancing::default;
    assert_eq!(wish(&two(far(), standard()), &here(), VIP), []);
    let mut unready = far();
    unready.health = Health::NotReady;
    let both = [permission(), route()];
    assert_eq!(wish(&two(unready, standard()), &here(), VIP), both);
    let local = LoadBalancing {
        mode: Mode::Failover,
        preference: vec![service::Scope::Node],
        ..standard()
    };
    let mut elsewhere = far();
    elsewhere.node = "b".into();
    assert_eq!(wish(&two(elsewhere, local), &here(), VIP), both);
    let passthrough = LoadBalancing {
        mode: Mode::Passthrough,
        ..standard()
    };
    assert_eq!(wish(&two(far(), passthrough), &here(), VIP), []);
}

#[test]
fn nothing_goes_around_a_waypoint() {
    let waypoint = || {
        Some(GatewayAddress {
            destination: GatewayDestination::Address(NetworkAddress::new(
                "".into(),
                "10.0.0.50".parse().unwrap(),
            )),
            hbone_port: 15008,
        })
    };
    let mut own = catalog();
    own.profile_mut().waypoint = waypoint();
    let guarded = shop(vec![Update::Workload(own.into())]);
    for dialled in [DIRECT, VIP] {
        assert_eq!(wish(&guarded, &here(), dialled), [], "{dialled}");
    }
    let mut service = service("10.96.0.1");
    service.waypoint = waypoint();
    let guarded = shop(vec![Update::Service(service)]);
    assert_eq!(wish(&guarded, &here(), VIP), []);
}

#[test]
fn a_review_takes_back_what_is_not_allowed_any_more_and_says_why() {
    let (members, network) = (here(), Name::default());
    let view = |mesh| View {
        mesh,
        network: &network,
        members: &members,
    };
    let before = shop(vec![]);
    let mut standing = Standing::default();
    standing.wish(view(&before), WEB, VIP.parse().unwrap());
    assert_eq!(standing.review(view(&before)).0, []);
    // The service moves on: new connections go elsewhere, and those that stand are none of its.
    let moved = shop(vec![Update::Workload(far().into())]);
    let dial = |to: &str| (WEB, to.parse().unwrap());
    let (news, cuts) = standing.review(view(&moved));
    assert_eq!(news, [Neighbours::Unroute(vec![dial(VIP)])]);
    assert!(cuts.is_empty());
    let denied = shop(vec![deny(Values::DestinationPorts([8080].into()))]);
    let (news, cuts) = standing.review(view(&denied));
    assert_eq!(news, [Neighbours::Disallow(vec![dial(DIRECT)])]);
    assert!(matches!(&cuts[..], [(at, Cut::Denied(_))] if *at == dial(DIRECT)));
    assert_eq!(standing.review(view(&denied)).0, []);
}
