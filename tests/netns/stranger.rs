//! Clients of our own making: they speak to a pod's tunnel port as they please, with whatever
//! certificate they like, from any network namespace.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode, Version};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sluice_tests::netns::Netns;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a peer may take to do what it has to do, its own time limits included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a client inside a network namespace, on a thread and a runtime of its own.
pub(crate) fn inside<T: Send>(
    netns: &Netns,
    client: impl AsyncFnOnce() -> Result<T> + Send,
) -> Result<T> {
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        runtime.block_on(async {
            let all = timeout(2 * PATIENCE, client()).await;
            all.context("the client hangs")?
        })
    })?
}

/// A certificate authority: the mesh's own, or one that nobody knows.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Credentials {
    certificate: rcgen::Certificate,
    key: KeyPair,
    serial: Vec<u8>,
}

impl Credentials {
    pub(crate) fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The certificate's serial number in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        let digits = self.serial.iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl Authority {
    /// With the key that the control plane keeps in its state directory.
    pub(crate) fn of_mesh(state: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        Ok(Self(Issuer::from_ca_cert_pem(
            &read("root-cert.pem")?,
            key,
        )?))
    }

    /// Another with the same name as `like`, which signs with a key of its own.
    pub(crate) fn impostor(state: &Path) -> Result<Self> {
        let pem = fs::read(state.join("root-cert.pem"))?;
        let root = CertificateDer::from_pem_slice(&pem)?;
        Ok(Self(Issuer::from_ca_cert_der(&root, KeyPair::generate()?)?))
    }

    /// One that nobody knows.
    pub(crate) fn foreign() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "nobody's root");
        Ok(Self(Issuer::new(params, KeyPair::generate()?)))
    }

    /// A certificate with this name as URI, valid for an hour from now on.
    pub(crate) fn issue(&self, uri: &str) -> Result<Credentials> {
        self.issue_with(vec![SanType::URI(uri.try_into()?)], |_| {})
    }

    /// A list that revokes the certificates of these serial numbers, in PEM.
    pub(crate) fn revoke(&self, serials: &[&str]) -> Result<String> {
        let now = SystemTime::now();
        let revoked = |serial: &&str| {
            let digits = (0..serial.len()).step_by(2);
            let bytes: Result<Vec<u8>, _> = digits
                .map(|at| u8::from_str_radix(&serial[at..at + 2], 16))
                .collect();
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes?),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.0)?.pem()?)
    }

    /// A certificate with these names, and otherwise as `change` wants it.
    pub(crate) fn issue_with(
        &self,
        names: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Positive and without zeros in front (RFC 5280 §4.1.2.2).
        let mut serial = key.public_key_raw()[1..17].to_vec();
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Credentials {
            certificate,
            key,
            serial,
        })
    }
}

/// Accepts whatever server answers.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Begins TLS; a server that wants another client says so with the first bytes that are read.
pub(crate) async fn tls(
    address: SocketAddr,
    credentials: Option<&Credentials>,
    protocols: &[&str],
) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::Pkcs8(own.key.serialize_der().into());
            builder.with_client_auth_cert(vec![own.certificate.der().clone()], key)?
        }
    };
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let tcp = TcpStream::connect(address).await.context("connecting")?;
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let stream = timeout(PATIENCE, handshake)
        .await
        .context("no TLS session in time")?;
    Ok(stream?)
}

/// An HTTP/2 session with a pod's tunnel port.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) requests: SendRequest<Bytes>,
    /// What the server presented.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// A stream whose request was answered; nothing is said in it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) receive: RecvStream,
    _send: SendStream<Bytes>,
}

impl Tunnel {
    pub(crate) async fn open(address: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let stream = tls(address, Some(credentials), &["h2"]).await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates: Vec<_> = certificates
            .iter()
            .map(|c| c.clone().into_owned())
            .collect();
        let (requests, connection) = h2::client::Builder::new()
            .initial_max_send_streams(1000)
            // By this h2 also measures how much it puts up with, of many small frames.
            .initial_connection_window_size(16 << 20)
            .handshake(stream)
            .await?;
        // Its end is seen by the requests.
        tokio::spawn(connection);
        Ok(Self {
            requests,
            certificates,
        })
    }

    /// Sends a request whose headers are all there is to it, and waits for the answer's.
    pub(crate) async fn ask(&self, request: Request<()>) -> Result<(StatusCode, Stream)> {
        let mut requests = self.requests.clone().ready().await?;
        let (answer, _send) = requests.send_request(request, false)?;
        let answer = timeout(PATIENCE, answer).await.context("no answer")??;
        let status = answer.status();
        let receive = answer.into_body();
        Ok((status, Stream { receive, _send }))
    }

    /// Asks for a stream to `authority`.
    pub(crate) async fn connect(&self, authority: &str) -> Result<(StatusCode, Stream)> {
        self.ask(connect(authority)?).await
    }

    /// A stream to `authority`, which is a server that speaks first; returns what it says.
    pub(crate) async fn greeting(&self, authority: &str) -> Result<String> {
        let (status, mut stream) = self.connect(authority).await?;
        ensure!(status == StatusCode::OK, "{authority}: {status}");
        let data = timeout(PATIENCE, stream.receive.data()).await;
        let data = data
            .context("no greeting")?
            .context("no greeting, but the end")??;
        Ok(String::from_utf8_lossy(&data).trim_end().to_owned())
    }
}

/// A CONNECT request.
pub(crate) fn connect(authority: &str) -> Result<Request<()>> {
    Ok(Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(authority)
        .body(())?)
}
