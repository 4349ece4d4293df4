//! Callers with tokens of Kubernetes service accounts, judged by a double of the API server.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use sluice_control::auth::service_accounts::Config;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tonic::Code;

use crate::{
    certificates::{WEB, request},
    log::Log,
    world::{Setup, World, authorized},
};

/// An API server that answers TokenReviews only.
struct ApiServer {
    files: TempDir,
    address: SocketAddr,
    reviews: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl ApiServer {
    async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("root"), certificate.pem()).unwrap();
        fs::write(files.path().join("token"), "token-of-control\n").unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reviews = Arc::new(AtomicUsize::new(0));
        let count = reviews.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, count) = (acceptor.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| answer(request, count.clone()));
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            files,
            address,
            reviews,
            task,
        }
    }

    /// A control plane that asks it.
    async fn world(&self) -> World {
        let accounts = Config {
            server: format!("https://localhost:{}", self.address.port())
                .parse()
                .unwrap(),
            root: self.files.path().join("root"),
            token: self.files.path().join("token"),
            audience: "istio-ca".to_owned(),
            trusted: ["istio-system/ztunnel".to_owned()].into(),
        };
        World::with(Setup {
            accounts: Some(accounts),
            ..Setup::default()
        })
        .await
    }

    fn reviews(&self) -> usize {
        self.reviews.load(Ordering::SeqCst)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    reviews: Arc<AtomicUsize>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorized = request.headers()["authorization"] == "Bearer token-of-control";
    let path = request.uri().path() == "/apis/authentication.k8s.io/v1/tokenreviews";
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    reviews.fetch_add(1, Ordering::SeqCst);
    let mut response = Response::new(Full::default());
    if !authorized || !path || review["kind"] != "TokenReview" {
        *response.status_mut() = StatusCode::FORBIDDEN;
        return Ok(response);
    }
    assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
    let token = review["spec"]["token"].as_str().unwrap().to_owned();
    let account = |name: &str, node: &[&str]| {
        json!({"authenticated": true, "audiences": ["istio-ca"], "user": {
            "username": format!("system:serviceaccount:{name}"),
            "extra": {"authentication.kubernetes.io/node-name": node}}})
    };
    review["status"] = match token.as_str() {
        "token-of-z.n1.x" => account("istio-system:ztunnel", &["n1"]),
        "token-of-z.n2.x" => account("istio-system:ztunnel", &["n2"]),
        "token-of-z.nowhere.x" => account("istio-system:ztunnel", &[]),
        "token-of-a.pod.x" => account("shop:web", &["n1"]),
        "token-of-z.other-audience.x" => json!({"authenticated": true,
            "user": {"username": "system:serviceaccount:istio-system:ztunnel"}}),
        "token-of-z.broken.x" => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(response);
        }
        _ => json!({"authenticated": false, "error": format!("{token} has expired")}),
    };
    *response.status_mut() = StatusCode::CREATED;
    *response.body_mut() = Full::from(review.to_string());
    Ok(response)
}

#[tokio::test]
async fn a_ztunnel_is_known_by_its_service_account() {
    let api = ApiServer::start().await;
    let world = api.world().await;
    let mut ca = world.ca().await;
    for _ in 0..3 {
        let request = authorized(request(WEB), Some("Bearer token-of-z.n1.x"));
        ca.create_certificate(request).await.unwrap();
    }
    assert_eq!(api.reviews(), 1, "the answer is remembered for a while");
    let _stream = world
        .try_stream(Some("Bearer token-of-z.n1.x"))
        .await
        .unwrap();
    let client = serde_json::to_value(world.clients.statuses()).unwrap();
    assert_eq!(
        (&client[0]["node"], &client[0]["credential"]),
        (&json!("n1"), &json!("serviceAccount"))
    );
    // A node's own token still counts, and nobody is asked about it.
    world.try_stream(Some("Bearer token-of-n2")).await.unwrap();
    assert_eq!(api.reviews(), 1);
}

#[tokio::test]
async fn others_are_refused_with_the_reason_in_the_log_only() {
    let api = ApiServer::start().await;
    let world = api.world().await;
    let mut ca = world.ca().await;
    let log = Log::begin();
    for (token, logged) in [
        ("token-of-z", "neither a join token nor a JSON web token"),
        ("token-of-z..x", "neither a join token nor a JSON web token"),
        (
            "token-of-z.old.x",
            "Kubernetes does not accept its token: TOKEN has expired",
        ),
        (
            "token-of-z.other-audience.x",
            "its token is not for the audience istio-ca",
        ),
        (
            "token-of-a.pod.x",
            "system:serviceaccount:shop:web is not a trusted node account",
        ),
        ("token-of-z.nowhere.x", "is bound to no pod on a node"),
        ("token-of-z.n2.x", "certificate for node n2: no pod with"),
    ] {
        let request = authorized(request(WEB), Some(&format!("Bearer {token}")));
        let status = ca.create_certificate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token}");
        assert_eq!(status.message(), "authentication failure", "{token}");
        let line = log.refusal(token);
        assert!(line.contains(logged), "{token}: {line}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_not_the_callers_fault() {
    let api = ApiServer::start().await;
    let world = api.world().await;
    let mut ca = world.ca().await;
    let log = Log::begin();
    let mut fails = async |token: &str, logged: &str| {
        let request = authorized(request(WEB), Some(&format!("Bearer {token}")));
        let status = ca.create_certificate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{logged}");
        let told = log.take();
        assert!(
            told.contains("cannot ask the Kubernetes API at https://localhost"),
            "{told}"
        );
        assert!(
            told.contains(logged) && !told.contains("token-of"),
            "{told}"
        );
    };
    fails("token-of-z.broken.x", "500 Internal Server Error").await;
    fs::write(api.files.path().join("token"), "token-of-another").unwrap();
    fails("token-of-z.n1.x", "403 Forbidden").await;
    // Somebody else who claims to be the server learns no token.
    let asked = api.reviews();
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(api.files.path().join("root"), stranger.cert.pem()).unwrap();
    fails("token-of-z.n1.x", "certificate").await;
    assert_eq!(api.reviews(), asked);
    drop(api);
    fails("token-of-z.n1.x", "").await;
}
