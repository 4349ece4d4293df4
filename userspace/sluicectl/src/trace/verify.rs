//! `sluicectl trace verify`

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use sluice_kernel::{
    TcpSockets,
    verify::{self, Ledger, LedgerPod},
};
use sluice_objects::Directory;

use super::{Format, Node, admin, ledger};

/// Checks whether the kernel does what the mesh's configuration and the ztunnel's API say.
///
/// Compares the pods that ought to be in the mesh with those that are, and of each its network
/// namespace, its entries in the eBPF maps, its programs and listeners; then the programs on the
/// cgroups, the pins, the broker and the worker's API. A line for each check.
///
/// The exit status is 0 when all is as it must be, 1 when something has drifted, and 2 when that
/// cannot be found out.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    node: Node,
    /// Show only what has drifted.
    #[arg(long, short)]
    quiet: bool,
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What clap too returns for a command line that it does not understand is for errors.
const DRIFTED: u8 = 1;

/// One check.
#[derive(Debug, Serialize)]
struct Line {
    check: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "only root may look at programs, maps and namespaces"
    );
    let ledger = ledger::read(&arguments.node.run_dir)?;
    let mut lines = Vec::new();
    lines.push(broker(&arguments.node.run_dir));
    lines.extend(kernel(&ledger));
    for pod in &ledger.pods {
        lines.extend(namespace(&ledger, pod));
    }
    lines.extend(enrolment(&ledger, &arguments.node.run_dir)?);
    lines.extend(api(&ledger));
    let (checks, drifted) = (lines.len(), drifted(&lines));
    // There are many of those that are well: what is not stands at the end, where it is seen.
    lines.sort_by_key(|line| line.drift.is_some());
    if arguments.quiet {
        lines.retain(|line| line.drift.is_some());
    }
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Format::Json => {
            let all = serde_json::json!({
                "node": ledger.node, "checks": lines, "drifted": drifted, "healed": ledger.drifts,
            });
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
        }
        Format::Table => {
            for Line {
                check,
                pod,
                what,
                drift,
            } in &lines
            {
                let pod = pod
                    .as_ref()
                    .map_or_else(String::new, |pod| format!("{pod}: "));
                match drift {
                    None => writeln!(out, "ok     {check:9}  {pod}{what}")?,
                    Some(drift) => writeln!(out, "DRIFT  {check:9}  {pod}{what}: {drift}")?,
                }
            }
            notes(&mut out, &ledger)?;
            let all = if drifted == 0 {
                format!("all is as it must be, by {checks} checks")
            } else {
                format!(
                    "{drifted} of {checks} checks found a drift; the broker puts right what it can"
                )
            };
            writeln!(out, "node {}: {all}", ledger.node)?;
        }
    }
    Ok(if drifted == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFTED)
    })
}

fn drifted(lines: &[Line]) -> usize {
    lines.iter().filter(|line| line.drift.is_some()).count()
}

/// What the broker has found of late, and put right or not.
fn notes(out: &mut impl std::io::Write, ledger: &Ledger) -> std::io::Result<()> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    for drift in &ledger.drifts {
        let ago = now.saturating_sub(Duration::from_secs(drift.at)).as_secs();
        let outcome = match &drift.failure {
            None => "healed".to_owned(),
            Some(why) => format!("not healed: {why}"),
        };
        writeln!(
            out,
            "note   {:9}  {ago} s ago: {} ({outcome})",
            drift.check, drift.what
        )?;
    }
    Ok(())
}

fn line(
    check: &'static str,
    pod: Option<&LedgerPod>,
    what: impl Into<String>,
    result: Result<(), String>,
) -> Line {
    Line {
        check,
        pod: pod.map(full_name),
        what: what.into(),
        drift: result.err(),
    }
}

