//! Clients of every kind, who find out whether they are let through.

use std::{collections::HashMap, io::ErrorKind, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sluice_model::SpiffeId;
use sluice_tests::eventually::PATIENCE;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::credentials::{Authority, SERVER};
use crate::envoy::{Addresses, port_of};
use crate::generate::Attempt;

/// What is sent, and comes back to who is let through.
const BYTE: u8 = b'?';

pub(crate) struct Client<'a> {
    addresses: &'a Addresses,
    authority: &'a Authority,
    /// By the names in the certificate.
    tls: HashMap<Vec<SpiffeId>, Arc<ClientConfig>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(addresses: &'a Addresses, authority: &'a Authority) -> Self {
        Self {
            addresses,
            authority,
            tls: HashMap::new(),
        }
    }

    /// Connects to where a policy set is in force. The future says whether that let it through.
    pub(crate) fn exchange(
        &mut self,
        set: usize,
        attempt: &Attempt,
    ) -> Result<impl Future<Output = Result<bool>> + use<>> {
        let names = attempt.names();
        let (tls, address) = if names.is_empty() {
            (None, self.addresses.plaintext)
        } else {
            (Some(self.tls(names)?), self.addresses.tls)
        };
        let header = proxy_header(set, attempt);
        Ok(async move {
            timeout(PATIENCE, exchange(address, header, tls))
                .await
                .context("Envoy does not answer")?
        })
    }

    fn tls(&mut self, names: Vec<SpiffeId>) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get(&names) {
            return Ok(config.clone());
        }
        // Envoy's filter tries every URI of a certificate. That is what equivalent trust domains
        // mean: the client is whom a policy names, if any of its names is.
        let config = self.authority.client(&names)?;
        self.tls.insert(names, config.clone());
        Ok(config)
    }
}

/// Version 1 of the PROXY protocol.
fn proxy_header(set: usize, attempt: &Attempt) -> String {
    let (source, destination) = (attempt.source, attempt.destination);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (ip, port) = (destination.ip(), destination.port());
    format!("PROXY {family} {source} {ip} {} {port}\r\n", port_of(set))
}

async fn exchange(
    address: SocketAddr,
    header: String,
    tls: Option<Arc<ClientConfig>>,
) -> Result<bool> {
    let mut tcp = TcpStream::connect(address).await.context("connecting")?;
    tcp.write_all(header.as_bytes()).await?;
    match tls {
        None => byte_returns(tcp).await,
        Some(config) => {
            let server = ServerName::try_from(SERVER)?;
            let stream = TlsConnector::from(config).connect(server, tcp).await;
            byte_returns(stream.context("TLS handshake")?).await
        }
    }
}

/// Whether a byte comes back before the end. In TLS 1.3 a server may still refuse a certificate
/// after the handshake, but not without an alert, which is an error here.
async fn byte_returns(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<bool> {
    stream.write_all(&[BYTE]).await?;
    stream.flush().await?;
    let mut answer = [0];
    match stream.read(&mut answer).await {
        Ok(0) => Ok(false),
        Ok(_) => {
            ensure!(answer == [BYTE], "another byte came back: {answer:?}");
            Ok(true)
        }
        Err(error) => match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Ok(false),
            _ => bail!("waiting for the answer: {error}"),
        },
    }
}
