//! `cargo xtask bench`: what the mesh costs, as ratios, all setups measured in turns.

mod chart;
mod growth;
mod machine;
mod peer;
mod programs;
mod report;
pub(crate) mod scenario;
pub(crate) mod side;
mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use sluice_tests::mesh::Options;
use sluice_tests::{Mesh, Run, Topology};

use crate::setup::Group;
use crate::{cargo, demo, supervise};
use growth::Dimension;
use machine::Machine;
use peer::Peer;
use report::{Comparison, Report};
use scenario::Scenario;
use side::{Side, Way};

/// Where reports are kept, in the checkout.
const REPORTS: &str = "tests/bench";

/// Measures throughput, latency, requests and new connections between two pods, with the mesh and
/// without it, and with other meshes' proxies.
///
/// All setups are measured in turns, since absolute figures drift; what counts is how they compare
/// round by round. What the proxies of both pods use for it is shown as well. Needs root; makes and
/// removes the same nodes and pods as `demo`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = Peer::HELP)]
pub(crate) struct Arguments {
    /// Only scenarios whose names contain one of these
    scenarios: Vec<String>,
    /// Name the scenarios, measure nothing
    #[arg(long)]
    list: bool,
    /// A second per measurement and two rounds: less than two minutes, for a first impression
    #[arg(long)]
    quick: bool,
    /// How often each setup is measured [default: 3, or 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each measurement takes [default: 10, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Which ways of a connection to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "between")]
    way: Vec<Way>,
    /// A peer's proxies beside ours, between nodes; may be given several times (see --help)
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Peer>,
    /// Only the network without the mesh: what this machine can do
    #[arg(long, conflicts_with = "peer")]
    no_mesh: bool,
    #[command(flatten)]
    programs: Programs,
    /// Instead: how memory and rates change with ever more of these [default: all]
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0.., require_equals = true,
        value_name = "OF", conflicts_with_all = ["scenarios", "peer", "no_mesh", "chart"])]
    growth: Option<Vec<Dimension>>,
    /// Write all values, medians and ratios to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios into this file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Write tests/bench/report.md, .json and .svg, or growth.md and .json
    #[arg(long)]
    report: bool,
}

/// What is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Programs {
    /// One more argument for the ztunnels, such as `--threads=1`
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    ztunnel: Vec<String>,
    /// Measure the programs in this directory, built already, not those of this checkout
    #[arg(long, value_name = "DIRECTORY")]
    programs: Option<PathBuf>,
}

impl Programs {
    /// A run that has the programs, built if need be.
    pub(crate) fn begin(&self, verb: &str, groups: &[Group]) -> Result<Arc<Run>> {
        demo::begin(verb, groups, self.programs.as_deref())
    }

