//! Proxies of others, as the mesh's proxies of two pods, to be measured beside ours.
//!
//! A peer is a command. It is run by `sh` once for each pod that it shall serve: in the pod's
//! network namespace, outside the pod's cgroup, in a directory of its own, and with the
//! environment that [`Peer::HELP`] lists. It has to carry the pod's traffic by HBONE, as the proxy
//! of that pod alone: take what the pod sends and what comes for it, by rules of its own making,
//! get its configuration and certificates from our control plane, and stay in the foreground.

use std::fs;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use sluice_tests::cgroup::Cgroup;
use sluice_tests::mesh::HBONE_PORT;
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, Topology, objects};

use super::usage::Usage;

/// `NAME=COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    command: String,
}

impl FromStr for Peer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, command) = text
            .split_once('=')
            .context("not of the form NAME=COMMAND")?;
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        ensure!(
            (1..=20).contains(&name.len()) && name.chars().all(plain),
            "a peer's name is 1 to 20 small letters and digits: {name}"
        );
        ensure!(!command.trim().is_empty(), "peer {name} has no command");
        Ok(Self {
            name: name.to_owned(),
            command: command.to_owned(),
        })
    }
}

impl Peer {
    pub(crate) const HELP: &str = "\
The command of a peer is run by sh once for each of its two pods, as root, in the pod's network
namespace and in an empty directory, and ends with the bench. It has to redirect the pod's
connections itself, all but its own. Its environment:

  SLUICE_BENCH_CONTROL          URL of discovery (delta xDS) and certificates (Istio's CA)
  SLUICE_BENCH_CONTROL_ROOT     file with the root certificate of the control plane and the mesh
  SLUICE_BENCH_TOKEN            file with the token of the proxy's node, to be sent as a bearer
  SLUICE_BENCH_TRUST_DOMAIN     of all identities
  SLUICE_BENCH_NODE             name of the node that the proxy belongs to
  SLUICE_BENCH_NETNS            file of the pod's network namespace
  SLUICE_BENCH_POD              name of the pod, SLUICE_BENCH_NAMESPACE and
  SLUICE_BENCH_SERVICE_ACCOUNT  its namespace and service account
  SLUICE_BENCH_POD_IP           its address, and SLUICE_BENCH_POD_IP6 the one of IPv6
  SLUICE_BENCH_HBONE_PORT       where other proxies expect tunnels for the pod
";
}

/// A peer's proxy of one pod.
#[derive(Debug)]
pub(crate) struct Proxy {
    // Before its cgroup, which cannot be removed with processes in it.
    process: Process,
    cgroup: Cgroup,
}

impl Proxy {
    /// Declares the pod, on a node that none of our ztunnels is responsible for, and starts the
    /// proxy.
    pub(crate) fn start(peer: &Peer, topology: &Topology, mesh: &Mesh, pod: &Pod) -> Result<Self> {
        let node = format!("{}-{}", peer.name, pod.node());
        let proofs = mesh.admit(&node)?;
        let (namespace, account) = (pod.namespace(), pod.service_account());
        let config = mesh.config();
        config.apply(
            &format!("serviceaccount-{namespace}-{account}"),
            &objects::service_account(namespace, account),
        )?;
        config.apply(
            &format!("pod-{namespace}-{}", pod.name()),
            &objects::on_node(&objects::pod(pod, &[]), &node),
        )?;
        let name = format!("{}-{}", peer.name, pod.name());
        let directory = pod.run.dir().join(&name);
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let cgroup = topology.cgroup().child(&name)?;
        let mut command = pod.command_in(&cgroup, "sh");
        let [v4, v6] = pod.ips().map(|ip| ip.to_string());
        command
            .args(["-c", &peer.command])
            .current_dir(&directory)
            .env("SLUICE_BENCH_CONTROL", mesh.control_url())
            .env("SLUICE_BENCH_CONTROL_ROOT", proofs.root_certificate)
            .env("SLUICE_BENCH_TOKEN", proofs.token)
            .env("SLUICE_BENCH_TRUST_DOMAIN", "cluster.local")
            .env("SLUICE_BENCH_NODE", &node)
            .env("SLUICE_BENCH_NETNS", pod.netns.path())
            .env("SLUICE_BENCH_POD", pod.name())
            .env("SLUICE_BENCH_NAMESPACE", namespace)
            .env("SLUICE_BENCH_SERVICE_ACCOUNT", account)
            .env("SLUICE_BENCH_POD_IP", v4)
            .env("SLUICE_BENCH_POD_IP6", v6)
            .env("SLUICE_BENCH_HBONE_PORT", HBONE_PORT.to_string());
        let process = Process::start(&pod.run, &name, command)?;
        Ok(Self { process, cgroup })
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// What all its processes have used.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of_all(self.cgroup.pids()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_a_command() {
        let peer: Peer = "other=A=1 exec proxy --x=y".parse().unwrap();
        assert_eq!(peer.name, "other");
        assert_eq!(peer.command, "A=1 exec proxy --x=y");
        for wrong in ["other", "=proxy", "other=", "a/b=proxy", "Other=proxy"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
