//! The listeners for ztunnels: discovery and certificates, over TLS or on a Unix socket.

pub mod unix;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sluice_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

use crate::{
    Error,
    ca::{Authority, Certificates, ServerName},
    xds::Discovery,
};

/// A client that has not finished its handshake by then is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The own certificate is not renewed more often, however short the authority's own life is.
const SHORTEST_REST: Duration = Duration::from_secs(1);
/// Connections that may wait for the server to take them.
const ACCEPTED: usize = 16;
/// Clients that are gone without a word are noticed after this and the timeout.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the control plane listens, and under which names.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Names that clients may expect in the certificate.
    pub names: Vec<ServerName>,
}

/// The names that clients of a listener on `listen` may expect, and `more`.
pub fn names(listen: IpAddr, more: &[ServerName]) -> Vec<ServerName> {
    let mut names: Vec<ServerName> = ["localhost", "sluice-control", "istiod.istio-system.svc"]
        .map(|name| ServerName::Dns(name.to_owned()))
        .into();
    if !listen.is_unspecified() {
        names.push(ServerName::Ip(listen));
    }
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The listener, bound but not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    certificate: Arc<OwnCertificate>,
}

impl Server {
    /// Binds the address and makes the first certificate.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(config: Config, authority: Arc<Authority>) -> Result<Self, Error> {
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        let certificate = Arc::new(OwnCertificate::new(authority, config.names)?);
        Ok(Self {
            listener,
            certificate,
        })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the transport fails for good.
    pub async fn serve(
        self,
        discovery: Discovery,
        certificates: Certificates,
    ) -> Result<(), Error> {
        let acceptor = acceptor(self.certificate.clone())?;
        let (accepted, incoming) = mpsc::channel(ACCEPTED);
        let grpc = grpc(discovery, certificates).serve_with_incoming(ReceiverStream::new(incoming));
        tokio::select! {
            served = grpc => {
                served.map_err(|error| Error::crypto("serve")(error.into()))
            }
            () = accept(self.listener, acceptor, accepted) => Ok(()),
            () = self.certificate.keep_fresh() => Ok(()),
        }
    }
}

/// What every listener serves.
fn grpc(discovery: Discovery, certificates: Certificates) -> Router {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(discovery)
        .add_service(IstioCertificateServiceServer::new(certificates))
}

type Accepted = Result<TlsStream<TcpStream>, std::io::Error>;

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, accepted: mpsc::Sender<Accepted>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            match time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = accepted.send(Ok(stream)).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

fn acceptor(certificate: Arc<OwnCertificate>) -> Result<TlsAcceptor, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::crypto("set up TLS")(error.into()))?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The control plane's own certificate, replaced long before it expires.
struct OwnCertificate {
    authority: Arc<Authority>,
    names: Vec<ServerName>,
    current: ArcSwap<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    renew_after: Duration,
}

impl OwnCertificate {
    fn new(authority: Arc<Authority>, names: Vec<ServerName>) -> Result<Self, Error> {
        let current = ArcSwap::from_pointee(make(&authority, &names)?);
        Ok(Self {
            authority,
            names,
            current,
        })
    }

    async fn keep_fresh(&self) {
        let mut changes = self.authority.changes();
        loop {
            let rest = self.current.load().renew_after.max(SHORTEST_REST);
            tokio::select! {
                () = time::sleep(rest) => {}
                // The authority outlives this.
                Ok(()) = changes.changed() => {}
            }
            match make(&self.authority, &self.names) {
                Ok(fresh) => self.current.store(Arc::new(fresh)),
                Err(error) => tracing::error!(%error, "cannot renew the server certificate"),
            }
        }
    }
}

fn make(authority: &Authority, names: &[ServerName]) -> Result<Current, Error> {
    let certificate = authority.server_certificate(names)?;
    let key = CertifiedKey::from_der(
        certificate.chain,
        certificate.key,
        &aws_lc_rs::default_provider(),
    )
    .map_err(|error| Error::crypto("use the server certificate")(error.into()))?;
    Ok(Current {
        key: Arc::new(key),
        renew_after: certificate.renew_after,
    })
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}
