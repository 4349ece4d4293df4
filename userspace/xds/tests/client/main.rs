//! The client against a control plane that behaves, and one that does not.

mod addresses;
mod misbehaving;
mod on_demand;
mod server;
mod snapshot;
mod socket;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use server::{ControlPlane, Session, deny_all, pod, service};
use sluice_identity::{Addresses, ControlPlane as Reach, Direct, Live};
use sluice_model::{
    Mesh, ServiceKey, Uid,
    authz::{Action, PolicyKey, Scope},
};
use sluice_proto::{discovery::Resource, security, workload};
use sluice_xds::{Client, Config, Node, View};
use tokio::time::timeout;
use tonic::Status;

fn start(server: &ControlPlane) -> View {
    start_at(server.address())
}

fn start_at(address: String) -> View {
    run(client(address))
}

fn run(client: Client) -> View {
    let view = client.view();
    tokio::spawn(client.run());
    view
}

fn client(addresses: impl Into<Addresses>) -> Client {
    Client::new(config(addresses))
}

fn config(addresses: impl Into<Addresses>) -> Config {
    Config {
        control_plane: Reach {
            addresses: addresses.into(),
            dial: Arc::new(Direct),
            server_name: None,
            roots: Live::default(),
            token: Live::default(),
            cluster: "east".to_owned(),
        },
        node: Node {
            ip: [10, 0, 0, 9].into(),
            name: "ztunnel-1".to_owned(),
            namespace: "sluice-system".to_owned(),
            node_name: "node-a".to_owned(),
            cluster: "east".to_owned(),
            metadata: BTreeMap::new(),
        },
        // Short, and yet longer than a busy machine keeps an answer waiting.
        patience: Duration::from_secs(1),
        on_demand: None,
    }
}

/// Fails a test in place of letting it hang.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

fn has_pod(mesh: &Mesh, name: &str) -> bool {
    mesh.workload(&Uid::pod("c", "shop", name)).is_some()
}

fn node_of(mesh: &Mesh, name: &str) -> String {
    let workload = mesh.workload(&Uid::pod("c", "shop", name)).unwrap();
    workload.node.to_string()
}

/// Connects a client that knows the pods `a` and `b`, a service and a policy.
async fn synced() -> (ControlPlane, Session, View) {
    let mut server = ControlPlane::start().await;
    let view = start(&server);
    let mut session = server.session().await;
    let address = session.request().await;
    let policies = session.request().await;
    assert_eq!(address.type_url, workload::TYPE_URL);
    assert_eq!(policies.type_url, security::TYPE_URL);
    assert!(address.resource_names_subscribe.is_empty());
    assert!(address.initial_resource_versions.is_empty());
    let node = address.node.unwrap();
    assert_eq!(
        node.id,
        "ztunnel~10.0.0.9~ztunnel-1.sluice-system~sluice-system.svc.cluster.local"
    );
    assert!(node.metadata.unwrap().fields.contains_key("NODE_NAME"));

    session
        .send(
            "1",
            [pod("a", "n1", "v1"), pod("b", "n1", "v1"), service("v1")],
            &[],
        )
        .await;
    let ack = session.request().await;
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("1", None));
    assert!(!view.is_synced(), "without policies the mesh is not whole");
    session.send_policies("2", [deny_all("v1")], &[]).await;
    session.request().await;
    soon("sync", view.synced()).await;
    (server, session, view)
}

#[tokio::test]
async fn the_first_answers_make_the_mesh() {
    let (_server, session, view) = synced().await;
    assert_eq!(session.cluster.as_deref(), Some("east"));
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && has_pod(&mesh, "b"));
    let service = ServiceKey {
        namespace: "shop".into(),
        hostname: "catalog.shop.svc".into(),
    };
    assert!(mesh.service(&service).is_some());
    assert_eq!(mesh.policies().len(), 1);
    assert!(view.status().connected);
}

