//! Who watches a stream: a task for the answer to its request, and an owner for the end of what it
//! carries. A task for each connection would take more memory than all else of one that idles.

use std::{
    fmt,
    rc::{Rc, Weak},
    task::Waker,
};

use tokio::task::yield_now;

use super::{Core, Engine, Handle, Rest, Shared, StreamId, stream::Stream};
use crate::{Carried, CarryError, ErrorCode, Meter, TunnelError};

/// How many owners are told of an end in a row, before others have their turn.
const TOLD: usize = 64;
/// How many are told how far they have come: that takes less.
const TOLD_SO_FAR: usize = 1024;

/// Who watches a stream.
#[derive(Debug, Default)]
pub(super) enum Watcher {
    #[default]
    Nobody,
    Task(Waker),
    Owner(Owner),
}

impl Watcher {
    /// Has a task look again.
    pub(super) fn wake(&mut self) {
        match std::mem::take(self) {
            Self::Nobody => {}
            Self::Task(waker) => waker.wake(),
            owner @ Self::Owner(_) => *self = owner,
        }
    }
}

/// Is told once how the carrying ended, and what was carried; outside of the engine, so that it may
/// use it.
pub(super) struct Owner(Box<dyn Carried>);

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}

/// Gives up from elsewhere what a stream carries. It keeps nothing alive.
#[derive(Clone, Debug)]
pub struct AbortHandle {
    engine: Weak<Handle>,
    id: StreamId,
}

impl AbortHandle {
    /// Resets both ends, unless they have ended. Whoever waits for the end is told so, and not before
    /// this has returned.
    pub fn abort(&self) {
        if let Some(engine) = self.engine.upgrade() {
            Engine(engine).with(|core| core.give_up(self.id));
        }
    }

    /// What the stream has carried until now, unless it is gone.
    pub fn so_far(&self) -> Option<Meter> {
        let meter = |core: &mut Core| Some(core.rest.streams.get(self.id)?.meter.clone());
        Engine(self.engine.upgrade()?).look(meter)
    }
}

impl Engine {
    pub(crate) fn abort_handle(&self, id: StreamId) -> AbortHandle {
        AbortHandle {
            engine: Rc::downgrade(&self.0),
            id,
        }
    }

    /// Carries an application's connection through a stream that somebody holds. From now on it is
    /// this owner's, and forgotten when that was told the end.
    pub(crate) fn carry(
        &self,
        id: StreamId,
        tcp: std::net::TcpStream,
        owner: impl Carried + 'static,
    ) {
        let owner = Owner(Box::new(owner));
        self.with(|core| core.attach(id, tcp, owner));
    }

    /// Tells each owner how far its connection has come: [`Carried::so_far`]. What a connection says
    /// costs nothing for it; others have their turn in between.
    pub async fn tell_so_far(&self) {
        let ids: Vec<StreamId> = self.look(|core| core.rest.streams.keys().collect());
        for ids in ids.chunks(TOLD_SO_FAR) {
            self.look(|core| ids.iter().for_each(|id| core.tell_so_far(*id)));
            yield_now().await;
        }
    }

    /// Forgets a stream, and resets it unless it has ended. One that has an owner is left to it.
    pub(crate) fn forget(&self, id: StreamId) {
        self.with(|core| {
            let stream = core.rest.streams.get(id);
            if stream.is_some_and(|stream| !matches!(stream.watcher, Watcher::Owner(_))) {
                core.give_up(id);
                core.remove(id);
            }
        });
    }
}

impl Core {
    /// Resets a stream, and its application's connection, unless it has ended.
    fn give_up(&mut self, id: StreamId) {
        let Some(stream) = self.rest.streams.get(id) else {
            return;
        };
        if stream.end.is_some() {
            return;
        }
        match self.tunnels.get_mut(stream.tunnel) {
            Some(tunnel) => tunnel.give_up(id, ErrorCode::CANCEL, &mut self.rest),
            None => self
                .rest
                .finish(id, Err(CarryError::Tunnel(TunnelError::Ended))),
        }
    }

    fn tell_so_far(&mut self, id: StreamId) {
        if let Some(stream) = self.rest.streams.get_mut(id)
            && let Watcher::Owner(Owner(owner)) = &mut stream.watcher
        {
            owner.so_far(&stream.meter);
        }
    }

    fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.rest.streams.remove(id)?;
        if stream.orphan
            && let Some(tunnel) = self.tunnels.get_mut(stream.tunnel)
        {
            tunnel.orphans -= 1;
        }
        Some(stream)
    }

    /// Forgets a stream that has ended, and says what tells its owner.
    fn next_ended(&mut self) -> Option<impl FnOnce() + use<>> {
        while let Some(id) = self.rest.ended.pop_front() {
            let Some(stream) = self.remove(id) else {
                continue;
            };
            if let (Watcher::Owner(Owner(owner)), Some(end)) = (stream.watcher, stream.end) {
                return Some(move || owner.ended(end, stream.meter));
            }
        }
        None
    }
}

impl Rest {
    /// Ends what a stream carries: the application's connection is closed in order, or else reset.
    pub(super) fn finish(&mut self, id: StreamId, end: Result<(), CarryError>) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.finish(end) {
            match stream.watcher {
                Watcher::Owner(_) => self.ended.push_back(id),
                Watcher::Task(_) | Watcher::Nobody => stream.watcher.wake(),
            }
        }
    }

    /// Ends it because of its tunnel. What has arrived before is delivered first, if it can be.
    pub(super) fn cut(&mut self, id: StreamId, error: TunnelError) {
        if let Some(stream) = self.streams.get_mut(id) {
            // Its application may be gone as well, and then needs nothing.
            let _ = stream.drain();
        }
        self.finish(id, Err(CarryError::Tunnel(error)));
    }
}

/// Tells the owners of streams that have ended; says whether there are more of them.
pub(super) fn tell_owners(shared: &Shared) -> bool {
    for _ in 0..TOLD {
        let ended = shared.core.borrow_mut().next_ended();
        match ended {
            Some(tell) => tell(),
            None => return false,
        }
    }
    !shared.core.borrow().rest.ended.is_empty()
}
