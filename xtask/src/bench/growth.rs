//! How what the mesh costs grows with what it has to know and to hold.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, PodSpec, Run, Topology, eventually_within, objects, podtool};

use super::Programs;
use super::machine::Machine;
use super::programs::{self, ECHO_PORT};
use super::scenario::{self, Figure};
use super::side::{Side, Way};
use super::usage::Usage;
use crate::table;

/// How long a mesh may take to learn what a step adds.
const PATIENCE: Duration = Duration::from_secs(300);
/// Objects in a file, and connections held by a process.
const PART: u32 = 2000;
/// Whose pods, policies or workloads are only there to be many.
const CROWD: &str = "crowd";

/// What becomes more and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dimension {
    /// Idle connections between the two pods
    Connections,
    /// Enrolled pods, half of them on each node
    Pods,
    /// Policies of the pods' own namespace, for other pods
    Policies,
    /// Workloads elsewhere
    Workloads,
}

impl Dimension {
    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pods => "pods",
            Self::Policies => "policies",
            Self::Workloads => "workloads",
        }
    }

    /// How many there are, step by step, beside the two pods.
    fn steps(self) -> &'static [u32] {
        match self {
            Self::Connections => &[0, 1_000, 4_000, 16_000],
            Self::Pods => &[0, 10, 100, 250, 500],
            Self::Policies => &[0, 100, 1_000, 10_000],
            Self::Workloads => &[0, 1_000, 10_000, 100_000],
        }
    }
}

/// The figures of every step.
#[derive(Debug)]
pub(crate) struct Growth {
    machine: Machine,
    seconds: u32,
    dimensions: Vec<(Dimension, Vec<Step>)>,
}

#[derive(Debug)]
struct Step {
    count: u32,
    figures: Vec<Figure>,
}

/// Measures all steps of these dimensions, each with a mesh of its own; when it has to be quick, all
/// but the largest.
pub(crate) fn measure(
    run: &Arc<Run>,
    programs: &Programs,
    dimensions: &[Dimension],
    seconds: u32,
    quick: bool,
) -> Result<Growth> {
    let mut growth = Growth {
        machine: Machine::describe(),
        seconds,
        dimensions: Vec::new(),
    };
    for dimension in dimensions {
        let steps = dimension.steps();
        let steps = &steps[..steps.len() - usize::from(quick)];
        let topology = Topology::new(run, &["a", "b"])?;
        let mesh = programs.start(&topology)?;
        let measured = climb(&topology, &mesh, *dimension, steps, seconds)
            .map_err(|error| mesh.explain(error))?;
        growth.dimensions.push((*dimension, measured));
        mesh.discard()?;
    }
    growth.machine.measured();
    Ok(growth)
}

fn climb(
    topology: &Topology,
    mesh: &Mesh,
    dimension: Dimension,
    steps: &[u32],
    seconds: u32,
) -> Result<Vec<Step>> {
    let side = Side::meshed(topology, mesh, Way::Between)?;
    // Idle connections and those that have just ended need a port each, on either side: the usual range
    // would run out of them before the mesh runs out of anything.
    for pod in [&side.client, &side.server] {
        pod.netns
            .sysctl("net/ipv4/ip_local_port_range", "16000 65535")?;
    }
    let mut crowd = Crowd::default();
    let mut measured = Vec::new();
    for count in steps {
        println!("── {} {}", count, dimension.name());
        crowd
            .grow(topology, mesh, &side, dimension, *count)
            .with_context(|| format!("growing to {count} {}", dimension.name()))?;
        let mut figures = Vec::new();
        let (broker, worker) = memory(mesh)?;
        figures.push(Figure::less("memory of a broker", "MB", broker / 1e6));
        figures.push(Figure::less("memory of a worker", "MB", worker / 1e6));
        for name in ["requests-16", "connections"] {
            figures.extend(scenario::by_name(name)?.measure(&side, seconds)?);
        }
        for figure in &figures {
            println!("   {figure}");
        }
        let count = *count;
        measured.push(Step { count, figures });
    }
    Ok(measured)
}

