//! Certificates for Envoy and for its clients, from an authority that both trust.

use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::aws_lc_rs};
use rustls_pki_types::PrivateKeyDer;
use sluice_model::SpiffeId;

/// What Envoy's certificate calls it.
pub(crate) const SERVER: &str = "envoy.test";

/// A root certificate and its key.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    /// Of every certificate: here nobody needs one of their own.
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "the oracle's root");
        Ok(Self {
            root: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            key: KeyPair::generate()?,
        })
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn server_pem(&self) -> Result<String> {
        let name = SanType::DnsName(SERVER.try_into()?);
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        Ok(self.issue(vec![name], usage)?.pem())
    }

    /// TLS of a client that is known by these names.
    pub(crate) fn client(&self, names: &[SpiffeId]) -> Result<Arc<ClientConfig>> {
        let uris = names.iter().map(|name| name.to_string().try_into());
        let uris = uris.map(|uri| Ok(SanType::URI(uri?)));
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let certificate = self.issue(uris.collect::<Result<_>>()?, usage)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(self.key.serialize_der().into()),
            )?;
        // Every connection proves its identity.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn issue(&self, names: Vec<SanType>, usage: ExtendedKeyUsagePurpose) -> Result<Certificate> {
        let mut params = CertificateParams::default();
        // Envoy's matchers look at the subject as well.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        Ok(params.signed_by(&self.key, &self.root)?)
    }
}
