//! The programs that measure: how each is called in the client's pod, and how to read what it says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::process::Process;
use sluice_tests::{Pod, eventually, podtool};

use crate::demo::servers::{self, HTTP_PORT, HTTP2_PORT};

pub(crate) const IPERF_PORT: u16 = 5201;
const SOCKPERF_PORT: u16 = 11111;
pub(crate) const ECHO_PORT: u16 = 7007;

/// The servers that the programs talk to.
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
        echo(pod, 0)?,
    ];
    eventually(|| {
        for port in [IPERF_PORT, SOCKPERF_PORT, HTTP_PORT, HTTP2_PORT] {
            ensure!(pod.netns.has_listener(port)?, "no server listens on {port}");
        }
        Ok(())
    })?;
    Ok(servers)
}

/// An echo server; several of them, each by its number, hold more connections than one may.
pub(crate) fn echo(pod: &Pod, number: u16) -> Result<Process> {
    let name = format!("echo-{}-{number}", pod.namespace());
    let address = format!("{}:{}", pod.v4(), ECHO_PORT + number);
    podtool::serve(pod, &name, podtool::Serve::Echo, &address)
}

/// Runs a program in the client's pod for so many seconds and a while.
fn run(client: &Pod, seconds: u32, words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("a program has a name")?;
    let limit = Duration::from_secs(u64::from(seconds) + 30);
    client
        .run(limit, program, arguments)?
        .success()
        .with_context(|| format!("{program} in {}", client.namespace()))
}

fn read<T>(output: &str, reader: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    reader(output).with_context(|| format!("reading what was said:\n{output}"))
}

/// How many streams, and how fast each may be, in bits per second with a unit (`4G`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) count: u32,
    pub(crate) limit: Option<&'static str>,
}

/// Gigabits per second that arrive.
pub(crate) fn iperf3(client: &Pod, server: &Pod, seconds: u32, streams: Streams) -> Result<f64> {
    let (ip, port) = (server.v4().to_string(), IPERF_PORT.to_string());
    let (time, count) = (seconds.to_string(), streams.count.to_string());
    let mut words = vec!["iperf3", "--json", "--client", &ip, "--port", &port];
    words.extend(["--time", &time, "--omit", "1", "--parallel", &count]);
    if let Some(limit) = streams.limit {
        words.extend(["--bitrate", limit]);
    }
    read(&run(client, seconds, &words)?, gigabits_per_second)
}

fn gigabits_per_second(output: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(output).context("iperf3's JSON")?;
    let bits = &report["end"]["sum_received"]["bits_per_second"];
    let bits = bits.as_f64();
    Ok(bits.context("no end.sum_received.bits_per_second")? / 1e9)
}

/// Two percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// The round trip of 64 bytes.
pub(crate) fn sockperf(client: &Pod, server: &Pod, seconds: u32) -> Result<Percentiles> {
    let (ip, port) = (server.v4().to_string(), SOCKPERF_PORT.to_string());
    let time = seconds.to_string();
    let mut words = vec!["sockperf", "ping-pong", "--tcp", "--ip", &ip];
    words.extend(["--port", &port, "--msg-size", "64", "--full-rtt"]);
    words.extend(["--time", &time]);
    read(&run(client, seconds, &words)?, round_trips)
}

/// Lines like `sockperf: ---> percentile 50.000 =   54.321`, in microseconds.
fn round_trips(output: &str) -> Result<Percentiles> {
    let percentile = |wanted: &str| -> Result<f64> {
        output
            .lines()
            .filter_map(|line| line.split_once("percentile ")?.1.split_once('='))
            .find(|(percentile, _)| percentile.trim() == wanted)
            .and_then(|(_, value)| value.trim().parse().ok())
            .with_context(|| format!("no percentile {wanted}"))
    };
    Ok(Percentiles {
        p50: percentile("50.000")?,
        p99: percentile("99.000")?,
    })
}

/// What wrk saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Requests {
    pub(crate) per_second: f64,
    pub(crate) latency: Percentiles,
}

/// HTTP/1.1 requests over so many connections, each kept or used once.
pub(crate) fn wrk(
    client: &Pod,
    server: &Pod,
    seconds: u32,
    connections: u32,
    kept: bool,
) -> Result<Requests> {
    let (time, connections) = (seconds.to_string(), connections.to_string());
    let url = format!("http://{}:{HTTP_PORT}/", server.v4());
    let mut words = vec!["wrk", "--threads", "1", "--latency", "--duration", &time];
    words.extend(["--connections", &connections]);
    if !kept {
        words.extend(["--header", "Connection: close"]);
    }
    words.push(&url);
    read(&run(client, seconds, &words)?, requests)
}

