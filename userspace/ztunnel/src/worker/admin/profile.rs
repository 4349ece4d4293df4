//! `/debug/pprof/profile?seconds=…`: where the worker's processor time goes; `/debug/pprof/heap`: what it
//! has of memory, and with `?seconds=…` who asked for it.

use std::{collections::HashMap, time::Duration};

use http::StatusCode;
use pprof::{
    ProfilerGuardBuilder,
    protos::{Function, Line, Location, Message as _, Profile, Sample, ValueType},
};
use serde_json::json;
use sluice_kernel::heap::{self, Held, Noting};
use sluice_telemetry::serve::{JSON, Reply, parameter};

/// Samples in a second of processor time; a prime, so as not to keep step with timers.
const FREQUENCY: i32 = 97;
/// How long samples are taken where nobody says.
const USUAL: Duration = Duration::from_secs(10);
/// The longest that they are.
const LONGEST: Duration = Duration::from_secs(300);

/// A profile in the format of pprof, not compressed.
const PROFILE: &str = "application/octet-stream";

/// Whose functions cannot be interrupted to look at the stack: they may hold what that needs.
const UNINTERRUPTIBLE: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
enum Unprofiled {
    #[error("{0:?} is no number of seconds from 1 to {max}", max = LONGEST.as_secs())]
    Seconds(String),
    #[error("no profile: {0}; only one is taken at a time")]
    Profiler(#[from] pprof::Error),
    #[error("no profile: memory is being looked at already")]
    Noting,
    #[error("no profile: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Samples all threads for a while. What nobody asks for costs nothing.
pub(super) async fn cpu(query: String) -> Reply {
    match sample(&query).await {
        Ok(profile) => Reply::ok(PROFILE, profile),
        Err(error) => error.reply(),
    }
}

impl Unprofiled {
    fn reply(&self) -> Reply {
        let status = match self {
            Self::Seconds(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Reply::text(status, format!("{self}\n"))
    }
}

/// How long is asked for.
fn span(query: &str) -> Result<Duration, Unprofiled> {
    let Some(text) = parameter(query, "seconds") else {
        return Ok(USUAL);
    };
    let seconds = text.parse().ok().map(Duration::from_secs);
    let span = seconds.filter(|span| !span.is_zero() && *span <= LONGEST);
    span.ok_or(Unprofiled::Seconds(text))
}

async fn sample(query: &str) -> Result<Vec<u8>, Unprofiled> {
    let span = span(query)?;
    let profiler = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&UNINTERRUPTIBLE)
        .build()?;
    tokio::time::sleep(span).await;
    // To find the names of functions takes longer than others should wait.
    let named = tokio::task::spawn_blocking(move || {
        let report = profiler.report().build()?;
        Ok::<_, Unprofiled>(report.pprof()?.encode_to_vec())
    });
    named.await?
}

/// Without `seconds`, totals of the allocator. With it, a profile in the format of pprof of what is asked for
/// in this time, and still held at its end.
pub(super) async fn heap(query: String) -> Reply {
    if parameter(&query, "seconds").is_none() {
        return totals();
    }
    match held(&query).await {
        Ok(profile) => Reply::ok(PROFILE, profile),
        Err(error) => error.reply(),
    }
}

fn totals() -> Reply {
    let Some(totals) = heap::totals() else {
        let text = "the allocator of this build does not say\n";
        return Reply::text(StatusCode::NOT_IMPLEMENTED, text);
    };
    let said = json!({
        "inUseBytes": totals.in_use,
        "freeBytes": totals.free,
        "mappedBytes": totals.mapped,
    });
    Reply::ok(JSON, format!("{said:#}\n"))
}

async fn held(query: &str) -> Result<Vec<u8>, Unprofiled> {
    let span = span(query)?;
    let noting = Noting::begin().ok_or(Unprofiled::Noting)?;
    tokio::time::sleep(span).await;
    let named = tokio::task::spawn_blocking(move || {
        let held = noting.held();
        drop(noting);
        in_use(&held).encode_to_vec()
    });
    Ok(named.await?)
}

/// The strings of a profile, each once.
struct Strings(Vec<String>, HashMap<String, i64>);

impl Strings {
    fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.1.get(text) {
            return *place;
        }
        let place = self.0.len() as i64;
        self.0.push(text.to_owned());
        self.1.insert(text.to_owned(), place);
        place
    }
}

fn in_use(held: &[Held]) -> Profile {
    // The first is empty, as the format demands.
    let mut strings = Strings(vec![String::new()], HashMap::new());
    let mut value = |name, unit| ValueType {
        ty: strings.place(name),
        unit: strings.place(unit),
    };
    let sample_type = vec![
        value("inuse_objects", "count"),
        value("inuse_space", "bytes"),
    ];
    let (mut location, mut function) = (Vec::new(), Vec::new());
    // The functions at each address: several where some are inlined.
    let mut known: HashMap<usize, u64> = HashMap::new();
    let mut sample = Vec::new();
    for one in held {
        let mut stack = Vec::new();
        for address in &one.stack {
            let id = *known.entry(*address).or_insert_with(|| {
                let mut line = Vec::new();
                backtrace::resolve(*address as *mut _, |symbol| {
                    let id = function.len() as u64 + 1;
                    let name = symbol
                        .name()
                        .map_or("unknown".to_owned(), |name| format!("{name:#}"));
                    let file = symbol.filename().map(|file| file.display().to_string());
                    function.push(Function {
                        id,
                        name: strings.place(&name),
                        filename: strings.place(file.as_deref().unwrap_or_default()),
                        ..Function::default()
                    });
                    line.push(Line {
                        function_id: id,
                        line: symbol.lineno().unwrap_or_default().into(),
                    });
                });
                let id = location.len() as u64 + 1;
                location.push(Location {
                    id,
                    address: *address as u64,
                    line,
                    ..Location::default()
                });
                id
            });
            stack.push(id);
        }
        sample.push(Sample {
            location_id: stack,
            value: vec![one.count as i64, one.bytes as i64],
            ..Sample::default()
        });
    }
    Profile {
        sample_type,
        sample,
        location,
        function,
        string_table: strings.0,
        ..Profile::default()
    }
}
