//! Spans of connections, as a receiver of OpenTelemetry's own making gets them.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::scenario::scenario_with;
use sluice_tests::topology::WIRE_V4;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::{EMPTY, GREET, NOBODY, Stage, options};

const PORT: u16 = 4317;

/// The spans that have come, each with the node that it comes from.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in request.into_inner().resource_spans {
            let resource = part.resource.unwrap_or_default();
            let node = text(&resource.attributes, "k8s.node.name");
            let spans = part.scope_spans.into_iter().flat_map(|scope| scope.spans);
            all.extend(spans.map(|span| (node.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// Serves until the test's process ends.
    fn serve(&self, listener: TcpListener, tls: Option<ServerTlsConfig>) -> Result<()> {
        listener.set_nonblocking(true)?;
        let service = TraceServiceServer::new(self.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let mut server = Server::builder();
                if let Some(tls) = tls {
                    server = server.tls_config(tls)?;
                }
                server
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .map_err(anyhow::Error::from)
            })
        });
        Ok(())
    }

    /// The span of a node about connections to an authority.
    fn span(&self, node: &str, authority: &str) -> Result<Span> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|(from, span)| {
            from == node && text(&span.attributes, "server.address") == authority
        });
        let found = found.with_context(|| format!("no span of {node} about {authority}"))?;
        Ok(found.1.clone())
    }
}

/// An attribute as text; empty when it is not there.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

#[test]
fn both_ends_of_a_connection_are_spans_of_one_trace() {
    let endpoint = format!("http://{WIRE_V4}:{PORT}");
    let flags = ["--otlp-endpoint", &endpoint, "--trace-sample", "1"];
    scenario_with(&["a", "b"], options(&flags), |s| {
        let stage = Stage::build(s)?;
        // Before anybody receives, spans are lost, and that is counted.
        ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Served);
        for node in ["a", "b"] {
            eventually(|| {
                let ztunnel = stage.s.mesh.ztunnel(node);
                let lost = ztunnel.metric("sluice_spans_total", &[("outcome", "refused")])?;
                ensure!(lost >= 1.0, "{node} has counted {lost} lost spans");
                Ok(())
            })?;
        }

        let receiver = Receiver::default();
        let bind = || TcpListener::bind((WIRE_V4, PORT));
        receiver.serve(stage.s.topology.wire().netns.enter(bind)??, None)?;
        let authority = stage.to(GREET).to_string();
        let (near, far) = eventually(|| {
            ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Served);
            let far = receiver.span("b", &authority)?;
            let all = receiver.0.lock().unwrap_or_else(PoisonError::into_inner);
            let near = all
                .iter()
                .find(|(node, span)| node == "a" && span.trace_id == far.trace_id);
            let near = near.context("no span of the other end")?.1.clone();
            Ok((near, far))
        })?;
        ensure!(near.parent_span_id.is_empty(), "{near:?}");
        ensure!(far.parent_span_id == near.span_id && far.span_id != near.span_id);
        ensure!((near.trace_id.len(), near.span_id.len()) == (16, 8));
        ensure!((near.kind(), far.kind()) == (SpanKind::Client, SpanKind::Server));
        for span in [&near, &far] {
            for (key, wanted) in [
                ("client.address", stage.web.v4().to_string()),
                ("network.transport", "tcp".to_owned()),
                ("sluice.source.workload", "web".to_owned()),
                ("sluice.source.principal", stage.web.spiffe_id()),
                ("sluice.destination.workload", "catalog".to_owned()),
                ("sluice.destination.principal", stage.catalog.spiffe_id()),
            ] {
                let found = text(&span.attributes, key);
                ensure!(found == wanted, "{key} is {found}, and not {wanted}");
            }
            ensure!(span.start_time_unix_nano > 0, "{span:?}");
            ensure!(span.end_time_unix_nano >= span.start_time_unix_nano);
            ensure!(span.status.is_none(), "{span:?}");
        }
        let id: String = far.trace_id.iter().map(|b| format!("{b:02x}")).collect();
        for node in ["a", "b"] {
            let ztunnel = stage.s.mesh.ztunnel(node);
            ztunnel.wait_for_access(&[("trace_id", &id)])?;
        }

        // One that fails says why.
        ensure!(attempt(&stage.web, stage.to(NOBODY))? == Outcome::Reset);
        let authority = stage.to(NOBODY).to_string();
        for (node, cause) in [("a", "peer_refused"), ("b", "application_unreachable")] {
            let span = eventually(|| receiver.span(node, &authority))?;
            let status = span.status.clone().context("no status")?;
            ensure!(status.code() == StatusCode::Error && !status.message.is_empty());
            let found = text(&span.attributes, "error.type");
            ensure!(found == cause, "{node} says {found}");
        }

        // Those that wait when the ztunnel ends are exported.
        let last = SocketAddr::new(EMPTY.parse()?, 80);
        ensure!(attempt(&stage.web, last)? == Outcome::Reset);
        stage.s.mesh.ztunnel_mut("a").stop(PATIENCE)?;
        let all = receiver.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all
            .iter()
            .any(|(_, span)| text(&span.attributes, "error.type") == "no_endpoint");
        ensure!(told, "the last span is lost");
        Ok(())
    });
}

/// Who vouches for receivers.
struct Authority {
    root: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        Ok(Self { root })
    }

    fn pem(&self) -> String {
        self.root.pem()
    }

    fn serving(&self, address: &str) -> Result<ServerTlsConfig> {
        let key = rcgen::KeyPair::generate()?;
        let params = rcgen::CertificateParams::new([address.to_owned()])?;
        let certificate = params.signed_by(&key, &self.root)?;
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        Ok(ServerTlsConfig::new().identity(identity))
    }
}

#[test]
fn spans_go_only_to_a_receiver_that_proves_itself() {
    let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.pem");
    std::fs::write(&root, authority.pem()).unwrap();
    let wire = WIRE_V4.to_string();
    let endpoints = [PORT, PORT + 1].map(|port| format!("https://{wire}:{port}"));
    let root = root.to_str().unwrap();
    for (endpoint, signer, trusted) in [
        (&endpoints[0], &authority, true),
        (&endpoints[1], &stranger, false),
    ] {
        let flags = ["--otlp-endpoint", endpoint, "--otlp-root", root];
        let flags = [&flags[..], &["--trace-sample", "1"]].concat();
        scenario_with(&["a", "b"], options(&flags), |s| {
            let stage = Stage::build(s)?;
            let receiver = Receiver::default();
            let port = endpoint.rsplit_once(':').unwrap().1.parse::<u16>()?;
            let bind = || TcpListener::bind((WIRE_V4, port));
            let listener = stage.s.topology.wire().netns.enter(bind)??;
            receiver.serve(listener, Some(signer.serving(&wire)?))?;
            ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Served);
            let ztunnel = stage.s.mesh.ztunnel("a");
            let outcome = if trusted { "exported" } else { "refused" };
            eventually(|| {
                let count = ztunnel.metric("sluice_spans_total", &[("outcome", outcome)])?;
                ensure!(count >= 1.0, "no span is {outcome}");
                Ok(())
            })?;
            let told = receiver.span("a", &stage.to(GREET).to_string()).is_ok();
            ensure!(told == trusted, "the receiver has the span: {told}");
            Ok(())
        });
    }
}
