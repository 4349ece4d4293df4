//! Signs what workloads and the control plane itself present.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sluice_model::{SpiffeId, TrustDomain};
use tokio::{sync::watch, time};

use super::{
    material::Material,
    own::{BACKDATE, Own, Rotation, Signers},
    supplied::Supplied,
};
use crate::Error;

/// The longest validity of a workload's certificate, and the usual one.
const MAX_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// The validity of the control plane's own certificate.
const SERVER_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// An uncompressed point on P-256 (SEC 1 §2.3.3).
pub(super) const P256_POINT: usize = 65;

/// How often the files of the authority are looked at.
const TICK: Duration = Duration::from_secs(1);

/// The certificate authority of one trust domain.
pub struct Authority {
    signers: ArcSwap<Signers>,
    files: Mutex<Files>,
    changed: watch::Sender<()>,
    trust_domain: TrustDomain,
}

/// Where an authority comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A root of its own in a state directory; made on the first start.
    Own {
        directory: PathBuf,
        rotation: Rotation,
    },
    /// The operator's, in a directory with `ca-key.pem`, `ca-cert.pem`, `cert-chain.pem` and
    /// `root-cert.pem`. Without `ca-cert.pem`, the root itself signs.
    Supplied(PathBuf),
}

enum Files {
    Own(Own),
    Supplied(Supplied),
}

impl Files {
    fn advance(&mut self) -> Result<Signers, Error> {
        match self {
            Self::Own(own) => own.advance(),
            Self::Supplied(supplied) => supplied.advance(),
        }
    }
}

/// A request for a certificate that cannot be granted, for a reason that its sender may know.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The sender's fault.
    #[error("the CSR is not usable: {0}")]
    Csr(String),
    /// The sender's fault.
    #[error("the CSR's key is not ECDSA P-256")]
    Key,
    /// The operator's fault.
    #[error("the authority's own certificate has expired")]
    Expired,
    /// Ours, or the host's.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// What the control plane presents to its clients.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// When it should be replaced.
    pub renew_after: Duration,
}

/// A name under which clients reach the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Dns(String),
    Ip(IpAddr),
}

impl FromStr for ServerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        rustls_pki_types::DnsName::try_from(text)
            .map(|_| Self::Dns(text.to_owned()))
            .map_err(|_| Error::ServerName {
                name: text.to_owned(),
            })
    }
}

impl Authority {
    /// Opens an authority.
    ///
    /// # Errors
    /// When the files cannot be used, or do not make an authority.
    pub fn open(source: Source, trust_domain: TrustDomain) -> Result<Self, Error> {
        let mut files = match source {
            Source::Own {
                directory,
                rotation,
            } => Files::Own(Own::open(&directory, trust_domain.clone(), rotation)?),
            Source::Supplied(directory) => Files::Supplied(Supplied::open(&directory)?),
        };
        let signers = files.advance()?;
        tracing::info!(issuer = signers.workloads.subject, "certificate authority");
        Ok(Self {
            signers: ArcSwap::from_pointee(signers),
            files: Mutex::new(files),
            changed: watch::Sender::new(()),
            trust_domain,
        })
    }

    /// Follows the files; what signs is replaced when they change.
    pub async fn follow(&self) {
        let mut complaint = None;
        loop {
            time::sleep(TICK).await;
            let error = self.refresh().err().map(|error| chain(&error));
            if let Some(error) = error
                .as_ref()
                .filter(|new| Some(*new) != complaint.as_ref())
            {
                tracing::error!(error, "the certificate authority stays as it was");
            }
            complaint = error;
        }
    }

    /// Looks at the files once.
    ///
    /// # Errors
    /// When they cannot be used; the authority stays as it was then.
    pub fn refresh(&self) -> Result<(), Error> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let (new, old) = (files.advance()?, self.signers.load());
        if new.is_same(&old) {
            return Ok(());
        }
        let (issuer, roots) = (&new.workloads.subject, new.workloads.roots_count());
        tracing::info!(issuer, roots, "the certificate authority has changed");
        self.signers.store(Arc::new(new));
        self.changed.send_replace(());
        Ok(())
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The root certificates that the mesh believes, PEM.
    pub fn roots_pem(&self) -> String {
        self.signers.load().workloads.roots.clone()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs a workload's CSR for an identity, whatever names the CSR itself asks for. Returns the
    /// chain as PEM: the leaf, the intermediates, and last the roots. A validity of zero means the
    /// usual one; none is longer than 24 hours, or than the authority's own.
    ///
    /// # Errors
    /// When the CSR is not PKCS #10, not signed by its own key, or for a key of another kind.
    pub fn sign(
        &self,
        csr: &str,
        identity: &SpiffeId,
        validity: Duration,
    ) -> Result<Vec<String>, SignError> {
        // This verifies the CSR's signature, by which the sender proves to hold the key.
        let csr = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| SignError::Csr(error.to_string()))?;
        let key = &csr.public_key;
        let p256 = *key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256;
        if !p256 || key.der_bytes().len() != P256_POINT {
            return Err(SignError::Key);
        }
        let validity = if validity.is_zero() {
            MAX_VALIDITY
        } else {
            validity.min(MAX_VALIDITY)
        };
        let signers = self.signers.load();
        let material = &signers.workloads;
        if material.not_after <= SystemTime::now() {
            return Err(SignError::Expired);
        }
        let mut params = leaf(material, validity);
        let uri = Ia5String::try_from(identity.to_string())?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(key, &material.issuer)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(material.intermediates.iter().map(|c| c.pem.clone()));
        chain.push(material.roots.clone());
        Ok(chain)
    }

    /// A fresh key and certificate for the control plane itself.
    ///
    /// # Errors
    /// When cryptography fails.
    pub fn server_certificate(&self, names: &[ServerName]) -> Result<ServerCertificate, Error> {
        let failed =
            |error: rcgen::Error| Error::crypto("sign the server certificate")(error.into());
        let key = KeyPair::generate().map_err(failed)?;
        let signers = self.signers.load();
        let material = &signers.server;
        let mut params = leaf(material, SERVER_VALIDITY);
        for name in names {
            params.subject_alt_names.push(match name {
                ServerName::Ip(ip) => SanType::IpAddress(*ip),
                ServerName::Dns(name) => {
                    SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(failed)?)
                }
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &material.issuer).map_err(failed)?;
        let intermediates = material.intermediates.iter().map(|c| c.der.clone());
        let left = material.not_after.duration_since(SystemTime::now());
        Ok(ServerCertificate {
            chain: std::iter::once(leaf.der().clone())
                .chain(intermediates)
                .collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            renew_after: SERVER_VALIDITY.min(left.unwrap_or_default()) / 2,
        })
    }
}

/// What all leaves have in common.
fn leaf(material: &Material, validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).min(material.not_after).into();
    params.serial_number = Some(serial());
    // The subject is empty, so the names are critical (RFC 5280 §4.1.2.6).
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// A serial number that nobody can guess, positive and never zero (RFC 5280 §4.1.2.2).
pub(super) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}
