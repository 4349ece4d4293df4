//! The `ztunnel` binary: parses its arguments, and runs the broker or, as its child, the worker.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_identity::socket_path;
use sluice_kernel::Events;
use sluice_model::TrustDomain;
use sluice_ztunnel::{
    broker,
    link::{
        Settings,
        message::{AccessLog, Lines, Traces},
    },
    nameservers, one_line, worker,
};

/// The node proxy of the Sluice mesh.
///
/// Captures the traffic of this node's pods with eBPF, carries it over mutual TLS (HBONE), and
/// enforces L4 policy. Runs as root; everything that touches the network runs in a child process
/// without any privilege.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    broker: Option<BrokerArgs>,
}

#[derive(Subcommand)]
enum Verb {
    /// Remove the eBPF pins of a broker that was killed: its pods leave the mesh.
    Cleanup {
        /// A BPF file system, or a directory of one.
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
        bpffs: PathBuf,
        /// Which of several ztunnels of one machine.
        #[arg(long, value_name = "NAME", default_value = "default")]
        instance: String,
    },
    /// The unprivileged half; started by ztunnel itself.
    #[command(hide = true)]
    Worker,
}

// Flat, without groups of its own: clap would never find it present otherwise.
#[derive(Args)]
struct BrokerArgs {
    /// This node's name: pods with this spec.nodeName are its own.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Directory of Kubernetes objects in YAML, watched; says which pods to enrol.
    #[arg(long, value_name = "DIR")]
    config_dir: PathBuf,
    /// The control plane, for example https://10.0.0.1:15012, or unix:///run/sluice/control.sock; may be repeated, or several separated
    /// by commas: one that fails makes way for the next.
    #[arg(long, value_name = "URL", value_parser = control_url, value_delimiter = ',', required = true)]
    control: Vec<String>,
    /// Certificate (PEM) that the control plane must be signed by; needed unless it is on this
    /// machine, behind a socket.
    #[arg(long, value_name = "FILE")]
    control_root: Option<PathBuf>,
    /// Token that admits this node to the control plane; read again when it changes. Needed as
    /// --control-root is.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate revocation lists, in PEM or DER, one or several; read again when they change.
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// The cgroup (v2) that holds all pods, for example /sys/fs/cgroup/kubepods.slice.
    #[arg(long, value_name = "DIR")]
    pods_cgroup: PathBuf,
    /// A BPF file system, or a directory of one.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
    /// Tells several ztunnels of one machine apart.
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Holds the pid files, and the list of this node's pods in the mesh (`pods`).
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// Holds the last good snapshot of the mesh (`snapshot`), for a start without the control plane;
    /// one that survives a reboot is best, such as /var/lib/sluice [default: that of --run-dir].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// The DNS domain of the cluster's services.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Answer the pods' DNS queries for names of the mesh, and forward the others as they are; a pod
    /// opts out by the annotation ambient.istio.io/dns-capture: "false".
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    dns_capture: bool,
    /// Let connections between two pods of this node go straight from one to the other, in the
    /// kernel, where policy allows them; pods opt out by the annotation sluice.io/same-node: "false",
    /// of their own or of their namespace.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    same_node: bool,
    /// Let connections to addresses that the mesh does not know go straight out of it, in the kernel;
    /// pods opt out by the annotation sluice.io/bypass: "false", of their own or of their namespace.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    bypass: bool,
    /// The name of this cluster.
    #[arg(long, default_value = "Kubernetes")]
    cluster_id: String,
    /// The name of the network that the pods are in; empty in a mesh of one network.
    #[arg(long, default_value = "")]
    network: String,
    /// Ask the control plane for workloads and services when connections need them, in place of
    /// knowing all of them; needs --dns-capture false.
    #[arg(long, env = "XDS_ON_DEMAND", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    on_demand: bool,
    /// Threads that carry traffic [default: one for two cores, and four at most].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// User and group id of the worker.
    #[arg(long, value_name = "ID", default_value_t = 65532)]
    worker_uid: u32,
    /// Whom to ask for the addresses of hosts that a ServiceEntry names, as IP:PORT; may be repeated
    /// [default: those of /etc/resolv.conf]
    #[arg(long = "nameserver", value_name = "ADDRESS")]
    nameservers: Vec<SocketAddr>,
    /// How long certificates are asked to be valid, in seconds; they are renewed at half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    certificate_ttl: u64,
    /// Log filter, for example info or info,access=off,flow=debug.
    #[arg(long, default_value = "info")]
    log: String,
    /// Log one JSON object a line, as --log-format json.
    #[arg(long)]
    log_json: bool,
    /// The form of the log's lines.
    #[arg(long, value_enum, value_name = "FORMAT", env = "LOG_FORMAT", default_value_t = LogFormat::Plain)]
    log_format: LogFormat,
    /// Which connections have a line in the access log.
    #[arg(long, value_enum, value_name = "LINES", default_value_t = AccessLogLines::All)]
    access_log: AccessLogLines,
    /// Of connections that went well, the share that has a line, from 0 to 1, evenly spread.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    access_log_sample: f64,
    /// Only connections with an end in this namespace have a line; may be repeated.
    #[arg(long, value_name = "NAMESPACE")]
    access_log_namespace: Vec<String>,
    /// Only connections to this port of an application have a line; may be repeated.
    #[arg(long, value_name = "PORT")]
    access_log_port: Vec<u16>,
    /// Of connections that went well, only those that lasted so many milliseconds have a line.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    access_log_min_duration: u64,
    /// Export spans of connections to this receiver of OTLP over gRPC, for example
    /// http://collector:4317, or https://collector:4317.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_parser = otlp_endpoint)]
    otlp_endpoint: Option<String>,
    /// Certificates that the receiver of spans must be signed by, in PEM; without it, those of the
    /// system.
    #[arg(
        long,
        value_name = "FILE",
        env = "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"
    )]
    otlp_root: Option<PathBuf>,
    /// Of the traces that begin here, the share that is recorded, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    trace_sample: f64,
    /// Let the eBPF programs log every verdict (target ebpf, level debug).
    #[arg(long)]
    bpf_log: bool,
    /// Log flow events from the kernel (target flow, level debug).
    #[arg(long)]
    flow_events: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AccessLogLines {
    All,
    Errors,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Plain,
    Json,
}

