//! Delta discovery as gRPC, with responses that share their bytes.
//!
//! A generated server would encode every response anew for every client, and hold all of these
//! copies while slow clients read: the whole mesh, times the nodes that connect at once.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Frame;
use prost::Message;
use sluice_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::SERVICE_NAME,
};
use tokio::sync::mpsc;
use tonic::{
    Code, Request, Status, Streaming,
    body::Body,
    codec::Codec,
    codegen::{BoxFuture, Service},
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::Discovery;

/// A reconnecting client lists everything that it has.
const MAX_REQUEST: usize = 64 << 20;
const METHOD: &str = "DeltaAggregatedResources";

/// A response, ready to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    frame: [Bytes; 2],
}

impl Answer {
    /// A response of these resources, which are encoded already, and everything else.
    pub(super) fn new(rest: &DeltaDiscoveryResponse, resources: Bytes) -> Result<Self, Status> {
        let length = rest.encoded_len() + resources.len();
        let announced = u32::try_from(length)
            .map_err(|_| Status::resource_exhausted("the mesh is too large for one response"))?;
        let mut head = BytesMut::with_capacity(5 + rest.encoded_len());
        head.put_u8(0);
        head.put_u32(announced);
        rest.encode_raw(&mut head);
        Ok(Self {
            frame: [head.freeze(), resources],
        })
    }

    /// How many bytes it takes.
    pub(super) fn len(&self) -> usize {
        self.frame.iter().map(Bytes::len).sum()
    }
}

impl NamedService for Discovery {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Discovery {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let discovery = self.clone();
        Box::pin(async move {
            let known = request.uri().path().rsplit('/').next() == Some(METHOD);
            let answers = if known {
                discovery
                    .connect(Request::from_http(request.map(requests)))
                    .await
            } else {
                Err(Status::new(
                    Code::Unimplemented,
                    "only delta discovery is served",
                ))
            };
            Ok(match answers {
                Ok(answers) => response(answers),
                Err(status) => status.into_http(),
            })
        })
    }
}

fn requests(body: Body) -> Streaming<DeltaDiscoveryRequest> {
    let mut codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
    Streaming::new_request(codec.decoder(), body, None, Some(MAX_REQUEST))
}

fn response(answers: mpsc::Receiver<Result<Answer, Status>>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(Frames {
        answers,
        current: VecDeque::new(),
        ended: false,
    }));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// The body of the response: messages for as long as there are any, and a status.
struct Frames {
    answers: mpsc::Receiver<Result<Answer, Status>>,
    current: VecDeque<Bytes>,
    ended: bool,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(bytes) = self.current.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(self.answers.poll_recv(context)) {
                Some(Ok(answer)) => {
                    let parts = answer.frame.into_iter();
                    self.current = parts.filter(|part| !part.is_empty()).collect();
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(match status.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(error) => Err(error),
            }));
        }
    }
}
