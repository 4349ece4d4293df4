//! What is said of connections of each kind: a mesh, a question, and the answer.

use std::collections::BTreeSet;

use sluice_explain::{Explanation, Here, Mode, Outcome, World, explain};
use sluice_model::{
    Mesh, Name, TrustDomain, Uid, Update, Workload,
    authz::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch, Term, Values},
    service::{GatewayAddress, GatewayDestination},
    workload::{Egress, Health, TunnelProtocol},
};

#[path = "../../model/tests/shop/mod.rs"]
mod shop;

use shop::{address, endpoint_of, mesh, service, workload};

const WEB: &str = "shop/web";
const CATALOG: &str = "pod/shop/catalog:8080";
const SERVICE: &str = "catalog.shop:80";

fn pod(name: &str, ip: &str) -> Workload {
    workload(name, ip, TunnelProtocol::Hbone)
}

/// A client, a service with one endpoint, a pod beside the mesh, and what is said more.
fn shop(more: Vec<Update>) -> Mesh {
    let mut updates = vec![
        Update::from(pod("web", "10.0.0.1")),
        Update::from(endpoint_of(pod("catalog", "10.0.0.2"))),
        Update::Service(service("10.96.0.1")),
        Update::from(workload("old", "10.0.0.9", TunnelProtocol::None)),
    ];
    updates.extend(more);
    mesh(updates)
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        scope: Scope::Namespace,
        action,
        rules: rules.into(),
        dry_run: false,
    }
}

fn rule(terms: impl IntoIterator<Item = Term>) -> Rule {
    [Clause::from(terms.into_iter().collect::<Match>())]
        .into_iter()
        .collect()
}

fn principal(name: &str) -> Term {
    let id: Name = format!("cluster.local/ns/shop/sa/{name}").into();
    Term::any_of(Values::Principals([StringMatch::Exact(id)].into()))
}

fn port(port: u16) -> Term {
    Term::any_of(Values::DestinationPorts([port].into()))
}

fn from_address(net: &str) -> Term {
    Term::any_of(Values::SourceIps([net.parse().unwrap()].into()))
}

/// As the control plane makes it of a PeerAuthentication that is STRICT on one port.
fn strict_on(port_number: u16) -> Policy {
    let nobody = Term::none_of(Values::Principals([StringMatch::Presence].into()));
    let mut policy = policy(
        "converted_peer_authentication_pa",
        Action::Deny,
        vec![rule([nobody, port(port_number)])],
    );
    policy.scope = Scope::Workload;
    policy
}

fn network() -> Name {
    "".into()
}

fn world<'a>(mesh: &'a Mesh, network: &'a Name) -> World<'a> {
    World {
        mesh,
        cluster: "Kubernetes",
        network,
        cluster_domain: "cluster.local",
        bypass: true,
        whole: true,
        here: None,
    }
}

fn ask(mesh: &Mesh, source: &str, destination: &str) -> Explanation {
    let network = network();
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    explain(world(mesh, &network), &source, &destination)
}

#[track_caller]
fn assert_says(mesh: &Mesh, (source, destination): (&str, &str), outcome: Outcome, words: &str) {
    let said = ask(mesh, source, destination);
    assert_eq!(said.outcome, outcome, "{said:#?}");
    assert!(said.reason.contains(words), "{words:?} not in {said:#?}");
}

