//! Findings and codes as they are printed.

use std::{env, fmt::Write};

use clap::builder::styling::{AnsiColor, Style};
use sluice_objects::{Code, Diagnostic, Severity};

use super::input::Input;
use crate::show::plural;

/// Whether severities are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    On,
    Off,
}

impl Colours {
    /// Colours are for terminals, unless `NO_COLOR` is set (no-color.org).
    pub(super) fn of(is_terminal: bool) -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal && !unwanted {
            Self::On
        } else {
            Self::Off
        }
    }

    fn style(self, severity: Severity) -> Style {
        let colour = match severity {
            _ if self == Self::Off => return Style::new(),
            Severity::Error => AnsiColor::Red,
            Severity::Warning => AnsiColor::Yellow,
            Severity::Info => AnsiColor::Cyan,
        };
        colour.on_default().bold()
    }
}

/// A line per finding, in the form of compilers, by which editors find the place; then a summary.
pub(super) fn text(findings: &[Diagnostic], input: &Input, colours: Colours) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = finding.severity;
        let style = colours.style(severity);
        let (place, statement) = (finding.place(), finding.statement());
        let _ = writeln!(text, "{place}: {style}{severity}{style:#}: {statement}");
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let _ = writeln!(
        text,
        "{}, {}, {} info; {} valid in {}",
        plural(count(Severity::Error), "error"),
        plural(count(Severity::Warning), "warning"),
        count(Severity::Info),
        plural(input.objects(), "object"),
        plural(input.files, "file"),
    );
    text
}

pub(super) fn explanation(code: Code) -> String {
    format!("{code}\n\n{}\n", code.explanation())
}

/// Every code with the first sentence of its explanation.
pub(super) fn codes() -> String {
    let width = Code::ALL.iter().map(|code| code.name().len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for code in Code::ALL {
        let explanation = code.explanation().replace('\n', " ");
        let first = explanation.split_inclusive(". ").next().unwrap_or_default();
        let _ = writeln!(text, "{code:width$}  {}", first.trim_end());
    }
    text
}
