//! How a control plane is reached: its address, whom to believe that it is, and what to show it.

use std::{fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    metadata::{MetadataMap, MetadataValue},
    transport::{self, Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};
use tower::{Service, service_fn};

use crate::{Addresses, Dial, Error, socket_path};

/// What a control plane on this machine is called; nobody looks at it.
const LOCAL: &str = "http://localhost";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A text that somebody else keeps current, such as the content of a token file. Clones share it.
#[derive(Clone, Default)]
pub struct Live(Arc<ArcSwap<String>>);

impl Live {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(text.into())))
    }

    /// Puts a new text in place, for the next use.
    pub fn set(&self, text: impl Into<String>) {
        self.0.store(Arc::new(text.into()));
    }

    pub fn get(&self) -> Arc<String> {
        self.0.load_full()
    }
}

/// Never the text: it may be a secret.
impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Live({} bytes)", self.0.load().len())
    }
}

/// A control plane, and what it takes to talk to it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Each `https://HOST:PORT`, or `unix:///PATH` for one on this machine, which knows its peers by
    /// their credentials: there is no TLS, and the token is kept back. So it is with `http://`, where
    /// nothing takes their place; that is for tests and loopback.
    pub addresses: Addresses,
    /// Opens the sockets of `unix:///PATH`.
    pub dial: Arc<dyn Dial>,
    /// The host name to expect in the certificate, when it is not the address's own.
    pub server_name: Option<String>,
    /// Trust anchors in PEM, looked up at each connect.
    pub roots: Live,
    /// The bearer token, looked up at each request; empty when there is none.
    pub token: Live,
    /// The cluster that this node is of; empty when the control plane knows one only.
    pub cluster: String,
}

impl ControlPlane {
    /// A client's side of the connection to one of the addresses, to be opened.
    ///
    /// # Errors
    /// When the address cannot be used, or its trust anchors are missing or bad.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let url = match socket_path(address) {
            Some(_) => LOCAL,
            None => address,
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .ok()
            .filter(|e| matches!(e.uri().scheme_str(), Some("https" | "http")))
            .ok_or_else(|| Error::ControlPlaneAddress(address.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if !is_encrypted(address) {
            return Ok(endpoint);
        }
        let roots = self.roots.get();
        if roots.is_empty() {
            return Err(Error::ControlPlaneRoots);
        }
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&*roots));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name.clone());
        }
        endpoint.tls_config(tls).map_err(Error::ControlPlaneTls)
    }

    /// Connects to one of the addresses, by its [`ControlPlane::endpoint`].
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect(
        &self,
        address: &str,
        endpoint: Endpoint,
    ) -> Result<Channel, transport::Error> {
        match self.connector(address) {
            Some(connector) => endpoint.connect_with_connector(connector).await,
            None => endpoint.connect().await,
        }
    }

    /// As [`ControlPlane::connect`], when the channel is first used.
    pub(crate) fn connect_lazy(&self, address: &str, endpoint: Endpoint) -> Channel {
        match self.connector(address) {
            Some(connector) => endpoint.connect_with_connector_lazy(connector),
            None => endpoint.connect_lazy(),
        }
    }

    /// What opens a socket on this machine; `None` where the address is elsewhere.
    fn connector(&self, address: &str) -> Option<impl Connector> {
        let path: Arc<str> = socket_path(address)?.into();
        let dial = self.dial.clone();
        Some(service_fn(move |_: Uri| {
            let (path, dial) = (path.clone(), dial.clone());
            async move { dial.dial(&path).await.map(TokioIo::new) }
        }))
    }

    /// Adds what the control plane wants to see to the metadata of a request to one of the addresses.
    ///
    /// # Errors
    /// When the token cannot be sent.
    pub fn authorize(&self, address: &str, metadata: &mut MetadataMap) -> Result<(), Error> {
        let token = self.token.get();
        let token = token.trim();
        if !token.is_empty() && is_encrypted(address) {
            let mut value =
                MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| Error::Token)?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        if let Ok(cluster) = MetadataValue::try_from(&self.cluster)
            && !self.cluster.is_empty()
        {
            metadata.insert("clusterid", cluster);
        }
        Ok(())
    }
}

fn is_encrypted(address: &str) -> bool {
    let is_plain = address
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    !is_plain && socket_path(address).is_none()
}

/// A connector, as tonic wants it.
trait Connector:
    Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + 'static
{
}

impl<T> Connector for T where
    T: Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send>
        + Send
        + 'static
{
}
