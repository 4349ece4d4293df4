//! Connections whose two ends are there: their bytes, and the report at their end.
//!
//! What it took to get there is not kept meanwhile: each is a task of its own, and a small one.

use std::{net::TcpStream as StdStream, rc::Rc};

use sluice_hbone::{CarryError, Meter, Stream};
use tokio::net::TcpStream;

use super::{
    failure::Failure,
    flows::{Cut, Flow},
    report::Report,
};

/// Moves the bytes of a connection through a tunnel.
pub(super) fn through(
    stream: Stream,
    application: StdStream,
    mut flow: Flow,
    report: Box<Report>,
) -> impl Future<Output = ()> {
    // Before the task, which then holds neither twice.
    let carried = stream.carry(application, &report.meter);
    async move {
        let carried = flow.unless_cut(carried).await;
        report.finish(failure(carried));
    }
}

/// Moves the bytes of a connection without a tunnel.
pub(super) async fn join(
    application: StdStream,
    peer: StdStream,
    mut flow: Flow,
    report: Box<Report>,
) {
    let carried = both_ways(application, peer, &report.meter);
    let carried = flow.unless_cut(carried).await;
    report.finish(failure(carried));
}

async fn both_ways(
    application: StdStream,
    peer: StdStream,
    meter: &Rc<Meter>,
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
