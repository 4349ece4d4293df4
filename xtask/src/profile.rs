//! `cargo xtask profile`: where the ztunnels spend their time while a scenario runs.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::flamegraph;
use sluice_tests::Topology;

use crate::bench::scenario;
use crate::bench::side::{Side, Way};
use crate::bench::{Programs, write_file};
use crate::setup::Group;
use crate::{cargo, supervise};

/// Draws a flame graph of both ztunnels while a scenario of `bench` runs.
///
/// It is of the very programs that `bench` measures: stacks are unwound by their unwind tables.
/// Needs root and `perf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One of the scenarios that `cargo xtask bench --list` names
    scenario: String,
    /// For how long
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Samples per second and processor
    #[arg(long, default_value_t = 499, value_parser = clap::value_parser!(u32).range(1..))]
    frequency: u32,
    /// Where to draw [default: target/profile/SCENARIO.svg]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let scenario = scenario::by_name(&arguments.scenario)?;
    supervise::run(|| {
        let groups = [Group::Run, Group::Bench, Group::Bpf, Group::Profile];
        let run = arguments.programs.begin("profile", &groups)?;
        let topology = Topology::new(&run, &["a", "b"])?;
        let mesh = arguments.programs.start(&topology)?;
        let side =
            Side::meshed(&topology, &mesh, Way::Between).map_err(|error| mesh.explain(error))?;
        let samples = run.dir().join("perf.data");
        let mut pids = Vec::new();
        for ztunnel in mesh.ztunnels() {
            pids.extend([ztunnel.broker_pid(), ztunnel.worker()?.pid]);
        }
        println!("── {}: {} s", scenario.name, arguments.seconds);
        let figures = record(&pids, arguments.frequency, &samples, || {
            scenario.measure(&side, arguments.seconds)
        })?;
        for figure in figures {
            println!("   {figure}");
        }
        println!("── unwinding");
        let title = format!("both ztunnels: {}", scenario.about);
        let graph = draw(&stacks(&samples)?, &title)?;
        let file = match &arguments.out {
            Some(file) => file.clone(),
            None => {
                let directory = cargo::target_directory()?.join("profile");
                directory.join(format!("{}.svg", scenario.name))
            }
        };
        write_file(&file, &graph)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Samples these processes while `work` is done.
fn record<T>(
    pids: &[u32],
    frequency: u32,
    samples: &Path,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let log = samples.with_extension("log");
    let told = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut perf = Command::new("perf")
        .args([
            "record",
            "--call-graph",
            "dwarf,16384",
            "--pid",
            &pids.join(","),
        ])
        .args(["--freq", &frequency.to_string(), "--output"])
        .arg(samples)
        .stdout(Stdio::null())
        .stderr(told)
        .spawn()
        .context("starting perf (package linux-perf)")?;
    let done = work();
    // It ends in order upon an interrupt, and by itself only when it may not sample.
    let ended = perf.try_wait().context("asking for the state of perf")?;
    if ended.is_none() {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(perf.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).context("ending perf")?;
    }
    perf.wait().context("waiting for perf")?;
    let done = done?;
    let empty = fs::metadata(samples).map_or(true, |file| file.len() == 0);
    if ended.is_some() || empty {
        let told = fs::read_to_string(&log).unwrap_or_default();
        bail!(
            "perf may not sample, or could not: {}\nkernel.perf_event_paranoid is {}; a container \
             needs the capability PERFMON, and its seccomp filter must let perf_event_open pass",
            told.trim(),
            fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .unwrap_or_default()
                .trim()
        );
    }
    Ok(done)
}

/// The samples as text, unwound.
fn stacks(samples: &Path) -> Result<Vec<u8>> {
    let output = Command::new("perf")
        // Inlined functions would be looked up one by one, by a program for each.
        .args(["script", "--no-inline", "--input"])
        .arg(samples)
        .output()
        .context("starting perf script")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf script: {}", told.trim());
    Ok(output.stdout)
}

fn draw(stacks: &[u8], title: &str) -> Result<String> {
    let mut folded = Vec::new();
    Folder::from(FoldOptions::default())
        .collapse(stacks, &mut folded)
        .context("folding the stacks")?;
    ensure!(!folded.is_empty(), "perf saw the ztunnels do nothing");
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    let mut graph = Vec::new();
    flamegraph::from_reader(&mut options, Cursor::new(folded), &mut graph)
        .context("drawing the flame graph")?;
    String::from_utf8(graph).context("the flame graph is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_become_a_graph_with_their_functions() {
        let script = b"ztunnel 7 1.0: 1 cycles:\n\tffff seal+0x1 (/ztunnel)\n\taaaa relay+0x2 \
                       (/ztunnel)\n\nztunnel 7 1.1: 1 cycles:\n\taaaa relay+0x2 (/ztunnel)\n\n";
        let graph = draw(script, "both ztunnels: a test").unwrap();
        for word in ["seal", "relay", "both ztunnels: a test", "</svg>"] {
            assert!(graph.contains(word), "{word} in {graph}");
        }
        assert!(draw(b"", "nothing").is_err());
    }
}
