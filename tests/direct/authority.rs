//! A CA of the tests' own.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use sluice_identity::{Roots, Svid, Trust};
use sluice_model::SpiffeId;

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A root certificate and its key.
pub(crate) struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        // Anchors are told apart by their names.
        let name = format!("root {:x?}", &key.public_key_raw()[1..9]);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(Roots::new(vec![self.0.der().clone()]).unwrap())
    }

    /// An identity of this root that trusts this root.
    pub(crate) fn svid(&self, identity: &str) -> Arc<Svid> {
        self.svid_trusting(identity, self.trust())
    }

    pub(crate) fn svid_trusting(&self, identity: &str, trust: Trust) -> Arc<Svid> {
        self.svid_with(&id(identity), &[identity], trust)
    }

    /// An identity whose certificate names these URIs.
    pub(crate) fn svid_with(&self, identity: &SpiffeId, uris: &[&str], trust: Trust) -> Arc<Svid> {
        self.svid_valid_for(Duration::from_secs(3600), identity, uris, trust)
    }

    pub(crate) fn svid_valid_for(
        &self,
        validity: Duration,
        identity: &SpiffeId,
        uris: &[&str],
        trust: Trust,
    ) -> Arc<Svid> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
        params.subject_alt_names = uris.iter().map(uri).collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + validity).into();
        let leaf = params.signed_by(&key, &self.0).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Arc::new(Svid::new(identity.clone(), vec![leaf], &key, trust).unwrap())
    }
}
