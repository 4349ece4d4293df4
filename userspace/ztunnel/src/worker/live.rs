//! A connection without a tunnel while it is under way, as others than the task that carries it see it.

use std::cell::RefCell;

use sluice_hbone::Meter;

use super::{failure::Failure, report::Report};

/// A connection between two sockets.
#[derive(Debug)]
pub(super) struct Live {
    meter: Meter,
    /// Until the end.
    report: RefCell<Option<Box<Report>>>,
}

impl Live {
    pub(super) fn new(report: Box<Report>) -> Self {
        Self {
            meter: Meter::default(),
            report: RefCell::new(Some(report)),
        }
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Counts what it has carried until now.
    pub(super) fn count(&self) {
        if let Some(report) = &mut *self.report.borrow_mut() {
            report.metered(&self.meter);
        }
    }

    /// It has ended.
    pub(super) fn finish(&self, failure: Option<Failure>) {
        self.count();
        let report = self.report.take();
        if let Some(report) = report {
            report.finish(failure);
        }
    }
}
