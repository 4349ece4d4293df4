//! What the system knows of this process, under the names that all exporters use.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::{
        resource::{Resource, UsageWho, getrlimit, getrusage},
        time::TimeValLike as _,
    },
    unistd::{SysconfVar, sysconf},
};

use super::{Kind, Metrics, Reading};

pub(super) fn register(metrics: &Metrics) {
    let start = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = start.unwrap_or_default().as_secs_f64();
    metrics.register_gauge(
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970",
        move || Some(start),
    );
    metrics.register_readings(
        Kind::Counter,
        "process_cpu_seconds",
        "Processor time that the process has used",
        || cpu_seconds().map(Reading::new).into_iter().collect(),
    );
    type Read = fn() -> Option<f64>;
    let gauges: [(&'static str, &'static str, Read); 4] = [
        ("process_open_fds", "Open file descriptors", open_fds),
        (
            "process_max_fds",
            "How many file descriptors may be open",
            max_fds,
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory of the process",
            || memory_pages(1),
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of the process",
            || memory_pages(0),
        ),
    ];
    for (name, help, read) in gauges {
        metrics.register_gauge(name, help, read);
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Some(micros as f64 / 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn open_fds() -> Option<f64> {
    // The directory's own is among them.
    let all = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(all.saturating_sub(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn max_fds() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(soft as f64)
}

/// A field of `/proc/self/statm`, in bytes.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn memory_pages(field: usize) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = text.split(' ').nth(field)?.trim().parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page as f64)
}
