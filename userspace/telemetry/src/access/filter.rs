//! Which connections have a line in the access log.

use std::time::Duration;

use super::AccessLog;
use crate::share::Share;

/// Which connections there are lines about at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lines {
    #[default]
    All,
    /// Those that failed.
    Errors,
    Off,
}

/// Chooses the connections that have a line; metrics count them all.
#[derive(Debug)]
pub struct Filter {
    lines: Lines,
    /// Of connections that went well.
    sample: Share,
    namespaces: Vec<String>,
    ports: Vec<u16>,
    min_duration: Duration,
}

impl Default for Filter {
    fn default() -> Self {
        Self::new(Lines::All)
    }
}

impl Filter {
    pub fn new(lines: Lines) -> Self {
        Self {
            lines,
            sample: Share::new(1.0),
            namespaces: Vec::new(),
            ports: Vec::new(),
            min_duration: Duration::ZERO,
        }
    }

    /// Only this share, from 0 to 1, of those that went well, evenly spread.
    #[must_use]
    pub fn sampling(mut self, share: f64) -> Self {
        self.sample = Share::new(share);
        self
    }

    /// Only those with an end in one of these namespaces, unless there are none.
    #[must_use]
    pub fn of_namespaces(mut self, namespaces: Vec<String>) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Only those to one of these ports, unless there are none.
    #[must_use]
    pub fn to_ports(mut self, ports: Vec<u16>) -> Self {
        self.ports = ports;
        self
    }

    /// Of those that went well, only those that lasted so long.
    #[must_use]
    pub fn lasting(mut self, min_duration: Duration) -> Self {
        self.min_duration = min_duration;
        self
    }

    /// Whether a connection has a line. Every connection is asked about once.
    pub fn admits(&self, log: &AccessLog<'_>) -> bool {
        let failed = log.error.is_some();
        let wanted = match self.lines {
            Lines::All => true,
            Lines::Errors => failed,
            Lines::Off => false,
        };
        wanted
            && self.is_of_interest(log)
            && (failed || log.duration >= self.min_duration && self.sample.takes())
    }

    fn is_of_interest(&self, log: &AccessLog<'_>) -> bool {
        let in_namespace = |namespace: Option<&str>| {
            namespace.is_some_and(|namespace| self.namespaces.iter().any(|one| one == namespace))
        };
        (self.namespaces.is_empty()
            || in_namespace(log.src.namespace)
            || in_namespace(log.dst.namespace))
            && (self.ports.is_empty() || self.ports.contains(&log.port))
    }
}
