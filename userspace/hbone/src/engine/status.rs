//! What the owner of a tunnel sees of it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use tokio::sync::{Notify, watch};

use super::StreamId;
use crate::{TunnelError, fields::Request, limits};

/// How far a tunnel has come.
#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// The peer has not said anything: whether it takes us and how many streams is yet to be seen.
    Young,
    Grown,
    Ended {
        why: TunnelError,
        /// Whether the peer never said anything.
        young: bool,
    },
}

/// What the owner of a tunnel sees of it.
#[derive(Debug)]
pub(crate) struct Status {
    life: watch::Sender<Life>,
    streams: Cell<usize>,
    /// How many the peer allows at a time.
    allowed: Cell<u32>,
    closed: Cell<bool>,
    crowded: Cell<bool>,
    requests: RefCell<VecDeque<(StreamId, Request)>>,
    requested: Notify,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            life: watch::Sender::new(Life::Young),
            streams: Cell::new(0),
            allowed: Cell::new(u32::MAX),
            closed: Cell::new(false),
            crowded: Cell::new(false),
            requests: RefCell::default(),
            requested: Notify::new(),
        }
    }

    pub(crate) fn life(&self) -> watch::Ref<'_, Life> {
        self.life.borrow()
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// How many may be open, as the peer says.
    pub(crate) fn allowed(&self) -> usize {
        self.allowed.get() as usize
    }

    /// Whether no new streams are taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether so much is said in it that others had better not wait behind that.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.get()
    }

    /// The next request of the peer, or how the tunnel ended.
    pub(crate) async fn request(&self) -> Result<(StreamId, Request), TunnelError> {
        let mut life = self.follow();
        loop {
            let next = self.requests.borrow_mut().pop_front();
            if let Some(request) = next {
                return Ok(request);
            }
            tokio::select! {
                () = self.requested.notified() => {}
                ended = life.wait_for(|life| matches!(life, Life::Ended { .. })) => {
                    return match ended.as_deref() {
                        Ok(Life::Ended { why, .. }) => Err(why.clone()),
                        _ => Err(TunnelError::Ended),
                    };
                }
            }
        }
    }

    pub(super) fn arrived(&self, id: StreamId, request: Request) {
        self.requests.borrow_mut().push_back((id, request));
        self.requested.notify_one();
    }

    pub(super) fn count(&self, streams: usize) {
        self.streams.set(streams);
    }

    pub(super) fn allow(&self, streams: u32) {
        self.allowed.set(streams);
    }

    pub(super) fn carried(&self, bytes_per_second: f64) {
        self.crowded.set(bytes_per_second >= limits::CROWDED);
    }

    pub(super) fn close(&self) {
        self.closed.set(true);
    }

    pub(super) fn grow(&self) {
        self.life.send_if_modified(|life| {
            let young = matches!(life, Life::Young);
            if young {
                *life = Life::Grown;
            }
            young
        });
    }

    pub(super) fn end(&self, why: TunnelError) {
        self.close();
        self.life.send_if_modified(|life| {
            let young = matches!(life, Life::Young);
            let over = matches!(life, Life::Ended { .. });
            if !over {
                *life = Life::Ended { why, young };
            }
            !over
        });
    }
}
