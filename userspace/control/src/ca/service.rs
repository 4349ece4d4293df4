//! The certificate service: who may have which identity.

use std::{sync::Arc, time::Duration};

use prost_types::value::Kind;
use rcgen::{CertificateSigningRequestParams, SanType};
use sluice_model::SpiffeId;
use sluice_proto::ca::{
    IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Authority, SignError};
use crate::{
    auth::{Authenticator, Caller, Claim, refuse},
    feed::Published,
    metrics::{ControlMetrics, Outcome, OutcomeLabels},
};

/// Issues certificates for the workloads on the caller's own node.
#[derive(Clone, Debug)]
pub struct Certificates {
    authority: Arc<Authority>,
    callers: Arc<Authenticator>,
    published: watch::Receiver<Arc<Published>>,
    metrics: ControlMetrics,
}

impl Certificates {
    pub fn new(
        authority: Arc<Authority>,
        callers: Arc<Authenticator>,
        published: watch::Receiver<Arc<Published>>,
        metrics: ControlMetrics,
    ) -> Self {
        Self {
            authority,
            callers,
            published,
            metrics,
        }
    }

    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let caller = self.callers.authenticate(&Claim::of(&request)).await?;
        let request = request.into_inner();
        let identity = self.authorize(&caller, &request)?;
        let seconds = u64::try_from(request.validity_duration).unwrap_or(0);
        let signed = self
            .authority
            .sign(&request.csr, &identity, Duration::from_secs(seconds));
        match signed {
            Ok(cert_chain) => {
                tracing::info!(node = %caller.node, %identity, "certificate issued");
                Ok(IstioCertificateResponse { cert_chain })
            }
            Err(error @ (SignError::Csr(_) | SignError::Key)) => {
                tracing::warn!(node = %caller.node, %identity, %error, "certificate not issued");
                Err(Status::invalid_argument(error.to_string()))
            }
            Err(error @ (SignError::Signing(_) | SignError::Expired)) => {
                tracing::error!(node = %caller.node, %identity, %error, "certificate not issued");
                Err(Status::internal("signing failed"))
            }
        }
    }

    /// The identity that is asked for, if the caller may have it.
    fn authorize(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<SpiffeId, Status> {
        let refuse = |why: String| {
            let node = &caller.node;
            refuse(caller.peer, &format!("certificate for node {node}: {why}"))
        };
        // A node's proxy says for whom it asks; the proxy of a single workload only names itself in
        // its CSR. Either is a wish, and judged alike.
        let wish = impersonated(request).map(str::to_owned);
        let Some(text) = wish.or_else(|| named_in_csr(&request.csr)) else {
            let why = format!("neither {IMPERSONATED_IDENTITY} nor the CSR names an identity");
            return Err(refuse(why));
        };
        let identity: SpiffeId = text.parse().map_err(|error| refuse(format!("{error}")))?;
        let (own, domain) = (self.authority.trust_domain(), identity.trust_domain());
        let published = self.published.borrow();
        if domain != own && !published.is_alias(domain) {
            return Err(refuse(format!(
                "{identity} is not of the trust domain {own}"
            )));
        }
        if !published.runs_on(&caller.node, &identity) {
            return Err(refuse(format!("no pod with {identity} runs there")));
        }
        Ok(identity)
    }
}

/// The URI among the names that a CSR asks for.
fn named_in_csr(csr: &str) -> Option<String> {
    let csr = CertificateSigningRequestParams::from_pem(csr).ok()?;
    csr.params
        .subject_alt_names
        .iter()
        .find_map(|name| match name {
            SanType::URI(uri) => Some(uri.to_string()),
            _ => None,
        })
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    let metadata = request.metadata.as_ref()?;
    match metadata.fields.get(IMPERSONATED_IDENTITY)?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity),
        _ => None,
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let result = self.create(request).await;
        let outcome = match &result {
            Ok(_) => Outcome::Issued,
            Err(status) if status.code() == tonic::Code::Unauthenticated => Outcome::Refused,
            Err(_) => Outcome::Failed,
        };
        let labels = OutcomeLabels { outcome };
        self.metrics.certificates.get_or_create(&labels).inc();
        result.map(Response::new)
    }
}
