//! What the programs report: logged, and, of connections in which the ztunnel has no part, passed on to
//! the worker, which accounts for them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use sluice_abi::event::{Event, Kind, tcp};
use sluice_kernel::EventReader;

use crate::link::{
    Link, ToWorker,
    message::{Ending, Flow, FlowEnd, KernelEvent, MAX_FLOWS},
};

/// Whom flows are told to: the worker that runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Flows {
    worker: Arc<Mutex<Option<Arc<Link>>>>,
    /// Whether it wants to be told of all events, since somebody traces.
    traced: Arc<AtomicBool>,
}

impl Flows {
    pub(super) fn tell_to(&self, worker: Option<Arc<Link>>) {
        *self.worker() = worker;
    }

    /// Says whether somebody traces.
    pub(super) fn trace(&self, on: bool) {
        self.traced.store(on, Ordering::Relaxed);
    }

    /// Passes events on; returns how many were lost.
    fn tell_events(&self, events: &[KernelEvent], log: &[String], lost: u64) -> u64 {
        let Some(worker) = self.worker().clone() else {
            return 0;
        };
        let events = events.chunks(MAX_FLOWS).map(|some| (some, &[][..]));
        let all = events.chain(log.chunks(MAX_FLOWS).map(|some| (&[][..], some)));
        let mut lost = lost;
        for (events, log) in all {
            let message = ToWorker::KernelEvents {
                events: events.to_vec(),
                log: log.to_vec(),
                lost,
            };
            match worker.send(&message, &[]) {
                Ok(()) => lost = 0,
                Err(_) => lost += (events.len() + log.len()) as u64,
            }
        }
        lost
    }

    fn worker(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, flows: &[Flow]) {
        let worker = self.worker().clone();
        for some in flows.chunks(MAX_FLOWS) {
            let sent = match &worker {
                Some(link) => link.send(&ToWorker::Flows(some.to_vec()), &[]),
                None => return,
            };
            if let Err(error) = sent {
                tracing::warn!(%error, flows = some.len(), "connections are not accounted for");
            }
        }
    }
}

/// Reads what the programs report. The thread ends when the returned end is dropped.
pub(super) fn read(mut reader: EventReader, flows: Flows) -> Result<std::io::PipeWriter> {
    let (stop, keep) = std::io::pipe()?;
    std::thread::Builder::new()
        .name("events".into())
        .spawn(move || {
            let mut lost = 0;
            let mut hear = || {
                let mut news = News::default();
                let (mut traced, mut log_lines) = (Vec::new(), Vec::new());
                // Asked for each: it may begin while nothing is said.
                let is_traced = || flows.traced.load(Ordering::Relaxed);
                let on_line = |line| {
                    if is_traced() {
                        log_lines.push(line);
                    }
                };
                let on_event = |event: &Event| {
                    log(event);
                    if is_traced() {
                        traced.push(KernelEvent::from(event));
                    }
                    if let Some(flow) = flow(event) {
                        news.add(flow);
                    }
                };
                let goes_on = reader
                    .wait(stop.as_fd(), on_event, on_line)
                    .unwrap_or(false);
                flows.tell(&news.flows);
                lost = flows.tell_events(&traced, &log_lines, lost);
                goes_on
            };
            while hear() {}
        })?;
    Ok(keep)
}

/// What has become of connections since the worker was told the last time.
#[derive(Debug, Default)]
struct News {
    flows: Vec<Flow>,
    /// Where those are that were established, by the cookies of their sockets.
    open: HashMap<u64, usize>,
}

impl News {
    /// Adds what became of a connection. The end of one that has just been established takes the place
    /// of its beginning.
    fn add(&mut self, flow: Flow) {
        if flow.end.is_none() {
            self.open.insert(flow.socket, self.flows.len());
            return self.flows.push(flow);
        }
        match self.open.remove(&flow.socket) {
            Some(place) => {
                let since = Some(self.flows[place].time);
                self.flows[place] = Flow { since, ..flow };
            }
            None => self.flows.push(flow),
        }
    }
}

fn log(event: &Event) {
    if !tracing::enabled!(target: "flow", tracing::Level::DEBUG) {
        return;
    }
    let local = SocketAddr::from(event.local);
    let remote = SocketAddr::from(event.remote);
    let verdict = event.verdict().map(sluice_kernel::Reason::name);
    let kind = Kind::from_u32(event.kind);
    tracing::debug!(
        target: "flow",
        ?kind, %local, %remote, verdict,
        netns = event.netns, socket = event.socket,
        acked = event.bytes_acked, received = event.bytes_received,
        srtt_us = event.srtt, retransmits = event.retransmits,
    );
}

/// What an event says of a connection in which the ztunnel has no part.
fn flow(event: &Event) -> Option<Flow> {
    let kind = Kind::from_u32(event.kind)?;
    let end = match kind {
        Kind::DirectOpen | Kind::OutsideOpen => None,
        Kind::DirectClose | Kind::OutsideClose => Some(FlowEnd {
            sent: sent(event),
            received: received(event),
            how: ending(event.state),
        }),
        _ => return None,
    };
    Some(Flow {
        socket: event.socket,
        netns: event.netns,
        client: event.local.into(),
        server: event.remote.into(),
        dialled: event.dialled.into(),
        outside: matches!(kind, Kind::OutsideOpen | Kind::OutsideClose),
        time: event.time,
        since: None,
        end,
    })
}

/// What the peer acknowledged of the application's bytes: SYN and FIN take a number each.
fn sent(event: &Event) -> u64 {
    let fin = matches!(event.state, tcp::FIN_WAIT2 | tcp::LAST_ACK);
    event.bytes_acked.saturating_sub(1 + u64::from(fin))
}

/// What came for the application. In `FIN_WAIT2` nothing tells whether the peer's FIN is counted.
fn received(event: &Event) -> u64 {
    let fin = matches!(event.state, tcp::CLOSE_WAIT | tcp::LAST_ACK);
    event.bytes_received.saturating_sub(u64::from(fin))
}

fn ending(state: u32) -> Ending {
    match state {
        tcp::SYN_SENT => Ending::NotConnected,
        tcp::ESTABLISHED | tcp::CLOSE_WAIT => Ending::Reset,
        _ => Ending::Orderly,
    }
}
