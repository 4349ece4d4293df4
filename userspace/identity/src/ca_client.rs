//! The certificate service of a control plane.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prost_types::{Struct, Value, value::Kind};
use sluice_model::SpiffeId;
use sluice_proto::ca::{
    IMPERSONATED_IDENTITY, IstioCertificateRequest,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{CertificateAuthority, ControlPlane, Error, Signing};

/// A CA that takes longer is asked again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks a control plane for certificates.
#[derive(Debug)]
pub struct CaClient {
    control_plane: ControlPlane,
    validity: Duration,
    connection: Mutex<Option<Connection>>,
}

/// A connection, and what it was made with.
#[derive(Clone, Debug)]
struct Connection {
    address: String,
    roots: Arc<String>,
    channel: Channel,
}

impl CaClient {
    /// A client that asks for certificates valid for `validity`, in whole seconds; the CA may grant
    /// less. It connects when first asked.
    pub fn new(control_plane: ControlPlane, validity: Duration) -> Self {
        Self {
            control_plane,
            validity,
            connection: Mutex::new(None),
        }
    }

    fn connection(&self) -> Result<Connection, Error> {
        let address = self.control_plane.addresses.current();
        let roots = self.control_plane.roots.get();
        let kept = &self.connection;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &*kept
            && connection.roots == roots
            && connection.address == address
        {
            return Ok(connection.clone());
        }
        let connection = Connection {
            address: address.to_owned(),
            roots,
            channel: {
                let endpoint = self.control_plane.endpoint(address)?;
                self.control_plane.connect_lazy(address, endpoint)
            },
        };
        *kept = Some(connection.clone());
        Ok(connection)
    }

    async fn create(&self, csr: &str, identity: &SpiffeId) -> Result<Vec<String>, Error> {
        let impersonated = Value {
            kind: Some(Kind::StringValue(identity.to_string())),
        };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct {
                fields: [(IMPERSONATED_IDENTITY.to_owned(), impersonated)].into(),
            }),
        });
        let connection = self.connection()?;
        let address = &connection.address;
        self.control_plane
            .authorize(address, request.metadata_mut())?;
        let mut client = IstioCertificateServiceClient::new(connection.channel);
        // A timer of ours, since the channel's own bounds the wait for headers only.
        let answer = tokio::time::timeout(TIMEOUT, client.create_certificate(request))
            .await
            .unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!(
                    "no answer in {TIMEOUT:?}"
                )))
            })
            .map_err(|status| {
                let status = Box::new(status);
                match status.code() {
                    Code::Unavailable | Code::DeadlineExceeded | Code::Unknown => {
                        self.control_plane.addresses.give_up(address);
                        Error::CaUnavailable(status)
                    }
                    _ => Error::CaRefused(status),
                }
            })?;
        Ok(answer.into_inner().cert_chain)
    }
}

impl CertificateAuthority for CaClient {
    fn sign<'a>(&'a self, request: &'a str, identity: &'a SpiffeId) -> Signing<'a> {
        Box::pin(self.create(request, identity))
    }
}
