//! The stream of the discovery protocol: requests on their way out, responses as they arrive.
//!
//! gRPC is spoken here without a codec, because a codec waits for a message to be whole; see
//! [`crate::decode`].

use std::{convert::Infallible, fmt::Display};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, StreamBody};
use prost::{Message as _, encoding};
use sluice_proto::discovery::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Code, Status, body::Body, client::GrpcService as _, metadata::MetadataMap, transport::Channel,
};

use crate::{
    Error,
    decode::{Decoder, Part},
};

const METHOD: PathAndQuery = PathAndQuery::from_static(
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
);
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const DETAILS: &str = "grpc-status-details-bin";

/// `initial_resource_versions` of `DeltaDiscoveryRequest`, and the fields of its entries.
const INITIAL_VERSIONS: u32 = 5;
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// Requests that wait to be sent. There is one for each response, so few ever wait.
const PENDING_REQUESTS: usize = 16;

/// The sending half of a stream.
pub(crate) type Requests = mpsc::Sender<Outgoing>;

/// A request as it is sent, with the prefix that gRPC puts before it.
#[derive(Debug)]
pub(crate) struct Outgoing(Bytes);

impl From<DeltaDiscoveryRequest> for Outgoing {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        Self::with_versions(&request, std::iter::empty::<(&str, &str)>())
    }
}

impl Outgoing {
    /// A request that also says which version of which resource is here. There is one for each
    /// workload of the mesh, so they are written without being gathered first.
    pub(crate) fn with_versions<'a>(
        request: &DeltaDiscoveryRequest,
        versions: impl Iterator<Item = (&'a str, impl Display)>,
    ) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(0);
        let prefix = bytes.len();
        request
            .encode(&mut bytes)
            .expect("a buffer that grows has room");
        for (name, version) in versions {
            let (name, version) = (name.to_owned(), version.to_string());
            let length = encoding::string::encoded_len(KEY, &name)
                + encoding::string::encoded_len(VALUE, &version);
            let delimited = encoding::WireType::LengthDelimited;
            encoding::encode_key(INITIAL_VERSIONS, delimited, &mut bytes);
            encoding::encode_varint(length as u64, &mut bytes);
            encoding::string::encode(KEY, &name, &mut bytes);
            encoding::string::encode(VALUE, &version, &mut bytes);
        }
        // A mesh whose names alone take 4 GiB is not one that could have been received.
        let length = (bytes.len() - prefix) as u32;
        bytes[1..prefix].copy_from_slice(&length.to_be_bytes());
        Self(bytes.freeze())
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) struct Responses {
    body: Body,
    decoder: Decoder,
}

/// Opens a stream, on which `first` is sent at once.
pub(crate) async fn open(
    mut channel: Channel,
    metadata: MetadataMap,
    first: impl IntoIterator<Item = Outgoing>,
) -> Result<(Requests, Responses), Error> {
    let (sender, receiver) = mpsc::channel(PENDING_REQUESTS);
    for request in first {
        // There is room: the channel is new and larger than the number of types.
        let _ = sender.try_send(request);
    }
    let frames = ReceiverStream::new(receiver)
        .map(|Outgoing(bytes)| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    let mut request = http::Request::new(Body::new(StreamBody::new(frames)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = METHOD.into();
    let headers = request.headers_mut();
    *headers = metadata.into_headers();
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    let unavailable = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .map_err(unavailable)?;
    let response = channel.call(request).await.map_err(unavailable)?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK || head.headers.contains_key(Status::GRPC_STATUS) {
        ended(head.status, &head.headers)?;
    }
    let decoder = Decoder::default();
    Ok((sender, Responses { body, decoder }))
}

impl Responses {
    /// The next part of a response; `None` when the stream has ended in order.
    ///
    /// # Errors
    /// When it broke, or is no stream of responses.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, Error> {
        loop {
            if let Some(part) = self.decoder.next()? {
                return Ok(Some(part));
            }
            let Some(frame) = self.body.frame().await else {
                self.decoder.finish()?;
                return Err(Status::unknown("it ended without a status").into());
            };
            match frame?.into_data() {
                Ok(data) => self.decoder.push(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    ended(StatusCode::OK, &trailers)?;
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }
}

/// How a stream ended, by what came before or after its messages.
fn ended(http: StatusCode, headers: &HeaderMap) -> Result<(), Status> {
    let mut headers = headers.clone();
    // Nobody reads them here, and bad ones would end the process.
    headers.remove(DETAILS);
    match Status::from_header_map(&headers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(Status::new(
            match http {
                StatusCode::UNAUTHORIZED => Code::Unauthenticated,
                StatusCode::FORBIDDEN => Code::PermissionDenied,
                _ => Code::Unknown,
            },
            format!("HTTP status {http}, without one of gRPC"),
        )),
    }
}
