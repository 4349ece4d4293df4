//! Tunnels kept for the next connection.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    rc::Rc,
};

use sluice_identity::Peer;
use sluice_model::SpiffeId;
use tokio::sync::Mutex;

use crate::{
    Baggage, ConnectRequest, Dialled, Engine, Negotiated, OpenError, Stream, client::Tunnel, limits,
};

/// What two connections must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Whose certificate we show.
    pub source: SpiffeId,
    /// The pod that the tunnel is dialled from: the wire shows its address.
    pub source_ip: IpAddr,
    /// Who may answer, sorted. Any one of them.
    pub expected: Vec<SpiffeId>,
    /// Where the tunnel ends.
    pub destination: SocketAddr,
}

/// A stream that the peer accepted.
#[derive(Debug)]
pub struct Opened {
    pub stream: Stream,
    /// Proven by TLS.
    pub peer: Rc<Peer>,
    /// How the tunnel is sealed.
    pub negotiated: Negotiated,
    /// The tunnel was there before.
    pub reused: bool,
    /// What the peer says about the destination.
    pub baggage: Baggage,
}

/// Is told of the tunnels of a pool.
pub trait Watch: std::fmt::Debug {
    /// A tunnel was made. It is there until what is returned is dropped.
    fn established(&self) -> Box<dyn std::fmt::Debug>;

    /// A tunnel did not come to be.
    fn failed(&self, why: &OpenError);
}

/// The tunnels of one worker thread, by key.
#[derive(Debug)]
pub struct Pool {
    engine: Engine,
    watch: Option<Rc<dyn Watch>>,
    slots: RefCell<HashMap<TunnelKey, Rc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    /// Held while dialling, so that a burst of connections makes one tunnel and not many.
    dialling: Mutex<()>,
    failed: RefCell<Failed>,
}

/// What came of dials that made no tunnel.
#[derive(Debug, Default)]
struct Failed {
    times: u64,
    last: Option<OpenError>,
    at: Option<tokio::time::Instant>,
}

impl Failed {
    fn is_recent(&self) -> bool {
        self.at
            .is_some_and(|at| at.elapsed() < limits::CROWDED_PAUSE)
    }
}

