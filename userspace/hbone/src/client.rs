//! One tunnel, from the side that dialled.

use std::{cell::Cell, net::TcpStream as StdStream, rc::Rc, sync::Arc, time::SystemTime};

use http::StatusCode;
use rustls::{ClientConfig, pki_types::ServerName};
use sluice_identity::{Distrust, Peer, Side, Trust};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    Baggage, ConnectRequest, Engine, OpenError, Stream,
    engine::{self, Life, Status, TunnelId},
    limits,
    pool::Opened,
    tls::{self, Negotiated},
};

/// What a tunnel is made of: a connected socket, and the TLS configuration that names us and checks
/// the peer.
#[derive(Debug)]
pub struct Dialled {
    pub tcp: TcpStream,
    pub tls: Arc<ClientConfig>,
    /// By which the peer is checked, also later.
    pub trust: Trust,
    /// When our own certificate expires.
    pub expires: SystemTime,
}

/// A tunnel that is ready for streams. Dropped, it ends with its last stream.
#[derive(Debug)]
pub(crate) struct Tunnel {
    engine: Engine,
    id: TunnelId,
    status: Rc<Status>,
    peer: Rc<Peer>,
    negotiated: Negotiated,
    /// When the first of both certificates expires.
    expires: SystemTime,
    /// Since when it was seen to be unused.
    pub(crate) idle: Cell<Option<tokio::time::Instant>>,
    /// Tells whoever watches that the tunnel is there.
    pub(crate) watch: Option<Box<dyn std::fmt::Debug>>,
}

impl Tunnel {
    /// Makes a tunnel over a socket.
    pub(crate) async fn establish(engine: &Engine, dialled: Dialled) -> Result<Self, OpenError> {
        let Dialled {
            mut tcp,
            tls,
            trust,
            expires,
        } = dialled;
        limits::no_delay(&tcp);
        let version = trust.version();
        let connect_error = |error| OpenError::Connect(Rc::new(error));
        // Peers are told apart by SPIFFE ID; no name is sent (wire contract §4), and an address
        // never is.
        let name = ServerName::from(tcp.peer_addr().map_err(connect_error)?.ip());
        let limit = limits::HANDSHAKE_TIMEOUT;
        let tls = timeout(limit, tls::connect(&mut tcp, tls, name))
            .await
            .map_err(|_| OpenError::HandshakeTimeout(limit))?
            .map_err(|error| OpenError::Tls(Rc::new(error)))?;
        let peer = Peer::new(Side::Server, &tls.certificates, trust, version)
            .map_err(|error| OpenError::Peer(Rc::new(error)))?;
        let negotiated = tls.negotiated;
        let (id, status) = engine
            .tunnel(engine::Side::Client, tcp, tls)
            .map_err(connect_error)?;
        Ok(Self {
            engine: engine.clone(),
            id,
            status,
            negotiated,
            expires: expires.min(peer.not_after()),
            idle: Cell::default(),
            peer: Rc::new(peer),
            watch: None,
        })
    }

    /// How many streams are open or being opened.
    pub(crate) fn streams(&self) -> usize {
        self.status.streams()
    }

    /// Whether another stream may be opened now: tunnels are replaced before what proved both ends
    /// is outdated, so that nobody has to be cut when the roots of that are withdrawn.
    pub(crate) fn is_usable(&self) -> bool {
        let limit = self.status.allowed().min(limits::MAX_STREAMS_OUT);
        matches!(*self.status.life(), Life::Grown)
            && !self.status.is_closed()
            && self.streams() < limit
            && self.standing().is_ok()
            && SystemTime::now() < self.expires
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.status.is_crowded()
    }

    /// Whether the peer is still believed.
    pub(crate) fn standing(&self) -> Result<(), Distrust> {
        self.peer.standing()
    }

    /// Ends the tunnel at once, with all its streams.
    pub(crate) fn end(&self) {
        self.engine.end(self.id);
    }

    pub(crate) fn is_young(&self) -> bool {
        matches!(*self.status.life(), Life::Young)
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(*self.status.life(), Life::Ended { .. })
    }

    /// Waits until the peer has said something.
    ///
    /// # Errors
    /// When the tunnel ended before.
    pub(crate) async fn grown(&self) -> Result<(), OpenError> {
        let mut life = self.status.follow();
        let grown = life.wait_for(|life| !matches!(life, Life::Young)).await;
        match grown.as_deref() {
            Ok(Life::Ended { why, young: true }) => Err(OpenError::not_begun(why.clone())),
            // Without a sender the runtime is about to end.
            _ => Ok(()),
        }
    }

    /// Opens a stream for an application; done when the peer has answered. What the application has
    /// said already may go with the request; it is not taken from its connection until that is
    /// handed to the stream.
    pub(crate) async fn open(
        &self,
        request: &ConnectRequest,
        application: Option<&StdStream>,
    ) -> Result<Opened, OpenError> {
        let broken = |error, said| match &*self.status.life() {
            Life::Ended { why, young: true } => OpenError::not_begun(why.clone()),
            _ => OpenError::broken(error, said),
        };
        let id = self
            .engine
            .open(self.id, &request.encode(), application)
            .map_err(|error| broken(error, false))?;
        let stream = Stream::new(self.engine.clone(), id);
        let limit = limits::ANSWER_TIMEOUT;
        let answer = timeout(limit, self.engine.answer(id))
            .await
            .map_err(|_| OpenError::AnswerTimeout(limit))?
            .map_err(|error| broken(error, self.engine.has_said(id)))?;
        if answer.status != StatusCode::OK {
            return Err(OpenError::Refused(answer.status));
        }
        Ok(Opened {
            stream,
            peer: self.peer.clone(),
            negotiated: self.negotiated,
            reused: true,
            baggage: Baggage::parse(&answer.headers),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.engine.drain(self.id);
    }
}
