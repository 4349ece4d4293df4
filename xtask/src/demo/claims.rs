//! Claims and the evidence for each.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;

use crate::{supervise, table};

/// The claims that have been looked at, in order.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    rows: Vec<(String, String, bool)>,
}

impl Claims {
    /// Looks for the evidence: a text that shows the claim, or an error that refutes it.
    pub(crate) fn observe(&mut self, claim: &str, look: impl FnOnce() -> Result<String>) {
        let terminal = io::stdout().is_terminal();
        if terminal {
            print!("  … {claim}\r");
            // Only for the eye: the line is printed again with the outcome.
            let _ = io::stdout().flush();
        }
        let (evidence, held) = match look() {
            Ok(evidence) => (evidence, true),
            Err(error) => {
                supervise::yield_to_interrupt();
                (format!("{error:#}"), false)
            }
        };
        println!("  {} {claim}", mark(held));
        self.rows.push((claim.to_owned(), evidence, held));
    }

    /// What stands between the claims of a chapter may fail too, and is not observed then either.
    pub(crate) fn chapter(&mut self, name: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.observe(&format!("The rest of the chapter on {name}"), || Err(error));
        }
    }

    pub(crate) fn all_held(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|(_, _, held)| *held)
    }

    pub(crate) fn table(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(claim, evidence, held)| {
                [claim.clone(), evidence.clone(), mark(*held).to_owned()]
            })
            .collect();
        let table = table::render(
            &["claim", "evidence", ""],
            &rows,
            &[0, 1],
            table::terminal_width(),
        );
        let held = self.rows.iter().filter(|(_, _, held)| *held).count();
        format!("{table}{held} of {} claims observed", self.rows.len())
    }
}

fn mark(held: bool) -> &'static str {
    if held { "✓" } else { "✗" }
}
