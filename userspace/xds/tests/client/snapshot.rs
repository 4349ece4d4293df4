//! A client that begins with a snapshot.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use sluice_model::{
    Mesh,
    authz::{Policy, PolicyKey, Scope},
};
use sluice_proto::security;
use sluice_xds::{Snapshot, View};

use crate::{
    client, has_pod, node_of, run,
    server::{ControlPlane, Session, pod, policy, service},
    synced,
};

fn taken() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A client that remembers the pods `a` and `b`, a service and a policy, and its stream.
async fn restored() -> (ControlPlane, Session, View) {
    let (_, _, view) = synced().await;
    let mut bytes = Vec::new();
    Snapshot::write(&view.load(), "east", taken(), &mut bytes).unwrap();
    let mut server = ControlPlane::start().await;
    let mut client = client(server.address());
    client.restore(Snapshot::parse(bytes, "east").unwrap());
    let view = run(client);
    let session = server.session().await;
    (server, session, view)
}

fn deny_all_in(mesh: &Mesh) -> Option<Policy> {
    let key = PolicyKey {
        namespace: "shop".into(),
        name: "deny-all".into(),
    };
    mesh.policy(&key).map(|policy| (**policy).clone())
}

#[tokio::test]
async fn the_mesh_is_there_before_the_control_plane_has_said_anything() {
    let (_server, _session, view) = restored().await;
    assert!(view.is_synced() && !view.status().is_live());
    assert_eq!(view.status().snapshot, Some(taken()));
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && has_pod(&mesh, "b"));
    assert!(deny_all_in(&mesh).is_some());
    assert_eq!(mesh.services().len(), 1);
}

#[tokio::test]
async fn the_answer_takes_its_place_with_what_is_gone() {
    let (mut server, mut session, view) = restored().await;
    let names = |versions: BTreeMap<String, String>| {
        assert!(versions.values().all(String::is_empty), "{versions:?}");
        versions.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(
        names(session.request().await.initial_resource_versions),
        ["c//Pod/shop/a", "c//Pod/shop/b", "shop/catalog.shop.svc"],
        "all is sent again, and what is gone is told"
    );
    assert_eq!(
        names(session.request().await.initial_resource_versions),
        ["shop/deny-all"]
    );
    let version = view.status().version;
    session
        .send(
            "1",
            [pod("a", "n2", "v2"), service("v1")],
            &["c//Pod/shop/b"],
        )
        .await;
    session.send_policies("2", [], &["shop/deny-all"]).await;
    for nonce in ["1", "2"] {
        assert_eq!(session.request().await.response_nonce, nonce);
    }
    assert!(view.status().is_live());
    let mesh = view.snapshot();
    assert_eq!(node_of(&mesh, "a"), "n2");
    assert!(!has_pod(&mesh, "b"));
    assert_eq!(deny_all_in(&mesh), None);
    assert_eq!(view.status().version, version + 1, "both at once");

    // From now on versions are known.
    session
        .fail(tonic::Status::unavailable("reset by test"))
        .await;
    drop(session);
    let mut session = server.session().await;
    let request = session.request().await;
    assert_eq!(request.initial_resource_versions["c//Pod/shop/a"], "v2");
}

#[tokio::test]
async fn half_an_answer_changes_nothing() {
    let (mut server, mut session, view) = restored().await;
    session
        .send("1", [pod("a", "n2", "v2")], &["c//Pod/shop/b"])
        .await;
    session
        .fail(tonic::Status::unavailable("reset by test"))
        .await;
    drop(session);
    // The next stream begins from the same state.
    let mut session = server.session().await;
    let request = session.request().await;
    assert_eq!(request.initial_resource_versions.len(), 3);
    let mesh = view.snapshot();
    assert!(node_of(&mesh, "a") == "n1" && has_pod(&mesh, "b"));
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_stays_as_it_is_remembered() {
    let (_server, mut session, view) = restored().await;
    let before = deny_all_in(&view.load()).unwrap();
    for _ in 0..2 {
        session.request().await;
    }
    let unreadable = |name: &str| {
        let message = security::Authorization {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            scope: security::Scope::Namespace.into(),
            action: 99,
            ..Default::default()
        };
        policy("v2", message)
    };
    session.send("1", [], &[]).await;
    session
        .send_policies("2", [unreadable("deny-all"), unreadable("other")], &[])
        .await;
    assert_eq!(session.request().await.error_detail, None);
    let refusal = session.request().await.error_detail.unwrap().message;
    assert!(refusal.contains("shop/deny-all: "), "{refusal}");
    let mesh = view.snapshot();
    assert_eq!(deny_all_in(&mesh), Some(before));
    // One that is not remembered may have been in force all the same.
    let other = PolicyKey {
        namespace: "shop".into(),
        name: "other".into(),
    };
    assert_eq!(
        **mesh.policy(&other).unwrap(),
        Policy::stand_in(other, Scope::Namespace)
    );
}
