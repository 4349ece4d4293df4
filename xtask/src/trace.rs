//! `cargo xtask trace`: `sluicectl trace` on every node of a demo that was kept.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Args as _;
use serde_json::Value;
use sluice_tests::kept::{self, KeptNode};
use sluice_tests::run::REGISTRY;

use crate::cargo::{self, Profile};

/// Traces all nodes of a running `cargo xtask demo --keep` at once.
///
/// Takes what `sluicectl trace` takes: `flows`, `kernel`, `maps`, `sockets`, `verify`, each with its options
/// (`cargo xtask trace flows --help`). Lines begin with the node's name; of `--json`, it is the
/// field `node`; and `-o json` is one object, with what each node says by its name. The exit status is the highest of the nodes', and 2 where one cannot be asked.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Before the verb: the directory of the demo, as that has told it [default: the newest's]
    #[arg(long, value_name = "DIR")]
    demo: Option<PathBuf>,
    /// `flows`, `kernel`, `maps`, `sockets` or `verify`
    #[arg(allow_hyphen_values = true)]
    verb: String,
    /// Its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The exit status of `sluicectl` when there is no answer.
const UNKNOWN: u8 = 2;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if matches!(&*arguments.verb, "--help" | "-h") {
        let own = Arguments::augment_args(clap::Command::new("cargo xtask trace"));
        own.disable_help_flag(true).print_long_help()?;
        return Ok(ExitCode::SUCCESS);
    }
    if given(arguments, "--help") || given(arguments, "-h") {
        return help(&arguments.verb);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the nodes' network namespaces need root: sudo -E cargo xtask trace"
    );
    let nodes = kept_nodes(arguments.demo.as_deref())?;
    if is_document(arguments) {
        return document(&nodes, arguments);
    }
    let codes: Vec<u8> = thread::scope(|scope| {
        let ask = |node| scope.spawn(move || status_of(node, arguments));
        let threads: Vec<_> = nodes.iter().map(ask).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    Ok(codes.into_iter().max().unwrap_or_default().into())
}

/// Has the newest `sluicectl` of this checkout say what options a verb takes. For that, nothing has to run.
fn help(verb: &str) -> Result<ExitCode> {
    let target = cargo::target_directory()?;
    let built = [Profile::Dev, Profile::Release];
    let built = built.map(|profile| target.join(profile.directory()).join("sluicectl"));
    let program =
        newest(built).context("sluicectl, which says it, is not built: cargo xtask build")?;
    let mut command = Command::new(&program);
    let status = command.args(["trace", verb, "--help"]).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    Ok(code(status)?.into())
}

/// Whether each node answers with one JSON value, and not with lines.
fn is_document(arguments: &Arguments) -> bool {
    let words: Vec<_> = arguments
        .rest
        .iter()
        .filter_map(|word| word.to_str())
        .collect();
    let apart = [["-o", "json"], ["--output", "json"]];
    words
        .windows(2)
        .any(|two| apart.iter().any(|one| two == one))
        || words
            .iter()
            .any(|word| matches!(*word, "-ojson" | "-o=json" | "--output=json"))
}

/// Writes what all nodes say as one object, by their names; null, where one says nothing.
fn document(nodes: &[KeptNode], arguments: &Arguments) -> Result<ExitCode> {
    let mut all = serde_json::Map::new();
    let mut worst = 0;
    for node in nodes {
        let (said, code) = or_say_why(node, answer(node, arguments), (Value::Null, UNKNOWN));
        all.insert(node.name.clone(), said);
        worst = worst.max(code);
    }
    // Whoever reads may have had enough.
    let _ = writeln!(io::stdout(), "{:#}", Value::Object(all));
    Ok(worst.into())
}

/// What a node says in all, and the status that it ends with.
fn answer(node: &KeptNode, arguments: &Arguments) -> Result<(Value, u8)> {
    check_netns(node)?;
    let output = command(node, arguments)
        .output()
        .with_context(|| format!("starting {}", node.sluicectl.display()))?;
    each_line(&*output.stderr, io::stderr(), |line| {
        prefixed(&node.name, &line)
    })?;
    let said = match &*output.stdout {
        [] => Value::Null,
        json => serde_json::from_slice(json).context("what sluicectl says is no JSON")?,
    };
    Ok((said, code(output.status)?))
}

/// The nodes of this demo, or of the newest that is kept.
fn kept_nodes(demo: Option<&Path>) -> Result<Vec<KeptNode>> {
    const START: &str = "start one with `cargo xtask demo --keep`, and wait until the mesh is up";
    match demo {
        Some(directory) => kept::read(directory)
            .with_context(|| format!("no demo is kept in {}; {START}", directory.display())),
        None => {
            let newest = newest_demo().with_context(|| format!("no demo is kept; {START}"))?;
            kept::read(&newest)
        }
    }
}

fn newest_demo() -> Option<PathBuf> {
    let runs = fs::read_dir(REGISTRY).into_iter().flatten().flatten();
    let list = newest(runs.map(|run| run.path().join(kept::FILE)))?;
    list.parent().map(Path::to_path_buf)
}

/// Of the files that exist, the one that was written last.
fn newest(files: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let written = |file: &PathBuf| fs::metadata(file).and_then(|file| file.modified()).ok();
    let files = files.into_iter().filter(|file| written(file).is_some());
    files.max_by_key(written)
}

/// Traces a node until that ends.
fn status_of(node: &KeptNode, arguments: &Arguments) -> u8 {
    or_say_why(node, follow(node, arguments), UNKNOWN)
}

/// What was asked of a node, or else the other, when it is said why.
fn or_say_why<T>(node: &KeptNode, asked: Result<T>, otherwise: T) -> T {
    asked.unwrap_or_else(|error| {
        eprintln!("{}", prefixed(&node.name, &format!("error: {error:#}")));
        otherwise
    })
}

fn prefixed(node: &str, line: &str) -> String {
    format!("{node}  {line}")
}

/// What enters the namespace would fail with the status that stands for drift.
fn check_netns(node: &KeptNode) -> Result<()> {
    ensure!(
        node.netns.exists(),
        "its network namespace {} is gone; does the demo still run?",
        node.netns.display()
    );
    Ok(())
}

fn code(status: ExitStatus) -> Result<u8> {
    let code = status.code();
    let code = code.with_context(|| format!("sluicectl ended by {status}"))?;
    Ok(u8::try_from(code)?)
}

fn follow(node: &KeptNode, arguments: &Arguments) -> Result<u8> {
    check_netns(node)?;
    let mut child = command(node, arguments)
        .spawn()
        .with_context(|| format!("starting {}", node.sluicectl.display()))?;
    if !pass_on(&mut child, node, given(arguments, "--json"))? {
        // Whoever read the lines has had enough.
        child.kill()?;
        child.wait()?;
        return Ok(0);
    }
    code(child.wait()?)
}

fn command(node: &KeptNode, arguments: &Arguments) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", node.netns.display()))
        .arg("--")
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
    command
        .args(&arguments.rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Passes on what a child says of its node, until it has said all; false when nobody listens.
fn pass_on(child: &mut Child, node: &KeptNode, json: bool) -> Result<bool> {
    let output = child.stdout.take().context("no pipe from sluicectl")?;
    let errors = child.stderr.take().context("no pipe from sluicectl")?;
    let name = node.name.clone();
    // On its own: it may end after this, when the child is told to.
    let errors =
        thread::spawn(move || each_line(errors, io::stderr(), |line| prefixed(&name, &line)));
    let marked = |line: String| match line.strip_prefix('{').filter(|_| json) {
        Some(rest) => format!("{{\"node\":{:?},{rest}", node.name),
        None => prefixed(&node.name, &line),
    };
    let heard = each_line(output, io::stdout(), marked)?;
    if heard {
        let all = errors.join();
        all.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    }
    Ok(heard)
}

/// Writes each line of what is read, marked; false when nobody takes them any more.
fn each_line(from: impl Read, mut to: impl Write, mark: impl Fn(String) -> String) -> Result<bool> {
    for line in BufReader::new(from).lines() {
        let line = mark(line.context("reading from sluicectl")?) + "\n";
        // One call, so that the lines of several nodes do not mix.
        if to.write_all(line.as_bytes()).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn given(arguments: &Arguments, flag: &str) -> bool {
    arguments
        .rest
        .iter()
        .any(|argument| argument.to_str().is_some_and(|text| text.starts_with(flag)))
}
