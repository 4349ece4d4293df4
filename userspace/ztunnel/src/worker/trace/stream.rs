//! Writes steps to one listener, in the order in which they happened.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sluice_telemetry::{
    serve::LineSender,
    trace::{Kind, Step},
};
use tokio::{sync::broadcast::error::RecvError, time::interval};

use super::{Listener, Seen, Trace, join, join::Joiner, since_boot};

/// The kernel's events arrive later than the worker's steps; for so long they are waited for.
const LATE: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(20);
/// Every so many ticks a reader that has gone is noticed, and what the kernel has lost.
const ALIVE: u32 = 50;

/// What a listener asks for.
#[derive(Debug, Default)]
struct Wish {
    since: Option<Duration>,
    follow: bool,
    kernel: bool,
}

impl Wish {
    /// `since=SECONDS&follow=BOOL&kernel=BOOL`
    fn parse(query: &str) -> Self {
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let seconds = value("since").and_then(|seconds| seconds.parse().ok());
        Self {
            since: seconds.map(Duration::from_secs),
            follow: value("follow") != Some("false"),
            kernel: value("kernel") == Some("true"),
        }
    }
}

/// Begins to write what a query asks for.
pub(in crate::worker) fn open(trace: &Arc<Trace>, query: &str, sender: LineSender) {
    let wish = Wish::parse(query);
    // Before the answer begins: whoever has it may rely on what comes then.
    let listener = trace.listen();
    tokio::spawn(write(listener, wish, sender));
}

async fn write(mut listener: Listener, wish: Wish, mut sender: LineSender) {
    let trace = listener.trace.clone();
    if let Some(since) = wish.since {
        let since = SystemTime::now().checked_sub(since);
        for step in trace.history(since.unwrap_or(SystemTime::UNIX_EPOCH)).await {
            if !send(&mut sender, &step).await {
                return;
            }
        }
    }
    if !wish.follow {
        return;
    }
    let mut joiner = Joiner::new(trace.clone());
    // Since boot and since the epoch.
    let epoch = nanos(SystemTime::now()).saturating_sub(since_boot());
    let mut waiting: BTreeMap<(u64, u64), Seen> = BTreeMap::new();
    let (mut number, mut ticks, mut lost) = (0, 0_u32, trace.lost_in_kernel());
    let mut interval = interval(TICK);
    loop {
        tokio::select! {
            seen = listener.steps.recv() => {
                let seen = match seen {
                    Ok(seen) => seen,
                    Err(RecvError::Lagged(missed)) => Seen::Lost(missed),
                    Err(RecvError::Closed) => return,
                };
                let at = match &seen {
                    Seen::Step { at, .. } => *at,
                    Seen::Kernel { event, .. } => event.time,
                    Seen::Log(_) | Seen::Lost(_) => since_boot(),
                };
                number += 1;
                waiting.insert((at, number), seen);
            }
            _ = interval.tick() => {
                ticks += 1;
                if ticks.is_multiple_of(ALIVE) {
                    let now = trace.lost_in_kernel();
                    if now > lost && !send(&mut sender, &lost_step(now - lost)).await {
                        return;
                    }
                    lost = now;
                    if sender.send_data("\n".into()).await.is_err() {
                        return;
                    }
                }
                let ripe = since_boot().saturating_sub(LATE.as_nanos() as u64);
                let rest = waiting.split_off(&(ripe, 0));
                for ((at, _), seen) in std::mem::replace(&mut waiting, rest) {
                    let Some(step) = told(&mut joiner, seen, wish.kernel) else {
                        continue;
                    };
                    let step = Step { time: epoch + at, ..step };
                    if !send(&mut sender, &step).await {
                        return;
                    }
                }
            }
        }
    }
}

/// The step that is told, if it is.
fn told(joiner: &mut Joiner, seen: Seen, kernel: bool) -> Option<Step> {
    match seen {
        Seen::Step {
            connection,
            end,
            step,
            ..
        } if !kernel => Some(Step {
            connection: joiner.step(connection, end, &step),
            ..Arc::unwrap_or_clone(step)
        }),
        Seen::Step { .. } => None,
        Seen::Kernel { event, pod } if kernel => Some(join::raw(&event, pod.as_deref())),
        Seen::Kernel { event, pod } => joiner.event(&event, pod.as_deref()),
        Seen::Log(line) => kernel.then(|| join::logged(&line)),
        Seen::Lost(lost) => Some(lost_step(lost)),
    }
}

fn lost_step(lost: u64) -> Step {
    Step {
        time: nanos(SystemTime::now()),
        step: Kind::Lost,
        lost: Some(lost),
        ..Step::default()
    }
}

/// False when nobody reads any more.
async fn send(sender: &mut LineSender, step: &Step) -> bool {
    let Ok(mut line) = serde_json::to_vec(step) else {
        return true;
    };
    line.push(b'\n');
    sender.send_data(line.into()).await.is_ok()
}

/// Nanoseconds since the epoch.
pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}
