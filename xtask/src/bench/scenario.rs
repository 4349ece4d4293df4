//! The scenarios: what is measured, by name, and what it costs the proxies meanwhile.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use sluice_tests::place::Place;
use sluice_tests::{eventually, podtool};

use super::programs::{self, ECHO_PORT, IPERF_PORT, Streams};
use super::side::{Bystanders, Side};
use super::usage::Usage;

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) value: f64,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

impl Figure {
    pub(crate) fn more(what: &'static str, unit: &'static str, value: f64) -> Self {
        let better = Better::Higher;
        Self {
            what,
            unit,
            better,
            value,
        }
    }

    pub(crate) fn less(what: &'static str, unit: &'static str, value: f64) -> Self {
        let better = Better::Lower;
        Self {
            what,
            unit,
            better,
            value,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<32} {:>10.1} {}", self.what, self.value, self.unit)
    }
}

/// What is measured between two pods.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// For whoever asks for a list.
    pub(crate) about: &'static str,
    measure: fn(side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>>,
    /// What the processor time that proxies use for it is called, and how much work the first
    /// figure stands for, in so many seconds.
    cost: Option<Cost>,
    /// Nothing of it changes from round to round.
    pub(crate) once: bool,
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

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory",
        about: "what the proxies hold while nothing happens, and for each idle connection",
        measure: |side, _| memory(side),
        cost: None,
        once: true,
    },
    Scenario {
        name: "throughput-1",
        about: "iperf3, one stream",
        measure: |side, seconds| throughput(side, seconds, 1, "throughput, 1 stream"),
        cost: per_gigabyte("  processor time, 1 stream"),
        once: false,
    },
    Scenario {
        name: "throughput-4",
        about: "iperf3, four streams",
        measure: |side, seconds| throughput(side, seconds, 4, "throughput, 4 streams"),
        cost: per_gigabyte("  processor time, 4 streams"),
        once: false,
    },
    Scenario {
        name: "latency",
        about: "sockperf, 64 bytes there and back",
        measure: latency,
        cost: None,
        once: false,
    },
    Scenario {
        name: "requests-16",
        about: "wrk, HTTP over 16 connections that are kept",
        measure: |side, seconds| http(side, seconds, 16, true, "HTTP, 16 connections kept"),
        cost: per_thousand("  processor time, 16 kept"),
        once: false,
    },
    Scenario {
        name: "requests-256",
        about: "wrk, HTTP over 256 connections that are kept",
        measure: |side, seconds| http(side, seconds, 256, true, "HTTP, 256 connections kept"),
        cost: per_thousand("  processor time, 256 kept"),
        once: false,
    },
    Scenario {
        name: "http2",
        about: "h2load, HTTP/2 over 16 connections with ten streams each",
        measure: |side, seconds| {
            let rate = programs::h2load(&side.client, &side.server, seconds)?;
            Ok(vec![Figure::more("HTTP/2, 16 × 10 streams", "1/s", rate)])
        },
        cost: per_thousand("  processor time, HTTP/2"),
        once: false,
    },
    Scenario {
        name: "connections",
        about: "wrk, a new connection for each request, 16 at a time",
        measure: |side, seconds| http(side, seconds, 16, false, "new connections, 16 at a time"),
        cost: per_thousand("  processor time, new"),
        once: false,
    },
    Scenario {
        name: "flood",
        about: "podtool, a new connection for each line, 16 at a time",
        measure: flood,
        cost: per_thousand("  processor time, with a line"),
        once: false,
    },
    Scenario {
        name: "first-line",
        about: "podtool, a new connection for each line, one after the other",
        measure: first_line,
        cost: None,
        once: false,
    },
    Scenario {
        name: "mixed",
        about: "wrk over 4 connections beside a stream of 4 Gb/s",
        measure: mixed,
        cost: None,
        once: false,
    },
    Scenario {
        name: "hook",
        about: "what the programs in the kernel add to connect, of a pod enrolled or not",
        measure: |side, _| hook(side),
        cost: None,
        once: false,
    },
];

/// Those whose names contain one of the words; all without any.
pub(crate) fn chosen(words: &[String]) -> Result<Vec<&'static Scenario>> {
    for word in words {
        ensure!(
            SCENARIOS.iter().any(|one| one.name.contains(word)),
            "no scenario has {word} in its name; there are:\n{}",
            list()
        );
    }
    let wanted = |one: &&Scenario| words.is_empty() || words.iter().any(|w| one.name.contains(w));
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

