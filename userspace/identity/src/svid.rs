//! A certificate with its key, and the TLS configurations that follow from it.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    server::{NoServerSessionStorage, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sluice_model::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use crate::{
    Error, Trust,
    certificate::{self, Leaf},
    crypto::provider,
    verify::{self, ExpectPeer, RequirePeer},
};

/// The application protocol of tunnels.
const ALPN_H2: &[u8] = b"h2";

/// A private key, wiped when it is dropped.
type Key = Zeroizing<PrivateKeyDer<'static>>;

/// What an SVID is made of, to be handed to another process.
pub struct SvidParts {
    pub identity: SpiffeId,
    /// The certificate, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Key,
    /// The trust anchors in force.
    pub roots: Vec<CertificateDer<'static>>,
}

impl SvidParts {
    /// Parts in DER; `None` when the key is none. Whether they belong together is seen when they are
    /// used.
    pub fn from_der(
        identity: SpiffeId,
        chain: &[&[u8]],
        key: &[u8],
        roots: &[&[u8]],
    ) -> Option<Self> {
        let key = PrivateKeyDer::try_from(key).ok()?;
        let own = |list: &[&[u8]]| list.iter().map(|der| der.to_vec().into()).collect();
        Some(Self {
            identity,
            chain: own(chain),
            key: Zeroizing::new(key.clone_key()),
            roots: own(roots),
        })
    }
}

/// An identity, proven: certificate chain, private key and trust anchors.
pub struct Svid {
    identity: SpiffeId,
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    key: Key,
    trust: Trust,
    resolver: Arc<SingleCertAndKey>,
    server: Arc<ServerConfig>,
    /// Expects nobody; copied for each set of expected peers.
    client: ClientConfig,
}

impl Svid {
    /// Puts an identity together. The chain begins with the leaf and does not hold the root.
    ///
    /// # Errors
    /// When the leaf cannot be read, or does not belong to the key.
    pub fn new(
        identity: SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        trust: Trust,
    ) -> Result<Self, Error> {
        let tls = |source| Error::Tls {
            identity: identity.clone(),
            source,
        };
        let leaf = chain
            .first()
            .ok_or_else(|| Error::PeerCertificate("there is none".to_owned()))
            .and_then(|leaf| Leaf::parse(leaf).map_err(Error::PeerCertificate))?;
        let signing = provider().key_provider.load_private_key(key.clone_key());
        let certified = CertifiedKey::new(chain.clone(), signing.map_err(tls)?);
        certified.keys_match().map_err(tls)?;
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let own: Arc<[TrustDomain]> = Arc::new([identity.trust_domain().clone()]);
        let server = server_config(own, &trust, resolver.clone()).map_err(tls)?;
        let client = client_config(&trust, resolver.clone()).map_err(tls)?;
        Ok(Self {
            identity,
            leaf,
            chain,
            key: Zeroizing::new(key.clone_key()),
            trust,
            resolver,
            server: Arc::new(server),
            client,
        })
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The certificate, then its intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The certificate's serial number in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// Whom it believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether peers that believe whom we believe may still accept it.
    pub fn is_vouched_for(&self) -> bool {
        let (Some(roots), [leaf, intermediates @ ..]) = (self.trust.roots(), &*self.chain) else {
            return false;
        };
        // One that has expired, or is about to become valid, is not what this is about.
        let when = SystemTime::now().min(self.leaf.not_after);
        let when = certificate::since_1970(when.max(self.leaf.not_before));
        let when = UnixTime::since_unix_epoch(when);
        verify::chain(leaf, intermediates, &roots, when).is_ok()
            && self.trust.lists().find(self.chain.iter(), &roots).is_none()
    }

    pub fn is_expired(&self) -> bool {
        SystemTime::now() >= self.leaf.not_after
    }

    pub(crate) fn parts(&self) -> SvidParts {
        SvidParts {
            identity: self.identity.clone(),
            chain: self.chain.clone(),
            key: Zeroizing::new(self.key.clone_key()),
            roots: (self.trust.roots()).map_or_else(Vec::new, |r| r.certificates().to_vec()),
        }
    }

    /// For connections that come in: TLS 1.3, and a client must prove an identity of the own trust
    /// domain.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// As [`Svid::server_config`], but for clients of any of these trust domains; of the own one if
    /// there are none.
    ///
    /// # Errors
    /// When the TLS library refuses the configuration.
    pub fn server_config_accepting(
        &self,
        domains: Arc<[TrustDomain]>,
    ) -> Result<Arc<ServerConfig>, Error> {
        if domains.is_empty() {
            return Ok(self.server_config());
        }
        let config = server_config(domains, &self.trust, self.resolver.clone());
        config.map(Arc::new).map_err(|source| Error::Tls {
            identity: self.identity.clone(),
            source,
        })
    }

    /// For connections that go out: TLS 1.3 without a server name, accepting only a server that
    /// proves one of the expected identities.
    pub fn client_config(&self, expected: impl Into<Arc<[SpiffeId]>>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let verifier = Arc::new(ExpectPeer {
            trust: self.trust.clone(),
            expected: expected.into(),
        });
        config.dangerous().set_certificate_verifier(verifier);
        Arc::new(config)
    }
}

fn server_config(
    accepted: Arc<[TrustDomain]>,
    trust: &Trust,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = Arc::new(RequirePeer {
        trust: trust.clone(),
        accepted,
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would skip the verification of a peer that has been revoked since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Tunnels seal and open their records themselves.
    config.enable_secret_extraction = true;
    Ok(config)
}

fn client_config(
    trust: &Trust,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    let nobody = Arc::new(ExpectPeer {
        trust: trust.clone(),
        expected: Arc::new([]),
    });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(nobody)
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    // Tunnels seal and open their records themselves.
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Never the key.
impl fmt::Debug for SvidParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidParts")
            .field("identity", &self.identity.to_string())
            .finish_non_exhaustive()
    }
}

/// Never the key.
impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity.to_string())
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}
