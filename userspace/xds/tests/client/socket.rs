//! A control plane on this machine, behind a Unix socket.

use sluice_identity::Live;
use tonic::Status;

use super::{config, has_pod, run, soon};
use crate::server::{ControlPlane, pod};
use sluice_xds::Client;

#[tokio::test]
async fn a_socket_needs_neither_certificates_nor_a_token_and_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let mut server = ControlPlane::start_on_socket(&path).await;
    let mut config = config(server.address());
    config.control_plane.token = Live::new("secret");
    let view = run(Client::new(config));

    let mut session = server.session().await;
    assert!(!session.is_authorized, "the token was shown");
    session.send("1", [pod("a", "n1", "v1")], &[]).await;
    session.send_policies("2", [], &[]).await;
    soon("sync", view.synced()).await;
    session.fail(Status::unavailable("broken by test")).await;

    let mut session = server.session().await;
    let request = session.request().await;
    assert_eq!(request.initial_resource_versions["c//Pod/shop/a"], "v1");
    assert!(has_pod(&view.load(), "a"));
}

/// Its control plane may begin later.
#[tokio::test]
async fn a_socket_that_is_not_there_yet_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let view = run(Client::new(config(format!("unix://{}", path.display()))));
    let refused = tokio::time::timeout(std::time::Duration::from_millis(100), view.synced());
    assert!(refused.await.is_err());
    let mut server = ControlPlane::start_on_socket(&path).await;
    let mut session = server.session().await;
    session.send("1", [], &[]).await;
    session.send_policies("2", [], &[]).await;
    soon("sync", view.synced()).await;
}
