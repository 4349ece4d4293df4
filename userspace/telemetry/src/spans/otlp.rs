//! Spans on their way to a receiver.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sluice_proto::traces::{
    self, AnyValue, ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, Scope,
    ScopeSpans, Status, any_value, span, status, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{BadEndpoint, Config, Counts, Item, Side, Span, Value};

/// For how long spans are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How many spans go into one request.
const BATCH: usize = 512;
/// A receiver that takes longer has not taken them.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of the flags of a span: those below are the trace's own, of which the first says that it is recorded.
const SAMPLED: u32 = 1;

pub(super) struct Exporter {
    client: TraceServiceClient<Channel>,
    endpoint: String,
    resource: Resource,
}

impl Exporter {
    pub(super) fn new(config: &Config) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(config.endpoint.clone());
        let endpoint = Endpoint::from_shared(config.endpoint.clone()).map_err(|_| bad())?;
        let uri = endpoint.uri();
        let encrypted = match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => false,
            (Some("https"), Some(_)) => true,
            _ => return Err(bad()),
        };
        let endpoint = if encrypted {
            let roots = Certificate::from_pem(&config.roots);
            let tls = ClientTlsConfig::new().ca_certificate(roots);
            endpoint.tls_config(tls).map_err(|_| bad())?
        } else {
            endpoint
        };
        let channel = endpoint
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT)
            .connect_lazy();
        let attributes = config.resource.iter();
        let attributes = attributes.map(|(key, value)| attribute(key, value.clone().into()));
        Ok(Self {
            client: TraceServiceClient::new(channel),
            endpoint: config.endpoint.clone(),
            resource: Resource {
                attributes: attributes.collect(),
            },
        })
    }

    /// Exports until nobody makes spans any more.
    pub(super) async fn run(mut self, mut items: mpsc::Receiver<Item>, counts: Arc<Counts>) {
        let mut batch = Vec::new();
        let mut well = true;
        while let Some(first) = items.recv().await {
            let _waiting = gather(first, &mut items, &mut batch).await;
            if batch.is_empty() {
                continue;
            }
            let all = batch.len() as u64;
            let refused = match self.export(std::mem::take(&mut batch)).await {
                Ok(refused) => refused.min(all),
                Err(error) => {
                    if well {
                        let (endpoint, error) = (&self.endpoint, error.message());
                        tracing::warn!(endpoint, error, "spans cannot be exported; they are lost");
                    }
                    all
                }
            };
            if refused == 0 && !well {
                tracing::info!(endpoint = self.endpoint, "spans are exported again");
            }
            well = refused == 0;
            counts.refused.fetch_add(refused, Relaxed);
            counts.exported.fetch_add(all - refused, Relaxed);
        }
    }

    /// Sends spans; how many of them the receiver has rejected.
    async fn export(&mut self, spans: Vec<Span>) -> Result<u64, tonic::Status> {
        let scope = Scope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: spans.into_iter().map(wire).collect(),
                }],
            }],
        };
        let answer = self.client.export(request).await?.into_inner();
        let partial = answer.partial_success.unwrap_or_default();
        if partial.rejected_spans > 0 {
            let reason = partial.error_message;
            tracing::warn!(endpoint = self.endpoint, reason, "spans are rejected");
        }
        Ok(partial.rejected_spans.try_into().unwrap_or_default())
    }
}

/// Gathers spans until there are enough of them, or for long enough, or until somebody waits for them.
async fn gather(
    first: Item,
    items: &mut mpsc::Receiver<Item>,
    batch: &mut Vec<Span>,
) -> Option<oneshot::Sender<()>> {
    let end = Instant::now() + GATHER;
    let mut item = first;
    loop {
        match item {
            Item::Span(span) => batch.push(span),
            Item::Flush(waiting) => return Some(waiting),
        }
        if batch.len() == BATCH {
            return None;
        }
        item = timeout_at(end, items.recv()).await.ok()??;
    }
}

fn wire(span: Span) -> traces::Span {
    let attributes = span.attributes.into_iter();
    traces::Span {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: span
            .parent
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: span.name.to_owned(),
        kind: match span.side {
            Side::Client => span::Kind::Client,
            Side::Server => span::Kind::Server,
        }
        .into(),
        start_time_unix_nano: nanoseconds(span.start),
        end_time_unix_nano: nanoseconds(span.end),
        attributes: attributes
            .map(|(key, value)| attribute(key, value))
            .collect(),
        status: span.error.map(|message| Status {
            message,
            code: status::Code::Error.into(),
        }),
        flags: SAMPLED,
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Number(number) => {
            any_value::Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX))
        }
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

/// Since 1970.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
