//! What a stream carries is given up from elsewhere: by whoever may cut a connection.

use std::rc::Rc;

use sluice_hbone::{CarryError, TunnelError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
    time::timeout,
};

use super::resets::until_reset;
use crate::fixtures::{Begun, PATIENCE, on_worker};

/// Both ends are reset, and the owner is told once, with what was carried until then. It may open
/// the next stream while it is told.
#[test]
fn both_ends_are_reset_and_the_owner_is_told() {
    on_worker(async {
        let Begun {
            world,
            mut server,
            stream,
            mut app,
            captured,
        } = Begun::new().await;
        let handle = stream.abort_handle();
        let (tell, told) = oneshot::channel();
        let source = Rc::downgrade(&world.source);
        stream.carry_then(captured, move |end, meter| {
            let streams = source.upgrade().map(|source| source.engine.streams());
            let _ = tell.send((end, meter.received.get(), meter.sent.get(), streams));
        });
        let mut server = server.next().await;
        app.write_all(b"to the server").await.unwrap();
        server.read_exact(&mut [0; 13]).await.unwrap();
        server.write_all(b"and back").await.unwrap();
        app.read_exact(&mut [0; 8]).await.unwrap();
        handle.abort();
        let (end, received, sent, streams) = timeout(PATIENCE, told).await.unwrap().unwrap();
        assert!(
            matches!(end, Err(CarryError::Tunnel(TunnelError::GivenUp(_)))),
            "{end:?}"
        );
        assert_eq!((received, sent, streams), (13, 8, Some(0)));
        until_reset(&mut app).await;
        until_reset(&mut server).await;
        // There is nothing left to give up.
        handle.abort();
    });
}