#[test]
fn each_kind_of_connection_is_allowed_or_denied_for_its_reason() {
    use Outcome::{Allowed, Denied, Unknown};
    let none = shop(vec![]);
    let allow_web = policy(
        "allow",
        Action::Allow,
        vec![rule([principal("web"), port(8080)])],
    );
    let allow = shop(vec![Update::Policy(allow_web.clone())]);
    let deny_web = policy(
        "deny",
        Action::Deny,
        vec![rule([principal("x")]), rule([principal("web")])],
    );
    let deny = shop(vec![Update::Policy(allow_web), Update::Policy(deny_web)]);
    for (mesh, question, outcome, words) in [
        (&none, (WEB, CATALOG), Allowed, "no allow policy applies"),
        (&none, (WEB, SERVICE), Allowed, "no allow policy applies"),
        (
            &none,
            (WEB, "shop/catalog:80"),
            Allowed,
            "no allow policy applies",
        ),
        (
            &none,
            (WEB, "service/shop/catalog:80"),
            Allowed,
            "no allow policy",
        ),
        (
            &none,
            (WEB, "10.96.0.1:80"),
            Allowed,
            "no allow policy applies",
        ),
        (
            &none,
            ("outside", "10.0.0.2:8080"),
            Allowed,
            "no allow policy applies",
        ),
        (
            &none,
            (WEB, "10.96.0.1:81"),
            Denied,
            "no healthy endpoint for port 81",
        ),
        (&none, (WEB, "10.0.0.9:80"), Allowed, "not part of the mesh"),
        (
            &none,
            (WEB, "192.0.2.1:443"),
            Allowed,
            "does not know the destination",
        ),
        (&none, (WEB, "shop/web:80"), Allowed, "the pod itself"),
        (
            &none,
            (WEB, "pod/shop/catalog:15006"),
            Denied,
            "port 15006 is the proxy's own",
        ),
        (
            &none,
            ("shop/nobody", CATALOG),
            Unknown,
            "of namespace shop, catalog, old, web are",
        ),
        (
            &none,
            (WEB, "shop/nobody:80"),
            Unknown,
            "no service or pod shop/nobody",
        ),
        (
            &none,
            (WEB, "db.example.com:80"),
            Unknown,
            "knows no address of db.example.com",
        ),
        (
            &allow,
            (WEB, SERVICE),
            Allowed,
            "allowed by policy shop/allow, rule 0",
        ),
        (
            &allow,
            (WEB, "pod/shop/catalog:9090"),
            Denied,
            "none allowed this connection",
        ),
        (
            &allow,
            ("shop/old", "pod/shop/catalog:8080"),
            Denied,
            "none allowed this",
        ),
        (
            &allow,
            ("outside", "10.0.0.2:8080"),
            Denied,
            "none allowed this connection",
        ),
        (
            &deny,
            (WEB, SERVICE),
            Denied,
            "denied by policy shop/deny, rule 1",
        ),
    ] {
        assert_says(mesh, question, outcome, words);
    }
}

#[test]
fn a_rule_that_does_not_match_says_what_it_wants() {
    let only = |terms: Vec<Term>| {
        shop(vec![Update::Policy(policy(
            "p",
            Action::Allow,
            vec![rule(terms)],
        ))])
    };
    for (terms, source, misses) in [
        (
            vec![principal("batch"), port(9090)],
            WEB,
            "wants principal cluster.local/ns/shop/sa/batch: it is cluster.local/ns/shop/sa/web, \
             and wants port 9090: it is 8080",
        ),
        (
            vec![principal("web")],
            "10.0.0.9",
            "wants principal cluster.local/ns/shop/sa/web: the source has proven no identity",
        ),
        (
            vec![from_address("10.0.0.9/32")],
            WEB,
            "wants source address 10.0.0.9/32: it is 10.0.0.1",
        ),
        (
            vec![],
            WEB,
            "it asks for what cannot be known at L4, and so never matches",
        ),
    ] {
        let said = ask(&only(terms), source, "pod/shop/catalog:8080");
        assert_eq!(said.outcome, Outcome::Denied);
        let view = &said.ends[0].policies[0];
        assert_eq!((view.policy.as_str(), view.decides), ("shop/p", false));
        assert_eq!(
            (view.rules[0].matches, &*view.rules[0].misses),
            (false, &[misses.to_owned()][..])
        );
    }
    let said = ask(&only(vec![principal("web")]), WEB, CATALOG);
    let view = &said.ends[0].policies[0];
    assert!(view.decides && view.rules[0].matches && view.rules[0].misses.is_empty());
}

