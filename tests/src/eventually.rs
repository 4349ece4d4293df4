//! Bounded waiting: a test never sleeps for a fixed time, it waits for what it expects.

use std::error::Error;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a thing may take that should take milliseconds, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why no other attempt can succeed: nobody waits any longer.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Hopeless {}

/// Tries until it succeeds, or gives up after [`PATIENCE`] with the last error; at once with one that is
/// [`Hopeless`].
pub fn eventually<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_within(PATIENCE, attempt)
}

/// Tries until it succeeds, or gives up after `patience` with the last error; at once with one that is
/// [`Hopeless`].
pub fn eventually_within<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if error.downcast_ref::<Hopeless>().is_some() => return Err(error),
            Err(error) if begin.elapsed() >= patience => {
                return Err(error).with_context(|| format!("not within {patience:?}"));
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn what_cannot_succeed_any_more_is_not_waited_for() {
        let mut attempts = 0;
        let result: Result<()> = eventually(|| {
            attempts += 1;
            if attempts < 3 {
                bail!("not yet");
            }
            Err(Hopeless("it has ended".to_owned())).context("in vain")
        });
        let error = format!("{:#}", result.expect_err("it never succeeds"));
        assert_eq!((attempts, &*error), (3, "in vain: it has ended"));
    }
}
