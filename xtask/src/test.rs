//! `cargo xtask test`: the rings of tests, and one line at the end that says it all.

mod libtest;

use std::fmt::{self, Write};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use sluice_tests::binaries;

use crate::cargo::{self, Profile};
use crate::setup::{self, Group};
use crate::{build, supervise};
use libtest::Outcome;

/// All tests and the programs they run, so that dependencies are compiled once. The development
/// profile compiles soonest and checks for overflow; `demo` and `bench` cover the release.
const PROFILE: Profile = Profile::Dev;

/// Runs the tests, in rings of growing demands.
///
/// lint: rustfmt and clippy. pure: unit tests, no root, no eBPF compiler, seconds. direct: in one
/// process, real sockets on loopback. netns: nodes and pods in network namespaces on the real
/// kernel; needs root. The last line sums up, and the exit status is 0 only if all that was asked
/// for ran and passed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this ring (may be repeated); without it, all of them
    #[arg(long, value_name = "RING")]
    ring: Vec<Ring>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ring {
    Lint,
    Pure,
    Direct,
    Netns,
}

/// The test programs that crates have beside their sources and that need nothing but a processor.
/// A new one is added here.
const PURE: [&str; 4] = ["analyze", "conversion", "memory", "route"];

/// The test programs of the direct ring: those of the tunnel and of the authorization's oracle, and
/// those that a crate has beside its sources. A new one is added here.
const DIRECT: [&str; 9] = [
    "client",
    "clients",
    "direct",
    "explain",
    "identity",
    "rbac",
    "serve",
    "status",
    "telemetry",
];

impl Ring {
    const ALL: [Self; 4] = [Self::Lint, Self::Pure, Self::Direct, Self::Netns];
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lint => "lint",
            Self::Pure => "pure",
            Self::Direct => "direct",
            Self::Netns => "netns",
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    supervise::run(|| {
        // Tests that are interrupted cannot clean up; the supervisor sweeps behind them.
        supervise::Interrupt::watch();
        rings(arguments)
    })
}

fn rings(arguments: &Arguments) -> Result<ExitCode> {
    let begin = Instant::now();
    let wanted = |ring: &Ring| arguments.ring.is_empty() || arguments.ring.contains(ring);
    let rings: Vec<_> = Ring::ALL.into_iter().filter(wanted).collect();
    let mut results = Vec::new();
    if rings.contains(&Ring::Netns) {
        // First of all: what embeds the eBPF programs is then compiled once, with them.
        println!("── build: the eBPF programs");
        if let Err(error) = netns_can_run().and_then(|()| build::programs()) {
            results.push((Ring::Netns, Err(error)));
        }
    }
    for ring in rings {
        if results.iter().any(|(done, _)| *done == ring) {
            continue;
        }
        println!("── {ring}");
        results.push((ring, one(ring, arguments.filter.as_deref())));
    }
    results.sort_by_key(|(ring, _)| Ring::ALL.iter().position(|other| other == ring));
    for (ring, result) in &results {
        match result {
            Err(error) => println!("{ring} did not run: {error:#}"),
            Ok(outcome) => outcome
                .failures()
                .for_each(|name| println!("{ring} FAILED: {name}")),
        }
    }
    let (summary, passed) = summary(&results);
    println!("test: {summary}, {} s", begin.elapsed().as_secs());
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn summary(results: &[(Ring, Result<Outcome>)]) -> (String, bool) {
    let mut text = String::new();
    let mut failed = 0;
    let mut all_well = true;
    for (ring, result) in results {
        let _ = match result {
            Err(_) => write!(text, "{ring} DID NOT RUN, "),
            Ok(outcome) if *ring == Ring::Lint => {
                write!(
                    text,
                    "{ring} {}, ",
                    if outcome.succeeded() { "ok" } else { "FAILED" }
                )
            }
            Ok(outcome) if outcome.broken() => {
                write!(text, "{ring} BROKEN after {} passed, ", outcome.passed())
            }
            Ok(outcome) => write!(text, "{ring} {} passed, ", outcome.passed()),
        };
        failed += result.as_ref().map_or(0, Outcome::failed);
        all_well &= result.as_ref().is_ok_and(Outcome::succeeded);
    }
    let _ = write!(text, "{failed} failed");
    (text, all_well)
}

fn one(ring: Ring, filter: Option<&str>) -> Result<Outcome> {
    match ring {
        Ring::Lint => lint(),
        Ring::Pure => {
            let mut arguments = vec!["--workspace", "--lib", "--bins"];
            arguments.extend(PURE.iter().flat_map(|name| ["--test", name]));
            libtest::run(&mut cargo_test(&arguments, filter)?)
        }
        Ring::Direct => {
            // The oracle is Envoy.
            setup::ensure(&[Group::Peers])?;
            let mut arguments = vec!["--workspace"];
            arguments.extend(DIRECT.iter().flat_map(|name| ["--test", name]));
            libtest::run(&mut cargo_test(&arguments, filter)?)
        }
        Ring::Netns => netns(filter),
    }
}

fn cargo_test(arguments: &[&str], filter: Option<&str>) -> Result<Command> {
    let mut command = cargo::command()?;
    // Without stopping at the first crate that fails.
    command
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(PROFILE.arguments());
    command.args(arguments).envs(build::object_variable()?);
    // One line per test even though the cargo itself is quiet: it is the libtest that we parse.
    command.args(["--", "--format", "pretty"]).args(filter);
    Ok(command)
}

fn netns_can_run() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "network namespaces, cgroups and eBPF need root (sudo -E cargo xtask test); \
         --ring pure and --ring direct do not"
    );
    setup::ensure(&[Group::Run, Group::Bpf, Group::Peers])
}