#[test]
fn mutual_tls_is_told_by_port_and_who_demands_it() {
    let mut catalog = endpoint_of(pod("catalog", "10.0.0.2"));
    let strict = strict_on(8080);
    catalog.profile_mut().policies = vec![strict.key.clone()];
    let mesh = shop(vec![Update::Policy(strict), Update::from(catalog)]);
    let mtls = |question: (&str, &str)| {
        let said = ask(&mesh, question.0, question.1);
        (said.outcome, said.ends[0].mtls.clone().unwrap())
    };
    let (outcome, strict) = mtls(("outside", "10.0.0.2:8080"));
    assert_eq!((outcome, strict.mode), (Outcome::Denied, Mode::Strict));
    assert_eq!(strict.from, "PeerAuthentication shop/pa");
    let (outcome, strict) = mtls((WEB, SERVICE));
    assert_eq!(
        (outcome, strict.mode, strict.port),
        (Outcome::Allowed, Mode::Strict, 8080)
    );
    let (outcome, permissive) = mtls(("outside", "10.0.0.2:9090"));
    assert_eq!(
        (outcome, permissive.mode),
        (Outcome::Allowed, Mode::Permissive)
    );
    assert_eq!(
        permissive.from,
        "PeerAuthentication shop/pa, which exempts this port"
    );
}

#[test]
fn every_endpoint_that_may_be_chosen_is_looked_at() {
    let mut heavy = endpoint_of(pod("heavy", "10.0.0.3"));
    heavy.profile_mut().capacity = 40;
    let mut sick = endpoint_of(pod("sick", "10.0.0.4"));
    sick.health = Health::NotReady;
    let mut foreign = endpoint_of(pod("foreign", "10.0.0.5"));
    foreign.profile_mut().trust_domain = "elsewhere".parse::<TrustDomain>().unwrap();
    let mesh = shop(vec![
        Update::from(heavy),
        Update::from(sick),
        Update::from(foreign),
    ]);
    let said = ask(&mesh, WEB, SERVICE);
    let mut ends: Vec<_> = said
        .ends
        .iter()
        .map(|end| (end.workload.as_str(), end.outcome))
        .collect();
    ends.sort_by_key(|(name, _)| *name);
    let expected = [
        ("shop/catalog", Outcome::Allowed),
        ("shop/foreign", Outcome::Denied),
        ("shop/heavy", Outcome::Allowed),
    ];
    assert_eq!(ends, expected);
    assert_eq!(said.outcome, Outcome::Denied);
    assert_eq!(
        said.reason,
        "at 1 of 3 endpoints, shop/foreign among them: identities of the trust domain \
         cluster.local are not accepted; is it to be an alias of the mesh's own?"
    );
    // Whoever is not captured meets what kube-proxy chooses, in plaintext.
    let said = ask(&mesh, "shop/old", SERVICE);
    assert_eq!((said.ends.len(), said.outcome), (3, Outcome::Allowed));
}

/// However many they are: one that refuses hides in no crowd.
#[test]
fn every_one_of_many_endpoints_is_looked_at() {
    let many = (0..2_000).map(|number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        let mut one = endpoint_of(pod(
            &format!("many-{number}"),
            &format!("10.1.{high}.{low}"),
        ));
        if number == 1_234 {
            one.profile_mut().trust_domain = "elsewhere".parse::<TrustDomain>().unwrap();
        }
        Update::from(one)
    });
    let mesh = shop(many.collect());
    let said = ask(&mesh, WEB, SERVICE);
    assert_eq!(said.ends.len(), 2_001);
    assert_eq!(said.outcome, Outcome::Denied);
    let reason = "at 1 of 2001 endpoints, shop/many-1234 among them";
    assert!(said.reason.starts_with(reason), "{}", said.reason);
    // Nor from one for whom the mesh does not choose.
    let said = ask(&mesh, "shop/old", SERVICE);
    assert_eq!(said.ends.len(), 2_001);
}

#[test]
fn whoever_is_no_pod_of_this_cluster_is_found_by_name_as_well() {
    let mut machine = pod("vm", "10.0.0.7");
    machine.uid = Uid("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm".into());
    let mut far = pod("far", "10.0.0.8");
    far.uid = Uid::pod("elsewhere", "shop", "far");
    let mesh = shop(vec![Update::from(machine), Update::from(far)]);
    for name in ["vm", "far"] {
        let said = ask(&mesh, WEB, &format!("pod/shop/{name}:80"));
        assert_eq!(said.ends[0].workload, format!("shop/{name}"), "{said:#?}");
    }
}

