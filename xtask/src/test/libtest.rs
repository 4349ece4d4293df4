//! Running `cargo test`, and reading what libtest prints.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// What became of a ring's tests.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    passed: u32,
    failed: u32,
    failures: Vec<String>,
    /// Something failed that is no test: compiling, or a test program that crashed.
    broken: bool,
}

impl Outcome {
    pub(super) fn passed(&self) -> u32 {
        self.passed
    }

    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    pub(super) fn succeeded(&self) -> bool {
        self.failed == 0 && !self.broken
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = &str> {
        self.failures.iter().map(String::as_str)
    }

    pub(super) fn record(&mut self, name: &str, success: bool) {
        if success {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    /// Takes in one line of libtest's output.
    fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

/// Runs `cargo test …` with its output going on to the terminal.
pub(super) fn run(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        outcome.read(&line);
        if !is_noise(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    outcome.broken = !status.success() && outcome.failed == 0;
    Ok(outcome)
}

/// Lines of test programs without tests, of which a workspace has many.
fn is_noise(line: &str) -> bool {
    line.is_empty()
        || line == "running 0 tests"
        || line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}

/// The number before `what` in `ok. 8 passed; 0 failed; …`.
fn count(text: &str, what: &str) -> u32 {
    text.split([';', '.'])
        .filter_map(|part| part.trim().strip_suffix(what))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut outcome = Outcome::default();
        for line in [
            "running 3 tests",
            "test a::works ... ok",
            "test a::breaks ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; \
             finished in 0.01s",
            "test result: ok. 8 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            outcome.read(line);
        }
        assert_eq!((outcome.passed(), outcome.failed()), (10, 1));
        assert_eq!(outcome.failures().collect::<Vec<_>>(), ["a::breaks"]);
        assert!(!outcome.succeeded());
    }
}