/// What a ztunnel's two processes hold, in bytes: the mean of all nodes.
fn memory(mesh: &Mesh) -> Result<(f64, f64)> {
    let (mut brokers, mut workers) = (0.0, 0.0);
    for ztunnel in mesh.ztunnels() {
        brokers += Usage::of(ztunnel.broker_pid())?.memory;
        workers += Usage::of(ztunnel.worker()?.pid)?.memory;
    }
    let nodes = mesh.ztunnels().len() as f64;
    Ok((brokers / nodes, workers / nodes))
}

/// What has been added, as long as it shall be there.
#[derive(Debug, Default)]
struct Crowd {
    held: Vec<(Process, Process)>,
    pods: Vec<Pod>,
    /// How many there are.
    count: u32,
}

impl Crowd {
    fn grow(
        &mut self,
        topology: &Topology,
        mesh: &Mesh,
        side: &Side<'_>,
        dimension: Dimension,
        count: u32,
    ) -> Result<()> {
        if count == self.count {
            return Ok(());
        }
        match dimension {
            Dimension::Connections => self.hold(side, count)?,
            Dimension::Pods => self.enrol(topology, mesh, count)?,
            Dimension::Policies => self.declare(mesh, count, policy, |mesh, last| {
                let name = policy_target(last);
                wait_for(mesh, |dump| dump.to_string().contains(&name))
            })?,
            Dimension::Workloads => {
                mesh.apply_namespace(CROWD, Some("ambient"))?;
                self.declare(mesh, count, workload, |mesh, last| {
                    let known = |one: &sluice_tests::ztunnel::Ztunnel| one.captures(address(last));
                    eventually_within(PATIENCE, || {
                        for ztunnel in mesh.ztunnels() {
                            ensure!(known(ztunnel)?, "{} is not known", address(last));
                        }
                        Ok(())
                    })
                })?;
            }
        }
        self.count = count;
        Ok(())
    }

    fn hold(&mut self, side: &Side<'_>, count: u32) -> Result<()> {
        let mut missing = count - self.count;
        while missing > 0 {
            let some = missing.min(PART);
            let number = u16::try_from(self.held.len() + 1)?;
            let server = programs::echo(&side.server, number)?;
            let address = format!("{}:{}", side.server.v4(), ECHO_PORT + number);
            let client = podtool::hold(&side.client, &format!("hold-{number}"), &address, some)?;
            self.held.push((client, server));
            missing -= some;
        }
        Ok(())
    }

    fn enrol(&mut self, topology: &Topology, mesh: &Mesh, count: u32) -> Result<()> {
        mesh.apply_namespace(CROWD, Some("ambient"))?;
        let new = self.pods.len();
        for number in self.count..count {
            let name = format!("pod-{number}");
            let spec = PodSpec {
                namespace: CROWD,
                name: &name,
                // Each brings a key and a certificate: the dearest of cases.
                service_account: &name,
            };
            let node = if number % 2 == 0 { "a" } else { "b" };
            self.pods.push(topology.node(node).pod(spec)?);
        }
        for pod in &self.pods[new..] {
            mesh.apply_pod(pod, &[])?;
        }
        for pod in &self.pods[new..] {
            mesh.wait_until_enrolled(pod)?;
        }
        Ok(())
    }

    /// Writes objects, many to a file, and waits until the ztunnels know the last of them.
    fn declare(
        &self,
        mesh: &Mesh,
        count: u32,
        object: fn(u32) -> String,
        wait: impl Fn(&Mesh, u32) -> Result<()>,
    ) -> Result<()> {
        let mut next = self.count;
        while next < count {
            let end = count.min(next + PART);
            let objects: Vec<_> = (next..end).map(object).collect();
            mesh.config()
                .apply(&format!("{CROWD}-{next}"), &objects.join("---\n"))?;
            next = end;
        }
        wait(mesh, count - 1)
    }
}

fn wait_for(mesh: &Mesh, known: impl Fn(&Value) -> bool) -> Result<()> {
    eventually_within(PATIENCE, || {
        for ztunnel in mesh.ztunnels() {
            let node = ztunnel.node().name();
            ensure!(known(&ztunnel.config_dump()?), "node {node} has not heard");
        }
        Ok(())
    })
}

fn policy_target(number: u32) -> String {
    format!("other-{number}-end")
}

fn policy(number: u32) -> String {
    let principal = format!("cluster.local/ns/{CROWD}/sa/caller-{number}");
    objects::allow_principals(
        Way::NAMESPACE_BETWEEN,
        &policy_target(number),
        &[&principal],
    )
}

