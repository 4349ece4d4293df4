//! The scenarios: a program that measures, and how to read what it says.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, eventually, podtool};

use super::{Side, usage::Usage};
use crate::demo::servers::{self, HTTP_PORT};

const IPERF_PORT: u16 = 5201;
const SOCKPERF_PORT: u16 = 11111;
const ECHO_PORT: u16 = 7007;

/// What is measured, by one run of a program in the client's pod.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    command: fn(server: &str, seconds: &str) -> Vec<String>,
    read: fn(output: &str) -> Result<Vec<Figure>>,
    /// What the processor time that proxies use for it is called, and how much work the first
    /// figure stands for, in so many seconds.
    cost: Option<Cost>,
}

#[derive(Debug)]
struct Cost {
    what: &'static str,
    unit: &'static str,
    /// How many of `unit` a second is.
    scale: f64,
    work: fn(figure: f64, seconds: f64) -> f64,
}

const fn per_gigabyte(what: &'static str) -> Option<Cost> {
    Some(Cost {
        what,
        unit: "s/GB",
        scale: 1.0,
        // Its first second does not count for iperf3, but costs as much.
        work: |gigabits, seconds| gigabits / 8.0 * (seconds + 1.0),
    })
}

const fn per_thousand(what: &'static str) -> Option<Cost> {
    Some(Cost {
        what,
        unit: "ms/1000",
        scale: 1000.0,
        work: |per_second, seconds| per_second / 1000.0 * seconds,
    })
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<28} {:>10.1} {}", self.what, self.value, self.unit)
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "iperf3, 1 stream",
        command: |server, seconds| iperf3(server, seconds, "1"),
        read: |output| bits_per_second(output, "throughput, 1 stream"),
        cost: per_gigabyte("  processor time, 1 stream"),
    },
    Scenario {
        name: "iperf3, 4 streams",
        command: |server, seconds| iperf3(server, seconds, "4"),
        read: |output| bits_per_second(output, "throughput, 4 streams"),
        cost: per_gigabyte("  processor time, 4 streams"),
    },
    Scenario {
        name: "sockperf, ping-pong",
        command: sockperf,
        read: round_trips,
        cost: None,
    },
    Scenario {
        name: "wrk, 16 connections",
        command: |server, seconds| wrk(server, seconds, 16, &[]),
        read: |output| requests_per_second(output, "HTTP, 16 connections kept"),
        cost: per_thousand("  processor time, 16 kept"),
    },
    Scenario {
        name: "wrk, 256 connections",
        command: |server, seconds| wrk(server, seconds, 256, &[]),
        read: |output| requests_per_second(output, "HTTP, 256 connections kept"),
        cost: per_thousand("  processor time, 256 kept"),
    },
    Scenario {
        name: "wrk, new connections",
        command: |server, seconds| wrk(server, seconds, 16, &["--header", "Connection: close"]),
        read: |output| requests_per_second(output, "new connections, 16 at a time"),
        cost: per_thousand("  processor time, new"),
    },
];

impl Scenario {
    pub(crate) fn measure(&self, client: &Pod, server: &Pod, seconds: u32) -> Result<Vec<Figure>> {
        let words = (self.command)(&server.v4().to_string(), &seconds.to_string());
        let (program, arguments) = words.split_first().context("a scenario runs a program")?;
        let limit = Duration::from_secs(u64::from(seconds) + 30);
        let output = client
            .run(limit, program, arguments)?
            .success()
            .with_context(|| format!("{} in {}", self.name, client.namespace()))?;
        (self.read)(&output).with_context(|| format!("reading what {program} said:\n{output}"))
    }
}

impl Scenario {
    /// What it cost proxies that used so much meanwhile, by the first figure of its result.
    pub(crate) fn cost(&self, figure: &Figure, seconds: u32, used: Usage) -> Option<Figure> {
        let cost = self.cost.as_ref()?;
        let work = (cost.work)(figure.value, f64::from(seconds));
        Some(Figure {
            what: cost.what,
            unit: cost.unit,
            value: used.cpu.as_secs_f64() * cost.scale / work,
        })
    }
}

/// The name of what [`memory`] measures.
pub(crate) const MEMORY: &str = "memory of idle ztunnels";
/// How many connections idle for it: enough to drown what else happens, and few enough for the
/// descriptors of a process.
const IDLE: u32 = 2000;

/// What ztunnels hold while nothing happens, by connection and without any.
pub(crate) fn memory(mesh: &Mesh, side: &Side) -> Result<Vec<Figure>> {
    let address = format!("{}:{ECHO_PORT}", side.server.v4());
    let _server = podtool::serve(&side.server, "echo", podtool::Serve::Echo, &address)?;
    // The first connection makes a tunnel, which is not what is asked for.
    let _first = podtool::hold(&side.client, "hold-first", &address, 1)?;
    let ztunnels = mesh.ztunnels().len() as f64;
    let before = Usage::of_ztunnels(mesh)?;
    let _held = podtool::hold(&side.client, "hold", &address, IDLE)?;
    let used = Usage::of_ztunnels(mesh)? - before;
    Ok(vec![
        Figure {
            what: "memory of a ztunnel",
            unit: "MB",
            value: before.memory / ztunnels / 1e6,
        },
        Figure {
            what: "of a connection and side",
            unit: "bytes",
            value: used.memory / ztunnels / f64::from(IDLE),
        },
    ])
}

