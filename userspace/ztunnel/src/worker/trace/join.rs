//! Which of the kernel's events and of the worker's steps belong to one connection.
//!
//! An application's socket is known to the kernel by its cookie. What the worker accepts is its other
//! end: both know the application's port. What the worker dials in a pod, it names by its own end.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use sluice_abi::event::Kind as Event;
use sluice_kernel::{Reason, ports};
use sluice_telemetry::trace::{Kind, Step};

use super::{End, Trace};
use crate::link::message::KernelEvent;

/// How many ends and numbers are remembered at most, each. Beyond, all are forgotten: steps of
/// connections that are under way then stand alone.
const MOST: usize = 65_536;

pub(super) struct Joiner {
    trace: Arc<Trace>,
    ends: HashMap<End, u64>,
    /// What came for a pod in plaintext, by the client's end.
    arrived: HashMap<SocketAddr, u64>,
    /// The worker's numbers of connections that the kernel has told of before.
    aliases: HashMap<u64, u64>,
}

impl Joiner {
    pub(super) fn new(trace: Arc<Trace>) -> Self {
        Self {
            trace,
            ends: HashMap::new(),
            arrived: HashMap::new(),
            aliases: HashMap::new(),
        }
    }

    /// The number of a step of the worker's.
    pub(super) fn step(&mut self, number: u64, end: Option<End>, step: &Step) -> u64 {
        self.bound();
        if step.step == Kind::Accept
            && step.direction.as_deref() == Some("inbound")
            && let Some(known) = step.client.and_then(|client| self.arrived.remove(&client))
        {
            self.aliases.insert(number, known);
        }
        let known = self.aliases.get(&number).copied();
        if let Some(end) = end {
            match (known, self.ends.get(&end)) {
                (None, Some(&socket)) => {
                    self.aliases.insert(number, socket);
                    return socket;
                }
                _ => _ = self.ends.insert(end, known.unwrap_or(number)),
            }
        }
        if step.step == Kind::End {
            return self.aliases.remove(&number).unwrap_or(number);
        }
        known.unwrap_or(number)
    }

    /// The step that an event of the kernel is, if it is one.
    pub(super) fn event(&mut self, event: &KernelEvent, pod: Option<&str>) -> Option<Step> {
        self.bound();
        let here = End::new(event.netns, event.local);
        let step = Step {
            pod: pod.map(str::to_owned),
            ..Step::default()
        };
        match event.kind()? {
            Event::Connect => {
                let reason = event.reason()?;
                // Of no connection, or of the ztunnel's own.
                if matches!(reason, Reason::Proxy | Reason::NotTcp | Reason::Query) {
                    return None;
                }
                Some(Step {
                    connection: event.socket,
                    step: Kind::Connect,
                    direction: Some("outbound".to_owned()),
                    verdict: Some(reason.name().to_owned()),
                    destination: Some(event.remote),
                    reason: Some(why(reason).to_owned()),
                    ..step
                })
            }
            Event::Lookup => {
                let reason = event.reason()?;
                let refused = matches!(reason, Reason::UnknownAddress | Reason::NoListener);
                if reason != Reason::Steered && !refused {
                    return None;
                }
                let connection = self.trace.number();
                self.arrived.insert(event.remote, connection);
                Some(Step {
                    connection,
                    step: Kind::Arrive,
                    direction: Some("inbound".to_owned()),
                    verdict: Some(reason.name().to_owned()),
                    client: Some(event.remote),
                    destination: Some(event.local),
                    reason: Some(why(reason).to_owned()),
                    ..step
                })
            }
            Event::Active
                if event.remote.ip().is_loopback() && event.remote.port() == ports::OUTBOUND =>
            {
                self.ends.insert(here, event.socket);
                None
            }
            Event::Close => {
                let connection = self.ends.remove(&here)?;
                Some(Step {
                    connection,
                    ..closed(event, step)
                })
            }
            Event::DirectClose | Event::OutsideClose => Some(Step {
                connection: event.socket,
                ..closed(event, step)
            }),
            Event::Active | Event::Passive | Event::DirectOpen | Event::OutsideOpen => None,
        }
    }

    fn bound(&mut self) {
        if self.ends.len() > MOST {
            self.ends.clear();
        }
        if self.arrived.len() > MOST {
            self.arrived.clear();
        }
        if self.aliases.len() > MOST {
            self.aliases.clear();
        }
    }
}

