//! What drives the tunnels of a thread: one epoll, and passes over all that is ready.
//!
//! A pass reads the tunnels that have something to say, opens their records in place and hands the
//! bytes to the applications; then reads the applications, into records; then seals what has been
//! gathered and writes it, once per tunnel. So the small messages of many streams travel together,
//! and neither a stream nor a byte costs a task, a lock or an allocation. What one stream or tunnel
//! does in a pass is bounded, for the sake of the others.
//!
//! The rest of the thread's work are tasks of its runtime, as is the driver itself, and the two
//! take turns.

mod listener;
mod outbox;
mod status;
mod stream;
mod tunnel;
mod watcher;

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::{Future as _, poll_fn},
    io,
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
};
use slotmap::{Key as _, KeyData, SlotMap, new_key_type};
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::{JoinHandle, spawn_local, yield_now},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    CarryError, TunnelError,
    fields::Answer,
    tls::{Established, MAX_RECORD},
};

pub use listener::Listener;
pub(crate) use status::{Life, Status};
pub(crate) use stream::reset_when_closed;

use listener::Listening;
use outbox::Spare;
use stream::{Piece, Stream};
pub(crate) use tunnel::Side;
use tunnel::Tunnel;
pub use watcher::AbortHandle;
use watcher::{Owner, Watcher};

/// What one read of a tunnel takes at most, in bytes, beside a record that has come in part.
const READ: usize = 256 << 10;
/// How many events one look at the kernel brings at most.
const EVENTS: usize = 256;
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Tell tunnels, streams and listeners apart in what the kernel says of a socket. No index is so
/// large.
const STREAM_BIT: u64 = 1 << 31;
const LISTENER_BIT: u64 = 1 << 30;

new_key_type! {
    pub(crate) struct TunnelId;
    pub(crate) struct StreamId;
    struct ListenerId;
}

/// The engine of a thread. Clones are the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Engine(Rc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Rc<Shared>,
    driver: RefCell<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.get_mut().abort();
    }
}

#[derive(Debug)]
struct Shared {
    core: RefCell<Core>,
    /// Wakes the driver when there is something to say.
    work: Notify,
}

impl Engine {
    /// Starts an engine as a task of the local set that this is called in.
    ///
    /// # Errors
    /// When the kernel has no descriptor left for it.
    pub fn start() -> io::Result<Self> {
        Self::start_at(1)
    }

