//! A CA in this process, which can be told to misbehave.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use sluice_identity::{CertificateAuthority, Error, Roots, Signing, Svid, Trust};
use sluice_model::SpiffeId;

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

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(Roots::from_pem(self.pem().as_bytes()).unwrap())
    }

    /// A certificate with these URIs as its names, made without a request, and its key.
    pub(crate) fn issue(&self, uris: &[&str]) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = leaf_params(uris, Duration::from_secs(3600));
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// An identity whose certificate names these URIs.
    pub(crate) fn svid(&self, identity: &SpiffeId, uris: &[&str], trust: Trust) -> Svid {
        let (certificate, key) = self.issue(uris);
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Svid::new(
            identity.clone(),
            vec![certificate.der().clone()],
            &key,
            trust,
        )
        .unwrap()
    }

    /// Signs a request as a CA should.
    pub(crate) fn sign(&self, request: &str, validity: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        let template = leaf_params(&[], validity);
        request.params.not_before = template.not_before;
        request.params.not_after = template.not_after;
        request.params.extended_key_usages = template.extended_key_usages;
        vec![request.signed_by(&self.0).unwrap().pem(), self.pem()]
    }

    /// A server certificate for a host name, with its key, in PEM.
    pub(crate) fn server(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn leaf_params(uris: &[&str], validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let uri = |uri: &&str| SanType::URI((*uri).to_owned().try_into().unwrap());
    params.subject_alt_names = uris.iter().map(uri).collect();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.not_before = SystemTime::now().into();
    params.not_after = (SystemTime::now() + validity).into();
    params
}

type Answer = dyn Fn(&Root, &str) -> Result<Vec<String>, Error> + Send + Sync;

/// A CA whose answers can be changed while it is in use.
#[derive(Clone)]
pub(crate) struct TestCa(Arc<State>);

struct State {
    root: Root,
    requests: AtomicUsize,
    answer: Mutex<Box<Answer>>,
}

impl TestCa {
    /// Signs everything, for this long.
    pub(crate) fn signing(validity: Duration) -> Self {
        let ca = Self(Arc::new(State {
            root: Root::new(),
            requests: AtomicUsize::new(0),
            answer: Mutex::new(Box::new(|_, _| Ok(Vec::new()))),
        }));
        ca.answer(move |root, request| Ok(root.sign(request, validity)));
        ca
    }

    pub(crate) fn answer(
        &self,
        answer: impl Fn(&Root, &str) -> Result<Vec<String>, Error> + Send + Sync + 'static,
    ) {
        *self.0.answer.lock().unwrap() = Box::new(answer);
    }

    pub(crate) fn fail(&self) {
        self.answer(|_, _| {
            let status = tonic::Status::unavailable("the CA is on holiday");
            Err(Error::CaUnavailable(Box::new(status)))
        });
    }

    pub(crate) fn requests(&self) -> usize {
        self.0.requests.load(SeqCst)
    }
}

impl CertificateAuthority for TestCa {
    fn sign<'a>(&'a self, request: &'a str, _: &'a SpiffeId) -> Signing<'a> {
        self.0.requests.fetch_add(1, SeqCst);
        let answer = self.0.answer.lock().unwrap()(&self.0.root, request);
        Box::pin(async move {
            // So that requests take time, and can be shared.
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer
        })
    }
}
