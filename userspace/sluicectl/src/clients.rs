//! `sluicectl clients`: who is connected to a control plane, and how far each client is.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};

/// A page that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows the ztunnels that are connected to a control plane, and what each has acknowledged.
///
/// STATE is `synced` when the last response was acknowledged, `rejected` when it was rejected, and
/// `sent` while there is no answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The `--status-listen` address of sluice-control.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "ADDRESS")]
    status: SocketAddr,
    /// How clients are written.
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A line for each client and type of resource
    Table,
    /// What the control plane says, with nonces and times
    Json,
}

/// What is shown of a client in a table.
#[derive(Deserialize)]
struct Client {
    node: String,
    address: String,
    connected: String,
    types: BTreeMap<String, Progress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    sent: Option<Mark>,
    acknowledged: Option<Mark>,
    last_rejection: Option<Rejection>,
}

#[derive(Deserialize)]
struct Mark {
    version: String,
    nonce: String,
    at: String,
}

#[derive(Deserialize)]
struct Rejection {
    nonce: String,
    at: String,
    message: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let address = arguments.status;
    let page = runtime
        .block_on(async { timeout(PATIENCE, get(address)).await })
        .map_err(anyhow::Error::from)
        .flatten()
        .with_context(|| {
            format!("cannot ask the control plane at {address}; is --status its --status-listen?")
        })?;
    let text = match arguments.output {
        Format::Json => String::from_utf8_lossy(&page).into_owned(),
        Format::Table => {
            let clients: Vec<Client> = serde_json::from_slice(&page)
                .context("the control plane's answer is not understood; is it another version?")?;
            table(&clients)
        }
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn get(address: SocketAddr) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/clients")
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let ask = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("/clients is answered with {}", response.status());
        }
        Ok(response.into_body().collect().await?.to_bytes())
    };
    tokio::select! {
        page = ask => page,
        // The connection ends with an error, or after the answer.
        ended = connection => {
            ended?;
            bail!("the connection was closed")
        }
    }
}

const HEADINGS: [&str; 7] = [
    "NODE",
    "ADDRESS",
    "CONNECTED",
    "TYPE",
    "STATE",
    "VERSION",
    "SINCE",
];

fn table(clients: &[Client]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    let mut rejections = String::new();
    for client in clients {
        let row = |kind: &str, state: &str, mark: Option<&Mark>| {
            let (version, at) = mark.map_or(("", ""), |mark| (&*mark.version, &*mark.at));
            // Enough to compare by eye.
            let version = version.get(..8).unwrap_or(version);
            let (node, address) = (&*client.node, &*client.address);
            [node, address, &client.connected, kind, state, version, at].map(str::to_owned)
        };
        if client.types.is_empty() {
            rows.push(row("", "connected", None));
        }
        for (url, progress) in &client.types {
            let kind = url.rsplit('.').next().unwrap_or(url);
            let (state, mark) = progress.state();
            rows.push(row(kind, state, mark));
            if let Some(rejection) = &progress.last_rejection {
                let Rejection { at, message, .. } = rejection;
                let node = &client.node;
                let _ = writeln!(rejections, "{node}: {kind} rejected at {at}: {message}");
            }
        }
    }
    let widths = (0..HEADINGS.len()).map(|i| rows.iter().map(|row| row[i].len()).max());
    let widths: Vec<usize> = widths.map(Option::unwrap_or_default).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, &width)| format!("{cell:width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text + &rejections
}

impl Progress {
    /// In a word how far the client is, and with which response.
    fn state(&self) -> (&'static str, Option<&Mark>) {
        let Some(sent) = &self.sent else {
            return ("asked", None);
        };
        match (&self.acknowledged, &self.last_rejection) {
            (Some(mark), _) if mark.nonce == sent.nonce => ("synced", Some(mark)),
            (_, Some(rejection)) if rejection.nonce == sent.nonce => ("rejected", Some(sent)),
            _ => ("sent", Some(sent)),
        }
    }
}
