//! A CA in this process, which can be told to misbehave.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationList,
    CertificateRevocationListParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
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
        let key = KeyPair::generate().unwrap();
        // Anchors are told apart by their names.
        let name = format!("root {:x?}", &key.public_key_raw()[1..9]);
        Self(CertifiedIssuer::self_signed(authority_params(&name), key).unwrap())
    }

    /// Another one of the same name.
    pub(crate) fn namesake(&self) -> Self {
        let (_, own) = x509_parser::parse_x509_certificate(self.0.der()).unwrap();
        let name = own.subject().iter_common_name().next().unwrap();
        let params = authority_params(name.as_str().unwrap());
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// An authority between this one and leaves.
    pub(crate) fn intermediate(&self) -> Self {
        let mut params = authority_params("between");
        params.serial_number = Some(SerialNumber::from_slice(&[0x51, 0x52]));
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    pub(crate) fn serial(&self) -> Vec<u8> {
        let (_, certificate) = x509_parser::parse_x509_certificate(self.0.der()).unwrap();
        certificate.raw_serial().to_vec()
    }

    /// An identity whose chain leads through this authority.
    pub(crate) fn svid_through(&self, identity: &SpiffeId, trust: Trust) -> Svid {
        let (certificate, key) = self.issue(&[&identity.to_string()]);
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let chain = vec![certificate.der().clone(), self.0.der().clone()];
        Svid::new(identity.clone(), chain, &key, trust).unwrap()
    }

    /// A list that revokes these serial numbers.
    pub(crate) fn revoke(&self, serials: &[&[u8]]) -> CertificateRevocationList {
        let now = SystemTime::now();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap()
    }

    /// A list in PEM that revokes an identity's certificate.
    pub(crate) fn revoke_svid(&self, svid: &Svid) -> String {
        let (_, leaf) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
        self.revoke(&[leaf.raw_serial()]).pem().unwrap()
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
        self.sign_late(request, Duration::ZERO, validity)
    }

    /// The same, but the certificate is of this age already.
    pub(crate) fn sign_late(&self, request: &str, age: Duration, left: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        let template = leaf_params(&[], left);
        request.params.not_before = (SystemTime::now() - age).into();
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

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
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
    delay: Mutex<Duration>,
}

impl TestCa {
    /// Signs everything, for this long.
    pub(crate) fn signing(validity: Duration) -> Self {
        let ca = Self(Arc::new(State {
            root: Root::new(),
            requests: AtomicUsize::new(0),
            answer: Mutex::new(Box::new(|_, _| Ok(Vec::new()))),
            // So that requests take time, and can be shared.
            delay: Mutex::new(Duration::from_millis(1)),
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

    pub(crate) fn slow_down(&self, delay: Duration) {
        *self.0.delay.lock().unwrap() = delay;
    }

    pub(crate) fn root(&self) -> &Root {
        &self.0.root
    }

    pub(crate) fn requests(&self) -> usize {
        self.0.requests.load(SeqCst)
    }
}

impl CertificateAuthority for TestCa {
    fn sign<'a>(&'a self, request: &'a str, _: &'a SpiffeId) -> Signing<'a> {
        self.0.requests.fetch_add(1, SeqCst);
        let answer = self.0.answer.lock().unwrap()(&self.0.root, request);
        let delay = *self.0.delay.lock().unwrap();
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            answer
        })
    }
}
