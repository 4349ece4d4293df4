//! `sluicectl clients`: who is connected to a control plane, and how far each client is.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, process::ExitCode};

use anyhow::Context;
use serde::Deserialize;

use crate::{
    ask,
    show::{self, Format},
};

/// Shows the ztunnels that are connected to a control plane, and what each has acknowledged.
///
/// STATE is `synced` when the last response was acknowledged, `rejected` when it was rejected, and
/// `sent` while there is no answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The `--status-listen` address of sluice-control.
    #[arg(long, default_value = ask::CONTROL, value_name = "ADDRESS")]
    status: SocketAddr,
    /// How clients are written.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What is shown of a client in a table.
#[derive(Deserialize)]
pub(crate) struct Client {
    pub(crate) node: String,
    address: String,
    connected: String,
    types: BTreeMap<String, Progress>,
}

impl Client {
    /// How far it is with what it is furthest behind with.
    pub(crate) fn state(&self) -> &'static str {
        let states = self.types.values().map(|progress| progress.state().0);
        let order = ["rejected", "sent", "asked", "synced"];
        let worst = states.min_by_key(|state| order.iter().position(|one| one == state));
        worst.unwrap_or("connected")
    }
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
    let address = arguments.status;
    let page = ask::body(address, "/clients").with_context(|| {
        format!("cannot ask the control plane at {address}; is --status its --status-listen?")
    })?;
    let text = match arguments.output {
        Format::Json => String::from_utf8_lossy(&page).into_owned(),
        Format::Yaml => show::yaml(&serde_json::from_slice::<serde_json::Value>(&page)?)?,
        Format::Text => {
            let clients: Vec<Client> = serde_json::from_slice(&page)
                .context("the control plane's answer is not understood; is it another version?")?;
            table(&clients)
        }
    };
    show::print(&text)?;
    Ok(ExitCode::SUCCESS)
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
    show::table(&rows) + &rejections
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