fn requests(output: &str) -> Result<Requests> {
    let failed = output
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx or 3xx responses"));
    ensure!(
        failed.is_none(),
        "requests failed: {}",
        failed.unwrap_or_default().trim()
    );
    let after = |what: &str| {
        output
            .lines()
            .find_map(|line| line.trim().strip_prefix(what).map(str::trim))
            .with_context(|| format!("no {what}"))
    };
    Ok(Requests {
        per_second: after("Requests/sec:")?.parse().context("Requests/sec")?,
        latency: Percentiles {
            p50: microseconds(after("50%")?)?,
            p99: microseconds(after("99%")?)?,
        },
    })
}

/// Times as wrk writes them: `831.00us`, `1.20ms`, `2.01s`, `1.00m`.
fn microseconds(text: &str) -> Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)];
    units
        .iter()
        .find_map(|(unit, scale)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * scale))
        .with_context(|| format!("{text} is no time"))
}

/// HTTP/2 requests per second: 16 connections, ten streams in each.
pub(crate) fn h2load(client: &Pod, server: &Pod, seconds: u32) -> Result<f64> {
    let time = seconds.to_string();
    let url = format!("http://{}:{HTTP2_PORT}/", server.v4());
    let mut words = vec!["h2load", "--clients", "16", "--max-concurrent-streams"];
    words.extend(["10", "--duration", &time, &url]);
    read(&run(client, seconds, &words)?, http2_requests)
}

/// A line like `finished in 3.00s, 31415.67 req/s, 5.2MB/s`, and one like
/// `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout`.
fn http2_requests(output: &str) -> Result<f64> {
    let line = |begin: &str| {
        let found = output.lines().find_map(|line| line.strip_prefix(begin));
        found.with_context(|| format!("no line that begins with {begin}"))
    };
    let outcome = line("requests: ")?;
    ensure!(
        outcome.contains(" 0 failed, 0 errored, 0 timeout"),
        "requests failed: {outcome}"
    );
    line("finished in ")?
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s")?.parse().ok())
        .context("no req/s")
}

/// Connections per second, each with a line sent and come back, so many at a time.
pub(crate) fn flood(client: &Pod, server: &Pod, seconds: u32, at_a_time: u32) -> Result<f64> {
    let address = format!("{}:{ECHO_PORT}", server.v4());
    let [time, at_a_time] = [seconds, at_a_time].map(|number| number.to_string());
    let options = ["--seconds", &time, "--concurrency", &at_a_time];
    let limit = Duration::from_secs(u64::from(seconds) + 30);
    let flood = podtool::flood(client, &address, &options, limit)?;
    ensure!(
        flood.ok == flood.attempted && flood.ok > 0,
        "connections failed: {:?}",
        flood.failures
    );
    Ok(flood.ok as f64 / f64::from(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_say_is_read() -> Result<()> {
        let iperf = r#"{"end":{"sum_received":{"bits_per_second":20500000000.0}}}"#;
        assert_eq!(gigabits_per_second(iperf)?, 20.5);
        let sockperf = "sockperf: ---> percentile 99.000 =   76.500\n\
                        sockperf: ---> percentile 50.000 =   54.321\n";
        let (p50, p99) = (54.321, 76.5);
        assert_eq!(round_trips(sockperf)?, Percentiles { p50, p99 });
        assert!(round_trips("").is_err());
        let wrk = "  Latency Distribution\n     50%  831.00us\n     99%    1.20ms\n  \
                   1000 requests in 3.00s\nRequests/sec: 133000.50\nTransfer/sec: 1MB\n";
        let seen = requests(wrk)?;
        assert_eq!(seen.per_second, 133_000.5);
        assert_eq!((seen.latency.p50, seen.latency.p99), (831.0, 1200.0));
        assert!(requests(&format!("Socket errors: connect 0\n{wrk}")).is_err());
        let h2load = "finished in 3.00s, 31415.67 req/s, 5.2MB/s\nrequests: 9 total, 9 started, \
                      9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(http2_requests(h2load)?, 31_415.67);
        assert!(http2_requests(&h2load.replace(" 0 errored", " 1 errored")).is_err());
        Ok(())
    }
}
