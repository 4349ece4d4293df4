//! The machine and the programs that figures come from: without them figures mean nothing.

use std::fs;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::cargo;

/// What the machine is, as far as it can be learned; unknown parts are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory: String,
    date: String,
    /// Name and version.
    programs: Vec<(&'static str, String)>,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory: field(&read("/proc/meminfo"), "MemTotal"),
            date: first_line("date", &["--utc", "+%F"]),
            programs: vec![
                ("sluice", checkout()),
                ("rustc", first_line("rustc", &["--version"])),
                ("iperf3", first_line("iperf3", &["--version"])),
                ("sockperf", first_line("sockperf", &["--version"])),
                ("wrk", first_line("wrk", &["-v"])),
                ("h2load", first_line("h2load", &["--version"])),
                ("nginx", first_line("nginx", &["-v"])),
            ],
        }
    }

    pub(crate) fn json(&self) -> Value {
        let programs = self.programs.iter().map(|(name, version)| {
            let version = Value::from(version.as_str());
            ((*name).to_owned(), version)
        });
        json!({
            "date": self.date,
            "kernel": self.kernel,
            "processor": self.processor,
            "cores": self.cores,
            "memory": self.memory,
            "programs": programs.collect::<serde_json::Map<_, _>>(),
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let programs: Vec<_> = self
            .programs
            .iter()
            .map(|(name, version)| format!("| {name} | {version} |\n"))
            .collect();
        format!(
            "| | |\n|---|---|\n| date | {} |\n| kernel | Linux {} |\n| processor | {}, {} cores |\n\
             | memory | {} |\n{}",
            self.date,
            self.kernel,
            self.processor,
            self.cores,
            self.memory,
            programs.concat()
        )
    }
}

/// The value of the first line `NAME   : VALUE`.
fn field(text: &str, name: &str) -> String {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    value.unwrap_or_default()
}

/// What a program says first of itself, on either output.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat());
    let text = text.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.next().unwrap_or_default().to_owned()
}

/// The commit, and whether there is more than that.
fn checkout() -> String {
    let Ok(workspace) = cargo::workspace() else {
        return String::new();
    };
    let directory = workspace.display().to_string();
    let describe = ["-C", &directory, "describe", "--always", "--dirty"];
    first_line("git", &describe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described() {
        let machine = Machine::describe();
        assert!(machine.cores > 0);
        assert!(!machine.kernel.is_empty());
        assert_eq!(machine.json()["kernel"], machine.kernel.as_str());
        assert_eq!(field("a\t: b: c\nMemTotal:  7 kB\n", "MemTotal"), "7 kB");
    }
}