/// The servers that the scenarios talk to.
pub(crate) fn start_servers(pod: &Pod) -> Result<Vec<Process>> {
    let place = pod.namespace();
    let iperf_port = IPERF_PORT.to_string();
    let sockperf_port = SOCKPERF_PORT.to_string();
    let ip = pod.v4().to_string();
    let servers = vec![
        servers::nginx(pod, place)?,
        pod.start(
            &format!("iperf3-{place}"),
            "iperf3",
            ["--server", "--port", &iperf_port],
        )?,
        pod.start(
            &format!("sockperf-{place}"),
            "sockperf",
            ["server", "--tcp", "--ip", &ip, "--port", &sockperf_port],
        )?,
    ];
    eventually(|| {
        for port in [IPERF_PORT, SOCKPERF_PORT, HTTP_PORT] {
            ensure!(pod.netns.has_listener(port)?, "no server listens on {port}");
        }
        Ok(())
    })?;
    Ok(servers)
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn iperf3(server: &str, seconds: &str, streams: &str) -> Vec<String> {
    let port = IPERF_PORT.to_string();
    words([
        "iperf3",
        "--json",
        "--client",
        server,
        "--port",
        &port,
        "--time",
        seconds,
        "--omit",
        "1",
        "--parallel",
        streams,
    ])
}

fn bits_per_second(output: &str, what: &'static str) -> Result<Vec<Figure>> {
    let report: Value = serde_json::from_str(output).context("iperf3's JSON")?;
    let bits = &report["end"]["sum_received"]["bits_per_second"];
    let value = bits
        .as_f64()
        .context("no end.sum_received.bits_per_second")?
        / 1e9;
    Ok(vec![Figure {
        what,
        unit: "Gb/s",
        value,
    }])
}

fn sockperf(server: &str, seconds: &str) -> Vec<String> {
    let port = SOCKPERF_PORT.to_string();
    words([
        "sockperf",
        "ping-pong",
        "--tcp",
        "--ip",
        server,
        "--port",
        &port,
        "--msg-size",
        "64",
        "--time",
        seconds,
        "--full-rtt",
    ])
}

/// Lines like `sockperf: ---> percentile 50.000 =   54.321`, in microseconds.
fn round_trips(output: &str) -> Result<Vec<Figure>> {
    let percentile = |wanted: &str| -> Result<f64> {
        output
            .lines()
            .filter_map(|line| line.split_once("percentile ")?.1.split_once('='))
            .find(|(percentile, _)| percentile.trim() == wanted)
            .and_then(|(_, value)| value.trim().parse().ok())
            .with_context(|| format!("no percentile {wanted}"))
    };
    Ok(vec![
        Figure {
            what: "round trip of 64 bytes, p50",
            unit: "µs",
            value: percentile("50.000")?,
        },
        Figure {
            what: "round trip of 64 bytes, p99",
            unit: "µs",
            value: percentile("99.000")?,
        },
    ])
}

fn wrk(server: &str, seconds: &str, connections: u32, options: &[&str]) -> Vec<String> {
    let connections = connections.to_string();
    let url = format!("http://{server}:{HTTP_PORT}/");
    words([
        "wrk",
        "--threads",
        "1",
        "--connections",
        &connections,
        "--duration",
        seconds,
    ])
    .into_iter()
    .chain(options.iter().map(|word| (*word).to_owned()))
    .chain([url])
    .collect()
}

fn requests_per_second(output: &str, what: &'static str) -> Result<Vec<Figure>> {
    let failed = output
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx or 3xx responses"));
    ensure!(
        failed.is_none(),
        "requests failed: {}",
        failed.unwrap_or_default().trim()
    );
    let value = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
        .and_then(|value| value.trim().parse().ok())
        .context("no Requests/sec")?;
    Ok(vec![Figure {
        what,
        unit: "1/s",
        value,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_say_is_read() -> Result<()> {
        let iperf = r#"{"end":{"sum_received":{"bits_per_second":20500000000.0}}}"#;
        assert_eq!(bits_per_second(iperf, "x")?[0].value, 20.5);
        let sockperf = "sockperf: ---> percentile 99.000 =   76.500\n\
                        sockperf: ---> percentile 50.000 =   54.321\n";
        let figures = round_trips(sockperf)?;
        assert_eq!((figures[0].value, figures[1].value), (54.321, 76.5));
        let wrk = "  1000 requests in 3.00s\nRequests/sec: 133000.50\nTransfer/sec: 1MB\n";
        assert_eq!(requests_per_second(wrk, "x")?[0].value, 133_000.5);
        assert!(requests_per_second(&format!("Socket errors: connect 0\n{wrk}"), "x").is_err());
        assert!(round_trips("").is_err());
        Ok(())
    }
}
