//! A control plane whose every answer the test writes.

use std::{path::Path, time::Duration};

use prost::Message as _;
use sluice_proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    security, workload,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server on loopback that hands every stream to the test.
pub(crate) struct ControlPlane {
    address: String,
    sessions: mpsc::Receiver<Session>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service { sender }))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        Self {
            address,
            sessions,
            server: tokio::spawn(server),
        }
    }

    /// A server on a Unix socket; its sessions alone.
    pub(crate) async fn start_on_socket(path: &Path) -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let listener = UnixListener::bind(path).unwrap();
        let server = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service { sender }))
            .serve_with_incoming(UnixListenerStream::new(listener));
        Self {
            address: format!("unix://{}", path.display()),
            sessions,
            server: tokio::spawn(server),
        }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// The next stream that a client opens.
    pub(crate) async fn session(&mut self) -> Session {
        let next = timeout(PATIENCE, self.next_session()).await;
        next.expect("no client connects")
    }

    /// The next stream, however long it takes.
    pub(crate) async fn next_session(&mut self) -> Session {
        self.sessions.recv().await.unwrap()
    }

    /// Accepts no connection any more.
    pub(crate) fn stop(self) {
        self.server.abort();
    }
}

struct Service {
    sender: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let cluster = request.metadata().get("clusterid");
        let cluster = cluster.map(|value| value.to_str().unwrap().to_owned());
        let is_authorized = request.metadata().contains_key("authorization");
        let (responses, receiver) = mpsc::channel(8);
        let session = Session {
            cluster,
            is_authorized,
            requests: request.into_inner(),
            responses,
        };
        let _ = self.sender.send(session).await;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One stream. Dropped, it closes in good order.
pub(crate) struct Session {
    pub(crate) cluster: Option<String>,
    /// It came with a token.
    pub(crate) is_authorized: bool,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Session {
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = timeout(PATIENCE, self.requests.message()).await;
        next.expect("no request").unwrap().expect("stream closed")
    }

    /// Sends workloads and services.
    pub(crate) async fn send<const N: usize>(
        &mut self,
        nonce: &str,
        resources: [Resource; N],
        removed: &[&str],
    ) {
        self.send_typed(workload::TYPE_URL, nonce, resources.into(), removed)
            .await;
    }

    pub(crate) async fn send_policies<const N: usize>(
        &mut self,
        nonce: &str,
        resources: [Resource; N],
        removed: &[&str],
    ) {
        self.send_typed(security::TYPE_URL, nonce, resources.into(), removed)
            .await;
    }

    pub(crate) async fn send_typed(
        &mut self,
        type_url: &str,
        nonce: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Breaks the stream.
    pub(crate) async fn fail(&mut self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

fn resource(name: &str, version: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
        }),
        ..Default::default()
    }
}

/// A pod of the namespace `shop` on a node. All pods have the same address.
pub(crate) fn pod(name: &str, node: &str, version: &str) -> Resource {
    let uid = format!("c//Pod/shop/{name}");
    let address = workload::Address::from(workload::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        node: node.to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    });
    resource(&uid, version, workload::TYPE_URL, address.encode_to_vec())
}

/// Changes the workload within a resource.
pub(crate) fn edit(resource: &mut Resource, change: impl FnOnce(&mut workload::Workload)) {
    let content = resource.resource.as_mut().unwrap();
    let mut address = workload::Address::decode(&*content.value).unwrap();
    let Some(workload::address::Type::Workload(workload)) = &mut address.r#type else {
        panic!("not a workload");
    };
    change(workload);
    content.value = address.encode_to_vec();
}

/// The service `catalog`.
pub(crate) fn service(version: &str) -> Resource {
    let address = workload::Address::from(workload::Service {
        name: "catalog".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "catalog.shop.svc".to_owned(),
        ..Default::default()
    });
    let name = "shop/catalog.shop.svc";
    resource(name, version, workload::TYPE_URL, address.encode_to_vec())
}

/// A policy of the namespace `shop` that never matches.
pub(crate) fn deny_all(version: &str) -> Resource {
    let message = security::Authorization {
        name: "deny-all".to_owned(),
        namespace: "shop".to_owned(),
        ..Default::default()
    };
    policy(version, message)
}

/// A policy as it is sent.
pub(crate) fn policy(version: &str, message: security::Authorization) -> Resource {
    let name = format!("{}/{}", message.namespace, message.name);
    resource(&name, version, security::TYPE_URL, message.encode_to_vec())
}
