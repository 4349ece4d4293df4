//! Listeners beside the tunnels: their connections go straight into the engine.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    task::{Poll, Waker},
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use slotmap::Key as _;

use super::{Engine, LISTENER_BIT, ListenerId, watch};

/// A listener, as the engine knows it.
#[derive(Debug)]
pub(super) struct Listening {
    /// Whether there may be a connection: until the kernel says otherwise.
    ready: bool,
    waker: Option<Waker>,
}

impl Listening {
    pub(super) fn ready(&mut self) {
        self.ready = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A listener whose connections are non-blocking and known to no runtime yet.
#[derive(Debug)]
pub struct Listener {
    engine: Engine,
    id: ListenerId,
    socket: TcpListener,
}

impl Engine {
    /// Takes a non-blocking listener.
    ///
    /// # Errors
    /// When the kernel does not watch it.
    pub fn listen(&self, socket: TcpListener) -> io::Result<Listener> {
        let id = self.with(|core| {
            let listening = Listening {
                ready: true,
                waker: None,
            };
            let id = core.listeners.insert(listening);
            let key = id.data().as_ffi() | LISTENER_BIT;
            let flags = EventFlags::IN | EventFlags::ET;
            let watched = watch(&core.epoll, &socket, key, flags);
            watched.map(|()| id).inspect_err(|_| {
                core.listeners.remove(id);
            })
        })?;
        Ok(Listener {
            engine: self.clone(),
            id,
            socket,
        })
    }
}

impl Listener {
    /// The next connection, and whose it is.
    ///
    /// # Errors
    /// The kernel's. What is wrong with one connection that was about to come is none.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| {
            self.engine.look(|core| {
                let Some(listening) = core.listeners.get_mut(self.id) else {
                    return Poll::Pending;
                };
                while listening.ready {
                    match accept(&self.socket) {
                        Err(Errno::AGAIN) => listening.ready = false,
                        Err(Errno::INTR | Errno::CONNABORTED) => {}
                        Err(error) => return Poll::Ready(Err(error.into())),
                        Ok((socket, Some(peer))) => {
                            return Poll::Ready(Ok((TcpStream::from(socket), peer)));
                        }
                        // Gone before it could be asked.
                        Ok((_, None)) => {}
                    }
                }
                listening.waker = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.engine.look(|core| core.listeners.remove(self.id));
    }
}

fn accept(listener: &TcpListener) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    Ok((socket, peer.and_then(|peer| peer.try_into().ok())))
}
