//! The stream as it is read here: a response's resources stay bytes until their turn comes.
//!
//! A control plane may send all of a mesh in one response. Taken apart at once, it would fill the
//! heap with small pieces between which the mesh then grows, and the memory would never be returned.

use bytes::Bytes;
use http::uri::PathAndQuery;
use sluice_proto::discovery::DeltaDiscoveryRequest;
use tonic::{
    Request, Status, Streaming, client::Grpc, codegen::tokio_stream::Stream, transport::Channel,
};
use tonic_prost::ProstCodec;

/// A `DeltaDiscoveryResponse` (`envoy/service/discovery/v3/discovery.proto`).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    /// Each a `Resource`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
}

/// The largest response, in bytes (wire contract §6).
const MAX_MESSAGE: usize = 200 * 1024 * 1024;

const METHOD: PathAndQuery = PathAndQuery::from_static(
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
);

/// Opens a stream.
pub(crate) async fn open(
    channel: Channel,
    requests: Request<impl Stream<Item = DeltaDiscoveryRequest> + Send + 'static>,
) -> Result<Streaming<Response>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let responses = grpc.streaming(requests, METHOD, ProstCodec::default());
    Ok(responses.await?.into_inner())
}