fn full_name(pod: &LedgerPod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// Whether anybody is there who would put things right.
fn broker(run_dir: &Path) -> Line {
    let pid = fs::read_to_string(run_dir.join("broker.pid")).unwrap_or_default();
    let pid = pid.trim();
    let runs = !pid.is_empty() && Path::new("/proc").join(pid).exists();
    let result = if runs {
        Ok(())
    } else {
        Err("it does not run: nothing that drifts is put right".to_owned())
    };
    line("broker", None, format!("process {pid}"), result)
}

fn kernel(ledger: &Ledger) -> Vec<Line> {
    let findings = verify::check(&ledger.expected).into_iter();
    findings
        .map(|finding| {
            let pod = finding.subject.pod();
            let pod = pod.and_then(|cookie| ledger.pods.iter().find(|pod| pod.cookie == cookie));
            line(
                finding.subject.check().name(),
                pod,
                finding.what,
                finding.drift.map_or(Ok(()), Err),
            )
        })
        .collect()
}

/// Whether a pod's namespace is the one that was enrolled, and the ztunnel listens in it.
fn namespace(ledger: &Ledger, pod: &LedgerPod) -> Vec<Line> {
    let at = format!("network namespace {}", pod.netns.display());
    let opened =
        File::open(&pod.netns).and_then(|netns| Ok((sluice_kernel::cookie_of(&netns)?, netns)));
    let netns = match opened {
        Ok((cookie, netns)) if cookie == pod.cookie => netns,
        Ok((cookie, _)) => {
            let why = format!(
                "another one: its cookie is {cookie}, enrolled is {}",
                pod.cookie
            );
            return vec![line("netns", Some(pod), at, Err(why))];
        }
        Err(error) => return vec![line("netns", Some(pod), at, Err(error.to_string()))],
    };
    let mut lines = vec![line("netns", Some(pod), at, Ok(()))];
    let Some(proxies) = ledger::proxies(ledger) else {
        return lines;
    };
    let list = || TcpSockets::open(proxies)?.list();
    let sockets = sluice_kernel::within(&netns, list).flatten();
    match sockets {
        Err(error) => lines.push(line(
            "listener",
            Some(pod),
            "sockets",
            Err(error.to_string()),
        )),
        Ok(sockets) => {
            for port in &pod.ports {
                let listens = sockets.iter().any(|socket| {
                    socket.state == "LISTEN" && socket.local.port() == *port && socket.proxy
                });
                let result = if listens {
                    Ok(())
                } else {
                    Err("the ztunnel does not listen".to_owned())
                };
                lines.push(line("listener", Some(pod), format!("port {port}"), result));
            }
        }
    }
    lines
}

/// Whether the pods in the mesh are those that the configuration wants there.
fn enrolment(ledger: &Ledger, run_dir: &Path) -> anyhow::Result<Vec<Line>> {
    let dir = &ledger.config_dir;
    let snapshot =
        Directory::read(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let (wanted, _) = sluice_objects::enrolment::pods_to_enrol(&snapshot.objects, &ledger.node);
    let wanted: BTreeSet<String> = wanted
        .iter()
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let enrolled: BTreeSet<String> = ledger.pods.iter().map(full_name).collect();
    let report = fs::read_to_string(run_dir.join("pods")).unwrap_or_default();
    let reason = |pod: &str| {
        let mut lines = report.lines().filter_map(|line| line.split_once(' '));
        lines
            .find(|(name, _)| *name == pod)
            .map(|(_, state)| state.to_owned())
    };
    Ok(wanted
        .union(&enrolled)
        .map(|pod| Line {
            check: "enrolment",
            pod: Some(pod.clone()),
            what: "in the mesh, as the configuration says".to_owned(),
            drift: match (wanted.contains(pod), enrolled.contains(pod)) {
                (true, false) => Some(format!(
                    "it is not enrolled; the broker says: {}",
                    reason(pod).as_deref().unwrap_or("nothing")
                )),
                (false, true) => Some("it is enrolled, and ought not to be".to_owned()),
                _ => None,
            },
        })
        .collect())
}

/// Whether the worker answers, and knows the pods as members of the mesh.
fn api(ledger: &Ledger) -> Vec<Line> {
    let at = format!("API at {}", ledger.admin);
    let asked = admin::page(ledger.admin, "/config_dump").and_then(|page| {
        serde_json::from_slice::<Value>(&page).context("the answer is not understood")
    });
    let dump = match asked {
        Ok(dump) => dump,
        Err(error) => return vec![line("worker", None, at, Err(format!("{error:#}")))],
    };
    let mut lines = vec![line("worker", None, at, Ok(()))];
    let workloads = dump["workloads"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for pod in &ledger.pods {
        let own = |workload: &&Value| {
            workload["namespace"] == *pod.namespace && workload["name"] == *pod.name
        };
        let result = match workloads.iter().find(own) {
            None => Err("the control plane has not told of it: it can dial nothing yet".to_owned()),
            Some(workload) if workload["protocol"] != "HBONE" => Err(
                "the control plane says that it is outside: others send it plaintext".to_owned(),
            ),
            Some(_) => Ok(()),
        };
        lines.push(line(
            "workload",
            Some(pod),
            "known as a member of the mesh",
            result,
        ));
    }
    lines
}