impl BrokerArgs {
    fn logs_json(&self) -> bool {
        self.log_json || self.log_format == LogFormat::Json
    }
}

/// So that an operator can ask who holds memory.
#[global_allocator]
static ALLOCATOR: sluice_kernel::heap::Sampled = sluice_kernel::heap::Sampled;

fn main() -> ExitCode {
    sluice_kernel::heap::give_back_large_blocks();
    let cli = Cli::parse();
    let result = match (cli.verb, cli.broker) {
        (Some(Verb::Worker), _) => worker::run(),
        (Some(Verb::Cleanup { bpffs, instance }), _) => {
            sluice_kernel::cleanup(&bpffs, &instance).map_err(Into::into)
        }
        (None, Some(args)) => run_broker(args),
        (None, None) => {
            use clap::CommandFactory as _;
            let error = Cli::command().error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "--node, --config-dir, --control and --pods-cgroup are needed",
            );
            error.exit()
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run_broker(args: BrokerArgs) -> Result<()> {
    let (_, _log) = sluice_telemetry::init_logging(&args.log, args.logs_json())?;
    if let Some(address) = args.control.iter().find(|one| socket_path(one).is_none())
        && (args.control_root.is_none() || args.token_file.is_none())
    {
        bail!("--control-root and --token-file are needed for --control {address}");
    }
    if args.on_demand && args.dns_capture {
        bail!(
            "--on-demand and --dns-capture cannot be combined: names can be answered only by a \
             ztunnel that knows all services; add --dns-capture false"
        );
    }
    let threads = match args.threads {
        Some(threads) => threads.max(1),
        None => default_threads()?,
    };
    let log_level = if args.bpf_log {
        sluice_kernel::Config::LOG_DEBUG
    } else {
        sluice_kernel::Config::LOG_OFF
    };
    broker::run(broker::Config {
        worker: settings(&args),
        kernel: sluice_kernel::Config {
            bpffs: args.bpffs,
            instance: args.instance,
            broker_cgroup: own_cgroup()?,
            pods_cgroup: args.pods_cgroup,
            log_level,
        },
        node: args.node,
        config_dir: args.config_dir,
        state_dir: args.state_dir.unwrap_or_else(|| args.run_dir.clone()),
        run_dir: args.run_dir,
        token_file: args.token_file,
        control_root: args.control_root,
        crl: args.crl,
        otlp_root: args.otlp_root,
        threads,
        dns_capture: args.dns_capture,
        same_node: args.same_node,
        events: if args.flow_events {
            Events::On
        } else {
            Events::Off
        },
    })
}

fn settings(args: &BrokerArgs) -> Settings {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let anywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    Settings {
        node: args.node.clone(),
        cluster: args.cluster_id.clone(),
        network: args.network.clone(),
        trust_domain: args.trust_domain.to_string(),
        cluster_domain: args.cluster_domain.to_lowercase().as_str().into(),
        control: args.control.clone(),
        log: args.log.clone(),
        log_json: args.logs_json(),
        access_log: AccessLog {
            lines: match args.access_log {
                AccessLogLines::All => Lines::All,
                AccessLogLines::Errors => Lines::Errors,
                AccessLogLines::Off => Lines::Off,
            },
            sample: args.access_log_sample,
            namespaces: args.access_log_namespace.clone(),
            ports: args.access_log_port.clone(),
            min_duration: args.access_log_min_duration,
        },
        traces: args.otlp_endpoint.clone().map(|endpoint| Traces {
            endpoint,
            sample: args.trace_sample,
        }),
        uid: args.worker_uid,
        admin: loopback(15000),
        metrics: anywhere(15020),
        readiness: anywhere(15021),
        nameservers: match args.nameservers.as_slice() {
            [] => nameservers::of_system(),
            given => given.to_vec(),
        },
        bypass: args.bypass,
        certificate_ttl: args.certificate_ttl,
        on_demand: args.on_demand,
    }
}

/// Fewer threads gather more of what is said at a time, and so carry more for the same work: a second
/// one pays only when the first has more to do than it can.
fn default_threads() -> Result<usize> {
    let cores = std::thread::available_parallelism().context("count the cores")?;
    Ok((cores.get() / 2).clamp(1, 4))
}

/// The worker would find out too, but it is started again and again.
fn control_url(text: &str) -> Result<String, &'static str> {
    if socket_path(text).is_some() {
        return Ok(text.to_owned());
    }
    let url: http::Uri = text.parse().map_err(|_| "not a URL")?;
    match (url.scheme_str(), url.host()) {
        (Some("https" | "http"), Some(_)) => Ok(text.to_owned()),
        _ => Err("not of the form https://HOST:PORT or unix:///PATH"),
    }
}

fn otlp_endpoint(text: &str) -> Result<String, &'static str> {
    let url: http::Uri = text.parse().map_err(|_| "not a URL")?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(_)) => Ok(text.to_owned()),
        _ => Err("not of the form http://HOST:PORT or https://HOST:PORT"),
    }
}

fn share(text: &str) -> Result<f64, &'static str> {
    let share: f64 = text.parse().map_err(|_| "not a number")?;
    let is_share = (0.0..=1.0).contains(&share);
    is_share.then_some(share).ok_or("not from 0 to 1")
}

fn trust_domain(text: &str) -> Result<TrustDomain, &'static str> {
    text.parse()
        .map_err(|_| "not a trust domain, such as cluster.local")
}

/// The directory of the cgroup (v2) that this process is in.
fn own_cgroup() -> Result<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("this process is in no cgroup of version 2")?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(|root| (*root).to_owned()))
        .context("no cgroup file system of version 2 is mounted")?;
    Ok(Path::new(&root).join(path.trim_start_matches('/')))
}