/// The one with this name.
pub(crate) fn by_name(name: &str) -> Result<&'static Scenario> {
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.ok_or_else(|| anyhow!("there is no scenario {name}, but:\n{}", list()))
}

/// A line for each scenario.
pub(crate) fn list() -> String {
    let line = |one: &Scenario| format!("  {:<14} {}\n", one.name, one.about);
    SCENARIOS.iter().map(line).collect()
}

impl Scenario {
    /// What one run of it shows, processor time included.
    pub(crate) fn measure(&self, side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>> {
        let before = side.usage()?;
        let mut figures = (self.measure)(side, seconds)
            .map_err(|error| error.context(format!("{} of {}", self.name, side.setup)))?;
        if let (Some(before), Some(first)) = (before, figures.first())
            && let Some(after) = side.usage()?
        {
            figures.extend(self.cost(first, seconds, after - before));
        }
        Ok(figures)
    }

    /// What it cost proxies that used so much meanwhile, by the first figure of its result.
    fn cost(&self, figure: &Figure, seconds: u32, used: Usage) -> Option<Figure> {
        let cost = self.cost.as_ref()?;
        let work = (cost.work)(figure.value, f64::from(seconds));
        let value = used.cpu.as_secs_f64() * cost.scale / work;
        Some(Figure::less(cost.what, cost.unit, value))
    }
}

fn throughput(
    side: &Side<'_>,
    seconds: u32,
    count: u32,
    what: &'static str,
) -> Result<Vec<Figure>> {
    let streams = Streams { count, limit: None };
    let rate = programs::iperf3(&side.client, &side.server, seconds, streams)?;
    Ok(vec![Figure::more(what, "Gb/s", rate)])
}

fn latency(side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>> {
    let trip = programs::sockperf(&side.client, &side.server, seconds)?;
    Ok(vec![
        Figure::less("round trip of 64 bytes, p50", "µs", trip.p50),
        Figure::less("round trip of 64 bytes, p99", "µs", trip.p99),
    ])
}

fn http(
    side: &Side<'_>,
    seconds: u32,
    connections: u32,
    kept: bool,
    what: &'static str,
) -> Result<Vec<Figure>> {
    let seen = programs::wrk(&side.client, &side.server, seconds, connections, kept)?;
    Ok(vec![Figure::more(what, "1/s", seen.per_second)])
}

fn flood(side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>> {
    let rate = programs::flood(&side.client, &side.server, seconds, 16)?;
    Ok(vec![Figure::more("connections with a line", "1/s", rate)])
}

/// How long it takes from the dial to the answer, while nothing else happens.
fn first_line(side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>> {
    let rate = programs::flood(&side.client, &side.server, seconds, 1)?;
    Ok(vec![Figure::less(
        "from a dial to an answer",
        "µs",
        1e6 / rate,
    )])
}

/// How requests fare beside a stream that would be happy to take all there is, were it let.
fn mixed(side: &Side<'_>, seconds: u32) -> Result<Vec<Figure>> {
    let streams = Streams {
        count: 1,
        limit: Some("4G"),
    };
    let (client, server) = (&side.client, &side.server);
    let (bulk, small) = thread::scope(|scope| {
        let bulk = scope.spawn(|| programs::iperf3(client, server, seconds + 1, streams));
        // Its connection for data, beside the one by which it is controlled.
        let small = eventually(|| {
            ensure!(
                bulk.is_finished() || server.netns.established(IPERF_PORT)? > 1,
                "the stream does not begin"
            );
            Ok(())
        })
        .and_then(|()| programs::wrk(client, server, seconds, 4, true));
        let bulk = bulk.join().unwrap_or_else(|_| Err(anyhow!("a panic")));
        (bulk, small)
    });
    let (bulk, small) = (bulk?, small?);
    Ok(vec![
        Figure::less("beside a stream: requests, p50", "µs", small.latency.p50),
        Figure::less("beside a stream: requests, p99", "µs", small.latency.p99),
        Figure::more("  the stream, 4 Gb/s at most", "Gb/s", bulk),
    ])
}

/// How many connections idle: enough to drown what else happens, and few enough for the
/// descriptors of a process.
const IDLE: u32 = 2000;
/// For how long a proxy has given nothing back when its memory is looked at: what it needed for what
/// came before is gone by then. It looks every few seconds whether it rests.
const REST: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_secs(2);

/// What the proxies of this side hold when they rest.
fn at_rest(side: &Side<'_>) -> Result<Option<Usage>> {
    let (mut least, mut since) = (f64::INFINITY, Instant::now());
    loop {
        let Some(usage) = side.usage()? else {
            return Ok(None);
        };
        if usage.memory < 0.99 * least {
            (least, since) = (usage.memory, Instant::now());
        }
        if since.elapsed() > REST {
            return Ok(Some(usage));
        }
        thread::sleep(LOOK);
    }
}

fn memory(side: &Side<'_>) -> Result<Vec<Figure>> {
    if !side.tunnelled {
        return Ok(Vec::new());
    }
    let address = format!("{}:{ECHO_PORT}", side.server.v4());
    // The first connection makes a tunnel, which is not what is asked for.
    // A process is known to have begun by its log, so that each needs one of its own.
    let name = format!("hold-{}", side.client.namespace());
    let _first = podtool::hold(&side.client, &format!("{name}-first"), &address, 1)?;
    let Some(before) = at_rest(side)? else {
        return Ok(Vec::new());
    };
    let _held = podtool::hold(&side.client, &name, &address, IDLE)?;
    let Some(after) = at_rest(side)? else {
        return Ok(Vec::new());
    };
    // A proxy on each side. How much of its program is in memory is no matter of connections.
    let each = (after - before).written / 2.0 / f64::from(IDLE);
    Ok(vec![
        Figure::less("memory of a proxy", "MB", before.memory / 2.0 / 1e6),
        Figure::less("  of a connection and side", "bytes", each),
    ])
}

/// An address that nobody has (RFC 5737), and that no route leads to.
const NOWHERE: &str = "198.51.100.1";
const KNOCKS: u32 = 50_000;
const REPEATS: u32 = 8;

/// The difference between a connect that passes our programs and one that does not. Where it goes
/// is outside the mesh and out of reach, so that nothing else is in it but the system call.
fn hook(side: &Side<'_>) -> Result<Vec<Figure>> {
    let Some(Bystanders { free, stranger }) = &side.bystanders else {
        return Ok(Vec::new());
    };
    let places: [&Place; 3] = [free, stranger, &side.client];
    for place in places {
        let route = format!("route replace unreachable {NOWHERE}/32\n");
        place.netns.ip_batch(&route)?;
    }
    // Whatever else runs can only make a loop slower: the fastest of each is what it takes.
    let mut fastest = [f64::INFINITY; 3];
    for _ in 0..REPEATS {
        for (place, fastest) in places.into_iter().zip(&mut fastest) {
            let each = podtool::knock(place, &format!("{NOWHERE}:80"), KNOCKS)?;
            *fastest = fastest.min(each);
        }
    }
    let [without, not_enrolled, enrolled] = fastest;
    let (not_enrolled, enrolled) = (not_enrolled - without, enrolled - without);
    Ok(vec![
        Figure::less("connect hook, pod not enrolled", "ns", not_enrolled),
        Figure::less("connect hook, pod enrolled", "ns", enrolled),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_parts_of_their_names() {
        let names = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).map(|all| all.iter().map(|one| one.name).collect::<Vec<_>>())
        };
        let requests = ["requests-16", "requests-256"];
        assert_eq!(names(&["requests"]).unwrap(), requests);
        assert_eq!(names(&["mixed", "latency"]).unwrap(), ["latency", "mixed"]);
        assert_eq!(names(&[]).unwrap().len(), SCENARIOS.len());
        let error = names(&["latency", "warp"]).unwrap_err().to_string();
        assert!(error.contains("warp") && error.contains("throughput-1"));
    }

    #[test]
    fn processor_time_is_told_by_the_work_done() {
        let used = Usage {
            cpu: Duration::from_secs(2),
            ..Usage::default()
        };
        let rate = Figure::more("x", "1/s", 10_000.0);
        let cost = by_name("requests-16").unwrap().cost(&rate, 4, used);
        // 40,000 requests.
        assert_eq!(cost.unwrap().value, 50.0);
        let stream = Figure::more("x", "Gb/s", 8.0);
        let cost = by_name("throughput-1").unwrap().cost(&stream, 3, used);
        // 1 GB/s for four seconds.
        assert_eq!(cost.unwrap().value, 0.5);
    }
}
