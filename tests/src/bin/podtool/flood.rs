//! Many short connections, and what became of each.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::events::{reason, tell};

struct Plan {
    address: SocketAddr,
    count: u64,
    until: Option<Duration>,
    interval: Option<Duration>,
    timeout: Duration,
}

/// How many connections ended in which way. A connection is `ok` when it was made and one line
/// came back; otherwise the name says whether making it or using it failed.
#[derive(Default)]
struct Outcomes {
    attempted: u64,
    ok: u64,
    failures: BTreeMap<String, u64>,
    /// Microseconds until connected, of the connections that were.
    connect_times: Vec<u64>,
}

pub(crate) fn flood(arguments: &Arguments) -> io::Result<()> {
    let seconds: Option<f64> = arguments.option("seconds")?;
    let count = arguments.option("count")?;
    let rate: Option<f64> = arguments.option("rate")?;
    let plan = Plan {
        address: arguments.address,
        count: count.unwrap_or(if seconds.is_some() { u64::MAX } else { 100 }),
        until: seconds.map(Duration::from_secs_f64),
        interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
        timeout: Duration::from_millis(arguments.option("timeout-ms")?.unwrap_or(10_000)),
    };
    let concurrency = arguments.option("concurrency")?.unwrap_or(1_usize);
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Outcomes::default());
    let begin = Instant::now();
    tell("begin");
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                let own = one_by_one(&plan, &next, begin);
                outcomes
                    .lock()
                    .expect("no thread panics while merging")
                    .merge(own);
            });
        }
    });
    let outcomes = outcomes
        .into_inner()
        .expect("no thread panics while merging");
    tell(&outcomes.into_json(begin.elapsed()));
    Ok(())
}

/// Makes connections that work, and keeps them.
pub(crate) fn hold(arguments: &Arguments) -> io::Result<()> {
    let count = arguments.option("count")?.unwrap_or(100);
    let timeout = Duration::from_secs(10);
    let mut held = Vec::new();
    for number in 0..count {
        let stream = TcpStream::connect_timeout(&arguments.address, timeout)?;
        exchange(&stream, number, timeout).map_err(io::Error::other)?;
        held.push(stream);
    }
    tell("holding");
    loop {
        thread::park();
    }
}

/// Takes the next connection's number until all are done. With a rate, number n begins at
/// n × interval, so that a slow one does not slow the others down, given threads enough.
fn one_by_one(plan: &Plan, next: &AtomicU64, begin: Instant) -> Outcomes {
    let mut outcomes = Outcomes::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.count {
            return outcomes;
        }
        if let Some(interval) = plan.interval {
            let due = interval.mul_f64(number as f64);
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        if plan.until.is_some_and(|until| begin.elapsed() >= until) {
            return outcomes;
        }
        outcomes.attempted += 1;
        match one(plan, number, &mut outcomes.connect_times) {
            Ok(()) => outcomes.ok += 1,
            Err(failure) => *outcomes.failures.entry(failure).or_default() += 1,
        }
    }
}

fn one(plan: &Plan, number: u64, connect_times: &mut Vec<u64>) -> Result<(), String> {
    let begin = Instant::now();
    let stream = TcpStream::connect_timeout(&plan.address, plan.timeout)
        .map_err(|error| format!("connect_{}", reason(&error)))?;
    connect_times.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
    exchange(&stream, number, plan.timeout)
}

/// Says a line, and wants it back.
fn exchange(stream: &TcpStream, number: u64, timeout: Duration) -> Result<(), String> {
    let question = format!("number {number}\n");
    let talk = || -> io::Result<String> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut writer = stream;
        writer.write_all(question.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer.is_empty() {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(answer)
        }
    };
    match talk() {
        Ok(answer) if answer == question => Ok(()),
        Ok(_) => Err("exchange_wrong".into()),
        Err(error) => Err(format!("exchange_{}", reason(&error))),
    }
}

impl Outcomes {
    fn merge(&mut self, other: Self) {
        self.attempted += other.attempted;
        self.ok += other.ok;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.connect_times.extend(other.connect_times);
    }

    fn into_json(mut self, elapsed: Duration) -> String {
        self.connect_times.sort_unstable();
        let quantile = |share: f64| {
            let last = self.connect_times.len().saturating_sub(1);
            self.connect_times
                .get((last as f64 * share) as usize)
                .copied()
                .unwrap_or(0)
        };
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|(failure, count)| format!(r#""{failure}":{count}"#))
            .collect();
        format!(
            r#"{{"attempted":{},"connected":{},"ok":{},"failures":{{{}}},"connect_p50_us":{},"connect_p99_us":{},"connect_max_us":{},"elapsed_ms":{}}}"#,
            self.attempted,
            self.connect_times.len(),
            self.ok,
            failures.join(","),
            quantile(0.5),
            quantile(0.99),
            quantile(1.0),
            elapsed.as_millis()
        )
    }
}
