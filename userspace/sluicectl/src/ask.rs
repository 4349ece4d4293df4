//! Asks the endpoints of ztunnels and control planes.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};

/// A page that takes longer does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The address of a control plane's pages, unless it has another.
pub(crate) const CONTROL: &str = "127.0.0.1:15014";
/// The address of a ztunnel's pages.
pub(crate) const ZTUNNEL: &str = "127.0.0.1:15000";

/// A page as it was answered, whatever the status.
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Page {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks for a page.
///
/// # Errors
/// When nobody answers in time; names what was asked.
pub(crate) fn page(address: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let asked = async { timeout(PATIENCE, get(address, path)).await };
    let answered = runtime()?.block_on(asked);
    answered
        .with_context(|| format!("after {} s", PATIENCE.as_secs()))
        .flatten()
        .with_context(|| format!("no answer from {}", url(address, path)))
}

/// Asks for a page that must be there.
///
/// # Errors
/// As [`page`], and for any status but success.
pub(crate) fn body(address: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let page = page(address, path)?;
    if !page.status.is_success() {
        let (url, status) = (url(address, path), page.status);
        bail!("{url} is answered with {status}: {}", page.text().trim());
    }
    Ok(page.body)
}

/// Asks for a page of JSON.
///
/// # Errors
/// As [`body`], and when it is not what is expected.
pub(crate) fn json<T: DeserializeOwned>(address: SocketAddr, path: &str) -> anyhow::Result<T> {
    let page = body(address, path)?;
    serde_json::from_slice(&page).with_context(|| {
        format!("the answer of {address} is not understood; is it another version?")
    })
}

/// A page as one would ask for it by hand, without its parameters.
fn url(address: SocketAddr, path: &str) -> String {
    let bare = path.split('?').next().unwrap_or(path);
    format!("http://{address}{bare}")
}

/// Asks for a page by a connection that was made for it, and returns when its answer begins.
///
/// # Errors
/// When there is no answer.
pub(crate) async fn begin(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer, whose reader sees how.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let stream = TcpStream::connect(address).await?;
    let response = begin(stream, address, path).await?;
    Ok(Page {
        status: response.status(),
        body: response.into_body().collect().await?.to_bytes(),
    })
}

/// What questions are asked on.
pub(crate) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
