//! The client against a control plane that behaves, and one that does not.

mod addresses;
mod applied;
mod misbehaving;
mod on_demand;
mod refused;
mod server;
mod snapshot;
mod socket;
mod stream;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use server::{ControlPlane, Session, deny_all, pod, service};
use sluice_identity::{Addresses, ControlPlane as Reach, Direct, Live};
use sluice_model::{Mesh, Uid};
use sluice_proto::{security, workload};
use sluice_xds::{Client, Config, Node, View};
use tokio::time::timeout;

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