/// Of 10.128.0.0/9, where the harness puts nobody.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number)
}

fn workload(number: u32) -> String {
    let ip = address(number);
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{number}\n  namespace: {CROWD}\n\
         \x20 labels:\n    app: app-{}\n",
        number / 20
    );
    let _ = write!(
        text,
        "spec:\n  nodeName: elsewhere-{}\n  serviceAccountName: app-{}\n\
         status:\n  phase: Running\n  podIP: {ip}\n  podIPs:\n  - ip: {ip}\n\
         \x20 conditions:\n  - type: Ready\n    status: \"True\"\n",
        number / 100,
        number / 20,
    );
    text
}

impl Growth {
    /// A table for each dimension, for a terminal.
    pub(crate) fn tables(&self) -> String {
        let width = table::terminal_width();
        let table = |(dimension, steps): &(Dimension, Vec<Step>)| {
            table::render(&header(*dimension, steps), &cells(steps), &[], width)
        };
        self.dimensions.iter().map(table).collect()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "# How it grows\n\nBoth nodes on one machine, {} s per measurement, once; what the \
             proxies hold is the mean of both.\n\n{}",
            self.seconds,
            self.machine.markdown()
        );
        for (dimension, steps) in &self.dimensions {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            let header = header(*dimension, steps);
            let _ = write!(text, "\n## With {}\n\n{}", dimension.name(), line(&header));
            text += &line(&vec!["---".to_owned(); header.len()]);
            for row in cells(steps) {
                text += &line(&row);
            }
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let dimensions = self.dimensions.iter().map(|(dimension, steps)| {
            let steps = steps.iter().map(|step| {
                let figures = step.figures.iter().map(|figure| {
                    json!({ "figure": figure.what.trim(), "unit": figure.unit, "value": figure.value })
                });
                json!({ "count": step.count, "figures": figures.collect::<Vec<_>>() })
            });
            json!({ "of": dimension.name(), "steps": steps.collect::<Vec<_>>() })
        });
        json!({
            "machine": self.machine.json(),
            "seconds": self.seconds,
            "growth": dimensions.collect::<Vec<_>>(),
        })
    }
}

/// A column for each step.
fn header(dimension: Dimension, steps: &[Step]) -> Vec<String> {
    let first = [dimension.name().to_owned(), "unit".to_owned()];
    let steps = steps.iter().map(|step| step.count.to_string());
    first.into_iter().chain(steps).collect()
}

/// A row for each figure.
fn cells(steps: &[Step]) -> Vec<Vec<String>> {
    let Some(first) = steps.first() else {
        return Vec::new();
    };
    let row = |(at, figure): (usize, &Figure)| {
        let values = steps.iter().map(|step| {
            let value = step.figures.get(at).map(|figure| figure.value);
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"))
        });
        let names = [figure.what.to_owned(), figure.unit.to_owned()];
        names.into_iter().chain(values).collect()
    };
    first.figures.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_columns_and_figures_rows() {
        let step = |count, value| {
            let figures = vec![Figure::less("memory of a worker", "MB", value)];
            Step { count, figures }
        };
        let dimensions = vec![(Dimension::Pods, vec![step(0, 9.0), step(500, 30.25)])];
        let growth = Growth {
            machine: Machine::default(),
            seconds: 1,
            dimensions,
        };
        let (dimension, steps) = &growth.dimensions[0];
        assert_eq!(header(*dimension, steps), ["pods", "unit", "0", "500"]);
        assert_eq!(cells(steps), [["memory of a worker", "MB", "9.0", "30.2"]]);
        let text = growth.markdown();
        assert!(
            text.contains("| memory of a worker | MB | 9.0 | 30.2 |"),
            "{text}"
        );
        let json: Value = serde_json::from_str(&growth.json().to_string()).unwrap();
        assert_eq!(json["growth"][0]["steps"][1]["figures"][0]["value"], 30.25);
    }

    #[test]
    fn a_crowd_has_distinct_addresses_outside_the_harness() {
        let last = Dimension::Workloads.steps().last().unwrap() - 1;
        assert_ne!(address(0), address(last));
        for ip in [address(0), address(last)] {
            assert!(ip.octets()[0] == 10 && ip.octets()[1] >= 128, "{ip}");
        }
        assert!(workload(7).contains("podIP: 10.128.0.7\n"));
    }
}
