//! `sluicectl analyze`: everything that is wrong with a configuration, before it is applied.

pub(crate) mod input;
mod output;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{ArgGroup, ValueEnum};
use sluice_control::{
    analysis,
    translate::{self, translate},
};
use sluice_objects::{Code, Diagnostic, Severity, Snapshot, diagnostic, enrolment};

use input::Input;
use output::Colours;

use crate::show::{self, Format, print};

/// Reports everything that is wrong with a configuration.
///
/// Reads it as sluice-control and the ztunnels do, from a directory of YAML or from single files,
/// and contacts nobody. Every finding is a line FILE:LINE: SEVERITY: OBJECT: FIELD: MESSAGE [CODE].
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status:\n  \
                  0  nothing at or above --fail-on was found\n  \
                  1  something was\n  \
                  2  the configuration could not be read at all, or the command line not understood",
    group = ArgGroup::new("what")
        .args(["dir", "paths", "explain", "list_codes"])
        .required(true)
        .multiple(true)
)]
pub(crate) struct Arguments {
    /// The directory of YAML that describes the mesh.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Further files or directories; `-` is the standard input. Namespaces, pods and service accounts
    /// that policies name must be among them.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How findings are written: a line each, as compilers write them, and a summary; or an array of
    /// objects with severity, code, file, line, object, field and message.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// From which severity on the exit status is 1.
    #[arg(long, value_enum, default_value_t = Threshold::Error, value_name = "SEVERITY")]
    fail_on: Threshold,
    /// Explains a code: what it means, what happens to the object, and what to do.
    #[arg(long, value_name = "CODE", conflicts_with_all = ["dir", "paths", "list_codes"])]
    explain: Option<Code>,
    /// Lists every code.
    #[arg(long, conflicts_with_all = ["dir", "paths"])]
    list_codes: bool,
    #[command(flatten, next_help_heading = "The mesh, as sluice-control is told")]
    translation: translate::Config,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Threshold {
    Error,
    Warning,
}

impl Threshold {
    fn is_reached(self, severity: Severity) -> bool {
        match self {
            Self::Error => severity == Severity::Error,
            Self::Warning => matches!(severity, Severity::Error | Severity::Warning),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(code) = arguments.explain {
        return print(&output::explanation(code)).map(|()| ExitCode::SUCCESS);
    }
    if arguments.list_codes {
        return print(&output::codes()).map(|()| ExitCode::SUCCESS);
    }
    let input = Input::read(arguments.dir.as_deref(), &arguments.paths)?;
    let findings = findings(&input, &arguments.translation);
    let text = match arguments.output {
        Format::Text => output::text(&findings, &input, Colours::of(io::stdout().is_terminal())),
        Format::Json => show::json(&findings)?,
        Format::Yaml => show::yaml(&findings)?,
    };
    print(&text)?;
    let threshold = arguments.fail_on;
    let failed = findings
        .iter()
        .any(|finding| threshold.is_reached(finding.severity));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What the control plane would report, and what the ztunnels of all nodes would.
fn findings(input: &Input, config: &translate::Config) -> Vec<Diagnostic> {
    let Snapshot { objects, .. } = &input.snapshot;
    let mut findings = analysis::findings(&input.snapshot, &translate(objects, config), config);
    let nodes: BTreeSet<_> = objects.pods.values().map(|pod| &pod.node).collect();
    for node in nodes.into_iter().filter(|node| !node.is_empty()) {
        findings.extend(enrolment::pods_to_enrol(objects, node).1);
    }
    findings.extend(input.without_objects(&findings));
    diagnostic::sort(&mut findings);
    findings
}
