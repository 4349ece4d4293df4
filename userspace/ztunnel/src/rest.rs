//! What a process does that has been busy, and is not any more.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// A process that has worked for less than [`AT_REST`] in this time rests.
pub(crate) const REST: Duration = Duration::from_secs(5);
const AT_REST: Duration = Duration::from_millis(10);

/// Gives back what the process needs no more, each time it rests after it was busy.
#[derive(Debug)]
pub(crate) struct Rest {
    looked: Instant,
    /// For how long it had worked by then.
    worked: Duration,
    /// And when it gave something back the last time, if it ever did.
    given: Option<Duration>,
}

impl Rest {
    /// From now on.
    pub(crate) fn begin() -> Self {
        Self {
            looked: Instant::now(),
            worked: worked(),
            given: None,
        }
    }

    /// To be called every [`REST`], or more often: then it waits for that to have passed.
    pub(crate) fn look(&mut self) {
        if self.looked.elapsed() < REST {
            return;
        }
        let now = worked();
        let rests = now.saturating_sub(self.worked) < AT_REST;
        (self.looked, self.worked) = (Instant::now(), now);
        let since = self.given.map(|given| now.saturating_sub(given));
        if rests && since.is_none_or(|since| since > AT_REST) {
            sluice_kernel::heap::give_back();
            sluice_kernel::program::give_back();
            self.given = Some(worked());
        }
    }
}

/// For how long the process has worked.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(Duration::ZERO, Duration::from)
}
