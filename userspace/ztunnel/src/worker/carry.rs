//! Connections whose two ends are there: their bytes, and the report at their end.
//!
//! What it took to get there is not kept meanwhile. What a tunnel carries is not even a task: most
//! connections idle, and there are many of them.

use std::{net::TcpStream as StdStream, pin::pin, rc::Rc};

use sluice_hbone::{Carried, CarryError, Meter, Stream};
use tokio::net::TcpStream;

use super::{
    failure::Failure,
    flows::{Cut, Flow},
    live::Live,
    report::Report,
};

/// Moves the bytes of a connection through a tunnel, from now on.
pub(super) fn through(stream: Stream, application: StdStream, flow: Flow, report: Box<Report>) {
    flow.carried(stream.abort_handle());
    let report = *report;
    stream.carry_for(application, Through { report, flow });
}

/// What is kept of a connection in a tunnel until its end, in one piece.
struct Through {
    report: Report,
    flow: Flow,
}

impl Carried for Through {
    fn so_far(&mut self, meter: &Meter) {
        self.report.metered(meter);
    }

    fn ended(self: Box<Self>, end: Result<(), CarryError>, meter: Meter) {
        let Self { mut report, flow } = *self;
        report.metered(&meter);
        // A cut is what is reported, also when its tunnel ends with it.
        let carried = flow.cut().map_or(Ok(end), Err);
        report.finish(failure(carried));
    }
}

/// Moves the bytes of a connection without a tunnel.
pub(super) async fn join(application: StdStream, peer: StdStream, flow: Flow, report: Box<Report>) {
    let live = Rc::new(Live::new(report));
    let flow = flow.joined(live.clone());
    let carried = both_ways(application, peer, live.meter());
    let carried = flow.unless_cut(pin!(carried)).await;
    live.finish(failure(carried));
}

async fn both_ways(
    application: StdStream,
    peer: StdStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    let application = TcpStream::from_std(application).map_err(CarryError::Application)?;
    let peer = TcpStream::from_std(peer).map_err(CarryError::Peer)?;
    sluice_hbone::join(application, peer, meter).await
}

fn failure(carried: Result<Result<(), CarryError>, Box<Cut>>) -> Option<Failure> {
    match carried {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.into()),
        Err(cut) => Some(cut.into()),
    }
}
