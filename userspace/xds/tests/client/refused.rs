//! What is wrong is refused, and costs nobody else anything.

use sluice_model::authz::{Action, PolicyKey, Scope};
use sluice_proto::{discovery::Resource, security};
use tonic::Status;

use super::{
    has_pod, node_of,
    server::{self, ControlPlane, deny_all, pod},
    soon, start, synced,
};

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
