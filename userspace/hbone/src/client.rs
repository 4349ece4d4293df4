//! One tunnel, from the side that dialled.

use std::{any::Any, future::pending, rc::Rc, sync::Arc, time::SystemTime};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::StatusCode;
use rustls::{ClientConfig, pki_types::ServerName};
use sluice_identity::{Distrust, Peer, Side, Trust};
use tokio::{
    io::BufReader,
    net::TcpStream,
    sync::{Notify, watch},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Baggage, ConnectRequest, OpenError, Stream,
    alive::{self, Heard, Listening},
    limits,
    pool::Opened,
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

/// A tunnel that is ready for streams.
#[derive(Debug)]
pub(crate) struct Tunnel {
    requests: SendRequest<Bytes>,
    /// Held by every stream: their number is the count of streams.
    place: Rc<Place>,
    peer: Rc<Peer>,
    /// When the first of both certificates expires.
    expires: SystemTime,
    end: Rc<Notify>,
    life: watch::Receiver<Life>,
}

#[derive(Debug)]
struct Place;

/// How far a tunnel has come.
#[derive(Debug)]
enum Life {
    /// The peer has not said anything: whether it takes us and how many streams is yet to be seen.
    Young,
    Grown,
    /// Its connection has ended; why, if the peer never said anything.
    Ended(Option<OpenError>),
}

impl Tunnel {
    /// Makes a tunnel over a socket, and drives it in a task of its own until it ends.
    pub(crate) async fn establish(dialled: Dialled) -> Result<Self, OpenError> {
        let Dialled {
            tcp,
            tls,
            trust,
            expires,
        } = dialled;
        limits::no_delay(&tcp);
        let version = trust.version();
        // Peers are told apart by SPIFFE ID; no name is sent (wire contract §4), and an address
        // never is.
        let address = tcp
            .peer_addr()
            .map_err(|e| OpenError::Connect(Rc::new(e)))?
            .ip();
        let tcp = limits::buffered(tcp);
        let connecting = TlsConnector::from(tls).connect(ServerName::from(address), tcp);
        let limit = limits::HANDSHAKE_TIMEOUT;
        let mut tls = timeout(limit, connecting)
            .await
            .map_err(|_| OpenError::HandshakeTimeout(limit))?
            .map_err(|e| OpenError::Tls(Rc::new(e)))?;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Peer::new(Side::Server, certificates, trust, version)
            .map_err(|e| OpenError::Peer(Rc::new(e)))?;
        tls.get_mut().1.set_buffer_limit(Some(limits::WRITE_BUFFER));
        let (tls, heard) = Listening::new(tls);
        let (requests, connection) = timeout(limit, builder().handshake(tls))
            .await
            .map_err(|_| OpenError::HandshakeTimeout(limit))?
            .map_err(|e| OpenError::Handshake(Rc::new(e)))?;
        let (sender, life) = watch::channel(Life::Young);
        let end = Rc::new(Notify::new());
        tokio::task::spawn_local(drive(connection, heard, sender, end.clone()));
        Ok(Self {
            requests,
            place: Rc::new(Place),
            expires: expires.min(peer.not_after()),
            peer: Rc::new(peer),
            end,
            life,
        })
    }

    /// How many streams are open or being opened.
    pub(crate) fn streams(&self) -> usize {
        Rc::strong_count(&self.place) - 1
    }

    /// Whether another stream may be opened now: tunnels are replaced before what proved both ends
    /// is outdated, so that nobody has to be cut when the roots of that are withdrawn.
    pub(crate) fn is_usable(&self) -> bool {
        let limit = self
            .requests
            .current_max_send_streams()
            .min(limits::MAX_STREAMS_OUT);
        matches!(*self.life.borrow(), Life::Grown)
            && self.streams() < limit
            && self.standing().is_ok()
            && SystemTime::now() < self.expires
    }

    /// Whether the peer is still believed.
    pub(crate) fn standing(&self) -> Result<(), Distrust> {
        self.peer.standing()
    }

    /// Ends the tunnel at once, with all its streams.
    pub(crate) fn end(&self) {
        self.end.notify_one();
    }

    pub(crate) fn is_young(&self) -> bool {
        matches!(*self.life.borrow(), Life::Young)
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(*self.life.borrow(), Life::Ended(_))
    }

    /// Waits until the peer has said something.
    ///
    /// # Errors
    /// When the tunnel ended before.
    pub(crate) async fn grown(&self) -> Result<(), OpenError> {
        let mut life = self.life.clone();
        let grown = life.wait_for(|life| !matches!(life, Life::Young)).await;
        match grown.as_deref() {
            Ok(Life::Ended(Some(error))) => Err(error.clone()),
            // Without a sender the runtime is about to end.
            _ => Ok(()),
        }
    }

    /// Opens a stream; done when the peer has answered.
    pub(crate) async fn open(&self, request: &ConnectRequest) -> Result<Opened, OpenError> {
        let place: Rc<dyn Any> = self.place.clone();
        let http = request
            .to_http()
            .map_err(|e| OpenError::Request(Rc::new(e)))?;
        let broken = |error| match &*self.life.borrow() {
            Life::Ended(Some(why)) => why.clone(),
            _ => OpenError::Tunnel(Rc::new(error)),
        };
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (response, send) = requests.send_request(http, false).map_err(broken)?;
        let limit = limits::ANSWER_TIMEOUT;
        let response = timeout(limit, response)
            .await
            .map_err(|_| OpenError::AnswerTimeout(limit))?
            .map_err(broken)?;
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

/// Drives a tunnel until it ends.
async fn drive(
    mut connection: Connection<Listening<TlsStream<BufReader<TcpStream>>>, Bytes>,
    heard: Heard,
    life: watch::Sender<Life>,
    end: Rc<Notify>,
) {
    let ping = connection.ping_pong();
    let silence = async {
        let Some(mut ping) = ping else {
            return pending().await;
        };
        // The peer's settings are the first thing it says, so they precede any answer.
        if alive::answers(&mut ping, &heard, limits::HANDSHAKE_TIMEOUT).await {
            life.send_replace(Life::Grown);
            alive::lost(ping, heard).await;
        }
    };
    let why = tokio::select! {
        // The first request leaves before the first question.
        biased;
        ended = connection => match ended {
            Ok(()) => OpenError::not_begun(h2::Reason::NO_ERROR.into()),
            Err(error) => OpenError::not_begun(error),
        },
        () = silence => OpenError::HandshakeTimeout(limits::HANDSHAKE_TIMEOUT),
        () = end.notified() => OpenError::not_begun(h2::Reason::NO_ERROR.into()),
    };
    let young = matches!(*life.borrow(), Life::Young);
    life.send_replace(Life::Ended(young.then_some(why)));
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::TUNNEL_WINDOW)
        .max_frame_size(limits::MAX_FRAME)
        .data_frame_budget(limits::FRAME_BUDGET)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_send_buffer_size(limits::MAX_SEND_QUEUE)
        .initial_max_send_streams(limits::MAX_STREAMS_OUT)
        .enable_push(false);
    builder
}
