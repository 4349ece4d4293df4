//! `sluice-control`: the control plane as a process.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{ArgGroup, Parser};
use http::Uri;
use sluice_control::{
    addresses::Addresses,
    auth::{Authenticator, JoinTokens, PeerCredentials, ServiceAccounts, service_accounts},
    ca::{self, Authority, Certificates, Rotation, ServerName},
    feed,
    memory::Keeper,
    metrics::ControlMetrics,
    server::{self, Server, unix::UnixServer},
    status, translate,
    xds::{Clients, Discovery},
};
use sluice_model::Name;
use sluice_objects::directory;
use sluice_telemetry::{
    metrics::Metrics,
    serve::{self, Readiness},
};
use tokio::{net::TcpListener, signal::unix};

/// Reads the mesh's configuration and serves it, and certificates, to ztunnels.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The directory of YAML that describes the mesh.
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    debounce: Debounce,
    /// Where ztunnels connect.
    #[arg(long, default_value = "127.0.0.1:15012")]
    listen: SocketAddr,
    /// Where the CA's own root is kept, and the last good version of every policy; made on the first
    /// start.
    #[arg(long)]
    state_dir: PathBuf,
    /// A CA to use instead of an own root, watched: a directory with ca-key.pem, ca-cert.pem,
    /// cert-chain.pem and root-cert.pem. Without ca-cert.pem, the root itself signs.
    #[arg(long, value_name = "DIR")]
    cacerts: Option<PathBuf>,
    #[command(flatten)]
    rotation: Rotation,
    #[command(flatten)]
    callers: Callers,
    #[command(flatten)]
    translation: translate::Config,
    /// Where readiness, metrics, errors and clients are shown.
    #[arg(long, default_value = "127.0.0.1:15014")]
    status_listen: SocketAddr,
    /// Further names, or addresses, under which ztunnels reach this process.
    #[arg(long)]
    server_name: Vec<ServerName>,
    /// What is logged: a level, or a filter such as `info,sluice_control=debug`.
    #[arg(long, default_value = "info")]
    log: String,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// When a burst of changes is told.
#[derive(Debug, clap::Args)]
struct Debounce {
    /// Changes are told when there was none for so many milliseconds.
    #[arg(long, default_value_t = 20, value_name = "MILLISECONDS")]
    debounce_quiet: u64,
    /// Changes without a pause are told after so many milliseconds all the same.
    #[arg(long, default_value_t = 200, value_name = "MILLISECONDS")]
    debounce_max: u64,
}

/// How ztunnels prove who they are.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group = ArgGroup::new("callers")
    .args(["join_tokens", "listen_unix", "kubernetes_api"])
    .required(true)
    .multiple(true))]
struct Callers {
    /// The file with the token of each node, as lines `NODE TOKEN`, or `NODE TOKEN EXPIRES` with an
    /// RFC 3339 time. It may change at any time.
    #[arg(long, value_name = "FILE")]
    join_tokens: Option<PathBuf>,
    /// A socket for the ztunnel of this host, which needs no token there: its user counts.
    #[arg(long, value_name = "PATH", requires = "unix_node")]
    listen_unix: Option<PathBuf>,
    /// How often the caller of a stream is judged again, in seconds: when its token has expired or was
    /// withdrawn, the stream ends.
    #[arg(long, default_value_t = Discovery::RECHECK.as_secs(), value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    recheck_callers: u64,
    #[command(flatten)]
    unix: Unix,
    #[command(flatten)]
    kubernetes: Kubernetes,
}

/// Who judges service account tokens.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct Kubernetes {
    /// A Kubernetes API server that judges tokens of service accounts, https://HOST[:PORT].
    #[arg(long, value_name = "URL", value_parser = https)]
    kubernetes_api: Option<Uri>,
    /// The root certificates of that server, in PEM.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    kubernetes_root: PathBuf,
    /// The token with which to ask it; it may create TokenReviews.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    kubernetes_token: PathBuf,
    /// For whom the tokens of callers must be made.
    #[arg(long, default_value = "istio-ca")]
    token_audience: String,
    /// A service account of ztunnels, NAMESPACE/NAME; may be repeated.
    #[arg(long, value_name = "ACCOUNT", default_value = "istio-system/ztunnel")]
    trusted_node_account: Vec<String>,
}

impl Kubernetes {
    fn service_accounts(&self) -> Option<ServiceAccounts> {
        Some(ServiceAccounts::new(service_accounts::Config {
            server: self.kubernetes_api.clone()?,
            root: self.kubernetes_root.clone(),
            token: self.kubernetes_token.clone(),
            audience: self.token_audience.clone(),
            trusted: self.trusted_node_account.iter().cloned().collect(),
        }))
    }
}

