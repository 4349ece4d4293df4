//! `cargo xtask trace`: `sluicectl trace` on every node of a demo that was kept.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use sluice_tests::run::REGISTRY;

use crate::demo::keep::{KeptNode, NODES};

/// Traces all nodes of a running `cargo xtask demo --keep` at once.
///
/// Takes what `sluicectl trace` takes: `flows`, `kernel`, `maps`, `sockets`, `verify`, each with its options
/// (`cargo xtask trace flows --help`). Lines begin with the node's name; of `--json`, it is the field `node`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// `flows`, `kernel`, `maps`, `sockets` or `verify`
    verb: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the nodes' network namespaces need root: sudo -E cargo xtask trace"
    );
    let nodes = kept_nodes()?;
    let codes: Vec<Result<i32>> = thread::scope(|scope| {
        let ask = |node| scope.spawn(move || follow(node, arguments));
        let threads: Vec<_> = nodes.iter().map(ask).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let codes = codes.into_iter().collect::<Result<Vec<i32>>>()?;
    let worst = codes.into_iter().max().unwrap_or_default();
    Ok(ExitCode::from(u8::try_from(worst).unwrap_or(u8::MAX)))
}

/// The nodes of the newest demo that is kept.
fn kept_nodes() -> Result<Vec<KeptNode>> {
    let runs = fs::read_dir(REGISTRY).into_iter().flatten().flatten();
    let lists = runs.map(|run| run.path().join(NODES));
    let when = |path: &PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
    let newest = lists.filter(|path| path.exists()).max_by_key(when);
    let path = newest.context("no demo runs; start one with `cargo xtask demo --keep`")?;
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
}

/// Traces a node until that ends; returns its exit status.
fn follow(node: &KeptNode, arguments: &Arguments) -> Result<i32> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", node.netns.display()))
        .arg("--");
    command
        .arg(&node.sluicectl)
        .args(["trace", &arguments.verb]);
    if matches!(&*arguments.verb, "flows" | "kernel") {
        if io::stdout().is_terminal() && !given(arguments, "--color") {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            command.args(["--color", if refused { "never" } else { "always" }]);
        }
    } else {
        command.arg("--run-dir").arg(&node.run_dir);
    }
    let mut child = command
        .args(&arguments.rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", Path::new(&node.sluicectl).display()))?;
    let output = child.stdout.take().context("no pipe from sluicectl")?;
    let json = given(arguments, "--json");
    for line in BufReader::new(output).lines() {
        let line = line.context("reading from sluicectl")?;
        let line = match line.strip_prefix('{').filter(|_| json) {
            Some(rest) => format!("{{\"node\":{:?},{rest}", node.name),
            None => format!("{}  {line}", node.name),
        };
        // One call, so that the lines of several nodes do not mix.
        if writeln!(io::stdout().lock(), "{line}").is_err() {
            // Whoever read them has had enough.
            child.kill()?;
            break;
        }
    }
    Ok(child.wait()?.code().unwrap_or_default())
}

fn given(arguments: &Arguments, flag: &str) -> bool {
    arguments
        .rest
        .iter()
        .any(|argument| argument.to_str().is_some_and(|text| text.starts_with(flag)))
}
