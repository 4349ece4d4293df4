//! What X.509 certificates say.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use sluice_model::SpiffeId;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
    time::ASN1Time,
};

use crate::Error;

/// The identity that a verified peer goes by: the first URI among its names that is one.
///
/// # Errors
/// When there is no certificate, it cannot be read, or it names no workload.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Error> {
    let leaf = chain
        .first()
        .ok_or_else(|| Error::PeerCertificate("there is none".to_owned()))?;
    let presented = uri_sans(leaf)?;
    presented
        .iter()
        .find_map(|uri| uri.parse().ok())
        .ok_or(Error::NoPeerIdentity { presented })
}

/// The URIs among a certificate's subject alternative names.
///
/// # Errors
/// When the certificate cannot be read.
pub fn uri_sans(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let unreadable = |reason: String| Error::PeerCertificate(reason);
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| unreadable(e.to_string()))?;
    uris(&parsed).map_err(unreadable)
}

fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| e.to_string())?;
    Ok(names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect())
}

/// A certificate as operators look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub pem: String,
    /// In decimal, as the contract for dumps has it (§13).
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Describes a certificate.
///
/// # Errors
/// When it cannot be read.
pub fn describe(certificate: &CertificateDer<'_>) -> Result<Description, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| Error::PeerCertificate(error.to_string()))?;
    let validity = parsed.validity();
    Ok(Description {
        pem: pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec())),
        serial: parsed.tbs_certificate.serial.to_string(),
        not_before: system_time(validity.not_before),
        not_after: system_time(validity.not_after),
    })
}

/// What rotation needs to know of our own certificate.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    /// The public key as a DER `SubjectPublicKeyInfo`.
    pub(crate) public_key: Vec<u8>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// In hexadecimal.
    pub(crate) serial: String,
}

impl Leaf {
    /// Reads a certificate. The error is a reason for people.
    pub(crate) fn parse(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
        let validity = parsed.validity();
        Ok(Self {
            uris: uris(&parsed)?,
            public_key: parsed.public_key().raw.to_vec(),
            not_before: system_time(validity.not_before),
            not_after: system_time(validity.not_after),
            serial: hex(parsed.raw_serial()),
        })
    }
}

/// As operators see serial numbers.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let text = String::with_capacity(2 * bytes.len());
    bytes
        .iter()
        .fold(text, |text, byte| text + &format!("{byte:02x}"))
}

/// Times before 1970 are as good as 1970: long past.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
