//! What connections came to, for those who ask later.

use std::{cell::RefCell, collections::VecDeque, sync::Arc, time::SystemTime};

use sluice_telemetry::trace::Step;
use tokio::sync::mpsc;

use super::Trace;
use crate::worker::report::Ended;

/// How many connections each thread remembers.
const REMEMBERED: usize = 256;

thread_local! {
    /// Each thread's own, so that nothing is locked when a connection ends.
    static PAST: RefCell<VecDeque<Past>> = const { RefCell::new(VecDeque::new()) };
}

/// A connection that has ended.
#[derive(Debug)]
pub(in crate::worker) struct Past {
    /// When.
    pub(in crate::worker) at: SystemTime,
    pub(in crate::worker) connection: u64,
    pub(in crate::worker) ended: Ended,
}

/// A question for what ended since a time.
pub(super) struct Ask {
    since: SystemTime,
    answer: mpsc::UnboundedSender<Vec<Step>>,
}

/// Keeps what a connection came to; the oldest makes way.
pub(in crate::worker) fn keep(past: Past) {
    let oldest = PAST.with_borrow_mut(|all| {
        let oldest = (all.len() >= REMEMBERED).then(|| all.pop_front());
        all.push_back(past);
        oldest
    });
    drop(oldest);
}

/// Answers for the calling thread, for ever.
pub(in crate::worker) fn remember(trace: Arc<Trace>) -> impl Future<Output = ()> {
    let (sender, mut questions) = mpsc::unbounded_channel::<Ask>();
    trace.threads().push(sender);
    async move {
        while let Some(Ask { since, answer }) = questions.recv().await {
            let steps = PAST.with_borrow(|all| {
                let recent = all.iter().filter(|past| past.at >= since);
                recent.map(Past::step).collect()
            });
            let _ = answer.send(steps);
        }
    }
}

impl Past {
    fn step(&self) -> Step {
        Step {
            time: super::stream::nanos(self.at),
            connection: self.connection,
            ..self.ended.step()
        }
    }
}

impl Trace {
    /// What ended since a time, on all threads, in order.
    pub(super) async fn history(&self, since: SystemTime) -> Vec<Step> {
        let (answer, mut answers) = mpsc::unbounded_channel();
        for thread in self.threads().iter() {
            let answer = answer.clone();
            let _ = thread.send(Ask { since, answer });
        }
        drop(answer);
        let mut steps = Vec::new();
        while let Some(some) = answers.recv().await {
            steps.extend(some);
        }
        steps.sort_by_key(|step| step.time);
        steps
    }
}
