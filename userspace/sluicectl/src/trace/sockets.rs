//! `sluicectl trace sockets`

use std::{collections::BTreeMap, fs::File, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use serde::Serialize;
use sluice_kernel::{TcpSocket, TcpSockets, verify::Ledger};

use super::{Format, Node, ledger};

/// Shows the ztunnel's TCP sockets, by pod, purpose and state.
///
/// PURPOSE is `outbound` for what applications dial, `plaintext` for what comes without a tunnel,
/// `tunnel-in` and `tunnel-out`, `dns`, and `dialled` for what the ztunnel has dialled otherwise:
/// applications in the pod, and destinations in plaintext.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    node: Node,
    /// Only those of this pod, NAMESPACE/NAME.
    #[arg(long)]
    pod: Option<String>,
    /// Every socket with its ends, in place of how many there are.
    #[arg(long)]
    each: bool,
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Serialize)]
struct Line {
    pod: String,
    purpose: &'static str,
    #[serde(flatten)]
    socket: TcpSocket,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let ledger = ledger::read(&arguments.node.run_dir)?;
    let lines = lines(&ledger, arguments.pod.as_deref())?;
    let mut out = std::io::stdout().lock();
    if arguments.output == Format::Json {
        serde_json::to_writer_pretty(&mut out, &lines)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = lines.iter().map(|line| line.pod.len()).max().unwrap_or(3);
    if arguments.each {
        writeln!(
            out,
            "{:width$}  {:10}  {:10}  {:>7}  {:>7}  LOCAL → REMOTE",
            "POD", "PURPOSE", "STATE", "WAITING", "UNACKED"
        )?;
        for Line {
            pod,
            purpose,
            socket,
        } in &lines
        {
            let TcpSocket {
                state,
                waiting,
                unacknowledged,
                local,
                remote,
                ..
            } = socket;
            writeln!(
                out,
                "{pod:width$}  {purpose:10}  {state:10}  {waiting:>7}  {unacknowledged:>7}  {local} → {remote}"
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut counts: BTreeMap<(&str, &str, &str), (usize, u64)> = BTreeMap::new();
    for line in &lines {
        let key = (&*line.pod, line.purpose, line.socket.state);
        let count = counts.entry(key).or_default();
        count.0 += 1;
        count.1 += u64::from(line.socket.waiting);
    }
    writeln!(
        out,
        "{:width$}  {:10}  {:10}  {:>7}  {:>7}",
        "POD", "PURPOSE", "STATE", "SOCKETS", "WAITING"
    )?;
    for ((pod, purpose, state), (count, waiting)) in counts {
        writeln!(
            out,
            "{pod:width$}  {purpose:10}  {state:10}  {count:>7}  {waiting:>7}"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(ledger: &Ledger, only: Option<&str>) -> anyhow::Result<Vec<Line>> {
    let proxies = ledger::proxies(ledger).context("the ledger names no map PROXY")?;
    let all = TcpSockets::open(proxies)?;
    let mut lines = Vec::new();
    for pod in &ledger.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let look = || {
            let netns = File::open(&pod.netns)?;
            sluice_kernel::within(&netns, || all.list())?
        };
        let sockets = look().with_context(|| format!("cannot list the sockets of {name}"))?;
        let ours = sockets.into_iter().filter_map(|socket| {
            let purpose = socket.purpose()?;
            Some(Line {
                pod: name.clone(),
                purpose,
                socket,
            })
        });
        lines.extend(ours);
    }
    if let Some(only) = only
        && lines.is_empty()
    {
        anyhow::bail!("no pod {only} of this node is in the mesh");
    }
    Ok(lines)
}
