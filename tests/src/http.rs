//! HTTP/1.1 requests to the ports of a node: health, metrics, admin.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// `GET path` from inside a namespace.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<Response> {
    request(netns, "GET", address, path)
}

/// The body, provided that the answer was 200.
pub fn get_ok(netns: &Netns, address: SocketAddr, path: &str) -> Result<String> {
    let response = get(netns, address, path)?;
    ensure!(
        response.status == 200,
        "http://{address}{path} in {} answered {}: {}",
        netns.name(),
        response.status,
        response.body.trim()
    );
    Ok(response.body)
}

/// A request without a body, from inside a namespace.
pub fn request(netns: &Netns, method: &str, address: SocketAddr, path: &str) -> Result<Response> {
    netns
        .enter(|| exchange(method, address, path))?
        .with_context(|| format!("{method} http://{address}{path} in {}", netns.name()))
}

/// A request without a body, from where the calling thread is.
pub fn exchange(method: &str, address: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).context("connecting")?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading the answer")?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("not a status line: {}", head.lines().next().unwrap_or("")))?;
    let chunked = head.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding") && value.contains("chunked")
        })
    });
    let body = if chunked {
        join_chunks(body)?
    } else {
        body.to_owned()
    };
    Ok(Response { status, body })
}

fn join_chunks(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk without a size")?;
        let size = size.split(';').next().unwrap_or(size);
        let size = usize::from_str_radix(size.trim(), 16).context("the size of a chunk")?;
        if size == 0 {
            return Ok(body);
        }
        let Some(chunk) = after.get(..size) else {
            bail!("a chunk is cut off")
        };
        body.push_str(chunk);
        rest = after[size..].trim_start_matches("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_may_be_plain_or_chunked() -> Result<()> {
        let plain = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready")?;
        assert_eq!((plain.status, plain.body.as_str()), (200, "ready"));
        let chunked = parse(
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnot\r\n6\r\n ready\r\n0\r\n\r\n",
        )?;
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "not ready"));
        assert!(parse(b"garbage").is_err());
        Ok(())
    }
}
