//! The client of the certificate service, against a server over loopback with TLS.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use prost_types::value::Kind;
use sluice_identity::{
    Addresses, CaClient, CertificateAuthority as _, Config, ControlPlane, Direct, Error, Live,
    Manager,
};
use sluice_proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::authority::{Root, id};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A request and the authorization that came with it.
type Seen = (Option<String>, IstioCertificateRequest);

#[derive(Clone)]
struct Service {
    root: Arc<Root>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization");
        let token = token.map(|value| value.to_str().unwrap().to_owned());
        let valid = token.as_deref() == Some("Bearer good");
        let message = request.into_inner();
        self.seen.lock().unwrap().push((token, message.clone()));
        if !valid {
            return Err(Status::unauthenticated("who are you?"));
        }
        let validity = Duration::from_secs(message.validity_duration.unsigned_abs());
        let cert_chain = self.root.sign(&message.csr, validity);
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// Starts a server, and tells how to reach it.
async fn start(root: &Arc<Root>) -> (Service, ControlPlane) {
    let service = Service {
        root: root.clone(),
        seen: Arc::default(),
    };
    let (certificate, key) = root.server("control.example");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))
        .unwrap()
        .add_service(IstioCertificateServiceServer::new(service.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let control_plane = ControlPlane {
        addresses: address.into(),
        dial: Arc::new(Direct),
        server_name: Some("control.example".to_owned()),
        roots: Live::new(root.pem()),
        token: Live::new("good\n"),
        cluster: String::new(),
    };
    (service, control_plane)
}

#[tokio::test]
async fn a_certificate_is_asked_for_on_behalf_of_the_workload() {
    let root = Arc::new(Root::new());
    let (service, control_plane) = start(&root).await;
    let client = CaClient::new(control_plane, Duration::from_secs(24 * 3600));
    let manager = Manager::new(client, Config::default(), Handle::current());
    let svid = manager
        .certificate(&id(WEB), Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(svid.identity().to_string(), WEB);
    let (token, request) = service.seen.lock().unwrap().remove(0);
    assert_eq!(token.as_deref(), Some("Bearer good"));
    assert_eq!(request.validity_duration, 86_400);
    let metadata = request.metadata.unwrap();
    assert_eq!(
        metadata.fields["ImpersonatedIdentity"].kind,
        Some(Kind::StringValue(WEB.to_owned()))
    );
}

#[tokio::test]
async fn the_token_is_read_for_each_request() {
    let root = Arc::new(Root::new());
    let (service, control_plane) = start(&root).await;
    let token = control_plane.token.clone();
    let client = CaClient::new(control_plane, Duration::from_secs(3600));
    token.set("stale");
    let refused = client.sign("", &id(WEB)).await.unwrap_err();
    assert!(matches!(&refused, Error::CaRefused(_)), "{refused}");
    assert!(refused.to_string().contains("who are you?"));
    assert!(!format!("{refused:?} {token:?}").contains("stale"));
    assert_eq!(service.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_control_plane_that_cannot_prove_itself_gets_no_token() {
    let root = Arc::new(Root::new());
    let (service, mut control_plane) = start(&root).await;
    control_plane.roots = Live::new(Root::new().pem());
    let client = CaClient::new(control_plane.clone(), Duration::from_secs(3600));
    let refused = client.sign("", &id(WEB)).await.unwrap_err();
    assert!(matches!(&refused, Error::CaUnavailable(_)), "{refused}");
    assert!(service.seen.lock().unwrap().is_empty());

    // Once the anchors are right, the same client gets through.
    control_plane.roots.set(root.pem());
    let request = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = request.serialize_request(&key).unwrap().pem().unwrap();
    assert_eq!(client.sign(&csr, &id(WEB)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_address_that_fails_makes_way_for_the_next() {
    let root = Arc::new(Root::new());
    let (service, mut control_plane) = start(&root).await;
    let working = control_plane.addresses.current().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    control_plane.addresses = Addresses::new([gone, working.clone()]).unwrap();
    let addresses = control_plane.addresses.clone();
    let client = CaClient::new(control_plane, Duration::from_secs(3600));
    let manager = Manager::new(client, Config::default(), Handle::current());
    let patience = Duration::from_secs(10);
    manager.certificate(&id(WEB), patience).await.unwrap();
    assert_eq!(service.seen.lock().unwrap().len(), 1);
    assert_eq!(addresses.current(), working);
}

#[tokio::test]
async fn an_unusable_configuration_is_said_to_be_one() {
    let sign = async |address: &str, roots: &str| {
        let control_plane = ControlPlane {
            addresses: address.to_owned().into(),
            dial: Arc::new(Direct),
            server_name: None,
            roots: Live::new(roots),
            token: Live::default(),
            cluster: String::new(),
        };
        let client = CaClient::new(control_plane, Duration::from_secs(3600));
        client.sign("", &id(WEB)).await.unwrap_err().to_string()
    };
    let no_roots = sign("https://control.example:15012", "").await;
    assert!(no_roots.contains("no trust anchors for it"), "{no_roots}");
    for bad in [
        "not an address",
        "control.example:15012",
        "ftp://control.example",
    ] {
        let text = sign(bad, "").await;
        assert!(
            text.contains(bad) && text.contains("give https://"),
            "{text}"
        );
    }
}
