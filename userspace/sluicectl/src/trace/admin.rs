//! Asks a worker's endpoint for operators.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use tokio::{net::TcpStream, time::timeout};

use crate::ask::{self, PATIENCE, runtime};

/// Gets a whole page.
///
/// # Errors
/// When nobody answers, or there is no such page.
pub(super) fn page(address: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    runtime()?.block_on(async {
        let whole = async { Ok(get(address, path).await?.collect().await?.to_bytes()) };
        timeout(PATIENCE, whole).await?
    })
}

/// Gets the lines of a page that may have no end, until `on_line` says that it is enough. It is also
/// called without a line: when the answer begins, and from time to time when nothing comes.
///
/// # Errors
/// As [`page`].
pub(super) fn lines(
    address: SocketAddr,
    path: &str,
    mut on_line: impl FnMut(Option<&[u8]>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    /// How often something is done when nothing comes.
    const IDLE: Duration = Duration::from_millis(100);
    runtime()?.block_on(async {
        let mut body = timeout(PATIENCE, get(address, path)).await??;
        on_line(None)?;
        let mut rest = Vec::new();
        loop {
            let frame = match timeout(IDLE, body.frame()).await {
                Err(_) => {
                    if !on_line(None)? {
                        return Ok(());
                    }
                    continue;
                }
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => frame.context("the ztunnel's worker has gone")?,
            };
            if let Ok(data) = frame.into_data() {
                rest.extend_from_slice(&data);
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if !on_line(Some(&line[..end]))? {
                    return Ok(());
                }
            }
        }
    })
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Incoming> {
    let refused = || {
        format!(
            "nobody answers at {address}; does the ztunnel run, and is this its node's network?"
        )
    };
    let stream = TcpStream::connect(address).await.with_context(refused)?;
    let response = ask::begin(stream, address, path).await?;
    let status = response.status();
    if !status.is_success() {
        let why = response.into_body().collect().await?.to_bytes();
        bail!(
            "{path} is answered with {status}: {}",
            String::from_utf8_lossy(&why).trim()
        );
    }
    Ok(response.into_body())
}
