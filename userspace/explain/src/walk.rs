//! The way of a connection, from `connect` to the door of whom it is for: a file for each part of it.

mod arrival;
mod capture;
mod dial;
mod source;

use std::net::{IpAddr, SocketAddr};

use crate::{Destination, End, Explanation, Kind, Outcome, Source, Step, World, door::Said};
use source::From;

pub(crate) fn explain(world: World<'_>, source: &Source, destination: &Destination) -> Explanation {
    let mut walk = Walk {
        world,
        steps: Vec::new(),
        ends: Vec::new(),
    };
    let Stop { outcome, reason } = match walk.go(source, destination) {
        Ok(()) => sum(&walk.ends),
        Err(stop) => stop,
    };
    Explanation {
        source: source.to_string(),
        destination: destination.to_string(),
        outcome,
        reason,
        steps: walk.steps,
        ends: walk.ends,
    }
}

/// A connection on its way, and what has been said of it so far.
struct Walk<'a> {
    world: World<'a>,
    steps: Vec<Step>,
    ends: Vec<End>,
}

/// Why the walk does not go on.
struct Stop {
    outcome: Outcome,
    reason: String,
}

fn unknown(reason: impl Into<String>) -> Stop {
    Stop {
        outcome: Outcome::Unknown,
        reason: reason.into(),
    }
}

impl<'a> Walk<'a> {
    fn go(&mut self, source: &Source, destination: &Destination) -> Result<(), Stop> {
        let from = self.source(source)?;
        let dials = self.dials(&from, destination)?;
        for to in dials {
            self.connect(&from, to)?;
        }
        Ok(())
    }

    fn say(&mut self, kind: Kind, says: impl Into<String>) {
        self.steps.push(step(kind, says));
    }

    fn end(&mut self, workload: String, address: Option<SocketAddr>, steps: Vec<Step>, said: Said) {
        let Said {
            outcome,
            reason,
            mtls,
            policies,
        } = said;
        self.ends.push(End {
            workload,
            address,
            outcome,
            reason,
            steps,
            mtls,
            policies,
        });
    }
}

fn step(step: Kind, says: impl Into<String>) -> Step {
    Step {
        step,
        says: says.into(),
    }
}

/// The first address of the family, or else of the other one.
fn of_family(ips: &[IpAddr], v4: bool) -> Option<IpAddr> {
    let same = ips.iter().find(|ip| ip.is_ipv4() == v4);
    same.or_else(|| ips.first()).copied()
}

/// What the ends say together: a connection may meet any of them.
fn sum(ends: &[End]) -> Stop {
    let with = |outcome| ends.iter().filter(move |end| end.outcome == outcome);
    let worst = [Outcome::Denied, Outcome::Unknown, Outcome::Allowed]
        .into_iter()
        .find_map(|outcome| with(outcome).next());
    let Some(worst) = worst else {
        return unknown("no endpoint is known");
    };
    let count = with(worst.outcome).count();
    let reason = if ends.len() == 1 {
        worst.reason.clone()
    } else if count == ends.len() && with(worst.outcome).all(|end| end.reason == worst.reason) {
        format!("{}, at each of {count} endpoints", worst.reason)
    } else {
        let total = ends.len();
        let End {
            workload, reason, ..
        } = worst;
        format!("at {count} of {total} endpoints, {workload} among them: {reason}")
    };
    Stop {
        outcome: worst.outcome,
        reason,
    }
}