#[test]
fn an_address_that_nobody_named_is_not_guessed() {
    let mesh = shop(vec![Update::Policy(policy(
        "by-address",
        Action::Deny,
        vec![rule([from_address("192.0.2.0/24")])],
    ))]);
    let words = "policy shop/by-address asks for the address";
    assert_says(&mesh, ("outside", "10.0.0.2:8080"), Outcome::Unknown, words);
    let denied = "denied by policy shop/by-address, rule 0";
    assert_says(
        &mesh,
        ("192.0.2.7", "10.0.0.2:8080"),
        Outcome::Denied,
        denied,
    );
    assert_says(
        &mesh,
        ("198.51.100.7", "10.0.0.2:8080"),
        Outcome::Allowed,
        "no allow policy",
    );
}

#[test]
fn egress_is_refused_where_connect_refuses_it() {
    let mut web = pod("web", "10.0.0.1");
    web.profile_mut().egress = Egress::Registry;
    let mesh = shop(vec![Update::from(web)]);
    assert_says(
        &mesh,
        (WEB, "192.0.2.1:443"),
        Outcome::Denied,
        "REGISTRY_ONLY",
    );
    assert_says(
        &mesh,
        (WEB, "10.0.0.9:80"),
        Outcome::Allowed,
        "not part of the mesh",
    );
}

#[test]
fn what_a_waypoint_decides_is_not_known_here() {
    let mut fronted = service("10.96.0.1");
    fronted.waypoint = Some(GatewayAddress {
        destination: GatewayDestination::Address(address("10.0.0.7")),
        hbone_port: 15008,
    });
    let mut updates = vec![Update::Service(fronted)];
    let absent = shop(updates.clone());
    assert_says(&absent, (WEB, SERVICE), Outcome::Denied, "unknown waypoint");
    updates.push(Update::from(pod("waypoint", "10.0.0.7")));
    assert_says(
        &shop(updates),
        (WEB, SERVICE),
        Outcome::Unknown,
        "a waypoint",
    );
}

#[test]
fn a_pod_that_its_node_has_not_enrolled_is_told() {
    let mesh = shop(vec![]);
    let network = network();
    let ask = |enrolled: &[&str]| {
        let enrolled: BTreeSet<Uid> = enrolled
            .iter()
            .map(|name| Uid::pod("Kubernetes", "shop", name))
            .collect();
        let world = World {
            here: Some(Here {
                node: "a",
                enrolled: &enrolled,
            }),
            ..world(&mesh, &network)
        };
        explain(world, &WEB.parse().unwrap(), &SERVICE.parse().unwrap())
    };
    assert_eq!(ask(&["web", "catalog"]).outcome, Outcome::Allowed);
    let lost = ask(&["web"]);
    assert_eq!(lost.outcome, Outcome::Denied);
    assert!(lost.reason.contains("has not been enrolled"), "{lost:#?}");
    let plain = ask(&["catalog"]);
    let capture = plain
        .steps
        .iter()
        .find(|step| step.says.starts_with("not captured"));
    assert!(capture.is_some(), "{plain:#?}");
}

#[test]
fn what_is_learnt_on_demand_is_not_taken_for_absent() {
    let mesh = shop(vec![]);
    let network = network();
    let world = World {
        whole: false,
        ..world(&mesh, &network)
    };
    let said = explain(
        world,
        &WEB.parse().unwrap(),
        &"192.0.2.1:80".parse().unwrap(),
    );
    assert_eq!(said.outcome, Outcome::Unknown);
    assert!(said.reason.contains("on demand"), "{said:#?}");
}

#[test]
fn an_explanation_is_read_back_as_it_was_written() {
    let said = ask(&shop(vec![Update::Policy(strict_on(1))]), WEB, SERVICE);
    let text = serde_json::to_string(&said).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), said);
}
