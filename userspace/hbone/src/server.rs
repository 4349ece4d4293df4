//! Tunnels from the side that was dialled.

use std::{
    future::{Future, pending},
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, uri::Authority};
use sluice_identity::{Peer, Side, Svid};
use sluice_model::TrustDomain;
use tokio::{
    io::BufReader,
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    Baggage, ForwardedFor, Stream,
    alive::{self, Heard, Listening},
    error::tls_reason,
    limits,
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
    Http(#[source] h2::Error),
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
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    /// Whom the peer asks for; `None` when the request is not a CONNECT with an authority.
    pub fn authority(&self) -> Option<&Authority> {
        (self.request.method() == Method::CONNECT).then(|| self.request.uri().authority())?
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    pub fn forwarded(&self) -> Option<ForwardedFor> {
        ForwardedFor::parse(self.headers())
    }

    pub fn baggage(&self) -> Baggage {
        Baggage::parse(self.headers())
    }

    /// Accepts, and says what the destination is.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn accept(mut self, baggage: &Baggage) -> Result<Stream, h2::Error> {
        let mut response = Response::new(());
        baggage.write(response.headers_mut());
        let send = self.respond.send_response(response, false)?;
        Ok(Stream {
            send,
            recv: self.request.into_body(),
            _place: None,
        })
    }

    /// Refuses with a status (wire contract §3).
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // The peer may be gone, and then needs no answer.
        let _ = self.respond.send_response(response, true);
    }
}

/// A tunnel whose peer has proven itself, and that has taken no stream yet.
#[derive(Debug)]
pub struct Session {
    peer: Rc<Peer>,
    /// When the first of both certificates expires.
    expires: SystemTime,
    connection: Connection<Listening<TlsStream<BufReader<TcpStream>>>, Bytes>,
    heard: Heard,
}

impl Session {
    /// Begins a tunnel on a socket, under the configuration that `svid` gives for `domains`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn accept(
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
            let mut tls = TlsAcceptor::from(tls)
                .accept(limits::buffered(tcp))
                .await
                .map_err(ServeError::Tls)?;
            let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
            let peer = Peer::new(Side::Client, certificates, trust, version)
                .map_err(ServeError::Identity)?;
            tls.get_mut().1.set_buffer_limit(Some(limits::WRITE_BUFFER));
            let (tls, heard) = Listening::new(tls);
            let connection = builder().handshake(tls).await.map_err(ServeError::Http)?;
            Ok(Self {
                expires: svid.not_after().min(peer.not_after()),
                peer: Rc::new(peer),
                connection,
                heard,
            })
        };
        let limit = limits::HANDSHAKE_TIMEOUT;
        let session = timeout(limit, session).await;
        session.map_err(|_| ServeError::Timeout(limit))?
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
            expires,
            mut connection,
            heard,
        } = self;
        let ping = connection.ping_pong();
        let mut lost = pin!(async {
            match ping {
                Some(ping) => alive::lost(ping, heard).await,
                None => pending().await,
            }
        });
        let left = expires.duration_since(SystemTime::now());
        let mut expiry = pin!(sleep(left.unwrap_or_default()));
        let mut draining = false;
        loop {
            tokio::select! {
                next = connection.accept() => match next {
                    Some(Ok((request, respond))) => {
                        let incoming = Incoming { peer: peer.clone(), request, respond };
                        tokio::task::spawn_local(on_stream(incoming));
                    }
                    Some(Err(error)) => return ended(error),
                    None => return Ok(()),
                },
                // A dropped sender is no reason to drain.
                Ok(_) = drain.wait_for(|drain| *drain), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = &mut expiry, if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = &mut lost => return Err(ServeError::Silent),
            }
        }
    }
}

/// Peers that close without a word are common, and harmless once no stream is open.
fn ended(error: h2::Error) -> Result<(), ServeError> {
    if error.is_io() || error.reason() == Some(h2::Reason::NO_ERROR) {
        tracing::debug!(%error, "tunnel ended");
        return Ok(());
    }
    Err(ServeError::Http(error))
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::TUNNEL_WINDOW)
        .max_frame_size(limits::MAX_FRAME)
        .data_frame_budget(limits::FRAME_BUDGET)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_send_buffer_size(limits::MAX_SEND_QUEUE)
        .max_concurrent_streams(limits::MAX_STREAMS_IN);
    builder
}