#[tokio::test]
async fn updates_and_removals_are_applied_at_once() {
    let (_server, mut session, view) = synced().await;
    let before = view.snapshot();
    let version = view.status().version;
    session
        .send(
            "3",
            [pod("a", "n2", "v2"), pod("c", "n1", "v1")],
            &[
                "c//Pod/shop/b",
                "shop/catalog.shop.svc",
                "c//Pod/shop/never",
                "net/10.0.0.1",
            ],
        )
        .await;
    assert_eq!(session.request().await.error_detail, None);
    let mesh = view.snapshot();
    assert_eq!(node_of(&mesh, "a"), "n2");
    assert!(has_pod(&mesh, "c") && !has_pod(&mesh, "b"));
    assert_eq!(mesh.services().len(), 0);
    assert_eq!(
        view.status().version,
        version + 1,
        "one response, one change"
    );
    assert_eq!(soon("change", view.changed(version)).await, version + 1);
    assert!(has_pod(&before, "b"), "who holds a snapshot keeps it");

    session.send_policies("4", [], &["shop/deny-all"]).await;
    session.request().await;
    assert_eq!(view.load().policies().len(), 0);
}

#[tokio::test]
async fn what_is_removed_and_made_anew_stays() {
    let (_server, mut session, view) = synced().await;
    let name = "c//Pod/shop/a";
    session.send("3", [pod("a", "n7", "v2")], &[name]).await;
    session.request().await;
    assert_eq!(node_of(&view.load(), "a"), "n7");

    // In two responses, with another pod that takes the address over in between.
    session.send("4", [], &[name]).await;
    session.request().await;
    assert!(!has_pod(&view.load(), "a"));
    session.send("5", [pod("a", "n8", "v3")], &[]).await;
    session.request().await;
    assert_eq!(node_of(&view.load(), "a"), "n8");
}

#[tokio::test]
async fn a_bad_resource_is_refused_and_its_last_good_state_stays() {
    let (_server, mut session, view) = synced().await;
    let mut garbage = pod("b", "n2", "v2");
    garbage.resource.as_mut().unwrap().value = vec![0xff; 3];
    let mut legacy = pod("a", "n2", "v2");
    server::edit(&mut legacy, |workload| workload.tunnel_protocol = 2);
    let mut renamed = pod("d", "n2", "v1");
    renamed.name = "c//Pod/shop/e".to_owned();
    let mut empty = pod("f", "n2", "v1");
    empty.resource = None;
    let mut foreign = pod("g", "n2", "v1");
    foreign.resource.as_mut().unwrap().type_url = security::TYPE_URL.to_owned();
    let good = pod("c", "n2", "v1");
    session
        .send("3", [legacy, garbage, renamed, empty, foreign, good], &[])
        .await;

    let nack = session.request().await;
    assert_eq!(nack.response_nonce, "3");
    let detail = nack.error_detail.unwrap();
    assert_eq!(detail.code, 0);
    let reasons: Vec<&str> = detail.message.split("; ").collect();
    assert_eq!(
        reasons[0],
        "c//Pod/shop/a: workload c//Pod/shop/a: tunnel_protocol: LEGACY_ISTIO_MTLS is not \
         supported"
    );
    assert!(reasons[1].starts_with("c//Pod/shop/b: "), "{}", reasons[1]);
    assert_eq!(
        reasons[2],
        "c//Pod/shop/e: it holds c//Pod/shop/d, which is another name"
    );
    assert_eq!(reasons[3], "c//Pod/shop/f: it has no content");
    assert_eq!(
        reasons[4],
        format!(
            "c//Pod/shop/g: {} is not the type asked for",
            security::TYPE_URL
        )
    );
    assert_eq!(reasons.len(), 5);

    let mesh = view.snapshot();
    assert_eq!(node_of(&mesh, "a"), "n1");
    assert_eq!(node_of(&mesh, "b"), "n1");
    assert_eq!(node_of(&mesh, "c"), "n2");
    assert!(!has_pod(&mesh, "d") && !has_pod(&mesh, "e") && !has_pod(&mesh, "g"));
}

