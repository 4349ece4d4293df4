//! `sluicectl dump`: everything that ztunnels and a control plane say, in one document.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode};

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::{ask, show};

/// What a ztunnel says at its admin port.
const ZTUNNEL: [(&str, &str); 2] = [
    ("readiness", "/healthz/ready"),
    ("configDump", "/config_dump"),
];
/// What a control plane says.
const CONTROL: [(&str, &str); 6] = [
    ("readiness", "/healthz/ready"),
    ("clients", "/clients"),
    ("policies", "/config/status"),
    ("errors", "/config/errors"),
    ("addresses", "/config/addresses"),
    ("metrics", "/metrics"),
];

/// Prints everything that ztunnels and the control plane say, in one document.
///
/// For a report about a problem, or to be compared with a later one. It names workloads, addresses,
/// policies and certificates, and holds no private key. What cannot be asked is in it as an error.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status:\n  0  all answered\n  1  some did not; the rest is printed\n  \
                  2  nobody answered"
)]
pub(crate) struct Arguments {
    /// A ztunnel to ask, by the address of its admin port; may be repeated.
    #[arg(long, default_values = [ask::ZTUNNEL], value_name = "ADDRESS")]
    ztunnel: Vec<SocketAddr>,
    /// The `--status-listen` address of sluice-control.
    #[arg(long, default_value = ask::CONTROL, value_name = "ADDRESS")]
    status: SocketAddr,
    #[arg(long, short, value_enum, default_value_t = Format::Json)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    taken: jiff::Timestamp,
    /// Of this command.
    version: &'static str,
    /// By address.
    ztunnels: BTreeMap<SocketAddr, Said>,
    control_plane: Said,
}

/// Pages by name, or why there are none.
type Said = BTreeMap<&'static str, Value>;

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let ztunnels = arguments.ztunnel.iter();
    let dump = Dump {
        taken: jiff::Timestamp::now(),
        version: env!("CARGO_PKG_VERSION"),
        ztunnels: ztunnels
            .map(|address| (*address, pages(*address, &ZTUNNEL)))
            .collect(),
        control_plane: pages(arguments.status, &CONTROL),
    };
    let all = dump.ztunnels.values().chain([&dump.control_plane]);
    let failed = all
        .clone()
        .filter(|said| said.contains_key("error"))
        .count();
    if failed == all.count() {
        bail!(
            "nobody answered, neither a ztunnel at {:?} nor a control plane at {}; run this on a node, \
             or say where they are with --ztunnel and --status",
            arguments.ztunnel,
            arguments.status
        );
    }
    show::print(&match arguments.output {
        Format::Json => show::json(&dump)?,
        Format::Yaml => show::yaml(&dump)?,
    })?;
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn pages(address: SocketAddr, pages: &[(&'static str, &str)]) -> Said {
    let mut said = Said::new();
    for (name, path) in pages {
        match ask::page(address, path) {
            Ok(page) => {
                let text = || Value::String(page.text());
                let value = serde_json::from_slice(&page.body).unwrap_or_else(|_| text());
                said.insert(name, value);
            }
            Err(error) => {
                said.insert("error", format!("{error:#}").into());
                break;
            }
        }
    }
    said
}