    /// As [`Self::start`]; its tunnels begin their streams with this number, which is odd.
    pub(crate) fn start_at(first_stream: u32) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "unsound for types that lie about their descriptor, which OwnedFd does not"
        )]
        let events = AsyncFd::new(epoll.try_clone()?)?;
        let shared = Rc::new(Shared {
            core: RefCell::new(Core::new(epoll, first_stream)),
            work: Notify::new(),
        });
        let driver = RefCell::new(spawn_local(drive(shared.clone(), events)));
        Ok(Self(Rc::new(Handle { shared, driver })))
    }

    /// Resolves when the engine has failed, which it has said why: nothing moves any more.
    pub async fn failed(&self) {
        poll_fn(|cx| {
            let mut driver = self.0.driver.borrow_mut();
            Pin::new(&mut *driver).poll(cx).map(|_| ())
        })
        .await;
    }

    /// How many tunnels there are, those included that are about to end.
    pub fn tunnels(&self) -> usize {
        self.look(|core| core.tunnels.len())
    }

    /// How many streams there are, in all tunnels: those included that have ended, and whose end
    /// nobody has taken note of.
    pub fn streams(&self) -> usize {
        self.look(|core| core.rest.streams.len())
    }

    /// Runs something in the engine, after which it has work to do.
    fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let result = act(&mut self.0.shared.core.borrow_mut());
        self.0.shared.work.notify_one();
        result
    }

    /// Looks into the engine, after which it has no more to do than before.
    fn look<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.0.shared.core.borrow_mut())
    }

    /// Takes a socket on which TLS has begun.
    pub(crate) fn tunnel(
        &self,
        side: Side,
        tcp: tokio::net::TcpStream,
        tls: Established,
    ) -> io::Result<(TunnelId, Rc<Status>)> {
        let tcp = tcp.into_std()?;
        self.with(|core| core.add(side, tcp, tls))
    }

    /// Begins a stream with a request, for this application if it has one yet.
    pub(crate) fn open(
        &self,
        tunnel: TunnelId,
        block: &[u8],
        application: Option<&TcpStream>,
    ) -> Result<StreamId, TunnelError> {
        self.with(|core| {
            let tunnel = core.tunnels.get_mut(tunnel).ok_or(TunnelError::Closed)?;
            let id = tunnel.open_stream(block, &mut core.rest)?;
            if let Some(application) = application {
                tunnel.say_early(id, application, &mut core.rest);
            }
            Ok(id)
        })
    }

    /// Whether anything was said in a stream beside its request, which is not answered yet.
    pub(crate) fn has_said(&self, id: StreamId) -> bool {
        self.look(|core| core.rest.streams.get(id).is_some_and(|s| s.early > 0))
    }

    /// Waits for the answer to a request.
    pub(crate) async fn answer(&self, id: StreamId) -> Result<Box<Answer>, TunnelError> {
        let answer = |stream: &mut Stream| {
            if let Some(answer) = stream.answer.take() {
                return Some(Ok(answer));
            }
            match &stream.end {
                Some(Err(CarryError::Tunnel(error))) => Some(Err(error.clone())),
                _ => None,
            }
        };
        let answer = poll_fn(|cx| self.poll_for(id, cx, answer)).await;
        answer.unwrap_or(Err(TunnelError::Ended))
    }

    /// Somebody will answer a request; false when it was taken back.
    pub(crate) fn hold(&self, id: StreamId) -> bool {
        self.look(|core| {
            let stream = core.rest.streams.get_mut(id);
            stream.is_some_and(|stream| !std::mem::replace(&mut stream.held, true))
        })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the stream is gone.
    pub(crate) fn respond(
        &self,
        id: StreamId,
        accept: bool,
        block: &[u8],
    ) -> Result<(), TunnelError> {
        self.with(|core| {
            let stream = core.rest.streams.get(id).ok_or(TunnelError::Ended)?;
            if let Some(Err(CarryError::Tunnel(error))) = &stream.end {
                return Err(error.clone());
            }
            if let Some(tunnel) = core.tunnels.get_mut(stream.tunnel) {
                tunnel.respond(id, accept, block, &mut core.rest);
            }
            Ok(())
        })
    }

    /// Waits until a stream has something; `None` when there is no such stream.
    fn poll_for<T>(
        &self,
        id: StreamId,
        cx: &mut Context<'_>,
        ready: impl FnOnce(&mut Stream) -> Option<T>,
    ) -> Poll<Option<T>> {
        self.look(|core| {
            let Some(stream) = core.rest.streams.get_mut(id) else {
                return Poll::Ready(None);
            };
            if let Some(done) = ready(stream) {
                return Poll::Ready(Some(done));
            }
            stream.watcher = Watcher::Task(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Takes no more streams, and ends with the last one.
    pub(crate) fn drain(&self, tunnel: TunnelId) {
        self.with(|core| {
            if let Some(tunnel) = core.tunnels.get_mut(tunnel) {
                tunnel.drain(&mut core.rest);
            }
        });
    }

    /// Ends a tunnel at once, with all its streams.
    pub(crate) fn end(&self, id: TunnelId) {
        self.with(|core| {
            if let Some(tunnel) = core.tunnels.get_mut(id) {
                tunnel.end();
                core.settle(id);
            }
        });
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("tunnels", &self.tunnels.len())
            .field("streams", &self.rest.streams.len())
            .finish_non_exhaustive()
    }
}

/// What all tunnels of an engine share.
#[derive(Debug)]
struct Rest {
    streams: SlotMap<StreamId, Stream>,
    /// Streams that can go on.
    ready: VecDeque<StreamId>,
    /// Streams that have ended, and whose owners are to be told.
    ended: VecDeque<StreamId>,
    /// Tunnels that have something to say.
    dirty: VecDeque<TunnelId>,
    spare: Spare,
    /// Bytes of the peer that are about to be delivered.
    pieces: Vec<Piece>,
    /// The number of a client's first stream in each tunnel.
    first_stream: u32,
    /// The time, as of this pass.
    now: Instant,
}

impl Rest {
    fn enqueue(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.ready.push_back(id);
        }
    }
}

struct Core {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    tunnels: SlotMap<TunnelId, Tunnel>,
    listeners: SlotMap<ListenerId, Listening>,
    rest: Rest,
    /// Tunnels that have something to be read.
    readable: VecDeque<TunnelId>,
    buffer: Box<[u8]>,
    ticked: Instant,
}

impl Core {
    fn new(epoll: OwnedFd, first_stream: u32) -> Self {
        let now = Instant::now();
        Self {
            epoll,
            events: Vec::with_capacity(EVENTS),
            tunnels: SlotMap::with_key(),
            listeners: SlotMap::with_key(),
            rest: Rest {
                streams: SlotMap::with_key(),
                ready: VecDeque::new(),
                ended: VecDeque::new(),
                dirty: VecDeque::new(),
                spare: Spare::default(),
                pieces: Vec::new(),
                first_stream,
                now,
            },
            readable: VecDeque::new(),
            buffer: vec![0; READ + MAX_RECORD].into_boxed_slice(),
            ticked: now,
        }
    }

    fn add(
        &mut self,
        side: Side,
        tcp: TcpStream,
        tls: Established,
    ) -> io::Result<(TunnelId, Rc<Status>)> {
        self.rest.now = Instant::now();
        let Established {
            sealer,
            opener,
            secrets,
            said,
            records,
            certificates: _,
            negotiated: _,
        } = tls;
        let rest = &mut self.rest;
        let id = self
            .tunnels
            .insert_with_key(|id| Tunnel::new(id, side, tcp, (opener, sealer, secrets), rest));
        let tunnel = &mut self.tunnels[id];
        let status = tunnel.status.clone();
        let watched = watch(&self.epoll, tunnel.socket(), id.data().as_ffi(), SOCKET);
        if let Err(error) = watched {
            self.tunnels.remove(id);
            return Err(error);
        }
        tunnel.hear_early(said, records, rest);
        self.enqueue(id);
        Ok((id, status))
    }

    fn attach(&mut self, id: StreamId, tcp: TcpStream, owner: Owner) {
        let Some(stream) = self.rest.streams.get_mut(id) else {
            return;
        };
        let key = id.data().as_ffi() | STREAM_BIT;
        let watched = watch(&self.epoll, &tcp, key, SOCKET);
        let attached = watched.and(stream.attach(tcp));
        stream.watcher = Watcher::Owner(owner);
        if stream.end.is_some() {
            stream.deliver_late();
            self.rest.ended.push_back(id);
            return;
        }
        if let Err(error) = attached {
            let tunnel = self.tunnels.get_mut(stream.tunnel);
            match tunnel {
                Some(tunnel) => tunnel.application_broke(id, error, &mut self.rest),
                None => self.rest.finish(id, Err(CarryError::Application(error))),
            }
            return;
        }
        self.rest.enqueue(id);
    }

    fn enqueue(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(id)
            && !std::mem::replace(&mut tunnel.queued, true)
        {
            self.readable.push_back(id);
        }
    }

    /// Does what can be done now, a bounded part of it; says whether there is more.
    fn pass(&mut self) -> io::Result<bool> {
        self.rest.now = Instant::now();
        if self.rest.now - self.ticked >= TICK {
            // Also when there is always more to do.
            self.tick();
        }
        let more = self.look()?;
        for _ in 0..self.readable.len() {
            let Some(id) = self.readable.pop_front() else {
                break;
            };
            let Some(tunnel) = self.tunnels.get_mut(id) else {
                continue;
            };
            tunnel.queued = false;
            tunnel.read(&mut self.buffer, &mut self.rest);
            tunnel.flush_if_stretched(&mut self.rest);
            let readable = tunnel.readable;
            if !self.settle(id) && readable {
                self.enqueue(id);
            }
        }
        for _ in 0..self.rest.ready.len() {
            let Some(id) = self.rest.ready.pop_front() else {
                break;
            };
            let Some(stream) = self.rest.streams.get_mut(id) else {
                continue;
            };
            stream.queued = false;
            let Some(tunnel) = self.tunnels.get_mut(stream.tunnel) else {
                continue;
            };
            tunnel.go_on(id, &mut self.rest);
            tunnel.upload(id, &mut self.rest);
            tunnel.flush_if_stretched(&mut self.rest);
        }
        for _ in 0..self.rest.dirty.len() {
            let Some(id) = self.rest.dirty.pop_front() else {
                break;
            };
            if let Some(tunnel) = self.tunnels.get_mut(id) {
                tunnel.flush(&mut self.rest);
                self.settle(id);
            }
        }
        let queues = [self.readable.is_empty(), self.rest.ready.is_empty()];
        Ok(more || !self.rest.dirty.is_empty() || queues.contains(&false))
    }

    /// Asks the kernel what is ready; says whether there may be more.
    fn look(&mut self) -> io::Result<bool> {
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.events.clear();
        let space = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, space, Some(&at_once)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let mut events = std::mem::take(&mut self.events);
        let more = events.len() == EVENTS;
        for event in events.drain(..) {
            let (flags, key) = (event.flags, event.data.u64());
            let broken = flags.contains(EventFlags::ERR);
            let hung_up = broken || flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            let readable = hung_up || flags.contains(EventFlags::IN);
            let writable = flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP);
            if key & STREAM_BIT != 0 {
                let id = StreamId::from(KeyData::from_ffi(key & !STREAM_BIT));
                if let Some(stream) = self.rest.streams.get_mut(id) {
                    stream.ready(readable, writable, hung_up, broken);
                    self.rest.enqueue(id);
                }
            } else if key & LISTENER_BIT != 0 {
                let id = ListenerId::from(KeyData::from_ffi(key & !LISTENER_BIT));
                if let Some(listener) = self.listeners.get_mut(id) {
                    listener.ready();
                }
            } else {
                let id = TunnelId::from(KeyData::from_ffi(key));
                if let Some(tunnel) = self.tunnels.get_mut(id) {
                    tunnel.ready(readable, writable, hung_up, &mut self.rest);
                    if tunnel.readable {
                        self.enqueue(id);
                    }
                }
            }
        }
        self.events = events;
        Ok(more)
    }

    /// Drops a tunnel that is over; says whether it is.
    fn settle(&mut self, id: TunnelId) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(id) else {
            return true;
        };
        let over = tunnel.settle(&mut self.rest);
        if over {
            self.tunnels.remove(id);
        }
        over
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now - self.ticked < TICK / 2 {
            // A pass has just done it. What came since then says nothing of a rate.
            return;
        }
        let elapsed = (now - std::mem::replace(&mut self.ticked, now)).as_secs_f64();
        self.rest.spare.rest();
        let ids: Vec<TunnelId> = self.tunnels.keys().collect();
        for id in ids {
            let tunnel = &mut self.tunnels[id];
            if tunnel.tick(now, elapsed, &mut self.rest) {
                self.tunnels.remove(id);
            } else {
                tunnel.flush_if_stretched(&mut self.rest);
                self.settle(id);
            }
        }
    }
}

/// What the kernel tells of a connection, once each time it happens.
const SOCKET: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Has the kernel tell what happens to a socket.
fn watch(epoll: &OwnedFd, socket: impl AsFd, key: u64, flags: EventFlags) -> io::Result<()> {
    epoll::add(epoll, socket, EventData::new_u64(key), flags)?;
    Ok(())
}

async fn drive(shared: Rc<Shared>, events: AsyncFd<OwnedFd>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let idle = shared.core.borrow().tunnels.is_empty();
        tokio::select! {
            biased;
            () = shared.work.notified() => {}
            ready = events.readable() => match ready {
                // What becomes ready from here on is told again.
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return tracing::error!(%error, "tunnels cannot be watched"),
            },
            _ = ticks.tick(), if !idle => shared.core.borrow_mut().tick(),
        }
        loop {
            let passed = shared.core.borrow_mut().pass();
            let untold = watcher::tell_owners(&shared);
            match passed {
                Ok(more) if more || untold => yield_now().await,
                Ok(_) => break,
                Err(error) => return tracing::error!(%error, "tunnels cannot be watched"),
            }
        }
    }
}
