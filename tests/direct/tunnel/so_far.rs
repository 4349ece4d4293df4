//! Who owns a connection in a tunnel can know how far it has come.

use std::{cell::RefCell, rc::Rc};

use sluice_hbone::{Carried, CarryError, Meter};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
    time::timeout,
};

use crate::fixtures::{Begun, PATIENCE, on_worker};

type Bytes = (u64, u64);

struct Owner {
    told: Rc<RefCell<Vec<Bytes>>>,
    ended: oneshot::Sender<Bytes>,
}

fn both(meter: &Meter) -> Bytes {
    (meter.received.get(), meter.sent.get())
}

impl Carried for Owner {
    fn so_far(&mut self, meter: &Meter) {
        self.told.borrow_mut().push(both(meter));
    }

    fn ended(self: Box<Self>, end: Result<(), CarryError>, meter: Meter) {
        end.expect("an orderly end");
        let _ = self.ended.send(both(&meter));
    }
}

#[test]
fn an_owner_is_told_how_far_it_has_come_whenever_somebody_wants_to_know() {
    on_worker(async {
        let Begun {
            world,
            mut server,
            stream,
            mut app,
            captured,
        } = Begun::new().await;
        let handle = stream.abort_handle();
        let (ended, end) = oneshot::channel();
        let told = Rc::default();
        let owner = Owner {
            told: Rc::clone(&told),
            ended,
        };
        stream.carry_for(captured, owner);
        let mut server = server.next().await;
        app.write_all(b"to the server").await.unwrap();
        server.read_exact(&mut [0; 13]).await.unwrap();
        world.source.engine.tell_so_far().await;
        assert_eq!(*told.borrow(), [(13, 0)]);

        server.write_all(b"and back").await.unwrap();
        app.read_exact(&mut [0; 8]).await.unwrap();
        world.source.engine.tell_so_far().await;
        assert_eq!(*told.borrow(), [(13, 0), (13, 8)]);
        assert_eq!(handle.so_far().as_ref().map(both), Some((13, 8)));

        // The end has all of it, not the rest.
        app.write_all(b", bye").await.unwrap();
        drop(app);
        server.read_to_end(&mut Vec::new()).await.unwrap();
        drop(server);
        assert_eq!(timeout(PATIENCE, end).await.unwrap().unwrap(), (18, 8));
        world.source.engine.tell_so_far().await;
        assert_eq!(told.borrow().len(), 2);
        assert!(handle.so_far().is_none());
    });
}
