//! A control plane with a directory to edit, and clients for it.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc, time::Duration};

use sluice_control::{
    addresses::Addresses,
    auth::{
        Authenticator, JoinTokens, PeerCredentials, ServiceAccounts,
        service_accounts::Config as Accounts,
    },
    ca::{self, Authority, Certificates},
    feed::{self, Published},
    memory::Keeper,
    metrics::ControlMetrics,
    server::{
        self, Server,
        unix::{self, UnixServer},
    },
    status, translate,
    xds::{Clients, Discovery},
};
use sluice_objects::{Directory, directory};
use sluice_proto::{
    ca::istio_certificate_service_client::IstioCertificateServiceClient,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use sluice_telemetry::{
    metrics::Metrics,
    serve::{self, Readiness},
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const TOKEN: &str = "token-of-n1";
const OTHER_TOKEN: &str = "token-of-n2";

pub(crate) const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
";

pub(crate) fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels: {{app: {name}}}
  annotations: {{sluice.io/netns: /run/netns/{name}}}
spec:
  nodeName: n1
  serviceAccountName: {name}
  containers: []
status: {{podIP: {ip}}}
"
    )
}

/// What differs from one control plane to another.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The users who are admitted on the Unix socket, for node `n1`.
    pub(crate) uids: BTreeSet<u32>,
    /// When changes are told.
    pub(crate) debounce: directory::Config,
    pub(crate) accounts: Option<Accounts>,
    /// How often it is asked whether callers may stay.
    pub(crate) recheck: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            uids: [rustix::process::geteuid().as_raw()].into(),
            debounce: directory::Config::new(""),
            accounts: None,
            recheck: Discovery::RECHECK,
        }
    }
}

/// A running control plane; it ends when this is dropped.
pub(crate) struct World {
    dir: Arc<TempDir>,
    state: Arc<TempDir>,
    setup: Setup,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) status: std::net::SocketAddr,
    pub(crate) clients: Clients,
    pub(crate) published: watch::Receiver<Arc<Published>>,
    tasks: Vec<JoinHandle<()>>,
    _directory: Directory,
}

