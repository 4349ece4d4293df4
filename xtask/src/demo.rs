//! `cargo xtask demo`: builds everything, runs it, and proves what the README claims.

mod authorization;
mod claims;
mod encryption;
mod keep;
mod labels;
pub(crate) mod servers;
mod shop;
mod traffic;
mod worker;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use sluice_tests::binaries::Binaries;
use sluice_tests::{Mesh, Run, Topology};

use crate::cargo::Profile;
use crate::setup::{self, Group};
use crate::{build, supervise};
use claims::Claims;
use shop::Shop;

/// Shows a mesh of two nodes on this machine, and proves what it claims.
///
/// Builds everything; makes two nodes out of network namespaces, each with its own ztunnel, one
/// control plane, and a shop of real servers in pods; sends real traffic and prints a table of
/// claims with the evidence beside each. Needs root. The exit status is 0 only if every claim
/// was observed. All it made is removed at the end, after Ctrl-C, and, should it be killed, by
/// the next run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the mesh running afterwards, until Ctrl-C, and tell how to send requests into it
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    supervise::run(|| {
        let run = begin("demo", &[Group::Bpf, Group::Run], None)?;
        let held = show(&run, arguments.keep)?;
        Ok(if held {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// What `demo` and `bench` begin with: tools, binaries (if there are to be any, and unless they are
/// built already), a run that Ctrl-C tears down.
pub(crate) fn begin(verb: &str, groups: &[Group], built: Option<&Path>) -> Result<Arc<Run>> {
    ensure!(
        geteuid().is_root(),
        "network namespaces, cgroups and eBPF need root: sudo -E cargo xtask {verb}"
    );
    let interrupt = supervise::Interrupt::watch();
    setup::ensure(groups)?;
    let binaries = if let Some(directory) = built {
        Binaries::in_directory(directory)
    } else if groups.contains(&Group::Bpf) {
        println!("── building");
        Binaries::in_directory(build::all(Profile::Release)?)
    } else {
        Binaries::locate()?
    };
    let run = Run::start(binaries)?;
    interrupt.tear_down(&run);
    Ok(run)
}

fn show(run: &Arc<Run>, keep: bool) -> Result<bool> {
    println!(
        "── run {}: two nodes, one control plane, a shop of real servers",
        run.id()
    );
    let topology = Topology::new(run, &["a", "b"]).context("building the nodes")?;
    let mesh = Mesh::start(&topology).context("starting the mesh")?;
    let mut shop = Shop::open(topology, mesh)?;
    println!("── claims");
    let mut claims = Claims::default();
    prove(&mut shop, &mut claims);
    println!("\n{}", claims.table());
    if !claims.all_held() {
        // Everything that the programs said, for whoever has to find out why.
        eprintln!(
            "{:#}",
            shop.mesh
                .explain(anyhow::Error::msg("not every claim was observed"))
        );
    }
    if keep {
        keep::until_interrupted(&shop)?;
    }
    Ok(claims.all_held())
}

/// One chapter after the other; that one cannot go on does not keep the next from being looked at.
fn prove(shop: &mut Shop, claims: &mut Claims) {
    let traffic = encryption::record(shop, "mesh").map(|capture| {
        traffic::prove(shop, claims);
        encryption::prove(shop, capture, claims);
    });
    claims.chapter("traffic and encryption", traffic);
    let authorization = authorization::prove(shop, claims);
    claims.chapter("authorization", authorization);
    let labels = labels::prove(shop, claims);
    claims.chapter("labels", labels);
    worker::prove(shop, claims);
}