#[tokio::test]
async fn a_bad_first_answer_does_not_keep_the_rest_waiting() {
    let mut server = ControlPlane::start().await;
    let view = start(&server);
    let mut session = server.session().await;
    let mut bad = deny_all("v1");
    bad.resource.as_mut().unwrap().value = vec![0xff];
    session.send_policies("1", [bad], &[]).await;
    session.send("2", [pod("a", "n1", "v1")], &[]).await;
    soon("sync", view.synced()).await;
    assert!(has_pod(&view.load(), "a"));
}

fn policy_key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "shop".into(),
        name: name.into(),
    }
}

/// A policy with an action that no contract knows.
fn incomprehensible(name: &str, scope: security::Scope, version: &str) -> Resource {
    server::policy(
        version,
        security::Authorization {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            scope: scope.into(),
            action: 77,
            ..Default::default()
        },
    )
}

#[tokio::test]
async fn at_first_another_stands_in_for_a_policy_that_is_not_understood() {
    use security::Scope::{Global, Namespace, WorkloadSelector};
    let mut server = ControlPlane::start().await;
    let view = start(&server);
    let mut session = server.session().await;
    let (_, _) = (session.request().await, session.request().await);
    let mut garbage = incomprehensible("garbage", Global, "v1");
    garbage.resource.as_mut().unwrap().value = vec![0xff];
    let dry_run = security::Authorization {
        name: "dry".to_owned(),
        namespace: "shop".to_owned(),
        action: 77,
        dry_run: true,
        ..Default::default()
    };
    let resources = [
        incomprehensible("mesh", Global, "v1"),
        incomprehensible("shop", Namespace, "v1"),
        incomprehensible("pod", WorkloadSelector, "v1"),
        garbage,
        server::policy("v1", dry_run),
        deny_all("v1"),
    ];
    session.send_policies("1", resources, &[]).await;
    let nack = session.request().await;
    let detail = nack.error_detail.unwrap().message;
    assert_eq!(detail.split("; ").count(), 5, "{detail}");
    assert_eq!(detail.matches("nothing is allowed").count(), 4, "{detail}");
    let in_force = |name: &str| {
        let mesh = view.load();
        let policy = mesh.policy(&policy_key(name))?;
        Some((policy.scope, policy.action, policy.rules.len()))
    };
    for (name, scope) in [
        ("mesh", Scope::Global),
        ("shop", Scope::Namespace),
        ("pod", Scope::Workload),
        ("garbage", Scope::Namespace),
    ] {
        assert_eq!(in_force(name), Some((scope, Action::Allow, 0)), "{name}");
    }
    assert_eq!(in_force("dry"), None, "it never decides");

    // Later ones are not applied, and what stands in stays until it is replaced or removed.
    let later = [
        incomprehensible("later", Global, "v1"),
        incomprehensible("shop", Global, "v2"),
    ];
    session.send_policies("2", later, &[]).await;
    let nack = session.request().await.error_detail.unwrap().message;
    assert!(!nack.contains("nothing is allowed"), "{nack}");
    assert_eq!(in_force("later"), None);
    assert_eq!(in_force("shop"), Some((Scope::Namespace, Action::Allow, 0)));
    let good = security::Authorization {
        name: "mesh".to_owned(),
        namespace: "shop".to_owned(),
        action: security::Action::Deny.into(),
        ..Default::default()
    };
    let good = server::policy("v2", good);
    session.send_policies("3", [good], &["shop/pod"]).await;
    assert_eq!(session.request().await.error_detail, None);
    assert_eq!(in_force("pod"), None);
    assert_eq!(in_force("mesh"), Some((Scope::Global, Action::Deny, 0)));

    // A new stream names them, so that it hears of their removal, but claims no version.
    session.fail(Status::unavailable("reset by test")).await;
    let mut session = server.session().await;
    session.request().await;
    let versions = session.request().await.initial_resource_versions;
    assert_eq!(versions["shop/shop"], "");
    assert_eq!(versions["shop/mesh"], "v2");
    session.send_policies("1", [], &["shop/shop"]).await;
    session.request().await;
    assert_eq!(in_force("shop"), None);
}

