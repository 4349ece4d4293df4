//! Tokens of Kubernetes service accounts, which the API server judges (TokenReview).

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use sluice_model::Name;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Failure, Refusal};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// The API server may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// What it said holds for so long: a ztunnel asks for many certificates at once. A token that is
/// withdrawn counts no longer than this.
const REMEMBERED: Duration = Duration::from_secs(30);
/// An answer is not larger.
const MAX_ANSWER: usize = 1 << 20;
/// The node of the pod that a token is bound to.
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Which API server judges, and who is trusted.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://HOST[:PORT]`
    pub server: Uri,
    /// Whom to believe to be that server, in PEM; read for every review.
    pub root: PathBuf,
    /// The control plane's own token, which may create TokenReviews; read for every review.
    pub token: PathBuf,
    /// For whom callers' tokens must be made.
    pub audience: String,
    /// Service accounts whose pods are node proxies, as `NAMESPACE/NAME`.
    pub trusted: BTreeSet<String>,
}

/// Knows callers by their service account tokens.
pub struct ServiceAccounts {
    config: Config,
    /// Held only to look up and to note; never across an await.
    accepted: Mutex<HashMap<String, (Name, Instant)>>,
}

impl ServiceAccounts {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            accepted: Mutex::default(),
        }
    }

    /// The node on which the token's pod runs.
    pub(super) async fn node_of(&self, token: &str) -> Result<Name, Failure> {
        if !is_jwt(token) {
            let why = "its token is neither a join token nor a JSON web token";
            return Err(Refusal(why.to_owned()).into());
        }
        if let Some(node) = self.remembered(token, Instant::now()) {
            return Ok(node);
        }
        let review = match timeout(PATIENCE, self.review(token)).await {
            Ok(Ok(review)) => review,
            Ok(Err(error)) => return Err(self.unavailable(&error.to_string())),
            Err(_) => return Err(self.unavailable("it does not answer")),
        };
        // The server might repeat what it was sent.
        let node = self
            .judge(review)
            .map_err(|Refusal(why)| Refusal(why.replace(token, "TOKEN")))?;
        let now = Instant::now();
        self.with(|accepted| {
            accepted.retain(|_, (_, since)| now.duration_since(*since) < REMEMBERED);
            accepted.insert(token.to_owned(), (node.clone(), now));
        });
        Ok(node)
    }

    fn remembered(&self, token: &str, now: Instant) -> Option<Name> {
        self.with(|accepted| {
            let (node, since) = accepted.get(token)?;
            (now.duration_since(*since) < REMEMBERED).then(|| node.clone())
        })
    }

    fn judge(&self, review: TokenReviewStatus) -> Result<Name, Refusal> {
        if review.authenticated != Some(true) {
            let why = review.error.unwrap_or_else(|| "no reason given".to_owned());
            return Err(Refusal(format!(
                "Kubernetes does not accept its token: {why}"
            )));
        }
        let audience = &self.config.audience;
        let audiences = review.audiences.unwrap_or_default();
        if !audiences.contains(audience) {
            return Err(Refusal(format!(
                "its token is not for the audience {audience}"
            )));
        }
        let user = review.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        let account = name
            .strip_prefix("system:serviceaccount:")
            .map(|account| account.replacen(':', "/", 1));
        let trusted = account.filter(|account| self.config.trusted.contains(account));
        if trusted.is_none() {
            return Err(Refusal(format!("{name} is not a trusted node account")));
        }
        let node = user.extra.and_then(|mut extra| extra.remove(NODE));
        match node.as_deref() {
            Some([node]) if !node.is_empty() => Ok(node.as_str().into()),
            _ => Err(Refusal(format!(
                "its token, of {name}, is bound to no pod on a node (Kubernetes 1.30 and later \
                 say {NODE})"
            ))),
        }
    }

    /// Asks the API server, over a connection of its own: that is rare.
    async fn review(
        &self,
        token: &str,
    ) -> Result<TokenReviewStatus, Box<dyn std::error::Error + Send + Sync>> {
        let Config {
            server, audience, ..
        } = &self.config;
        let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, server.port_u16().unwrap_or(443))).await?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(Arc::new(self.tls()?))
            .connect(name, stream)
            .await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![audience.clone()]),
            },
            ..TokenReview::default()
        };
        let own = fs::read_to_string(&self.config.token)?;
        let authority = server
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let request = Request::post(PATH)
            .header(header::HOST, authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", own.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(serde_json::to_vec(&review)?))?;
        let ask = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
                return Err(format!("it answers {status}").into());
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await?;
            let review: TokenReview = serde_json::from_slice(&body.to_bytes())?;
            Ok(review.status.unwrap_or_default())
        };
        tokio::select! {
            answer = ask => answer,
            ended = connection => {
                ended?;
                Err("it closed the connection".into())
            }
        }
    }

    fn tls(&self) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(&self.config.root)? {
            roots.add(root?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(config)
    }

    fn unavailable(&self, why: &str) -> Failure {
        let server = &self.config.server;
        Failure::Unavailable(format!("cannot ask the Kubernetes API at {server}: {why}"))
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, (Name, Instant)>) -> T) -> T {
        f(&mut self.accepted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for ServiceAccounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the tokens.
        f.debug_struct("ServiceAccounts")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Whether a token has the form of one that Kubernetes issues (RFC 7519 §3).
fn is_jwt(token: &str) -> bool {
    let is_part = |part: &str| {
        let base64url = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !part.is_empty() && part.chars().all(base64url)
    };
    token.split('.').count() == 3 && token.split('.').all(is_part)
}
