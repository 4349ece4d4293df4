//! Tunnels from the side that was dialled.

use std::{future::Future, io, pin::pin, rc::Rc, sync::Arc, time::SystemTime};

use http::{HeaderMap, Method, StatusCode, uri::Authority};
use sluice_identity::{Peer, Side, Svid};
use sluice_model::TrustDomain;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    Baggage, Engine, ForwardedFor, Stream, Traceparent, TunnelError,
    engine::{self, Life, Status, TunnelId},
    error::tls_reason,
    fields::Request,
    limits, request,
    tls::{self, Negotiated},
};

/// Why a tunnel ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("TLS with the peer: {}", tls_reason(.0))]
    Tls(#[source] io::Error),
    #[error("no TLS and HTTP/2 session within {0:?}")]
    Timeout(std::time::Duration),
    #[error("{0}")]
    Identity(#[source] sluice_identity::Error),
    #[error("HTTP/2 with the peer: {0}")]
    Http(#[source] TunnelError),
    #[error("the peer no longer answers")]
    Silent,
}

impl ServeError {
    /// Whether the peer was refused because its certificate is revoked.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Tls(error) if sluice_identity::is_revoked(error))
    }
}

/// A peer's request for a stream, to be accepted or refused.
#[derive(Debug)]
pub struct Incoming {
    /// Proven by TLS.
    pub peer: Rc<Peer>,
    /// How the tunnel is sealed.
    pub negotiated: Negotiated,
    request: Request,
    stream: Stream,
}

impl Incoming {
    /// Whom the peer asks for; `None` when the request is not a CONNECT with an authority.
    pub fn authority(&self) -> Option<&Authority> {
        (self.request.method == Method::CONNECT).then_some(self.request.authority.as_ref())?
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }

    pub fn forwarded(&self) -> Option<ForwardedFor> {
        ForwardedFor::parse(self.headers())
    }

    pub fn baggage(&self) -> Baggage {
        Baggage::parse(self.headers())
    }

    /// The place in a trace that the stream goes on from, as the peer says.
    pub fn trace(&self) -> Option<Traceparent> {
        Traceparent::parse(self.headers())
    }

    /// Accepts, and says what the destination is.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn accept(self, baggage: &Baggage) -> Result<Stream, TunnelError> {
        let block = request::encode_answer(StatusCode::OK, baggage);
        self.stream.respond(true, &block)?;
        Ok(self.stream)
    }

    /// Refuses with a status (wire contract §3).
    pub fn refuse(self, status: StatusCode) {
        let block = request::encode_answer(status, &Baggage::default());
        // The peer may be gone, and then needs no answer.
        let _ = self.stream.respond(false, &block);
    }
}

/// A tunnel whose peer has proven itself, and that has taken no stream yet. Dropped, it ends with
/// all its streams.
#[derive(Debug)]
pub struct Session {
    peer: Rc<Peer>,
    negotiated: Negotiated,
    /// When the first of both certificates expires.
    expires: SystemTime,
    tunnel: Ending,
    status: Rc<Status>,
}

/// A tunnel that ends when nobody serves it any more.
#[derive(Debug)]
struct Ending {
    engine: Engine,
    id: TunnelId,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.engine.end(self.id);
    }
}

impl Session {
    /// Begins a tunnel on a socket, under the configuration that `svid` gives for `domains`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn accept(
        engine: &Engine,
        tcp: TcpStream,
        svid: &Svid,
        domains: Arc<[TrustDomain]>,
    ) -> Result<Self, ServeError> {
        limits::no_delay(&tcp);
        let tls = svid
            .server_config_accepting(domains)
            .map_err(ServeError::Identity)?;
        let trust = svid.trust().clone();
        let session = async {
            let version = trust.version();
            let mut tcp = tcp;
            let tls = tls::accept(&mut tcp, tls).await.map_err(ServeError::Tls)?;
            let peer = Peer::new(Side::Client, &tls.certificates, trust, version)
                .map_err(ServeError::Identity)?;
            let negotiated = tls.negotiated;
            let (id, status) = engine
                .tunnel(engine::Side::Server, tcp, tls)
                .map_err(ServeError::Tls)?;
            let session = Self {
                expires: svid.not_after().min(peer.not_after()),
                peer: Rc::new(peer),
                negotiated,
                tunnel: Ending {
                    engine: engine.clone(),
                    id,
                },
                status,
            };
            session.begun().await?;
            Ok(session)
        };
        let limit = limits::HANDSHAKE_TIMEOUT;
        let session = timeout(limit, session).await;
        session.map_err(|_| ServeError::Timeout(limit))?
    }

    /// Waits for what every HTTP/2 session begins with.
    async fn begun(&self) -> Result<(), ServeError> {
        let mut life = self.status.follow();
        let begun = life.wait_for(|life| !matches!(life, Life::Young)).await;
        match begun.as_deref() {
            Ok(Life::Ended {
                why: TunnelError::NotBegun(limit),
                young: true,
            }) => Err(ServeError::Timeout(*limit)),
            Ok(Life::Ended { why, young: true }) => Err(ServeError::Http(why.clone())),
            _ => Ok(()),
        }
    }

    pub fn peer(&self) -> &Rc<Peer> {
        &self.peer
    }

    /// Serves until the tunnel ends; `on_stream` is called for every stream and its future runs as
    /// a task of its own. Takes no more streams once `drain` turns true, or when a certificate
    /// expires that one of the ends has shown: the peer makes another tunnel then.
    ///
    /// # Errors
    /// See [`ServeError`]. An orderly end is none.
    pub async fn serve<F>(
        self,
        mut drain: watch::Receiver<bool>,
        on_stream: impl Fn(Incoming) -> F,
    ) -> Result<(), ServeError>
    where
        F: Future<Output = ()> + 'static,
    {
        let Self {
            peer,
            negotiated,
            expires,
            tunnel,
            status,
        } = self;
        let left = expires.duration_since(SystemTime::now());
        let mut expiry = pin!(sleep(left.unwrap_or_default()));
        let mut draining = false;
        loop {
            tokio::select! {
                next = status.request() => match next {
                    // It may have been taken back.
                    Ok((id, _)) if !tunnel.engine.hold(id) => {}
                    Ok((id, request)) => {
                        let stream = Stream::new(tunnel.engine.clone(), id);
                        let incoming = Incoming { peer: peer.clone(), negotiated, request, stream };
                        tokio::task::spawn_local(on_stream(incoming));
                    }
                    Err(error) => return ended(error),
                },
                // A dropped sender is no reason to drain.
                Ok(_) = drain.wait_for(|drain| *drain), if !draining => {
                    draining = true;
                    tunnel.engine.drain(tunnel.id);
                }
                () = &mut expiry, if !draining => {
                    draining = true;
                    tunnel.engine.drain(tunnel.id);
                }
            }
        }
    }
}

/// Peers that close without a word are common, and harmless once no stream is open.
fn ended(error: TunnelError) -> Result<(), ServeError> {
    match error {
        TunnelError::Closed
        | TunnelError::Io(_)
        | TunnelError::Ended
        | TunnelError::GoneAway(_)
        | TunnelError::Failed(_) => {
            tracing::debug!(%error, "tunnel ended");
            Ok(())
        }
        TunnelError::Silent => Err(ServeError::Silent),
        error => Err(ServeError::Http(error)),
    }
}
