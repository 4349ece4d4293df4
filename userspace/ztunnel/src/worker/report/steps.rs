//! The steps of a connection's way, as they are told to whoever traces.

use std::{net::TcpStream, time::Duration};

use sluice_hbone::{Negotiated, Opened};
use sluice_model::{
    Name,
    authz::{Decision, RuleId},
};
use sluice_telemetry::{
    access::Direction,
    trace::{Kind, Step},
};

use super::{End, Report};
use crate::worker::{address::Authority, pods::Pod, trace};

impl Report {
    /// Of a captured connection, the application's end as the worker sees it.
    pub(in crate::worker) fn accepted(&self, end: trace::End) {
        self.tell(Some(end), || Step {
            step: Kind::Accept,
            ..Step::default()
        });
    }

    /// An inbound connection has come to a pod.
    pub(super) fn came(&self, pod: &Pod, tunnel: Option<&Negotiated>) {
        self.tell(None, || {
            let how = match tunnel {
                Some(_) => "in a tunnel",
                None => "without a tunnel",
            };
            let step = Step {
                step: Kind::Accept,
                pod: Some(format!("{}/{}", pod.info.namespace, pod.info.name)),
                reason: Some(how.to_owned()),
                ..Step::default()
            };
            match tunnel {
                Some(negotiated) => sealed(negotiated, step),
                None => step,
            }
        });
    }

    /// It was chosen where it goes.
    pub(super) fn leaves(&self, how: &str) {
        self.tell(None, || Step {
            step: Kind::Destination,
            reason: Some(how.to_owned()),
            ..Step::default()
        });
    }

    /// Policies have decided.
    pub(super) fn decided(&self, decision: &Decision) {
        self.tell(None, || Step {
            step: Kind::Policy,
            verdict: Some(
                if decision.is_allowed() {
                    "allowed"
                } else {
                    "denied"
                }
                .to_owned(),
            ),
            policy: decision.rule().map(|rule| rule.policy.to_string()),
            rule: decision.rule().map(|rule| rule.rule as usize),
            reason: Some(decision.to_string()),
            ..Step::default()
        });
    }

    /// The application of a pod was reached by this socket.
    pub(in crate::worker) fn dialled(&self, pod: &Pod, socket: &TcpStream) {
        if self.shared.trace.is_heard()
            && let (Ok(local), Ok(application)) = (socket.local_addr(), socket.peer_addr())
        {
            self.tell(Some(trace::End::new(pod.info.netns, local)), || Step {
                step: Kind::Destination,
                destination: Some(application),
                reason: Some("the application has accepted".to_owned()),
                ..Step::default()
            });
        }
    }

    /// A tunnel carries it.
    pub(in crate::worker) fn tunnel(&self, opened: &Opened) {
        self.tell(None, || {
            let step = Step {
                step: Kind::Tunnel,
                tunnel: Some(if opened.reused { "reused" } else { "new" }.to_owned()),
                ..Step::default()
            };
            sealed(&opened.negotiated, step)
        });
    }

    /// Its steps are those of the socket with this cookie.
    pub(in crate::worker) fn is_socket(&self, cookie: u64) {
        self.number.set(cookie);
    }

    /// Tells a step to whoever traces, with what is known of the connection.
    pub(super) fn tell(&self, end: Option<trace::End>, step: impl FnOnce() -> Step) {
        let trace = &self.shared.trace;
        if !trace.is_heard() {
            return;
        }
        if self.number.get() == 0 {
            self.number.set(trace.number());
        }
        let step = Step {
            connection: self.number.get(),
            ..step()
        };
        let told = self.described(step);
        trace.tell(self.number.get(), end, told);
    }

    fn described(&self, step: Step) -> Step {
        let ends = Ends {
            direction: self.direction,
            source: &self.source,
            destination: &self.destination,
            hbone: self.hbone.as_ref(),
            service: &self.service.hostname(),
        };
        ends.describe(step)
    }
}

/// A step, with how its tunnel is sealed.
fn sealed(negotiated: &Negotiated, step: Step) -> Step {
    let Negotiated {
        version,
        cipher,
        group,
    } = negotiated;
    Step {
        tls: version.map(|version| format!("{version:?}")),
        cipher: cipher.map(|cipher| format!("{cipher:?}")),
        group: group.map(|group| format!("{group:?}")),
        ..step
    }
}

/// What a connection came to.
#[derive(Debug)]
pub(in crate::worker) struct Ended {
    pub(super) direction: Direction,
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) hbone: Option<Authority>,
    pub(super) service: Name,
    pub(super) path: Option<&'static str>,
    pub(super) rule: Option<Box<RuleId>>,
    /// From the client to the server.
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) duration: Duration,
    pub(super) denied: bool,
    pub(super) error: Option<String>,
}

impl Ended {
    /// As it is told to whoever traces.
    pub(in crate::worker) fn step(&self) -> Step {
        let verdict = match (&self.error, self.denied) {
            (None, _) => "ok",
            (Some(_), true) => "denied",
            (Some(_), false) => "failed",
        };
        let straight = || self.path.map(|path| format!("path {path}"));
        let step = Step {
            step: Kind::End,
            verdict: Some(verdict.to_owned()),
            policy: self.rule.as_ref().map(|rule| rule.policy.to_string()),
            rule: self.rule.as_ref().map(|rule| rule.rule as usize),
            bytes_sent: Some(self.sent),
            bytes_received: Some(self.received),
            duration_us: Some(self.duration.as_micros() as u64),
            reason: self.error.clone().or_else(straight),
            ..Step::default()
        };
        let ends = Ends {
            direction: self.direction,
            source: &self.source,
            destination: &self.destination,
            hbone: self.hbone.as_ref(),
            service: &self.service,
        };
        ends.describe(step)
    }
}

/// What is known of a connection's ends.
struct Ends<'a> {
    direction: Direction,
    source: &'a End,
    destination: &'a End,
    hbone: Option<&'a Authority>,
    service: &'a str,
}

impl Ends<'_> {
    fn describe(&self, step: Step) -> Step {
        let (direction, own, other) = match self.direction {
            Direction::Outbound => ("outbound", self.source, self.destination),
            Direction::Inbound => ("inbound", self.destination, self.source),
        };
        let identity = |end: &End| end.principal.as_ref().map(ToString::to_string);
        Step {
            pod: step.pod.or_else(|| own.full_name()),
            direction: Some(direction.to_owned()),
            client: Some(self.source.addr.into()),
            destination: step.destination.or(Some(self.destination.addr.into())),
            service: (!self.service.is_empty()).then(|| self.service.to_owned()),
            peer: other.full_name(),
            authority: self.hbone.map(ToString::to_string),
            source_identity: identity(self.source),
            destination_identity: identity(self.destination),
            ..step
        }
    }
}
