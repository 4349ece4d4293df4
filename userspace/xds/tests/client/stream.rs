//! Streams break, end and fall silent; what was learnt stays.

use std::{collections::BTreeMap, time::Duration};

use sluice_model::authz::PolicyKey;
use tokio::time::timeout;
use tonic::Status;

use super::{
    has_pod,
    server::{self, ControlPlane, pod},
    soon, start, synced,
};

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