#[tokio::test]
async fn a_policy_that_is_no_longer_understood_stays_as_it_was() {
    let (_server, mut session, view) = synced().await;
    let before = view.load().policy(&policy_key("deny-all")).cloned();
    assert!(before.is_some());
    let bad = incomprehensible("deny-all", security::Scope::Global, "v2");
    session.send_policies("3", [bad], &[]).await;
    assert!(session.request().await.error_detail.is_some());
    assert_eq!(view.load().policy(&policy_key("deny-all")).cloned(), before);
}

#[tokio::test]
async fn an_unknown_type_is_accepted_and_ignored() {
    let (_server, mut session, view) = synced().await;
    let version = view.status().version;
    session
        .send_typed(
            "type.googleapis.com/a.B",
            "3",
            vec![pod("c", "n1", "v1")],
            &[],
        )
        .await;
    let ack = session.request().await;
    assert_eq!(ack.type_url, "type.googleapis.com/a.B");
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("3", None));
    assert_eq!(view.status().version, version);
}

#[tokio::test]
async fn after_a_reset_only_what_changed_is_asked_for() {
    let (mut server, mut session, view) = synced().await;
    let mut bad = pod("b", "n9", "v9");
    server::edit(&mut bad, |workload| workload.tunnel_protocol = 2);
    session
        .send("3", [bad, pod("a", "n1", "v2")], &["shop/catalog.shop.svc"])
        .await;
    session.request().await;
    session.fail(Status::unavailable("reset by test")).await;
    drop(session);

    let mut session = server.session().await;
    let request = session.request().await;
    let versions: Vec<_> = request.initial_resource_versions.into_iter().collect();
    let version = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    assert_eq!(
        versions,
        [
            version("c//Pod/shop/a", "v2"),
            version("c//Pod/shop/b", "v1")
        ],
        "the refused version is not claimed"
    );
    assert!(request.node.is_some());
    let request = session.request().await;
    assert_eq!(
        request.initial_resource_versions,
        BTreeMap::from([version("shop/deny-all", "v1")])
    );
    assert!(
        has_pod(&view.load(), "a") && view.is_synced(),
        "nothing was forgotten"
    );

    // A server that sends everything again changes nothing.
    let version = view.status().version;
    session
        .send("1", [pod("a", "n1", "v2"), pod("b", "n1", "v1")], &[])
        .await;
    session.request().await;
    assert_eq!(view.status().version, version);
}

#[tokio::test]
async fn a_closed_stream_is_opened_again_at_once() {
    let (mut server, session, _view) = synced().await;
    let start = std::time::Instant::now();
    drop(session);
    server.session().await;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn silence_is_no_mesh_but_no_loss_either() {
    let mut server = ControlPlane::start().await;
    let view = start(&server);
    let silent = server.session().await;
    let waited = timeout(Duration::from_millis(200), view.synced()).await;
    assert!(waited.is_err(), "synced with a server that said nothing");
    assert!(!view.is_synced());
    drop(silent);

    // The next one speaks.
    let mut session = server.session().await;
    session.send("1", [pod("a", "n1", "v1")], &[]).await;
    session.send_policies("2", [], &[]).await;
    soon("sync", view.synced()).await;
    assert_eq!(
        view.load().policy(&PolicyKey {
            namespace: "shop".into(),
            name: "deny-all".into(),
        }),
        None
    );
}

#[tokio::test]
async fn a_control_plane_that_is_gone_leaves_the_mesh() {
    let (server, session, view) = synced().await;
    server.stop();
    drop(session);
    let disconnected = async {
        while view.status().connected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("disconnect", disconnected).await;
    assert!(has_pod(&view.load(), "a") && view.is_synced());
}
