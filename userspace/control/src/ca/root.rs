//! The root key and certificate, kept in the state directory.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use sluice_model::TrustDomain;

use crate::{Error, state};

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "root-cert.pem";
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far a peer's clock may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);

/// The root of trust.
pub(super) struct Root {
    pub(super) key: KeyPair,
    pub(super) pem: String,
    /// Seconds since 1970 after which nothing that it signed is valid.
    pub(super) not_after: u64,
}

/// Loads the root, or makes one if there is none.
pub(super) fn open(directory: &Path, trust_domain: &TrustDomain) -> Result<Root, Error> {
    // Anyone may look for the certificate; the key protects itself by its mode.
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    let (key_path, pem_path) = (directory.join(KEY), directory.join(CERTIFICATE));
    let key = match read(&key_path)? {
        Some(text) => KeyPair::from_pem(&text).map_err(|error| Error::Root {
            path: key_path.clone(),
            why: error.to_string(),
        })?,
        None if pem_path.exists() => {
            return Err(Error::Root {
                path: pem_path,
                why: format!("its key, {}, is missing", key_path.display()),
            });
        }
        None => {
            let key = KeyPair::generate().map_err(crypto("make the root key"))?;
            write(directory, KEY, 0o600, &key.serialize_pem())?;
            key
        }
    };
    // A crash may have come between the two files.
    let pem = match read(&pem_path)? {
        Some(text) => text,
        None => {
            let pem = self_signed(&key, trust_domain)?;
            write(directory, CERTIFICATE, 0o644, &pem)?;
            tracing::info!(path = %pem_path.display(), "made a new root certificate");
            pem
        }
    };
    let not_after = check(&key, &pem).map_err(|why| Error::Root {
        path: pem_path,
        why,
    })?;
    Ok(Root {
        key,
        pem,
        not_after,
    })
}

fn crypto(action: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::crypto(action)(error.into())
}

fn self_signed(key: &KeyPair, trust_domain: &TrustDomain) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
    params.serial_number = Some(super::authority::serial());
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain.as_str());
    params
        .distinguished_name
        .push(DnType::CommonName, "Sluice root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params
        .self_signed(key)
        .map_err(crypto("sign the root certificate"))?;
    Ok(certificate.pem())
}

/// The end of the root's validity, or why it cannot be used.
fn check(key: &KeyPair, pem: &str) -> Result<u64, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    let certificate = pem.parse_x509().map_err(|e| e.to_string())?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(format!("it does not belong to {KEY}"));
    }
    if !certificate.is_ca() {
        return Err("it is not the certificate of an authority".to_owned());
    }
    if !certificate.validity().is_valid() {
        return Err(format!(
            "it is not valid now ({})",
            certificate.validity().not_after
        ));
    }
    Ok(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    state::read(path).map_err(Error::file("read", path))
}

fn write(directory: &Path, name: &str, mode: u32, text: &str) -> Result<(), Error> {
    state::write(directory, name, mode, text).map_err(Error::file("write", directory.join(name)))
}