fn netns(filter: Option<&str>) -> Result<Outcome> {
    netns_can_run()?;
    let directory = build::all(PROFILE)?;
    // They wait more than they compute: each has its own nodes, pods and processes.
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let threads = format!("--test-threads={}", (cores * 2).min(8));
    let mut command = cargo_test(&["-p", "sluice-tests", "--test", "netns"], filter)?;
    command.arg(threads).env(binaries::DIRECTORY, directory);
    libtest::run(&mut command)
}

/// Formatting and clippy, as a test that passes or fails as a whole.
fn lint() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut check = |name: &str, arguments: &[&str]| -> Result<()> {
        let mut command = cargo::command()?;
        let status = command
            .args(arguments)
            .envs(build::object_variable()?)
            .status()
            .with_context(|| format!("running cargo {}", arguments.join(" ")))?;
        outcome.record(name, status.success());
        Ok(())
    };
    check("cargo fmt --all --check", &["fmt", "--all", "--check"])?;
    let programs = [
        "fmt",
        "--manifest-path",
        "bpf/programs/Cargo.toml",
        "--check",
    ];
    check("cargo fmt --check in bpf/programs", &programs)?;
    let clippy = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    check("cargo clippy", &clippy)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    /// The names of the test programs in these directories, as cargo finds them.
    fn programs(directory: &Path) -> Vec<String> {
        let entries = directory.read_dir().into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let path = entry.path();
            let is_file = path.extension().is_some_and(|extension| extension == "rs");
            let is_program = is_file || path.join("main.rs").exists();
            is_program.then(|| path.file_stem().unwrap().to_str().unwrap().to_owned())
        });
        names.collect()
    }

    #[test]
    fn every_test_program_is_in_a_ring() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let userspace = root.join("userspace").read_dir().unwrap();
        let crates = userspace.map(|entry| entry.unwrap().path());
        let tests = crates
            .chain([root.join("proto")])
            .map(|one| one.join("tests"));
        let programs: Vec<String> = tests.flat_map(|one| programs(&one)).collect();
        assert!(
            programs.iter().any(|name| name == "analyze"),
            "{programs:?}"
        );
        for name in programs {
            let ringed = PURE.contains(&&*name) || DIRECT.contains(&&*name);
            assert!(ringed, "{name} is in no ring, and so is never run");
        }
    }
}
