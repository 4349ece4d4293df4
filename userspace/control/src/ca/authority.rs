//! Signs what workloads and the control plane itself present.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use sluice_model::{SpiffeId, TrustDomain};

use super::root::{self, BACKDATE};
use crate::Error;

/// The longest validity of a workload's certificate, and the usual one.
const MAX_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// The validity of the control plane's own certificate.
const SERVER_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// An uncompressed point on P-256 (SEC 1 §2.3.3).
const P256_POINT: usize = 65;

/// The certificate authority of one trust domain.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    not_after: SystemTime,
    trust_domain: TrustDomain,
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
    /// Opens the authority whose key and root certificate are in `directory`, or makes both.
    ///
    /// # Errors
    /// When the directory cannot be used, or what is in it does not make an authority.
    pub fn open(directory: &Path, trust_domain: TrustDomain) -> Result<Self, Error> {
        let root = root::open(directory, &trust_domain)?;
        let issuer =
            Issuer::from_ca_cert_pem(&root.pem, root.key).map_err(|error| Error::Root {
                path: directory.to_owned(),
                why: error.to_string(),
            })?;
        Ok(Self {
            issuer,
            root_pem: root.pem,
            not_after: UNIX_EPOCH + Duration::from_secs(root.not_after),
            trust_domain,
        })
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs a workload's CSR for an identity, whatever names the CSR itself asks for. Returns the
    /// chain as PEM, leaf first and root last. A validity of zero means the usual one; none is
    /// longer than 24 hours.
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
        let mut params = self.leaf(validity);
        let uri = Ia5String::try_from(identity.to_string())?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(vec![leaf.pem(), self.root_pem.clone()])
    }

    /// A fresh key and certificate for the control plane itself.
    ///
    /// # Errors
    /// When cryptography fails.
    pub fn server_certificate(&self, names: &[ServerName]) -> Result<ServerCertificate, Error> {
        let failed =
            |error: rcgen::Error| Error::crypto("sign the server certificate")(error.into());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = self.leaf(SERVER_VALIDITY);
        for name in names {
            params.subject_alt_names.push(match name {
                ServerName::Ip(ip) => SanType::IpAddress(*ip),
                ServerName::Dns(name) => {
                    SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(failed)?)
                }
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let root = CertificateDer::from_pem_slice(self.root_pem.as_bytes())
            .map_err(|error| Error::crypto("read the root certificate")(error.into()))?;
        Ok(ServerCertificate {
            chain: vec![leaf.der().clone(), root],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            renew_after: SERVER_VALIDITY / 2,
        })
    }

    /// What all leaves have in common.
    fn leaf(&self, validity: Duration) -> CertificateParams {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + validity).min(self.not_after).into();
        params.serial_number = Some(serial());
        // The subject is empty, so the names are critical (RFC 5280 §4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
    }
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

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
