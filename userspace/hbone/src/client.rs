//! One tunnel, from the side that dialled.

use std::{cell::Cell, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::client::SendRequest;
use http::StatusCode;
use rustls::{ClientConfig, pki_types::ServerName};
use sluice_model::SpiffeId;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{Baggage, ConnectRequest, OpenError, Stream, limits, pool::Opened};

/// What a tunnel is made of: a connected socket, and the TLS configuration that names us and checks
/// the peer.
#[derive(Debug)]
pub struct Dialled {
    pub tcp: TcpStream,
    pub tls: Arc<ClientConfig>,
}

/// A tunnel that is ready for streams.
#[derive(Debug)]
pub(crate) struct Tunnel {
    requests: SendRequest<Bytes>,
    /// Held by every stream: their number is the count of streams.
    place: Rc<Place>,
    peer: Option<SpiffeId>,
    /// Set when the connection has ended.
    dead: Rc<Cell<bool>>,
}

#[derive(Debug)]
struct Place;

impl Tunnel {
    /// Makes a tunnel over a socket, and drives it in a task of its own until it ends.
    pub(crate) async fn establish(dialled: Dialled) -> Result<Self, OpenError> {
        let Dialled { tcp, tls } = dialled;
        limits::no_delay(&tcp);
        // Peers are told apart by SPIFFE ID; no name is sent (wire contract §4), and an address
        // never is.
        let address = tcp
            .peer_addr()
            .map_err(|e| OpenError::Connect(Rc::new(e)))?
            .ip();
        let connecting = TlsConnector::from(tls).connect(ServerName::from(address), tcp);
        let limit = limits::HANDSHAKE_TIMEOUT;
        let tls = timeout(limit, connecting)
            .await
            .map_err(|_| OpenError::HandshakeTimeout(limit))?
            .map_err(|e| OpenError::Tls(Rc::new(e)))?;
        let peer = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|certificates| sluice_identity::peer_identity(certificates).ok());
        let (requests, mut connection) = timeout(limit, builder().handshake(tls))
            .await
            .map_err(|_| OpenError::HandshakeTimeout(limit))?
            .map_err(|e| OpenError::Handshake(Rc::new(e)))?;
        let dead = Rc::new(Cell::new(false));
        let ping = connection.ping_pong();
        let ended = dead.clone();
        tokio::task::spawn_local(async move {
            let silent = async {
                match ping {
                    Some(ping) => limits::keep_alive(ping).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "tunnel ended");
                },
                () = silent => tracing::debug!("tunnel ended: the peer no longer answers"),
            }
            ended.set(true);
        });
        Ok(Self {
            requests,
            place: Rc::new(Place),
            peer,
            dead,
        })
    }

    /// How many streams are open or being opened.
    pub(crate) fn streams(&self) -> usize {
        Rc::strong_count(&self.place) - 1
    }

    pub(crate) fn is_usable(&self) -> bool {
        let limit = self
            .requests
            .current_max_send_streams()
            .min(limits::MAX_STREAMS_OUT);
        !self.dead.get() && self.streams() < limit
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Opens a stream; done when the peer has answered.
    pub(crate) async fn open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        let place: Rc<dyn std::any::Any> = self.place.clone();
        let http = request
            .to_http()
            .map_err(|e| OpenError::Request(Rc::new(e)))?;
        let broken = |error| OpenError::Tunnel(Rc::new(error));
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (response, send) = requests.send_request(http, false).map_err(broken)?;
        let response = response.await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Refused(response.status()));
        }
        let baggage = Baggage::parse(response.headers());
        let recv = response.into_body();
        let stream = Stream {
            send,
            recv,
            _place: Some(place),
        };
        Ok(Opened {
            stream,
            peer: self.peer.clone(),
            baggage,
        })
    }
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::TUNNEL_WINDOW)
        .max_frame_size(limits::MAX_FRAME)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_send_buffer_size(limits::MAX_SEND_QUEUE)
        .initial_max_send_streams(limits::MAX_STREAMS_OUT)
        .enable_push(false);
    builder
}