    /// Starts a mesh of them.
    pub(crate) fn start(&self, topology: &Topology) -> Result<Mesh> {
        let options = Options {
            ztunnel: self.ztunnel.clone(),
            ..Options::default()
        };
        Mesh::start_with(topology, options).context("starting the mesh")
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        print!("{}", scenario::list());
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = scenario::chosen(&arguments.scenarios)?;
    supervise::run(|| {
        let mut groups = vec![Group::Run, Group::Bench];
        if !arguments.no_mesh {
            groups.push(Group::Bpf);
        }
        let run = arguments.programs.begin("bench", &groups)?;
        if let Some(dimensions) = &arguments.growth {
            return grow(&run, arguments, dimensions);
        }
        let report = bench(&run, arguments, &scenarios)?;
        println!("\n{}", report.tables());
        write(&report, arguments)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn grow(run: &Arc<Run>, arguments: &Arguments, dimensions: &[Dimension]) -> Result<ExitCode> {
    let dimensions = match dimensions {
        [] => Dimension::value_variants(),
        some => some,
    };
    let (_, seconds) = extent(arguments);
    let programs = &arguments.programs;
    let growth = growth::measure(run, programs, dimensions, seconds, arguments.quick)?;
    println!("\n{}", growth.tables());
    let json = format!("{:#}\n", growth.json());
    if let Some(file) = &arguments.json {
        write_file(file, &json)?;
    }
    if arguments.report {
        let directory = cargo::workspace()?.join(REPORTS);
        write_file(&directory.join("growth.md"), &growth.markdown())?;
        write_file(&directory.join("growth.json"), &json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bench(run: &Arc<Run>, arguments: &Arguments, scenarios: &[&Scenario]) -> Result<Report> {
    let topology = Topology::new(run, &["a", "b"])?;
    let mesh = match arguments.no_mesh {
        true => None,
        false => Some(arguments.programs.start(&topology)?),
    };
    let sides = sides(&topology, mesh.as_ref(), arguments);
    let sides = sides.map_err(|error| match &mesh {
        Some(mesh) => mesh.explain(error),
        None => error,
    })?;
    let (rounds, seconds) = extent(arguments);
    let how = format!(
        "Both nodes on one machine, all setups in turns: {rounds} rounds, {seconds} s per measurement."
    );
    let mut report = Report::new(Machine::describe(), how, comparisons(arguments));
    for round in 1..=rounds {
        for scenario in scenarios {
            if scenario.once && round > 1 {
                continue;
            }
            println!("── round {round} of {rounds}: {}", scenario.name);
            // Each round begins at the other end, lest one always runs on a warmer machine.
            let mut order: Vec<_> = sides.iter().collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for side in order {
                if side.is_direct() && round == 1 {
                    scenario.measure(side, 1)?;
                }
                for figure in scenario.measure(side, seconds)? {
                    println!("   {:<18} {figure}", side.setup);
                    report.add(&side.setup, figure);
                }
            }
        }
    }
    report.machine.measured();
    Ok(report)
}

/// Rounds, and seconds of each measurement.
fn extent(arguments: &Arguments) -> (u32, u32) {
    let (rounds, seconds) = if arguments.quick { (2, 1) } else { (3, 10) };
    (
        arguments.rounds.unwrap_or(rounds),
        arguments.seconds.unwrap_or(seconds),
    )
}

/// All setups; those without a mesh are shared by the ways that are compared to them.
fn sides<'m>(
    topology: &Topology,
    mesh: Option<&'m Mesh>,
    arguments: &Arguments,
) -> Result<Vec<Side<'m>>> {
    let mut sides: Vec<Side<'m>> = Vec::new();
    for way in &arguments.way {
        if sides.iter().all(|side| side.setup != way.baseline()) {
            sides.push(Side::plain(topology, *way)?);
        }
        if let Some(mesh) = mesh {
            sides.push(Side::meshed(topology, mesh, *way)?);
            if *way == Way::Between {
                for peer in &arguments.peer {
                    sides.push(Side::of_peer(topology, mesh, peer)?);
                }
            }
        }
    }
    Ok(sides)
}

fn comparisons(arguments: &Arguments) -> Vec<Comparison> {
    let comparison = |way: &Way| {
        let mut setups = vec![way.baseline().to_owned()];
        if !arguments.no_mesh {
            setups.push(way.ours().to_owned());
            if *way == Way::Between {
                setups.extend(arguments.peer.iter().map(|peer| peer.name.clone()));
            }
        }
        let title = way.title();
        Comparison { title, setups }
    };
    arguments.way.iter().map(comparison).collect()
}

fn write(report: &Report, arguments: &Arguments) -> Result<()> {
    let json = format!("{:#}\n", report.json());
    let chart = chart::svg(report);
    if let Some(file) = &arguments.json {
        write_file(file, &json)?;
    }
    if let Some(file) = &arguments.chart {
        write_file(file, &chart)?;
    }
    if arguments.report {
        let directory = cargo::workspace()?.join(REPORTS);
        write_file(&directory.join("report.md"), &report.markdown("report.svg"))?;
        write_file(&directory.join("report.json"), &json)?;
        write_file(&directory.join("report.svg"), &chart)?;
    }
    Ok(())
}

/// Writes a file, and the directory that it is in.
pub(crate) fn write_file(file: &Path, text: &str) -> Result<()> {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    directory
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(file, text))
        .with_context(|| format!("writing {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}
