//! The handshake, driven by rustls.

use std::{io, sync::Arc};

use rustls::{
    CipherSuite, ClientConfig, CommonState, Error, ExtractedSecrets, NamedGroup, ProtocolVersion,
    ServerConfig, SupportedCipherSuite,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Opener, Sealer, Secrets};

/// What a peer may have said without ending its handshake, in bytes.
const MOST: usize = 256 << 10;

/// What both ends of a handshake have agreed on, in the names of rustls.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    pub version: Option<ProtocolVersion>,
    pub cipher: Option<CipherSuite>,
    /// Of the key exchange.
    pub group: Option<NamedGroup>,
}

impl Negotiated {
    fn of(tls: &CommonState) -> Self {
        Self {
            version: tls.protocol_version(),
            cipher: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: tls
                .negotiated_key_exchange_group()
                .map(|group| group.name()),
        }
    }
}

/// A connection whose peer has proven itself.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) secrets: Secrets,
    pub(crate) negotiated: Negotiated,
    /// The peer's chain.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// What the peer has said already.
    pub(crate) said: Vec<u8>,
    /// And records of it that are not opened yet.
    pub(crate) records: Vec<u8>,
}

/// Begins TLS as a client, by a configuration that lets secrets be extracted.
///
/// # Errors
/// What TLS complains of is inside, and of the kind [`io::ErrorKind::InvalidData`].
pub(crate) async fn connect(
    tcp: &mut TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<Established> {
    let tls = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    establish(tcp, tls).await
}

/// Begins TLS as a server, by a configuration that lets secrets be extracted.
///
/// # Errors
/// As of [`connect`].
pub(crate) async fn accept(
    tcp: &mut TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<Established> {
    let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
    establish(tcp, tls).await
}

/// One side of a handshake.
trait Handshake: Sized {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What both sides have.
    fn common(&self) -> &CommonState;

    fn finish(self) -> Result<(ExtractedSecrets, Secrets, SupportedCipherSuite), Error>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Secrets, SupportedCipherSuite), Error> {
        let (secrets, tls) = self.dangerous_into_kernel_connection()?;
        let suite = tls.negotiated_cipher_suite();
        Ok((secrets, Secrets::Client(tls), suite))
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Secrets, SupportedCipherSuite), Error> {
        let (secrets, tls) = self.dangerous_into_kernel_connection()?;
        let suite = tls.negotiated_cipher_suite();
        Ok((secrets, Secrets::Server(tls), suite))
    }
}

async fn establish<H: Handshake>(tcp: &mut TcpStream, mut tls: H) -> io::Result<Established> {
    let (mut records, mut outgoing, mut said) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process(&mut records);
        let mut done = false;
        let mut wanting = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut outgoing)?,
            Ok(ConnectionState::TransmitTlsData(data)) => {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
                data.done();
            }
            Ok(ConnectionState::ReadTraffic(mut data)) => {
                while let Some(record) = data.next_record() {
                    let record = record.map_err(invalid)?;
                    said.extend_from_slice(record.payload);
                    discard += record.discard;
                }
            }
            Ok(ConnectionState::BlockedHandshake) => wanting = true,
            Ok(ConnectionState::WriteTraffic(_)) => done = true,
            Ok(_) => return Err(ended()),
            Err(error) => {
                records.drain(..discard);
                complain(tcp, tls, records, outgoing);
                return Err(invalid(error));
            }
        }
        records.drain(..discard);
        if done {
            break;
        }
        if wanting {
            if records.len() > MOST {
                return Err(invalid(Error::PeerSentOversizedRecord));
            }
            records.reserve(super::MAX_RECORD);
            if tcp.read_buf(&mut records).await? == 0 {
                return Err(ended());
            }
        }
    }
    let certificates = tls.common().peer_certificates();
    let certificates = certificates.unwrap_or_default().to_vec();
    let negotiated = Negotiated::of(tls.common());
    let (secrets, next, suite) = tls.finish().map_err(invalid)?;
    Ok(Established {
        sealer: Sealer::new(secrets.tx, suite).map_err(invalid)?,
        opener: Opener::new(secrets.rx).map_err(invalid)?,
        secrets: next,
        negotiated,
        certificates,
        said,
        records,
    })
}

/// Tells the peer what is wrong with it, if that can be done at once.
fn complain<H: Handshake>(
    tcp: &TcpStream,
    mut tls: H,
    mut records: Vec<u8>,
    mut outgoing: Vec<u8>,
) {
    // Before anything else is looked at.
    while tls.common().wants_write()
        && let Ok(ConnectionState::EncodeTlsData(data)) = tls.process(&mut records).state
        && encode(data, &mut outgoing).is_ok()
    {}
    // The peer may be gone, and then needs no answer.
    let _ = tcp.try_write(&outgoing);
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let begin = outgoing.len();
    let written = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            outgoing.resize(begin + required_size, 0);
            data.encode(&mut outgoing[begin..])
        }
        other => other,
    };
    let written = written.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    outgoing.truncate(begin + written);
    Ok(())
}

pub(crate) fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed the connection within the handshake",
    )
}
