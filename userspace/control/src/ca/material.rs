//! What an authority signs with: a key, its certificate, the way to a root, and the roots.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{prelude::FromDer, prelude::X509Certificate, time::ASN1Time};

/// The names of the files, as Istio lays them out.
pub(super) const KEY: &str = "ca-key.pem";
pub(super) const SIGNER: &str = "ca-cert.pem";
pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const ROOTS: &str = "root-cert.pem";

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// The longest way from a signer to a root.
const MAX_CHAIN: usize = 8;

/// The content of the files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Texts {
    pub(super) key: String,
    pub(super) roots: String,
    /// Without one, a root signs.
    pub(super) signer: Option<String>,
    pub(super) chain: Option<String>,
}

/// What is wrong, and in which file.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) file: &'static str,
    pub(super) why: String,
}

/// A certificate, as it was found and decoded.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
}

/// A key that signs, and what leads from it to a root.
pub(super) struct Material {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// From the signer's certificate on, without the root: none when the root itself signs.
    pub(super) intermediates: Vec<Certificate>,
    /// Whom the mesh believes, in PEM.
    pub(super) roots: String,
    /// Nothing that it signs is valid for longer.
    pub(super) not_after: SystemTime,
    /// For operators.
    pub(super) subject: String,
}

impl Material {
    pub(super) fn new(texts: &Texts) -> Result<Self, Problem> {
        let key = key(&texts.key).map_err(in_file(KEY))?;
        let roots = certificates(&texts.roots).map_err(in_file(ROOTS))?;
        for root in &roots {
            is_authority(&root.x509().map_err(in_file(ROOTS))?).map_err(in_file(ROOTS))?;
        }
        let (signer, mut others) = signer(texts, &key, &roots)?;
        if let Some(chain) = &texts.chain {
            others.extend(certificates(chain).map_err(in_file(CHAIN))?);
        }
        let (intermediates, root) = path(&signer, &others, &roots)?;
        let mut not_after = u64::MAX;
        for (certificate, file) in intermediates
            .iter()
            .map(|c| (c, if *c == signer { SIGNER } else { CHAIN }))
            .chain([(&root, ROOTS)])
        {
            let end = check(certificate).map_err(in_file(file))?;
            not_after = not_after.min(end);
        }
        let subject = signer
            .x509()
            .map_err(in_file(SIGNER))?
            .subject()
            .to_string();
        let issuer = Issuer::from_ca_cert_der(&signer.der, key)
            .map_err(|error| in_file(SIGNER)(error.to_string()))?;
        let pems: Vec<&str> = roots.iter().map(|root| &*root.pem).collect();
        Ok(Self {
            issuer,
            intermediates,
            roots: pems.concat(),
            not_after: UNIX_EPOCH + Duration::from_secs(not_after),
            subject,
        })
    }

    pub(super) fn roots_count(&self) -> usize {
        self.roots.matches(BEGIN).count()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.roots == other.roots
            && self.intermediates == other.intermediates
            && self.issuer.key().public_key_raw() == other.issuer.key().public_key_raw()
    }
}

fn in_file(file: &'static str) -> impl Fn(String) -> Problem {
    move |why| Problem { file, why }
}

pub(super) fn key(pem: &str) -> Result<KeyPair, String> {
    let bad =
        |error: &dyn std::fmt::Display| format!("it holds no private key to sign with: {error}");
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(&error))?;
    KeyPair::try_from(&key).map_err(|error| bad(&error))
}

/// All certificates of a PEM text, at least one.
pub(super) fn certificates(text: &str) -> Result<Vec<Certificate>, String> {
    let mut found = Vec::new();
    for part in text.split_inclusive(END) {
        let Some(begin) = part.find(BEGIN) else {
            continue;
        };
        let pem = format!("{}\n", &part[begin..]);
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("certificate {} (from 0) is broken: {error}", found.len()))?;
        found.push(Certificate { pem, der });
    }
    if found.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(found)
}

impl Certificate {
    pub(super) fn x509(&self) -> Result<X509Certificate<'_>, String> {
        X509Certificate::from_der(&self.der)
            .map(|(_, certificate)| certificate)
            .map_err(|error| format!("it holds something that is no certificate: {error}"))
    }

    pub(super) fn belongs_to(&self, key: &KeyPair) -> bool {
        self.x509()
            .is_ok_and(|found| found.public_key().raw == key.subject_public_key_info())
    }

    fn is_signed_by(&self, issuer: &Self) -> bool {
        let (Ok(subject), Ok(issuer)) = (self.x509(), issuer.x509()) else {
            return false;
        };
        subject.issuer() == issuer.subject()
            && subject.verify_signature(Some(issuer.public_key())).is_ok()
    }
}

/// The certificate that belongs to the key, and what was found beside it.
fn signer(
    texts: &Texts,
    key: &KeyPair,
    roots: &[Certificate],
) -> Result<(Certificate, Vec<Certificate>), Problem> {
    let Some(text) = &texts.signer else {
        let root = roots.iter().find(|root| root.belongs_to(key)).cloned();
        let none = || format!("no certificate in it belongs to {KEY}");
        return Ok((root.ok_or_else(|| in_file(ROOTS)(none()))?, Vec::new()));
    };
    let mut all = certificates(text).map_err(in_file(SIGNER))?;
    let signer = all.remove(0);
    if !signer.belongs_to(key) {
        return Err(in_file(SIGNER)(format!("it does not belong to {KEY}")));
    }
    Ok((signer, all))
}

/// The intermediates from the signer on, and the root that they lead to.
fn path(
    signer: &Certificate,
    others: &[Certificate],
    roots: &[Certificate],
) -> Result<(Vec<Certificate>, Certificate), Problem> {
    if let Some(root) = roots.iter().find(|root| *root == signer) {
        return Ok((Vec::new(), root.clone()));
    }
    let mut path = vec![signer.clone()];
    while path.len() <= MAX_CHAIN {
        let last = &path[path.len() - 1];
        if let Some(root) = roots.iter().find(|root| last.is_signed_by(root)) {
            let root = root.clone();
            return Ok((path, root));
        }
        let next = others
            .iter()
            .find(|other| last.is_signed_by(other) && !path.contains(other));
        let Some(next) = next.cloned() else { break };
        path.push(next);
    }
    let last = &path[path.len() - 1];
    let file = if path.len() == 1 { SIGNER } else { CHAIN };
    let issuer = last.x509().map_err(in_file(file))?.issuer().to_string();
    Err(in_file(file)(format!(
        "it does not lead to a root: the certificate of {issuer} is missing in {ROOTS}, or in {CHAIN} \
         if it is none"
    )))
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<(), String> {
    let signs = certificate.key_usage().ok().flatten();
    if !certificate.is_ca() || signs.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(format!(
            "{} is not the certificate of an authority",
            certificate.subject()
        ));
    }
    Ok(())
}

/// The end of a certificate's validity in seconds since 1970, or why it cannot sign.
fn check(certificate: &Certificate) -> Result<u64, String> {
    let certificate = certificate.x509()?;
    is_authority(&certificate)?;
    let (now, validity) = (ASN1Time::now(), certificate.validity());
    let subject = certificate.subject();
    if now < validity.not_before {
        let from = validity.not_before;
        return Err(format!("{subject} is not valid yet, but from {from} on"));
    }
    if now >= validity.not_after {
        return Err(format!("{subject} has expired on {}", validity.not_after));
    }
    Ok(u64::try_from(validity.not_after.timestamp()).unwrap_or(0))
}
