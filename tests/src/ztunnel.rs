//! One node's ztunnel: the broker that the harness started, and the worker that the broker did.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::access_log::{self, AccessLine};
use crate::eventually::{PATIENCE, eventually};
use crate::http;
use crate::process::{self, Finished, Process};
use crate::run::{ProcessId, Resource};
use crate::topology::Node;

/// Pins of all instances are below it.
pub const BPFFS: &str = "/sys/fs/bpf/sluice";

/// What a ztunnel needs to know of the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    pub(crate) control: String,
    /// Not for a control plane on the same machine.
    pub(crate) proofs: Option<Proofs>,
    pub(crate) config: PathBuf,
    pub(crate) extra: Vec<String>,
}

/// How a proxy and the control plane prove themselves to each other over a network: files.
#[derive(Debug, Clone)]
pub struct Proofs {
    pub root_certificate: PathBuf,
    pub token: PathBuf,
}

/// A ztunnel on a node; stopped when dropped.
#[derive(Debug)]
pub struct Ztunnel {
    node: Arc<Node>,
    uplink: Uplink,
    run_dir: PathBuf,
    broker: Process,
}

impl Ztunnel {
    pub(crate) fn start(node: &Arc<Node>, uplink: Uplink) -> Result<Self> {
        let run_dir = node.run.dir().join(format!("ztunnel-{}", node.name()));
        fs::create_dir_all(&run_dir).with_context(|| format!("creating {}", run_dir.display()))?;
        let broker = Self::spawn(node, &uplink, &run_dir)?;
        Ok(Self {
            node: Arc::clone(node),
            uplink,
            run_dir,
            broker,
        })
    }

    fn spawn(node: &Arc<Node>, uplink: &Uplink, run_dir: &Path) -> Result<Process> {
        // Pins outlive the process that made them: a crashed run's are removed by the next.
        let pins = Resource::Pins(pins(node));
        node.run.make(&pins, || Ok(()))?;
        let mut command = node.command(node.run.binaries().ztunnel()?);
        for (flag, value) in flags(node, uplink, run_dir) {
            command.arg(flag).arg(value);
        }
        command.args(&uplink.extra);
        Process::start(&node.run, &format!("ztunnel-{}", node.name()), command)
    }

    /// Starts one more broker with the flags of this one, but for those given – without a value,
    /// a flag is left out – and waits for its end.
    pub fn attempt(&self, changes: &[(&str, Option<&str>)]) -> Result<Finished> {
        for change in changes {
            if let ("--instance", Some(instance)) = *change {
                let pins = Resource::Pins(Path::new(BPFFS).join(instance));
                self.node.run.make(&pins, || Ok(()))?;
            }
        }
        let mut command = self.node.command(self.node.run.binaries().ztunnel()?);
        for (flag, value) in flags(&self.node, &self.uplink, &self.run_dir) {
            if changes.iter().all(|(changed, _)| *changed != flag) {
                command.arg(flag).arg(value);
            }
        }
        for (flag, value) in changes {
            if let Some(value) = value {
                command.args([flag, value]);
            }
        }
        process::finish_within(&self.node.run, command, PATIENCE)
    }

    /// `ztunnel cleanup` for this instance, as an operator runs it after a crash.
    pub fn clean_up(&self) -> Result<()> {
        let program = self.node.run.binaries().ztunnel()?;
        let mut command = self.node.command(program);
        command.args(["cleanup", "--bpffs", BPFFS, "--instance"]);
        command.arg(instance(&self.node));
        process::finish_within(&self.node.run, command, PATIENCE)?.success()?;
        Ok(())
    }

    /// `sluicectl trace VERB` on this node, with the run directory where the verb takes one.
    pub fn trace(&self, verb: &str, arguments: &[&str]) -> Result<Finished> {
        process::finish_within(
            &self.node.run,
            self.trace_command(verb, arguments)?,
            PATIENCE,
        )
    }

