//! `sluicectl explain`: what would become of a connection, and why.

mod output;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::ArgGroup;
use serde::Deserialize;
use sluice_control::translate::{self, Translation, translate};
use sluice_explain::{Destination, Explanation, Outcome, Source, World};
use sluice_model::{Mesh, Update};
use sluice_objects::{Objects, Severity};

use crate::{
    analyze::input::Input,
    ask,
    show::{self, Format},
};

/// Explains what would become of a connection, without sending a byte.
///
/// Walks from the source to each place where the connection may end, says what decides there, and
/// what each rule of a policy wants that the connection has not; and whether the port demands mutual
/// TLS, and what says so. Asks a ztunnel that runs, or reads a directory of YAML as sluice-control
/// does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  \
                  sluicectl explain shop/web catalog.shop:80\n  \
                  sluicectl explain outside pod/shop/catalog-0:8080 --dir mesh/\n\n\
                  Exit status:\n  \
                  0  the connection would be allowed, wherever it may end\n  \
                  1  it would be denied, at one of the places at least\n  \
                  2  what is known does not say, or nobody could be asked",
    group = ArgGroup::new("where").args(["ztunnel", "dir"])
)]
pub(crate) struct Arguments {
    /// Who would connect: a pod as NAMESPACE/NAME, an address, or `outside` for anybody without a
    /// place in the mesh.
    #[arg(value_name = "SOURCE")]
    source: Source,
    /// To what: NAMESPACE/NAME:PORT for a service or a pod (service/… or pod/… says which),
    /// HOST:PORT, or ADDRESS:PORT.
    #[arg(value_name = "DESTINATION")]
    destination: Destination,
    /// The ztunnel to ask, by the address of its admin port. Any one knows the whole mesh; that of
    /// the source's node also knows which pods are enrolled there.
    #[arg(long, default_value = ask::ZTUNNEL, value_name = "ADDRESS")]
    ztunnel: SocketAddr,
    /// The `--status-listen` address of sluice-control, to hear which PeerAuthentication counts; it
    /// is left out where nobody answers.
    #[arg(long, default_value = ask::CONTROL, value_name = "ADDRESS", conflicts_with = "dir")]
    status: SocketAddr,
    /// The directory of YAML to read in place of asking.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How the explanation is written.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(
        flatten,
        next_help_heading = "The mesh, as sluice-control is told; for --dir"
    )]
    translation: translate::Config,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let said = match &arguments.dir {
        Some(dir) => {
            let input = Input::read(Some(dir), &[])?;
            warn(&input);
            of_objects(arguments, &input.snapshot.objects)
        }
        None => of_mesh(arguments)?,
    };
    let text = match arguments.output {
        Format::Text => output::text(&said),
        Format::Json => show::json(&said)?,
        Format::Yaml => show::yaml(&said)?,
    };
    show::print(&text)?;
    Ok(match said.outcome {
        Outcome::Allowed => ExitCode::SUCCESS,
        Outcome::Denied => ExitCode::FAILURE,
        Outcome::Unknown => ExitCode::from(crate::COULD_NOT_RUN),
    })
}

/// What cannot be read is not in what is said.
fn warn(input: &Input) {
    let all = input.snapshot.diagnostics.iter();
    let errors = all.filter(|one| one.severity == Severity::Error).count();
    if errors > 0 {
        eprintln!(
            "warning: {} in the configuration; what is wrong is left out here: see `sluicectl analyze`",
            show::plural(errors, "error")
        );
    }
}

fn of_objects(arguments: &Arguments, objects: &Objects) -> Explanation {
    let config = &arguments.translation;
    let Translation {
        workloads,
        services,
        policies,
        ..
    } = translate(objects, config);
    let policies = policies.into_iter().map(Update::Policy);
    let services = services.into_iter().map(Update::Service);
    let workloads = workloads.into_iter().map(Update::from);
    let mesh: Mesh = policies.chain(services).chain(workloads).collect();
    let world = World {
        mesh: &mesh,
        cluster: &config.cluster,
        network: &config.network,
        cluster_domain: &config.cluster_domain,
        // As ztunnels do unless they are told otherwise.
        bypass: true,
        whole: true,
        here: None,
    };
    let mut said = sluice_explain::explain(world, &arguments.source, &arguments.destination);
    for end in &mut said.ends {
        let Some(mtls) = &mut end.mtls else { continue };
        let name = end.workload.split_once('/');
        let key = name.map(|(namespace, name)| (namespace.into(), name.into()));
        if let Some(pod) = key.and_then(|key| objects.pods.get(&key)) {
            mtls.from = translate::mtls(objects, config, pod, mtls.port).to_string();
        }
    }
    said
}

fn of_mesh(arguments: &Arguments) -> anyhow::Result<Explanation> {
    let (source, destination) = (&arguments.source, &arguments.destination);
    let encoded =
        |text: String| -> String { form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    let path = format!(
        "/explain?source={}&destination={}",
        encoded(source.to_string()),
        encoded(destination.to_string())
    );
    let ztunnel = arguments.ztunnel;
    let mut said: Explanation = ask::json(ztunnel, &path).with_context(|| {
        format!(
            "cannot ask the ztunnel at {ztunnel}; run this on its node, or read a directory with --dir"
        )
    })?;
    let asked: BTreeSet<(String, u16)> = said
        .ends
        .iter()
        .filter_map(|end| Some((end.workload.clone(), end.mtls.as_ref()?.port)))
        .collect();
    for (pod, port) in asked {
        let path = format!("/config/mtls?pod={}&port={port}", encoded(pod.clone()));
        let Ok(Found { from }) = ask::json(arguments.status, &path) else {
            break;
        };
        let ends = said.ends.iter_mut().filter(|end| end.workload == pod);
        let mut all = ends.filter_map(|end| end.mtls.as_mut());
        if let Some(mtls) = all.find(|mtls| mtls.port == port) {
            mtls.from = from;
        }
    }
    Ok(said)
}

/// What the control plane says of a port.
#[derive(Deserialize)]
struct Found {
    from: String,
}
