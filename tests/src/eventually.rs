//! Bounded waiting: a test never sleeps for a fixed time, it waits for what it expects.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a thing may take that should take milliseconds, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until it succeeds, or gives up after [`PATIENCE`] with the last error.
pub fn eventually<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_within(PATIENCE, attempt)
}

/// Tries until it succeeds, or gives up after `patience` with the last error.
pub fn eventually_within<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() >= patience => {
                return Err(error).with_context(|| format!("not within {patience:?}"));
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