/// What is known of a socket when it is closed.
fn closed(event: &KernelEvent, step: Step) -> Step {
    Step {
        step: Kind::Close,
        client: Some(event.local),
        destination: Some(event.remote),
        rtt_us: Some(event.srtt),
        retransmits: Some(event.retransmits),
        ..step
    }
}

/// An event of the kernel as it is, and not as a step of a connection: of its fields, those that this
/// kind of event has.
pub(super) fn raw(event: &KernelEvent, pod: Option<&str>) -> Step {
    let (client, destination) = match event.kind() {
        // Which port it will have is not known yet.
        Some(Event::Connect) => (None, event.remote),
        Some(Event::Lookup | Event::Passive) => (Some(event.remote), event.local),
        // Which end it is of, a socket that is closed does not say.
        _ => (Some(event.local), event.remote),
    };
    let ended = event.kind().is_some_and(Event::is_end);
    Step {
        connection: event.socket,
        step: Kind::Kernel,
        pod: pod.map(str::to_owned),
        verdict: event.reason().map(|reason| reason.name().to_owned()),
        client,
        destination: Some(destination),
        rtt_us: (event.srtt != 0).then_some(event.srtt),
        retransmits: (event.retransmits != 0).then_some(event.retransmits),
        bytes_acked: ended.then_some(event.bytes_acked),
        bytes_received: ended.then_some(event.bytes_received),
        reason: event
            .kind()
            .map(|kind| format!("{kind:?} (netns {})", event.netns)),
        ..Step::default()
    }
}

/// What a program has logged.
pub(super) fn logged(line: &str) -> Step {
    Step {
        step: Kind::Kernel,
        reason: Some(line.to_owned()),
        ..Step::default()
    }
}

/// A verdict of the kernel in words.
fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Captured => "the ztunnel carries it",
        Reason::Direct => "straight to another pod of this node, as policy allows",
        Reason::Outside => "straight out: the mesh does not know the destination",
        Reason::Local => "not captured: the destination is the pod itself",
        Reason::LinkLocal => "not captured: link-local",
        Reason::NotEnrolled => "not captured: the pod is not in the mesh",
        Reason::NotInRegistry => {
            "refused: REGISTRY_ONLY, and the mesh does not know the destination"
        }
        Reason::NoStorage => "refused: the kernel has no memory to note the destination",
        Reason::Steered => "came without a tunnel: the ztunnel judges it",
        Reason::UnknownAddress => "refused: the address is not enrolled",
        Reason::NoListener => "refused: the ztunnel does not listen for this pod",
        other => other.name(),
    }
}

#[cfg(test)]
mod tests {
    use sluice_abi::event;

    use super::*;

    fn told(kind: Event) -> Step {
        let (local, remote) = ("10.0.0.1:1", "10.0.0.2:2");
        let event = event::Event {
            local: local.parse::<SocketAddr>().unwrap().into(),
            remote: remote.parse::<SocketAddr>().unwrap().into(),
            kind: kind as u32,
            bytes_acked: 1,
            ..event::Event::default()
        };
        raw(&KernelEvent::from(&event), None)
    }

    fn client(kind: Event) -> Option<u16> {
        told(kind).client.map(|client| client.port())
    }

    #[test]
    fn the_ends_of_an_event_are_those_of_its_connection() {
        assert_eq!(client(Event::Connect), None);
        assert_eq!(client(Event::Active), Some(1));
        for kind in [Event::Lookup, Event::Passive] {
            assert_eq!(client(kind), Some(2), "{kind:?}");
            let to = told(kind).destination.unwrap();
            assert_eq!(to.port(), 1, "{kind:?}");
        }
    }

    #[test]
    fn bytes_are_told_when_they_are_counted_and_not_before() {
        for kind in [Event::Close, Event::DirectClose, Event::OutsideClose] {
            let step = told(kind);
            let counted = (step.bytes_acked, step.bytes_received);
            assert_eq!(counted, (Some(1), Some(0)), "{kind:?}");
        }
        for kind in [Event::Active, Event::Passive, Event::OutsideOpen] {
            let step = told(kind);
            assert_eq!((step.bytes_acked, step.bytes_received), (None, None));
        }
    }
}
