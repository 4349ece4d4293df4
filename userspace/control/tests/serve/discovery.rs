//! Delta discovery.

use std::{collections::BTreeMap, time::Duration};

use prost::Message;
use sluice_model::{Mesh, Update, Workload, authz::Connection, workload::TunnelProtocol};
use sluice_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as RpcStatus},
    security, workload,
};
use tonic::Code;

use crate::{
    log::Log,
    world::{SHOP, Setup, World, eventually, pod},
};

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

pub(crate) fn ask(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(crate) fn answer(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..ask(&response.type_url)
    }
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

pub(crate) fn workload(response: &DeltaDiscoveryResponse, name: &str) -> Workload {
    let resource = response.resources.iter().find(|r| r.name == name);
    let any = resource.unwrap().resource.as_ref().unwrap();
    assert_eq!(any.type_url, workload::TYPE_URL);
    let address = workload::Address::decode(any.value.as_slice()).unwrap();
    match Update::try_from(address).unwrap() {
        Update::Workload(workload) => std::sync::Arc::unwrap_or_clone(workload),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn everything_first_and_then_only_changes() {
    let world = World::start().await;
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    let first = stream.next().await;
    assert_eq!(names(&first), ["c//Pod/shop/web"]);
    assert_eq!(
        workload(&first, "c//Pod/shop/web").protocol,
        TunnelProtocol::Hbone
    );
    stream.send(answer(&first)).await;

    world.write("db.yaml", &pod("db", "10.0.0.2"));
    let added = stream.next().await;
    assert_eq!(
        (names(&added), added.removed_resources.len()),
        (vec!["c//Pod/shop/db"], 0)
    );

    world.write("web.yaml", &pod("web", "10.0.0.9"));
    let changed = stream.next().await;
    assert_eq!(names(&changed), ["c//Pod/shop/web"]);
    assert_eq!(
        workload(&changed, "c//Pod/shop/web").ips[0].to_string(),
        "10.0.0.9"
    );

    world.remove("db.yaml");
    let removed = stream.next().await;
    assert_eq!(
        (names(&removed), removed.removed_resources.as_slice()),
        (vec![], ["c//Pod/shop/db".to_owned()].as_slice())
    );

    // A change that changes nothing is not sent.
    world.write("shop.yaml", &format!("# a comment\n{SHOP}"));
    assert!(stream.is_silent().await);
}

#[tokio::test]
async fn labels_change_capture_live() {
    let world = World::start().await;
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    stream.next().await;
    world.write("shop.yaml", &SHOP.replace("ambient", "none"));
    let freed = workload(&stream.next().await, "c//Pod/shop/web");
    assert_eq!(freed.protocol, TunnelProtocol::None);
    world.write("shop.yaml", SHOP);
    let captured = workload(&stream.next().await, "c//Pod/shop/web");
    assert_eq!(captured.protocol, TunnelProtocol::Hbone);
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let world = World::start().await;
    world.write("db.yaml", &pod("db", "10.0.0.2"));
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    let mut versions = BTreeMap::new();
    while versions.len() < 2 {
        for resource in stream.next().await.resources {
            versions.insert(resource.name, resource.version);
        }
    }
    drop(stream);
    world.write("db.yaml", &pod("db", "10.0.0.3"));
    let published = world.published.clone();
    let before = published.borrow().changed;
    eventually("published", || published.borrow().changed != before).await;
    versions.insert("c//Pod/shop/gone".to_owned(), "1".to_owned());
    let mut stream = world.stream().await;
    stream
        .send(DeltaDiscoveryRequest {
            initial_resource_versions: versions.into_iter().collect(),
            ..ask(workload::TYPE_URL)
        })
        .await;
    let delta = stream.next().await;
    assert_eq!(names(&delta), ["c//Pod/shop/db"]);
    assert_eq!(delta.removed_resources, ["c//Pod/shop/gone"]);
}

#[tokio::test]
async fn an_empty_type_is_answered_too() {
    let world = World::start().await;
    world.remove("web.yaml");
    let published = world.published.clone();
    eventually("removed", || published.borrow().resources.len() == 1).await;
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    assert_eq!(names(&stream.next().await), Vec::<&str>::new());
    // A type that nobody serves does not keep a client waiting either.
    stream.send(ask("type.googleapis.com/unknown.Type")).await;
    let unknown = stream.next().await;
    assert_eq!(unknown.type_url, "type.googleapis.com/unknown.Type");
    stream.send(answer(&unknown)).await;
    assert!(stream.is_silent().await);
}

#[tokio::test]
async fn policies_come_before_the_workloads_that_need_them_and_go_after() {
    let world = World::start().await;
    let mut stream = world.stream().await;
    stream.send(ask(security::TYPE_URL)).await;
    let policies = stream.next().await;
    assert_eq!(
        names(&policies),
        ["istio-system/istio_converted_static_strict"]
    );
    stream.send(ask(workload::TYPE_URL)).await;
    stream.next().await;
    let by_port = STRICT.replace(
        "spec: {",
        "spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: PERMISSIVE}}, ",
    );
    world.write("peer.yaml", &by_port);
    let (first, second) = (stream.next().await, stream.next().await);
    assert_eq!(
        names(&first),
        ["shop/converted_peer_authentication_default"]
    );
    assert_eq!(names(&second), ["c//Pod/shop/web"]);
    let listed = &workload(&second, "c//Pod/shop/web").policies;
    assert_eq!(
        listed[0].to_string(),
        "shop/converted_peer_authentication_default"
    );
    world.write("peer.yaml", STRICT);
    let order = [
        stream.next().await,
        stream.next().await,
        stream.next().await,
    ];
    assert_eq!(
        (names(&order[0]), order[0].removed_resources.len()),
        (vec![], 0)
    );
    assert_eq!(names(&order[1]), ["c//Pod/shop/web"]);
    assert_eq!(
        order[2].removed_resources,
        ["shop/converted_peer_authentication_default"]
    );
}

#[tokio::test]
async fn a_rejection_is_kept_and_not_repeated() {
    let world = World::start().await;
    let mut stream = world.stream().await;
    let node = Node {
        id: "ztunnel~10.0.0.1~z.n~n.svc.cluster.local".to_owned(),
        ..Node::default()
    };
    let first_request = DeltaDiscoveryRequest {
        node: Some(node),
        ..ask(workload::TYPE_URL)
    };
    stream.send(first_request).await;
    let first = stream.next().await;
    let progress = || {
        let status = world.clients.statuses().remove(0);
        assert_eq!(status.node, "n1");
        assert!(status.id.starts_with("ztunnel~"));
        status.types[workload::TYPE_URL].clone()
    };
    let sent = progress().sent.unwrap();
    assert_eq!(
        (&sent.version, &sent.nonce),
        (&first.system_version_info, &first.nonce)
    );
    let rejection = RpcStatus {
        message: "c//Pod/shop/web: no".to_owned(),
        ..RpcStatus::default()
    };
    stream
        .send(DeltaDiscoveryRequest {
            error_detail: Some(rejection),
            ..answer(&first)
        })
        .await;
    eventually("rejection noted", || progress().last_rejection.is_some()).await;
    let rejected = progress();
    let rejection = rejected.last_rejection.unwrap();
    assert_eq!(rejection.message, "c//Pod/shop/web: no");
    assert_eq!(rejection.response.nonce, first.nonce);
    assert_eq!(rejection.response.version, first.system_version_info);
    assert!(rejection.response.at >= sent.at);
    assert_eq!(rejected.acknowledged, None);
    assert!(
        stream.is_silent().await,
        "the same again would be rejected again"
    );
    world.write("db.yaml", &pod("db", "10.0.0.2"));
    let second = stream.next().await;
    stream.send(answer(&second)).await;
    eventually("acknowledged", || progress().acknowledged.is_some()).await;
    let acknowledged = progress().acknowledged.unwrap();
    assert_eq!(acknowledged.version, second.system_version_info);
    assert_eq!(acknowledged.nonce, second.nonce);
    assert!(acknowledged.at >= progress().sent.unwrap().at);
    drop(stream);
    eventually("gone", || world.clients.statuses().is_empty()).await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let world = World::start().await;
    let log = Log::begin();
    for (authorization, logged) in [
        (None, "it sent no authorization header"),
        (Some("Bearer"), "holds no bearer token"),
        (Some("Bearer "), "holds no bearer token"),
        (Some("Bearer token-of-n"), "its token is not a join token"),
        (Some("Bearer token-of-n11"), "its token is not a join token"),
        (Some("Bearer n1"), "its token is not a join token"),
        (Some("Basic token-of-n1"), "holds no bearer token"),
        (Some("token-of-n1"), "holds no bearer token"),
        (
            Some("Bearer token-of-old"),
            "its join token, of node n1, expired at 2020-01-01T00:00:00Z",
        ),
    ] {
        let refused = world.try_stream(authorization).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{authorization:?}");
        assert_eq!(refused.message(), "authentication failure");
        assert!(refused.details().is_empty());
        let line = log.refusal(logged);
        assert!(
            line.contains("peer=\"127.0.0.1:") && line.contains(logged),
            "{line}"
        );
    }
    assert!(world.clients.statuses().is_empty());
    world.write_tokens("n1 another\nbroken line here\n");
    let with = |token| Some(token);
    assert!(
        world.try_stream(with("Bearer token-of-n1")).await.is_err(),
        "withdrawn"
    );
    assert!(
        world.try_stream(with("bearer another")).await.is_ok(),
        "given"
    );
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does() {
    let soon = || {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(500);
        format!("n1 token-of-n1 {time}\n")
    };
    let withdrawn = || "n1 another\n".to_owned();
    let elsewhere = || "n2 token-of-n1\n".to_owned();
    let cases: [(&dyn Fn() -> String, &str); 3] = [
        (&withdrawn, "its token is not a join token"),
        (&soon, "its join token, of node n1, expired at"),
        (&elsewhere, "its token is for node n2 now, and was for n1"),
    ];
    for (tokens, logged) in cases {
        let world = World::with(Setup {
            recheck: Duration::from_millis(50),
            ..Setup::default()
        })
        .await;
        let log = Log::begin();
        let mut stream = world.stream().await;
        stream.send(ask(workload::TYPE_URL)).await;
        assert_eq!(names(&stream.next().await), ["c//Pod/shop/web"]);
        assert!(stream.is_silent().await, "it stays while its token counts");
        let mut other = world.try_stream(Some("Bearer token-of-n2")).await.unwrap();
        world.write_tokens(&format!("{}n2 token-of-n2\n", tokens()));
        let end = stream.end().await;
        assert_eq!(end.code(), Code::Unauthenticated, "{logged}");
        assert_eq!(end.message(), "authentication failure");
        let line = log.refusal(logged);
        assert!(line.contains(logged), "{line}");
        other.send(ask(workload::TYPE_URL)).await;
        other.next().await;
        assert!(other.is_silent().await, "another's token still counts");
    }
}

#[tokio::test]
async fn the_server_proves_itself() {
    let world = World::start().await;
    for name in [
        "localhost",
        "sluice-control",
        "istiod.istio-system.svc",
        "127.0.0.1",
    ] {
        assert!(world.channel(name).await.is_ok(), "{name}");
    }
    assert!(world.channel("elsewhere").await.is_err());
}

#[tokio::test]
async fn every_kind_of_resource_is_what_the_contract_says() {
    let world = World::start().await;
    let service = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: \
                   {clusterIP: 10.96.0.1, selector: {app: web}, trafficDistribution: PreferClose, \
                   ports: [{port: 80, targetPort: http}]}}";
    let policy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
                  metadata: {name: p, namespace: shop}, spec: {action: DENY, rules: [{from: \
                  [{source: {notPrincipals: ['*'], ipBlocks: [10.0.0.0/8, 'fd00::/8']}}]}]}}";
    let named = pod("web", "10.0.0.1").replace(
        "containers: []",
        "containers: [{name: m, ports: [{name: http, containerPort: 8080}]}]",
    );
    world.write(
        "web.yaml",
        &format!("{named}---\n{service}\n---\n{policy}\n"),
    );
    let published = world.published.clone();
    eventually("published", || published.borrow().resources.len() == 4).await;
    let mut edit = Mesh::default().edit();
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    for resource in stream.next().await.resources {
        let any = resource.resource.unwrap();
        let address = workload::Address::decode(any.value.as_slice()).unwrap();
        edit.apply(address.try_into().unwrap());
    }
    stream.send(ask(security::TYPE_URL)).await;
    for resource in stream.next().await.resources {
        let any = resource.resource.unwrap();
        let policy = security::Authorization::decode(any.value.as_slice()).unwrap();
        edit.apply(Update::Policy(policy.try_into().unwrap()));
    }
    let mesh = edit.finish();
    assert_eq!(
        (
            mesh.workload_count(),
            mesh.services().len(),
            mesh.policies().len()
        ),
        (1, 1, 2)
    );
    let service = mesh.services().next().unwrap();
    let [endpoint] = &mesh.endpoints(service, 80)[..] else {
        panic!("not one endpoint")
    };
    assert_eq!(
        (endpoint.workload.ips[0].to_string(), endpoint.port),
        ("10.0.0.1".to_owned(), 8080)
    );
    let stranger = |ip: &str| Connection {
        source_identity: None,
        source_ip: ip.parse().unwrap(),
        destination: "10.0.0.1:8080".parse().unwrap(),
        equivalent: &[],
    };
    let policies = mesh.policies_of(&endpoint.workload.uid).unwrap();
    let allowed = |ip| policies.judge(&stranger(ip)).decision.is_allowed();
    assert!(!allowed("fd00::7"));
    assert!(allowed("192.0.2.1"));
}
