//! The mesh on a topology: one control process, a ztunnel per node, the YAML they obey.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::config::ConfigDirectory;
use crate::eventually::{PATIENCE, eventually};
use crate::http;
use crate::objects;
use crate::process::{self, Process};
use crate::run::Run;
use crate::topology::{Pod, Topology, WIRE_V4, Wire};
use crate::ztunnel::{Proofs, Uplink, Ztunnel};

const CONTROL_PORT: u16 = 15012;
/// Of the second control plane.
const SPARE_PORT: u16 = 15013;
/// In the wire's namespace.
const CONTROL_STATUS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15014);
/// The second control plane's, as well.
const SPARE_STATUS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15016);
/// Its listener appears in a pod's namespace when the pod is enrolled.
pub const HBONE_PORT: u16 = 15008;

/// How the programs are started, where it differs from what is usual.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More arguments for every ztunnel, such as `--threads 1`.
    pub ztunnel: Vec<String>,
    /// More arguments for the control plane.
    pub control: Vec<String>,
    /// A revocation list that the ztunnels begin with.
    pub crl: Option<String>,
    /// The directory of a CA that the control plane is given.
    pub cacerts: Option<PathBuf>,
    /// The ztunnel of the first node reaches the control plane by a Unix socket, and needs nothing
    /// else there.
    pub local: bool,
    /// A second control plane for when the first is gone, with the same configuration and CA.
    pub spare: bool,
}

/// A mesh that runs; stopped when dropped.
#[derive(Debug)]
pub struct Mesh {
    ztunnels: Vec<Ztunnel>,
    control: Option<Process>,
    _spare: Option<Process>,
    config: ConfigDirectory,
    options: Options,
    state: PathBuf,
    tokens: PathBuf,
    wire: Arc<Wire>,
    run: Arc<Run>,
}

impl Mesh {
    /// Starts everything and waits until it is ready.
    pub fn start(topology: &Topology) -> Result<Self> {
        Self::start_with(topology, Options::default())
    }

    pub fn start_with(topology: &Topology, options: Options) -> Result<Self> {
        let run = topology.run();
        let directory = run.dir().join("mesh");
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let state = directory.join("state");
        fs::create_dir(&state).with_context(|| format!("creating {}", state.display()))?;
        let mut mesh = Self {
            ztunnels: Vec::new(),
            control: None,
            _spare: None,
            config: ConfigDirectory::create(&directory)?,
            options,
            state,
            tokens: directory.join("tokens"),
            wire: Arc::clone(topology.wire()),
            run: Arc::clone(run),
        };
        mesh.start_all(topology)
            .map_err(|error| mesh.explain(error))?;
        Ok(mesh)
    }

    fn start_all(&mut self, topology: &Topology) -> Result<()> {
        if let Some(list) = self.options.crl.take() {
            self.write_crl(&list)?;
            let flag = ["--crl".to_owned(), self.crl().display().to_string()];
            self.options.ztunnel.extend(flag);
        }
        let mut uplinks = Vec::new();
        for node in topology.nodes() {
            let local = self.options.local && uplinks.is_empty();
            let control = match (local, self.options.spare) {
                (true, _) => format!("unix://{}", self.socket().display()),
                (false, false) => control_url(CONTROL_PORT),
                (false, true) => [CONTROL_PORT, SPARE_PORT].map(control_url).join(","),
            };
            let proofs = self.admit(node.name())?;
            uplinks.push(Uplink {
                control,
                proofs: (!local).then_some(proofs),
                config: self.config.path().to_owned(),
                extra: self.options.ztunnel.clone(),
            });
        }
        if let (true, [node, ..]) = (self.options.local, topology.nodes()) {
            let socket = self.socket().display().to_string();
            let flags = ["--listen-unix", &socket, "--unix-node", node.name()];
            self.options.control.extend(flags.map(str::to_owned));
        }
        self.start_control()?;
        if self.options.spare {
            let spare = self.spawn_control("control-spare", SPARE_PORT, SPARE_STATUS)?;
            self._spare = Some(spare);
        }
        for (node, uplink) in topology.nodes().iter().zip(uplinks) {
            self.ztunnels.push(Ztunnel::start(node, uplink)?);
        }
        for ztunnel in &mut self.ztunnels {
            ztunnel.wait_until_ready()?;
        }
        Ok(())
    }

