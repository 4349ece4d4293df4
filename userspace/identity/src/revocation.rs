//! Certificate revocation lists (RFC 5280 §5).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::SystemTime,
};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject as _};
use x509_parser::{
    extensions::ParsedExtension,
    oid_registry::OID_X509_EXT_DELTA_CRL_INDICATOR,
    prelude::{CertificateRevocationList, FromDer as _, X509Certificate},
};

use crate::{Error, Roots, certificate};

const PEM: &[u8] = b"-----BEGIN X509 CRL-----";

/// What certificate authorities have revoked. Empty by default: nothing is revoked.
///
/// A list counts for the certificates of the key that has signed it. What no list tells about is
/// not revoked: the status of a certificate may be unknown (wire contract §4).
#[derive(Default)]
pub struct RevocationLists {
    /// By the issuer's name in DER. Authorities may share a name, as the old and the new one of a
    /// rotation often do.
    by_issuer: HashMap<Box<[u8]>, Vec<List>>,
    count: usize,
    due: Option<Due>,
}

struct List {
    der: Box<[u8]>,
    serials: HashSet<Box<[u8]>>,
}

/// When a list is to be replaced by its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub at: SystemTime,
    pub issuer: String,
}

/// A certificate that its issuer has revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revoked {
    /// The certificate's serial number in hexadecimal.
    pub serial: String,
    pub issuer: String,
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "certificate {} is revoked by {}",
            self.serial, self.issuer
        )
    }
}

impl RevocationLists {
    /// All lists of a file: one or several, in PEM or in DER.
    ///
    /// # Errors
    /// When there is none, or one cannot be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut lists = Self::default();
        if bytes.windows(PEM.len()).any(|window| window == PEM) {
            for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
                let list = list.map_err(|error| lists.bad(error))?;
                let rest = lists.add(&list)?;
                if !rest.is_empty() {
                    return Err(lists.bad("it does not end where it should"));
                }
            }
        } else {
            let mut rest = bytes;
            while !rest.is_empty() {
                rest = lists.add(rest)?;
            }
        }
        if lists.count == 0 {
            return Err(Error::NoRevocationLists);
        }
        Ok(lists)
    }

    /// Adds the list at the beginning, and returns what follows it.
    fn add<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let (rest, list) =
            CertificateRevocationList::from_der(bytes).map_err(|error| self.bad(error))?;
        for extension in list.extensions() {
            let indirect = match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(point) => point.indirect_crl,
                _ => false,
            };
            if indirect || extension.oid == OID_X509_EXT_DELTA_CRL_INDICATOR {
                return Err(self.bad("only whole lists of the issuer's own certificates are read"));
            }
        }
        let next = list.next_update().map(certificate::system_time);
        if let Some(at) = next.filter(|next| self.due.as_ref().is_none_or(|due| *next < due.at)) {
            let issuer = list.issuer().to_string();
            self.due = Some(Due { at, issuer });
        }
        let issuer = list.issuer().as_raw().into();
        let serials = list.iter_revoked_certificates();
        let list = List {
            der: bytes[..bytes.len() - rest.len()].into(),
            serials: serials.map(|revoked| revoked.raw_serial().into()).collect(),
        };
        self.by_issuer.entry(issuer).or_default().push(list);
        self.count += 1;
        Ok(rest)
    }

    fn bad(&self, reason: impl fmt::Display) -> Error {
        Error::BadRevocationList {
            index: self.count,
            reason: reason.to_string(),
        }
    }

    /// When the first of them is to be replaced, if one says so.
    pub fn due(&self) -> Option<&Due> {
        self.due.as_ref()
    }

    /// How many certificates they name.
    pub fn revoked(&self) -> usize {
        let lists = self.by_issuer.values().flatten();
        lists.map(|list| list.serials.len()).sum()
    }

    /// The first certificate of a chain that is revoked, be it the leaf or an intermediate. The
    /// chain has been verified, so the issuers are in it or among the roots.
    pub(crate) fn find<'a>(
        &self,
        mut chain: impl Iterator<Item = &'a CertificateDer<'a>> + Clone,
        roots: &'a Roots,
    ) -> Option<Revoked> {
        if self.by_issuer.is_empty() {
            return None;
        }
        let issuers = chain.clone().chain(roots.certificates());
        chain.find_map(|certificate| self.check(certificate, issuers.clone()))
    }

    fn check<'a>(
        &self,
        certificate: &CertificateDer<'_>,
        issuers: impl Iterator<Item = &'a CertificateDer<'a>> + Clone,
    ) -> Option<Revoked> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let lists = self.by_issuer.get(certificate.issuer().as_raw())?;
        let serial = certificate.raw_serial();
        // Signatures are verified of lists that make a difference only.
        let mut naming = lists.iter().filter(|list| list.serials.contains(serial));
        let revoked = naming.any(|list| issuers.clone().any(|issuer| list.is_signed_by(issuer)));
        revoked.then(|| Revoked {
            serial: certificate::hex(serial),
            issuer: certificate.issuer().to_string(),
        })
    }
}

impl List {
    fn is_signed_by(&self, issuer: &CertificateDer<'_>) -> bool {
        let (Ok((_, list)), Ok((_, issuer))) = (
            CertificateRevocationList::from_der(&self.der),
            X509Certificate::from_der(issuer),
        ) else {
            return false;
        };
        issuer.subject().as_raw() == list.issuer().as_raw()
            && list.verify_signature(issuer.public_key()).is_ok()
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationLists({})", self.count)
    }
}