impl Pool {
    /// For tunnels that this engine drives.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            watch: None,
            slots: RefCell::default(),
        }
    }

    /// Has somebody told of all tunnels.
    #[must_use]
    pub fn watched(mut self, watch: Rc<dyn Watch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Opens a stream in a tunnel for `key`; `dial` makes one if none has room.
    ///
    /// What the application has said already may go with the request, to a peer that is surely
    /// there. It stays in the application's connection until [`Stream::carry_for`] takes that, so
    /// that it is not lost when the peer refuses.
    ///
    /// # Errors
    /// See [`OpenError`]. A tunnel that broke before the peer can have passed anything on is replaced
    /// once.
    pub async fn open<F>(
        &self,
        key: &TunnelKey,
        request: &ConnectRequest,
        application: Option<&StdStream>,
        mut dial: impl FnMut() -> F,
    ) -> Result<Opened, OpenError>
    where
        F: Future<Output = Result<Dialled, OpenError>>,
    {
        let slot = self
            .slots
            .borrow_mut()
            .entry(key.clone())
            .or_default()
            .clone();
        let (tunnel, reused) = slot.tunnel(self, &mut dial).await?;
        match tunnel.open(request, application).await {
            // A tunnel that idled may have died unnoticed, or its server may be about to leave; a
            // fresh one that fails is the peer's.
            Err(error) if reused && error.is_unheard() => {
                slot.distrust(&tunnel);
                let (tunnel, reused) = slot.tunnel(self, &mut dial).await?;
                let opened = tunnel.open(request, application).await?;
                Ok(Opened { reused, ..opened })
            }
            other => other.map(|opened| Opened { reused, ..opened }),
        }
    }

    /// Forgets the tunnels of a pod: those without streams close, the others with their last one.
    pub fn forget_source(&self, ip: IpAddr) {
        self.slots.borrow_mut().retain(|key, _| key.source_ip != ip);
    }

    /// Ends the tunnels whose peer is not believed any more, with all their streams.
    pub fn review(&self) {
        for slot in self.slots.borrow().values() {
            slot.tunnels.borrow_mut().retain(|tunnel| {
                let standing = tunnel.standing();
                if let Err(why) = &standing {
                    tracing::info!(%why, streams = tunnel.streams(), "tunnel ended");
                    tunnel.end();
                }
                standing.is_ok()
            });
        }
    }

    /// Forgets tunnels that are dead; and, when called regularly, those that were idle for one
    /// whole period before this call and the one before.
    pub fn sweep(&self, idle: &mut Idle) {
        self.slots.borrow_mut().retain(|key, slot| {
            let mut tunnels = slot.tunnels.borrow_mut();
            retain_needed(&mut tunnels);
            let busy = tunnels.iter().any(|tunnel| tunnel.streams() > 0);
            let waited = slot.dialling.try_lock().is_err();
            if busy || waited {
                idle.0.remove(key);
                return true;
            }
            let since = *idle
                .0
                .entry(key.clone())
                .or_insert_with(tokio::time::Instant::now);
            since.elapsed() < limits::IDLE_TUNNEL && !tunnels.is_empty()
        });
        let slots = self.slots.borrow();
        idle.0.retain(|key, _| slots.contains_key(key));
    }

    /// How many tunnels there are.
    pub fn len(&self) -> usize {
        self.slots
            .borrow()
            .values()
            .map(|slot| slot.tunnels.borrow().len())
            .sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Since when which tunnels are idle; see [`Pool::sweep`].
#[derive(Debug, Default)]
pub struct Idle(HashMap<TunnelKey, tokio::time::Instant>);

/// Drops tunnels that are dead, and those that have been unused for a while beside another one: as many
/// are kept as the load needs, and one for the next stream.
fn retain_needed(tunnels: &mut Vec<Rc<Tunnel>>) {
    let now = tokio::time::Instant::now();
    let mut spare = false;
    tunnels.retain(|tunnel| {
        if tunnel.is_dead() {
            return false;
        }
        if tunnel.streams() > 0 {
            tunnel.idle.set(None);
            return true;
        }
        let since = tunnel.idle.get().unwrap_or(now);
        tunnel.idle.set(Some(since));
        !std::mem::replace(&mut spare, true) || now - since < limits::SPARE_TUNNEL
    });
}

impl Slot {
    /// A tunnel with room; not one that is crowded, if there is another or there can be.
    fn usable(&self) -> Option<Rc<Tunnel>> {
        let tunnels = self.tunnels.borrow();
        let mut usable = tunnels.iter().filter(|tunnel| tunnel.is_usable());
        let free = usable.find(|tunnel| !tunnel.is_crowded()).cloned();
        let enough = tunnels.len() >= limits::MAX_CROWDED || self.failed.borrow().is_recent();
        free.or_else(|| self.crowded().filter(|_| enough))
    }

    /// A tunnel with room, however crowded.
    fn crowded(&self) -> Option<Rc<Tunnel>> {
        let tunnels = self.tunnels.borrow();
        tunnels.iter().find(|tunnel| tunnel.is_usable()).cloned()
    }

    /// Forgets a tunnel that broke and all that were there with it: their peer is the same, and
    /// may be gone for all of them.
    fn distrust(&self, broken: &Rc<Tunnel>) {
        let mut tunnels = self.tunnels.borrow_mut();
        if tunnels.iter().any(|tunnel| Rc::ptr_eq(tunnel, broken)) {
            tunnels.clear();
        }
    }

    /// A tunnel with room, and whether it was there before.
    async fn tunnel<F>(
        &self,
        pool: &Pool,
        dial: &mut impl FnMut() -> F,
    ) -> Result<(Rc<Tunnel>, bool), OpenError>
    where
        F: Future<Output = Result<Dialled, OpenError>>,
    {
        match self.usable() {
            Some(tunnel) => Ok((tunnel, true)),
            // Seldom needed, and too large for each connection to hold room for it.
            None => Box::pin(self.make(pool, dial)).await,
        }
    }

    /// Makes a tunnel, unless somebody else has meanwhile.
    async fn make<F>(
        &self,
        pool: &Pool,
        dial: &mut impl FnMut() -> F,
    ) -> Result<(Rc<Tunnel>, bool), OpenError>
    where
        F: Future<Output = Result<Dialled, OpenError>>,
    {
        let failed = self.failed.borrow().times;
        let _alone = self.dialling.lock().await;
        // Those who waited for a dial share what came of it, and do not repeat it one by one.
        if self.failed.borrow().times != failed
            && let Some(error) = self.failed.borrow().last.clone()
        {
            return self.crowded().map(|tunnel| (tunnel, true)).ok_or(error);
        }
        if let Some(young) = self.young() {
            young
                .grown()
                .await
                .map_err(|error| self.fail(pool, error))?;
        }
        if let Some(tunnel) = self.usable() {
            return Ok((tunnel, true));
        }
        let tunnel = async { Tunnel::establish(&pool.engine, dial().await?).await };
        let mut tunnel = match tunnel.await.map_err(|error| self.fail(pool, error)) {
            Ok(tunnel) => tunnel,
            Err(error) => return self.crowded().map(|tunnel| (tunnel, true)).ok_or(error),
        };
        tunnel.watch = pool.watch.as_ref().map(|watch| watch.established());
        let tunnel = Rc::new(tunnel);
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| !tunnel.is_dead());
        tunnels.push(tunnel.clone());
        Ok((tunnel, false))
    }

    /// A tunnel whose room is not known yet.
    fn young(&self) -> Option<Rc<Tunnel>> {
        let tunnels = self.tunnels.borrow();
        tunnels.iter().find(|tunnel| tunnel.is_young()).cloned()
    }

    fn fail(&self, pool: &Pool, error: OpenError) -> OpenError {
        if let Some(watch) = &pool.watch {
            watch.failed(&error);
        }
        let mut failed = self.failed.borrow_mut();
        failed.times += 1;
        failed.at = Some(tokio::time::Instant::now());
        failed.last = Some(error.clone());
        error
    }
}
