//! Callers on the Unix socket.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use sluice_control::server::unix::{Config, UnixServer};
use sluice_proto::{ca::istio_certificate_service_client::IstioCertificateServiceClient, workload};
use tonic::Code;

use crate::{
    certificates::{WEB, request},
    discovery::{ask, names},
    log::Log,
    world::{Setup, World, authorized},
};

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[tokio::test]
async fn a_local_process_needs_no_token() {
    let world = World::start().await;
    let mode = fs::metadata(world.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let channel = world.local_channel().await.unwrap();
    let mut stream = world.stream_by(channel.clone(), None).await.unwrap();
    stream.send(ask(workload::TYPE_URL)).await;
    assert_eq!(names(&stream.next().await), ["c//Pod/shop/web"]);
    let client = world.clients.statuses().remove(0);
    assert_eq!(client.node, "n1");
    let shown = serde_json::to_value(&client).unwrap();
    let process = format!("process {} of uid {}", std::process::id(), own_uid());
    assert_eq!(shown["address"], process.as_str());
    assert_eq!(shown["credential"], "peerCredentials");
    // For the node that it is, and no other: nobody runs as this account here.
    let mut ca = IstioCertificateServiceClient::new(channel);
    ca.create_certificate(authorized(request(WEB), None))
        .await
        .unwrap();
    let log = Log::begin();
    let db = "spiffe://cluster.local/ns/shop/sa/db";
    let refused = ca.create_certificate(authorized(request(db), None)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let line = log.refusal("another's identity");
    assert!(
        line.contains("certificate for node n1: no pod with"),
        "{line}"
    );
    assert!(line.contains(&process), "{line}");
}

#[tokio::test]
async fn other_users_are_refused_whatever_token_they_have() {
    let world = World::with(Setup {
        uids: [own_uid() + 1].into(),
        ..Setup::default()
    })
    .await;
    let channel = world.local_channel().await.unwrap();
    let log = Log::begin();
    for authorization in [None, Some("Bearer token-of-n1")] {
        let refused = world.stream_by(channel.clone(), authorization).await;
        let status = refused.err().unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), "authentication failure");
        let line = log.refusal("another user");
        let why = format!("uid {} is not among those admitted", own_uid());
        assert!(line.contains(&why), "{line}");
    }
}

#[tokio::test]
async fn a_socket_is_replaced_only_when_nobody_serves_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let config = Config {
        path: path.clone(),
        group: Some(rustix::process::getegid().as_raw()),
    };
    // What a crash left.
    drop(UnixListener::bind(&path).unwrap());
    let server = UnixServer::bind(&config).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let refused = UnixServer::bind(&config).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(cause, "another process serves there");
    drop(server);
    assert!(!path.exists());
    fs::write(&path, "mine").unwrap();
    assert!(UnixServer::bind(&config).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}