impl World {
    /// Starts with the namespace `shop` and the pod `web` on node `n1`.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
        fs::write(dir.path().join("web.yaml"), pod("web", "10.0.0.1")).unwrap();
        let state = tempfile::tempdir().unwrap();
        let tokens = format!(
            "# nodes\nn1 {TOKEN}\nn2 {OTHER_TOKEN}\nn1 token-of-old 2020-01-01T00:00:00Z\n"
        );
        fs::write(state.path().join("tokens"), tokens).unwrap();
        Self::serve(dir.into(), state.into(), setup).await
    }

    /// Another process with the same directories.
    pub(crate) async fn restart(mut self) -> Self {
        let (dir, state, setup) = (self.dir.clone(), self.state.clone(), self.setup.clone());
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // It holds the socket until then.
            let _ = task.await;
        }
        drop(self);
        Self::serve(dir, state, setup).await
    }

    async fn serve(dir: Arc<TempDir>, state: Arc<TempDir>, setup: Setup) -> Self {
        let tokens = state.path().join("tokens");
        let metrics = Arc::new(Metrics::new("test", "0"));
        let counters = ControlMetrics::register(&metrics);
        let clients = Clients::new(counters.clients.clone());
        let callers = Arc::new(Authenticator {
            join_tokens: Some(JoinTokens::open(tokens).unwrap()),
            service_accounts: setup.accounts.clone().map(ServiceAccounts::new),
            peer_credentials: Some(PeerCredentials {
                node: "n1".into(),
                uids: setup.uids.clone(),
            }),
        });
        let trust_domain: sluice_model::TrustDomain = "cluster.local".parse().unwrap();
        let source = ca::Source::Own {
            directory: state.path().to_owned(),
            rotation: ca::Rotation {
                root_announcement: 3600,
                root_overlap: 3600,
            },
        };
        let authority = Arc::new(Authority::open(source, trust_domain.clone()).unwrap());
        let config = translate::Config {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            cluster: "c".into(),
            network: "".into(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
        };
        let source = directory::Config {
            path: dir.path().to_owned(),
            ..setup.debounce.clone()
        };
        let keeper = Keeper::open(state.path()).unwrap();
        let addresses = Addresses::open(state.path()).unwrap();
        let (directory, published) = feed::directory(source, config, keeper, addresses).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = server::Config {
            listen,
            names: server::names(listen.ip(), &[]),
        };
        let server = Server::bind(config, authority.clone()).await.unwrap();
        let address = server.local_addr().unwrap();
        let discovery = Discovery::new(
            published.clone(),
            callers.clone(),
            clients.clone(),
            counters.clone(),
        )
        .recheck_every(setup.recheck);
        let certificates = Certificates::new(authority, callers, published.clone(), counters);
        let pages = status::router(
            published.clone(),
            clients.clone(),
            Readiness::default(),
            metrics,
        );
        let socket = unix::Config {
            path: state.path().join("control.sock"),
            group: None,
        };
        let socket = UnixServer::bind(&socket).unwrap();
        let (discovery_too, certificates_too) = (discovery.clone(), certificates.clone());
        let listener = TcpListener::bind(listen).await.unwrap();
        let status = listener.local_addr().unwrap();
        let tasks = vec![
            tokio::spawn(async move { server.serve(discovery, certificates).await.unwrap() }),
            tokio::spawn(async move {
                socket.serve(discovery_too, certificates_too).await.unwrap();
            }),
            tokio::spawn(async move { match serve::serve(listener, pages).await {} }),
        ];
        Self {
            dir,
            state,
            setup,
            address,
            status,
            clients,
            published,
            tasks,
            _directory: directory,
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.dir.path().join(format!(".{name}"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.dir.path().join(name)).unwrap();
    }

    /// Writes what makes a difference, and waits until it is published.
    pub(crate) async fn publish(&self, name: &str, text: &str) {
        let published = self.published.clone();
        let before = published.borrow().changed;
        self.write(name, text);
        eventually("published", || published.borrow().changed != before).await;
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    /// Removes what is remembered of policies.
    pub(crate) fn forget(&self) {
        fs::remove_file(self.state.path().join("last-good.json")).unwrap();
    }

    pub(crate) fn write_tokens(&self, text: &str) {
        fs::write(self.state.path().join("tokens"), text).unwrap();
    }

    pub(crate) fn root(&self) -> String {
        fs::read_to_string(self.state.path().join("root-cert.pem")).unwrap()
    }

    /// A connection that trusts the control plane's root and expects `name`.
    pub(crate) async fn channel(&self, name: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.root()))
            .domain_name(name);
        Endpoint::from_shared(format!("https://{}", self.address))?
            .tls_config(tls)?
            .connect()
            .await
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state.path().join("control.sock")
    }

    /// A connection to the Unix socket.
    pub(crate) async fn local_channel(&self) -> Result<Channel, tonic::transport::Error> {
        Endpoint::from_shared(format!("unix://{}", self.socket().display()))?
            .connect()
            .await
    }

    pub(crate) async fn ca(&self) -> IstioCertificateServiceClient<Channel> {
        IstioCertificateServiceClient::new(self.channel("localhost").await.unwrap())
    }

    /// A discovery stream of node `n1`.
    pub(crate) async fn stream(&self) -> Stream {
        self.try_stream(Some(&format!("Bearer {TOKEN}")))
            .await
            .unwrap()
    }

    pub(crate) async fn try_stream(&self, authorization: Option<&str>) -> Result<Stream, Status> {
        let channel = self.channel("localhost").await.unwrap();
        self.stream_by(channel, authorization).await
    }

    pub(crate) async fn stream_by(
        &self,
        channel: Channel,
        authorization: Option<&str>,
    ) -> Result<Stream, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let (requests, stream) = mpsc::channel(16);
        let request = authorized(ReceiverStream::new(stream), authorization);
        let responses = client
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Stream {
            requests,
            responses,
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub(crate) fn authorized<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(authorization) = authorization {
        let value = MetadataValue::try_from(authorization).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// A discovery stream as a ztunnel has it.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(PATIENCE, self.responses.message()).await;
        response
            .expect("no response")
            .unwrap()
            .expect("the stream ended")
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            let next = timeout(PATIENCE, self.responses.message()).await;
            match next.expect("the stream goes on") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("in good order"),
                Err(status) => return status,
            }
        }
    }

    /// Nothing comes for a while that is long compared with how fast changes travel.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(400), self.responses.message())
            .await
            .is_err()
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}
