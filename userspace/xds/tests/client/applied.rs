//! What a control plane says becomes the mesh.

use sluice_model::ServiceKey;

use super::{has_pod, node_of, server::pod, soon, synced};

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
