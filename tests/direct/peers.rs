//! Peers that speak HTTP/2 frame by frame, and so can say what no library would.

use std::{net::SocketAddr, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::fixtures::{PATIENCE, World};

/// The beginning of every HTTP/2 connection (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Fields `:status` of HPACK's static table (RFC 7541 A).
pub(crate) const OK: u8 = 0x88;
pub(crate) const BAD_REQUEST: u8 = 0x8c;

/// Frame types (RFC 9113 §6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags. `ACK` shares its bit with `END_STREAM`, on other frames.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113 §6.5.2).
pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
}

/// Error codes (RFC 9113 §7).
pub(crate) mod code {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(crate) const STREAM_CLOSED: u32 = 5;
    pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
    pub(crate) const REFUSED_STREAM: u32 = 7;
    pub(crate) const CANCEL: u32 = 8;
    pub(crate) const COMPRESSION_ERROR: u32 = 9;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.into(),
        }
    }

    /// A request that ends the stream's beginning, with header fields written out.
    pub(crate) fn headers(stream: u32, fields: &[(&str, &str)]) -> Self {
        Self::new(kind::HEADERS, flag::END_HEADERS, stream, hpack(fields))
    }

    /// A proper request.
    pub(crate) fn connect(stream: u32, authority: &str) -> Self {
        Self::headers(stream, &[(":method", "CONNECT"), (":authority", authority)])
    }

    /// What accepts a request: `:status: 200`, as HPACK's static table has it.
    pub(crate) fn accepting(stream: u32) -> Self {
        Self::new(kind::HEADERS, flag::END_HEADERS, stream, [OK])
    }

    /// The answer to a ping.
    pub(crate) fn answered(self) -> Self {
        Self::new(self.kind, flag::ACK, self.stream, self.payload)
    }

    pub(crate) fn reset(stream: u32, code: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
    }

    pub(crate) fn settings() -> Self {
        Self::new(kind::SETTINGS, 0, 0, [])
    }

    /// Settings of which one has a value.
    pub(crate) fn setting(name: u16, value: u32) -> Self {
        let mut payload = name.to_be_bytes().to_vec();
        payload.extend(value.to_be_bytes());
        Self::new(kind::SETTINGS, 0, 0, payload)
    }

    /// A server's settings that allow so many streams at a time.
    pub(crate) fn allowing(streams: u32) -> Self {
        Self::setting(setting::MAX_CONCURRENT_STREAMS, streams)
    }

    /// Leave to say so many more bytes, in a stream or, as stream 0, in all of them.
    pub(crate) fn credit(stream: u32, bytes: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The error code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// Header fields as literals that no table remembers (RFC 7541 §6.2.2).
pub(crate) fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        // An integer with a prefix of seven bits (§5.1).
        match text.len().checked_sub(127) {
            None => out.push(u8::try_from(text.len()).unwrap()),
            Some(mut rest) => {
                out.push(127);
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128 + 128).unwrap());
                    rest /= 128;
                }
                out.push(u8::try_from(rest).unwrap());
            }
        }
        out.extend(text.as_bytes());
    }
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name);
        text(&mut out, value);
    }
    out
}

/// One end of a TLS connection, below HTTP/2.
pub(crate) struct Peer(pub(crate) TlsStream<TcpStream>);

impl Peer {
    /// Dials a tunnel's server, and says nothing after TLS.
    pub(crate) async fn dial(world: &World) -> Self {
        let tls = world
            .source
            .svid
            .client_config(world.source.key.expected.as_slice());
        Self::dial_with(world, tls).await
    }

    pub(crate) async fn dial_with(world: &World, tls: Arc<ClientConfig>) -> Self {
        Self::dial_at(world.destination.addr, tls).await
    }

    pub(crate) async fn dial_at(addr: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        let tcp = TcpStream::connect(addr).await.unwrap();
        // Nothing waits for the kernel's clock, so that a test may stop its own.
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::from(addr.ip());
        let tls = TlsConnector::from(tls).connect(name, tcp).await.unwrap();
        Self(tls.into())
    }

    /// Dials a tunnel's server and begins an HTTP/2 session.
    pub(crate) async fn begin(world: &World) -> Self {
        let mut peer = Self::dial(world).await;
        peer.say(PREFACE).await;
        peer.send(&Frame::settings()).await;
        peer
    }

    /// Takes the next tunnel and its first request, in stream 1.
    pub(crate) async fn accept(listener: &TcpListener, tls: Arc<ServerConfig>) -> Self {
        let mut peer = Self::accept_saying(listener, tls, &Frame::settings()).await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
        peer
    }

    /// Takes the next tunnel, with these settings.
    pub(crate) async fn accept_saying(
        listener: &TcpListener,
        tls: Arc<ServerConfig>,
        settings: &Frame,
    ) -> Self {
        let mut peer = Self::accept_silently(listener, tls).await;
        peer.send(settings).await;
        peer
    }

    /// Takes the next tunnel, and says nothing in it after TLS.
    pub(crate) async fn accept_silently(listener: &TcpListener, tls: Arc<ServerConfig>) -> Self {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let tls = TlsAcceptor::from(tls).accept(tcp).await.unwrap();
        let mut peer = Self(tls.into());
        let mut preface = [0; PREFACE.len()];
        peer.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        peer
    }

    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        self.say(&frame.encode()).await;
    }

    /// Says what the other end need not hear to its end.
    pub(crate) async fn shout(&mut self, bytes: &[u8]) {
        if self.0.write_all(bytes).await.is_ok() {
            let _ = self.0.flush().await;
        }
    }

    /// The next frame; `None` when the connection is closed, in whatever way.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let reading = async {
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame {
                kind: head[3],
                flags: head[4],
                stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
                payload,
            })
        };
        let frame = timeout(PATIENCE, reading)
            .await
            .expect("a frame, or an end");
        // Those who do not acknowledge are cut off.
        if let Some(frame) = &frame
            && frame.kind == kind::SETTINGS
            && frame.flags & flag::ACK == 0
        {
            let ack = Frame::new(kind::SETTINGS, flag::ACK, 0, []);
            self.shout(&ack.encode()).await;
        }
        frame
    }

    /// The next frame that is wanted; others are passed over.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("no end yet");
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Everything that is still said, until the end.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}
