//! `/debug/pprof/profile?seconds=…`: where the worker's processor time goes; `/debug/pprof/heap`: what it
//! has of memory.

use std::time::Duration;

use http::StatusCode;
use pprof::{ProfilerGuardBuilder, protos::Message as _};
use serde_json::json;
use sluice_kernel::heap;
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
    #[error("no profile: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Samples all threads for a while. What nobody asks for costs nothing.
pub(super) async fn cpu(query: String) -> Reply {
    match sample(&query).await {
        Ok(profile) => Reply::ok(PROFILE, profile),
        Err(error) => {
            let status = match error {
                Unprofiled::Seconds(_) => StatusCode::BAD_REQUEST,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            Reply::text(status, format!("{error}\n"))
        }
    }
}

async fn sample(query: &str) -> Result<Vec<u8>, Unprofiled> {
    let span = match parameter(query, "seconds") {
        None => USUAL,
        Some(text) => {
            let seconds = text.parse().ok().map(Duration::from_secs);
            let span = seconds.filter(|span| !span.is_zero() && *span <= LONGEST);
            span.ok_or(Unprofiled::Seconds(text))?
        }
    };
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

/// Totals of the allocator. Who has asked for what is not known: to note that would cost every
/// allocation something.
pub(super) fn heap() -> Reply {
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
