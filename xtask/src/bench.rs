//! `cargo xtask bench`: what the mesh costs, as ratios, both sides measured in turns.

mod measure;
mod report;
mod usage;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sluice_tests::mesh::Options;
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, PodSpec, Run, Topology};

use crate::setup::Group;
use crate::{demo, supervise};
use measure::SCENARIOS;
use report::Report;
use usage::Usage;

/// Measures throughput, latency, requests and new connections per second between two nodes, or on
/// one, with the mesh and without it.
///
/// The two are measured in turns, since absolute figures drift; what counts is the ratio of the
/// medians. What the proxies of both nodes use for it is shown as well. Needs root; makes and removes the same nodes and pods as `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A few seconds per measurement: minutes in all, good for a first impression
    #[arg(long)]
    quick: bool,
    /// How often each side is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// One more argument for the ztunnels, such as `--threads=1`
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    ztunnel: Vec<String>,
    /// Client and server on one node
    #[arg(long)]
    same_node: bool,
    /// Only the network without the mesh: what this machine can do
    #[arg(long)]
    no_mesh: bool,
}

/// One of the two sides that are compared: a client on node a, servers on node b or a.
#[derive(Debug)]
struct Side {
    client: Pod,
    server: Pod,
    _servers: Vec<Process>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    supervise::run(|| {
        let mut groups = vec![Group::Run, Group::Bench];
        if !arguments.no_mesh {
            groups.push(Group::Bpf);
        }
        let run = demo::begin("bench", &groups)?;
        bench(&run, arguments)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn bench(run: &Arc<Run>, arguments: &Arguments) -> Result<()> {
    let seconds = if arguments.quick { 3 } else { 10 };
    let wanted = |name: &str| {
        arguments
            .filter
            .as_ref()
            .is_none_or(|text| name.contains(text))
    };
    let scenarios: Vec<_> = SCENARIOS
        .iter()
        .filter(|scenario| wanted(scenario.name))
        .collect();
    ensure!(
        !scenarios.is_empty() || wanted(measure::MEMORY),
        "no scenario has this in its name"
    );

    let topology = Topology::new(run, &["a", "b"])?;
    let mesh = match arguments.no_mesh {
        true => None,
        false => {
            let options = Options {
                ztunnel: arguments.ztunnel.clone(),
                ..Options::default()
            };
            Some(Mesh::start_with(&topology, options).context("starting the mesh")?)
        }
    };
    let far = if arguments.same_node { "a" } else { "b" };
    let plain = Side::build(&topology, "plain", far)?;
    let meshed = match &mesh {
        None => None,
        Some(mesh) => {
            let side = Side::build(&topology, "meshed", far)?;
            mesh.apply_namespace("meshed", Some("ambient"))?;
            for pod in [&side.client, &side.server] {
                mesh.apply_pod(pod, &[])?;
            }
            for pod in [&side.client, &side.server] {
                mesh.wait_until_enrolled(pod)
                    .map_err(|error| mesh.explain(error))?;
            }
            Some(side)
        }
    };
    // The first connection to a port of the same node goes another way than the next ones.
    for side in meshed.iter().filter(|_| arguments.same_node) {
        for scenario in &scenarios {
            scenario.measure(&side.client, &side.server, 1)?;
        }
    }
    let mut report = Report::default();
    if let (Some(mesh), Some(side)) = (&mesh, &meshed)
        && wanted(measure::MEMORY)
        && !arguments.same_node
    {
        println!("── {}", measure::MEMORY);
        for figure in measure::memory(mesh, side)? {
            println!("   {:<8} {figure}", side.server.namespace());
            report.add(true, figure);
        }
    }
    for round in 1..=arguments.rounds {
        for scenario in &scenarios {
            println!(
                "── round {round} of {}: {}",
                arguments.rounds, scenario.name
            );
            // Each round begins with the other side, lest one always runs on a warmer machine.
            let mut sides = [Some(&plain), meshed.as_ref()];
            if round % 2 == 0 {
                sides.reverse();
            }
            for side in sides.into_iter().flatten() {
                let with_mesh = side.server.namespace() == "meshed";
                let mesh = mesh.as_ref().filter(|_| with_mesh);
                let before = mesh.map(Usage::of_ztunnels).transpose()?;
                let mut figures = scenario.measure(&side.client, &side.server, seconds)?;
                if let (Some(mesh), Some(before)) = (mesh, before) {
                    figures.extend(scenario.cost(
                        &figures[0],
                        seconds,
                        Usage::of_ztunnels(mesh)? - before,
                    ));
                }
                for figure in figures {
                    println!("   {:<8} {figure}", side.server.namespace());
                    report.add(with_mesh, figure);
                }
            }
        }
    }
    println!("\n{}", report.table());
    Ok(())
}

impl Side {
    fn build(topology: &Topology, namespace: &str, far: &str) -> Result<Self> {
        let pod = |node: &str, name: &str| {
            let spec = PodSpec {
                namespace,
                name,
                service_account: name,
            };
            topology.node(node).pod(spec)
        };
        let (client, server) = (pod("a", "client")?, pod(far, "server")?);
        let servers = measure::start_servers(&server)?;
        Ok(Self {
            client,
            server,
            _servers: servers,
        })
    }
}