    /// The same, to be run for as long as one likes.
    pub fn trace_command(&self, verb: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.node.command(self.node.run.binaries().sluicectl()?);
        command.args(["trace", verb]);
        if !matches!(verb, "flows" | "kernel") {
            command.arg("--run-dir").arg(&self.run_dir);
        }
        command.args(arguments);
        Ok(command)
    }

    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The directory of this instance's pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        pins(&self.node)
    }

    /// Where it keeps `worker.pid` and its snapshot.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The mesh as the control plane described it last, for a start without one.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.run_dir.join("snapshot")
    }

    /// The process id of the broker.
    pub fn broker_pid(&self) -> u32 {
        self.broker.pid()
    }

    #[must_use]
    pub fn broker(&mut self) -> &mut Process {
        &mut self.broker
    }

    /// The broker's list of its pods: lines `NAMESPACE/NAME STATE`.
    pub fn pods(&self) -> Result<String> {
        let path = self.run_dir.join("pods");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// What it says of its readiness.
    pub fn readiness(&self) -> Result<http::Response> {
        http::get(&self.node.netns, local(15021), "/healthz/ready")
    }

    /// Waits until it says that it is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        eventually(|| {
            self.broker.check()?;
            http::get_ok(&self.node.netns, local(15021), "/healthz/ready").map(drop)
        })
    }

    /// The worker that is running now. During a restart there may be none for a moment.
    pub fn worker(&self) -> Result<ProcessId> {
        let path = self.run_dir.join("worker.pid");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pid = text
            .trim()
            .parse()
            .with_context(|| format!("a pid in {}", path.display()))?;
        ProcessId::of(pid).with_context(|| format!("the worker {pid} is not running"))
    }

    /// Kills the worker at once (SIGKILL); returns which it was.
    pub fn kill_worker(&self) -> Result<ProcessId> {
        let worker = self.worker()?;
        // A pid out of a file is believed only if the process is one of this node's.
        ensure!(
            self.node.cgroup.pids()?.contains(&worker.pid),
            "process {} is not in the cgroup of node {}",
            worker.pid,
            self.node.name()
        );
        kill(Pid::from_raw(i32::try_from(worker.pid)?), Signal::SIGKILL)
            .with_context(|| format!("killing the worker {}", worker.pid))?;
        Ok(worker)
    }

    /// Has the worker end by itself, as an operator would; returns which it was.
    pub fn quit_worker(&self) -> Result<ProcessId> {
        let worker = self.worker()?;
        let answer = http::request(&self.node.netns, "POST", local(15000), "/quitquitquit")?;
        ensure!(answer.status == 200, "{}", answer.body);
        Ok(worker)
    }

    /// Waits until another worker than this one is running.
    pub fn wait_for_successor(&mut self, of: ProcessId) -> Result<ProcessId> {
        eventually(|| {
            self.broker.check()?;
            let worker = self.worker()?;
            ensure!(worker != of, "the worker {} is still the same", of.pid);
            Ok(worker)
        })
    }

    /// SIGTERM to the broker; afterwards nothing of it may be left in the kernel.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        let status = self.broker.stop(limit)?;
        ensure!(
            status.success(),
            "the broker of {} ended with {status}",
            self.node.name()
        );
        let pins = self.pins();
        ensure!(
            !pins.exists(),
            "the broker left its pins in {}",
            pins.display()
        );
        Ok(())
    }

    /// Kills the broker at once (SIGKILL), and nothing else: its pins stay, and its worker is left
    /// to itself.
    pub fn kill_broker(&self) -> Result<()> {
        self.broker.signal(Signal::SIGKILL)
    }

    /// Starts it again after [`Self::stop`] or a crash.
    pub fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        self.wait_until_ready()
    }

    /// The same, without waiting until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.broker = Self::spawn(&self.node, &self.uplink, &self.run_dir)?;
        Ok(())
    }

    pub fn metrics(&self) -> Result<String> {
        http::get_ok(&self.node.netns, local(15020), "/metrics")
    }

    /// The sum of a metric over all series that have these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum_of(&self.metrics()?, name, labels))
    }

    pub fn config_dump(&self) -> Result<Value> {
        let text = http::get_ok(&self.node.netns, local(15000), "/config_dump")?;
        serde_json::from_str(&text).context("parsing /config_dump")
    }

    /// All that broker and worker have logged.
    pub fn log(&self) -> Result<String> {
        self.broker.log()
    }

    /// Waits for a line of broker or worker that has all these words.
    pub fn wait_for_line(&self, words: &[&str]) -> Result<String> {
        self.broker.wait_for_line(words)
    }

    /// Whether the kernel captures what goes to this address, since the mesh knows it.
    pub fn captures(&self, ip: Ipv4Addr) -> Result<bool> {
        let versions = fs::read_dir(self.pins()).context("reading the pins")?;
        let maps = versions
            .flatten()
            .map(|version| version.path().join("maps/REGISTRY"));
        let map = maps.into_iter().find(|map| map.exists());
        let key = ip.to_ipv6_mapped().octets().map(|byte| byte.to_string());
        let found = Command::new("bpftool")
            .args(["map", "lookup", "pinned"])
            .arg(map.context("no map of addresses is pinned")?)
            .arg("key")
            .args(key)
            .output()
            .context("running bpftool")?;
        Ok(found.status.success())
    }

    /// The access log from the beginning.
    pub fn access_log(&self) -> Result<Vec<AccessLine>> {
        Ok(access_log::lines(&self.broker.log()?))
    }

    /// Waits for a line of the access log that has these fields; the newest, if several do.
    pub fn wait_for_access(&self, fields: &[(&str, &str)]) -> Result<AccessLine> {
        eventually(|| {
            self.access_log()?
                .into_iter()
                .rev()
                .find(|line| line.has(fields))
                .with_context(|| {
                    format!(
                        "no line of node {}'s access log has {fields:?}",
                        self.node.name()
                    )
                })
        })
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        // Politely, so that it takes back what it attached; the run removes what is left.
        if let Err(error) = self.broker.stop(PATIENCE) {
            eprintln!("{error:#}");
        }
    }
}