/// Tokens are sent there, so nobody else shall read along.
fn https(text: &str) -> Result<Uri, String> {
    match text.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() => Ok(uri),
        _ => Err("it must be https://HOST or https://HOST:PORT".to_owned()),
    }
}

/// Who may call on the Unix socket.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct Unix {
    /// The node that this host is, for callers on the Unix socket.
    #[arg(long, value_name = "NODE", requires = "listen_unix")]
    unix_node: Option<Name>,
    /// A user who may call on the Unix socket; may be repeated. Root and the own user by default.
    #[arg(long, value_name = "UID", requires = "listen_unix")]
    unix_uid: Vec<u32>,
    /// A group whose members may open the Unix socket; otherwise only its owner may, and root.
    #[arg(long, value_name = "GID", requires = "listen_unix")]
    unix_group: Option<u32>,
}

impl Callers {
    fn authenticator(&self) -> anyhow::Result<Authenticator> {
        let join_tokens = self.join_tokens.as_ref().map(JoinTokens::open);
        Ok(Authenticator {
            join_tokens: join_tokens.transpose()?,
            service_accounts: self.kubernetes.service_accounts(),
            peer_credentials: self.unix.credentials(),
        })
    }

    fn socket(&self) -> anyhow::Result<Option<UnixServer>> {
        let Some(path) = self.listen_unix.clone() else {
            return Ok(None);
        };
        let group = self.unix.unix_group;
        Ok(Some(UnixServer::bind(&server::unix::Config {
            path,
            group,
        })?))
    }
}

impl Unix {
    fn credentials(&self) -> Option<PeerCredentials> {
        let node = self.unix_node.clone()?;
        let mut uids: BTreeSet<u32> = self.unix_uid.iter().copied().collect();
        if uids.is_empty() {
            uids = [0, rustix::process::geteuid().as_raw()].into();
        }
        Some(PeerCredentials { node, uids })
    }
}

impl Args {
    fn ca(&self) -> ca::Source {
        match &self.cacerts {
            Some(directory) => ca::Source::Supplied(directory.clone()),
            None => ca::Source::Own {
                directory: self.state_dir.clone(),
                rotation: self.rotation,
            },
        }
    }

    fn server(&self) -> server::Config {
        server::Config {
            listen: self.listen,
            names: server::names(self.listen.ip(), &self.server_name),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (_, _log) = sluice_telemetry::init_logging(&args.log, args.log_json)?;
    run(args).await
}

async fn run(args: Args) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let first_snapshot = readiness.pending("first snapshot");
    let metrics = Arc::new(Metrics::new("sluice-control", env!("CARGO_PKG_VERSION")));
    metrics.register_process();
    let counters = ControlMetrics::register(&metrics);
    let clients = Clients::new(counters.clients.clone());

    let recheck = Duration::from_secs(args.callers.recheck_callers);
    let callers = Arc::new(args.callers.authenticator()?);
    let trust_domain = args.translation.trust_domain.clone();
    let authority = Arc::new(Authority::open(args.ca(), trust_domain)?);
    let source = directory::Config {
        quiet: Duration::from_millis(args.debounce.debounce_quiet),
        longest_burst: Duration::from_millis(args.debounce.debounce_max),
        ..directory::Config::new(&args.dir)
    };
    let keeper = Keeper::open(&args.state_dir)?;
    let addresses = Addresses::open(&args.state_dir)?;
    let (_directory, published) =
        feed::directory(source, args.translation.clone(), keeper, addresses)?;

    let server = Server::bind(args.server(), authority.clone()).await?;
    let socket = args.callers.socket()?;
    let status = TcpListener::bind(args.status_listen)
        .await
        .with_context(|| format!("cannot listen on {} for status", args.status_listen))?;
    tracing::info!(
        listen = %server.local_addr()?,
        status = %status.local_addr()?,
        "serving"
    );
    let discovery = Discovery::new(
        published.clone(),
        callers.clone(),
        clients.clone(),
        counters.clone(),
    )
    .recheck_every(recheck);
    let certificates = Certificates::new(authority.clone(), callers, published.clone(), counters);
    let pages = status::router(published, clients, readiness, metrics);
    first_snapshot.done();

    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    tokio::select! {
        served = serve_local(socket, discovery.clone(), certificates.clone()) => served?,
        served = server.serve(discovery, certificates) => served?,
        never = serve::serve(status, pages) => match never {},
        () = authority.follow() => {}
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt?,
    }
    tracing::info!("stopping");
    Ok(())
}

/// Serves the Unix socket, if there is one, for as long as the future is polled.
async fn serve_local(
    socket: Option<UnixServer>,
    discovery: Discovery,
    certificates: Certificates,
) -> anyhow::Result<()> {
    match socket {
        Some(socket) => Ok(socket.serve(discovery, certificates).await?),
        None => std::future::pending().await,
    }
}
