//! The machine and the programs that figures come from: without them figures mean nothing.

use std::fs;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::cargo;

/// What the machine is, as far as it can be learned; unknown parts are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory: String,
    date: String,
    /// Name and version.
    programs: Vec<(&'static str, String)>,
    /// What part of its processors' time other machines on the same hardware took meanwhile.
    stolen: Option<f64>,
    begun: Option<Ticks>,
}

/// How the processors' time was spent since the machine was started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line: `cpu`, then user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)). The
    /// guests' time that follows is a part of the user's.
    fn parse(stat: &str) -> Option<Self> {
        let words = stat
            .lines()
            .next()?
            .strip_prefix("cpu ")?
            .split_whitespace();
        let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
        let stolen = *ticks.get(7)?;
        let all = ticks.iter().sum();
        Some(Self { all, stolen })
    }

    /// The part that was stolen between two times.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    fn stolen_until(self, later: Self) -> Option<f64> {
        let passed = later
            .all
            .checked_sub(self.all)
            .filter(|passed| *passed > 0)?;
        let stolen = later.stolen.checked_sub(self.stolen)?;
        Some(stolen as f64 / passed as f64)
    }
}

impl Machine {
    /// Before the first measurement.
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
            stolen: None,
            begun: Ticks::now(),
        }
    }

    /// After the last measurement: what others took until now.
    pub(crate) fn measured(&mut self) {
        self.stolen = (|| self.begun?.stolen_until(Ticks::now()?))();
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
            "stolen": self.stolen,
            "programs": programs.collect::<serde_json::Map<_, _>>(),
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let programs: Vec<_> = self
            .programs
            .iter()
            .map(|(name, version)| format!("| {name} | {version} |\n"))
            .collect();
        let stolen = self.stolen.map(|part| {
            let percent = part * 100.0;
            format!("| taken by others meanwhile | {percent:.0} % of the processors' time |\n")
        });
        format!(
            "| | |\n|---|---|\n| date | {} |\n| kernel | Linux {} |\n| processor | {}, {} cores |\n\
             | memory | {} |\n{}{}",
            self.date,
            self.kernel,
            self.processor,
            self.cores,
            self.memory,
            stolen.unwrap_or_default(),
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

    #[test]
    fn what_others_took_is_told() {
        let stat = |busy, stolen| format!("cpu  {busy} 0 0 50 0 0 0 {stolen} 7 7\ncpu0 1 1 1\n");
        let ticks = |busy, stolen| Ticks::parse(&stat(busy, stolen)).unwrap();
        let stolen = ticks(100, 10).stolen_until(ticks(250, 60));
        assert_eq!(stolen, Some(0.25));
        let machine = Machine {
            stolen,
            ..Machine::default()
        };
        assert!(
            machine
                .markdown()
                .contains("| taken by others meanwhile | 25 % of")
        );
        assert_eq!(machine.json()["stolen"], 0.25);
        assert!(!Machine::default().markdown().contains("taken by others"));
        assert_eq!(ticks(1, 1).stolen_until(ticks(1, 1)), None);
        assert_eq!(Ticks::parse("cpu  1 2 3\n"), None);
        assert!(Ticks::now().is_some());
    }
}