/// What a broker on this node is started with.
fn flags(node: &Node, uplink: &Uplink, run_dir: &Path) -> Vec<(&'static str, OsString)> {
    let mut flags: Vec<(&'static str, OsString)> = vec![
        ("--node", node.name().into()),
        ("--control", (&uplink.control).into()),
        ("--config-dir", (&uplink.config).into()),
        ("--pods-cgroup", node.pods_cgroup().path().into()),
        ("--bpffs", BPFFS.into()),
        ("--instance", instance(node).into()),
        ("--run-dir", run_dir.into()),
        ("--trust-domain", "cluster.local".into()),
    ];
    if let Some(proofs) = &uplink.proofs {
        flags.push(("--control-root", (&proofs.root_certificate).into()));
        flags.push(("--token-file", (&proofs.token).into()));
    }
    flags
}

fn instance(node: &Node) -> String {
    format!("{}-{}", node.run.id(), node.name())
}

fn pins(node: &Node) -> PathBuf {
    Path::new(BPFFS).join(instance(node))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Adds up `name{labels} value` lines of the Prometheus text format.
fn sum_of(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (own, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let has = |(label, wanted): &(&str, &str)| {
                own.split(',')
                    .any(|pair| pair == format!("{label}=\"{wanted}\""))
            };
            // A sample may be followed by a timestamp.
            let value = value.split_whitespace().next()?.parse::<f64>().ok()?;
            labels.iter().all(has).then_some(value)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_add_up_over_the_series_that_match() {
        let text = "# HELP opened all\n\
                    opened_total{reporter=\"source\",flags=\"-\"} 3\n\
                    opened_total{reporter=\"source\",flags=\"DENY\"} 2 1700000000\n\
                    opened_total{reporter=\"destination\",flags=\"-\"} 7\n\
                    opened_total_other 100\n\
                    plain 4\n";
        assert_eq!(sum_of(text, "opened_total", &[]), 12.0);
        assert_eq!(sum_of(text, "opened_total", &[("reporter", "source")]), 5.0);
        assert_eq!(sum_of(text, "opened_total", &[("flags", "DENY")]), 2.0);
        assert_eq!(sum_of(text, "plain", &[]), 4.0);
    }
}