    /// Lets the proxy of one more node join, a real node or not: what it needs to prove itself to
    /// the control plane, and to know it.
    pub fn admit(&self, node: &str) -> Result<Proofs> {
        let token = random_token()?;
        let path = self.tokens.with_extension(node);
        fs::write(&path, &token).with_context(|| format!("writing {}", path.display()))?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.tokens)
            .and_then(|mut file| file.write_all(format!("{node} {token}\n").as_bytes()))
            .with_context(|| format!("writing {}", self.tokens.display()))?;
        let ca = self.options.cacerts.as_ref().unwrap_or(&self.state);
        Ok(Proofs {
            root_certificate: ca.join("root-cert.pem"),
            token: path,
        })
    }

    /// Where the control plane serves discovery and certificates.
    #[must_use]
    pub fn control_url(&self) -> String {
        control_url(CONTROL_PORT)
    }

    /// Ends it and removes what it kept on disk, so that the next mesh of the run begins with nothing.
    pub fn discard(self) -> Result<()> {
        let own = self.state.parent().map(Path::to_path_buf);
        let ztunnels = self.ztunnels.iter().map(|one| one.run_dir().to_owned());
        let directories: Vec<_> = own.into_iter().chain(ztunnels).collect();
        drop(self);
        for directory in directories {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))?;
        }
        Ok(())
    }

    /// Starts the control plane, the first time or after [`Self::stop_control`].
    pub fn start_control(&mut self) -> Result<()> {
        let control = self.spawn_control("control", CONTROL_PORT, CONTROL_STATUS)?;
        self.control = Some(control);
        Ok(())
    }

    /// Starts a control plane, and waits until it is ready.
    fn spawn_control(&self, name: &str, port: u16, status: SocketAddr) -> Result<Process> {
        let mut command = self.wire.command(self.run.binaries().control()?);
        command.arg("--dir").arg(self.config.path());
        command.args(["--listen", &format!("{WIRE_V4}:{port}")]);
        command.arg("--state-dir").arg(&self.state);
        command.arg("--join-tokens").arg(&self.tokens);
        command.args([
            "--trust-domain",
            "cluster.local",
            "--root-namespace",
            "istio-system",
        ]);
        if let Some(cacerts) = &self.options.cacerts {
            command.arg("--cacerts").arg(cacerts);
        }
        command.args(["--status-listen", &status.to_string()]);
        command.args(&self.options.control);
        let mut control = Process::start(&self.run, name, command)?;
        eventually(|| {
            control.check()?;
            http::get_ok(&self.wire.netns, status, "/healthz/ready").map(drop)
        })?;
        Ok(control)
    }

    /// The Unix socket of the control plane, if it has one.
    fn socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// Ends the control plane; the ztunnels go on with what they know.
    pub fn stop_control(&mut self) -> Result<()> {
        let mut control = self
            .control
            .take()
            .context("the control plane is not running")?;
        control.stop(PATIENCE).map(drop)
    }

    /// The directory of YAML. What is written there takes effect a moment later.
    #[must_use]
    pub fn config(&self) -> &ConfigDirectory {
        &self.config
    }

    /// What the control plane says is wrong with the directory: objects with `file`, `object`,
    /// `line`, `field` and `message`.
    pub fn config_errors(&self) -> Result<Vec<Value>> {
        let text = self.ask_control("/config/errors")?;
        serde_json::from_str(&text)
            .with_context(|| format!("/config/errors is no list of errors: {text}"))
    }

    /// What the control plane says at a path of its status port.
    pub fn ask_control(&self, path: &str) -> Result<String> {
        http::get_ok(&self.wire.netns, CONTROL_STATUS, path)
    }

    /// The control plane, unless it is stopped.
    pub fn control(&mut self) -> Result<&mut Process> {
        self.control
            .as_mut()
            .context("the control plane is not running")
    }

    /// Where the control plane keeps its root: `ca-key.pem` and `root-cert.pem`.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    fn crl(&self) -> PathBuf {
        self.tokens.with_extension("crl")
    }

    /// Replaces the revocation list that the ztunnels were started with.
    pub fn write_crl(&self, list: &str) -> Result<()> {
        let (file, draft) = (self.crl(), self.tokens.with_extension("draft"));
        fs::write(&draft, list)
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The file with the join tokens of all nodes, as the control plane reads it.
    #[must_use]
    pub fn join_tokens(&self) -> &Path {
        &self.tokens
    }

    /// The ztunnel of a node, to look at.
    ///
    /// # Panics
    /// When there is no such node: the names are the caller's own.
    #[must_use]
    pub fn ztunnel(&self, node: &str) -> &Ztunnel {
        self.ztunnels
            .iter()
            .find(|ztunnel| ztunnel.node().name() == node)
            .unwrap_or_else(|| panic!("this mesh has no node {node}"))
    }

    /// The ztunnel of a node, to stop, restart or wait for.
    ///
    /// # Panics
    /// When there is no such node: the names are the caller's own.
    #[must_use]
    pub fn ztunnel_mut(&mut self, node: &str) -> &mut Ztunnel {
        self.ztunnels
            .iter_mut()
            .find(|ztunnel| ztunnel.node().name() == node)
            .unwrap_or_else(|| panic!("this mesh has no node {node}"))
    }

    /// Whether what the mesh does not know is not captured.
    pub(crate) fn bypasses(&self) -> bool {
        let arguments = &self.options.ztunnel;
        let off = arguments.windows(2).any(|two| two == ["--bypass", "false"]);
        !off && !arguments.iter().any(|one| one.starts_with("--on-demand"))
    }

    #[must_use]
    pub fn ztunnels(&self) -> &[Ztunnel] {
        &self.ztunnels
    }

    /// Declares a namespace, labelled with a data plane mode or not.
    pub fn apply_namespace(&self, name: &str, mode: Option<&str>) -> Result<()> {
        self.config.apply(
            &format!("namespace-{name}"),
            &objects::namespace(name, mode),
        )
    }

    /// Declares a pod with its service account.
    pub fn apply_pod(&self, pod: &Pod, labels: &[(&str, &str)]) -> Result<()> {
        let (namespace, account) = (pod.namespace(), pod.service_account());
        self.config.apply(
            &format!("serviceaccount-{namespace}-{account}"),
            &objects::service_account(namespace, account),
        )?;
        self.config.apply(
            &format!("pod-{namespace}-{}", pod.name()),
            &objects::pod(pod, labels),
        )
    }

    /// Declares a service that selects `app: <name>`; `ports` are (port, target port).
    pub fn apply_service(
        &self,
        namespace: &str,
        name: &str,
        cluster_ip: &str,
        ports: &[(u16, u16)],
    ) -> Result<()> {
        self.config.apply(
            &format!("service-{namespace}-{name}"),
            &objects::service(namespace, name, cluster_ip, ports),
        )
    }

    /// Waits until the pod's broker says that it is enrolled.
    pub fn wait_until_enrolled(&self, pod: &Pod) -> Result<()> {
        self.wait_for_membership(pod, true)
    }

    /// Waits until the pod's broker says that it is enrolled no more. It may still serve tunnels of
    /// peers that have not heard.
    pub fn wait_until_released(&self, pod: &Pod) -> Result<()> {
        self.wait_for_membership(pod, false)
    }

    fn wait_for_membership(&self, pod: &Pod, wanted: bool) -> Result<()> {
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let enrolled = format!("{name} enrolled");
        let ztunnel = self.ztunnel(pod.node());
        eventually(|| {
            let pods = ztunnel.pods()?;
            let found = pods.lines().any(|line| line == enrolled);
            ensure!(
                found == wanted,
                "pod {name} is{} enrolled; the broker says:\n{pods}",
                if found { "" } else { " not" }
            );
            Ok(())
        })
    }

    /// An error with the ends of all logs, for whoever has to find out why.
    #[must_use]
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = format!("{error:#}\n");
        let mut logs: Vec<_> = fs::read_dir(self.run.dir().join("logs"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.sort();
        for log in logs {
            let name = log.file_stem().unwrap_or_default().to_string_lossy();
            // The programs under test have more to say than those around them.
            let lines = if name.starts_with("ztunnel") || name == "control" {
                40
            } else {
                6
            };
            text += &format!("── {name} ──\n{}\n", process::tail(&log, lines));
        }
        anyhow::Error::msg(text)
    }
}

fn control_url(port: u16) -> String {
    format!("https://{WIRE_V4}:{port}")
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
