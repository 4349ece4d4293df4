//! Spans of connections, exported by OTLP over gRPC.
//!
//! A span is given to a queue when its connection ends, and nothing waits for its export: when the
//! queue is full, or the receiver does not take them, spans are dropped, and counted.

mod otlp;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::timeout,
};

use crate::{
    metrics::{Kind, Metrics, Reading},
    share::Share,
};

/// How many spans may wait for their export.
const WAITING: usize = 4096;

/// Where spans go, and how many are made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The receiver of OTLP over gRPC, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoint: String,
    /// The certificates that it must be signed by, in PEM, if it is one of `https`.
    pub roots: Vec<u8>,
    /// Of the traces that begin here, this share is recorded, from 0 to 1.
    pub sampling: f64,
    /// What is true of all spans: `service.name` and so on.
    pub resource: Vec<(&'static str, String)>,
}

/// The endpoint is no address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no endpoint for traces; give http://HOST:PORT or https://HOST:PORT")]
pub struct BadEndpoint(String);

/// One end's view of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub trace: u128,
    pub id: u64,
    /// The span of the other end, if this one goes on from it.
    pub parent: Option<u64>,
    pub side: Side,
    pub name: &'static str,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    /// Why the connection failed.
    pub error: Option<String>,
}

/// Which side of a connection a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// What is said of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Span {
    /// Adds an address under the two names that OpenTelemetry gives its parts.
    pub fn address(&mut self, names: [&'static str; 2], address: SocketAddr) {
        self.attributes.extend([
            (names[0], address.ip().to_string().into()),
            (names[1], u64::from(address.port()).into()),
        ]);
    }
}

/// What waits for the exporter.
#[derive(Debug)]
enum Item {
    Span(Span),
    /// Somebody waits until all before has been dealt with. The sender is dropped then.
    Flush(oneshot::Sender<()>),
}

/// Takes spans for their export. Clones are the same.
#[derive(Clone, Debug)]
pub struct Tracer {
    queue: mpsc::Sender<Item>,
    sampling: Arc<Share>,
    counts: Arc<Counts>,
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    /// The queue was full.
    overflowed: AtomicU64,
    /// The receiver did not take them.
    refused: AtomicU64,
}

impl Tracer {
    /// Starts to export, in the background of this runtime.
    ///
    /// # Errors
    /// When the endpoint is no address.
    pub fn start(config: Config, metrics: &Metrics) -> Result<Self, BadEndpoint> {
        let exporter = otlp::Exporter::new(&config)?;
        let (queue, items) = mpsc::channel(WAITING);
        let tracer = Self {
            queue,
            sampling: Arc::new(Share::new(config.sampling)),
            counts: Arc::default(),
        };
        tokio::spawn(exporter.run(items, tracer.counts.clone()));
        let counts = tracer.counts.clone();
        metrics.register_readings(
            Kind::Counter,
            "sluice_spans",
            "Spans of connections, by what became of them",
            move || counts.readings(),
        );
        Ok(tracer)
    }

    /// Whether a trace that begins now is recorded.
    pub fn samples(&self) -> bool {
        self.sampling.takes()
    }

    /// Hands a span over.
    pub fn record(&self, span: Span) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Span(span)) {
            self.counts.overflowed.fetch_add(1, Relaxed);
        }
    }

    /// Waits until the spans handed over so far have been exported, or lost; not longer than that.
    pub async fn flush(&self, patience: Duration) {
        let (waiting, done) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Item::Flush(waiting)).await.is_ok() {
                // Nothing is ever sent.
                let _ = done.await;
            }
        };
        let _ = timeout(patience, flushed).await;
    }
}

impl Counts {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    fn readings(&self) -> Vec<Reading> {
        [
            ("exported", &self.exported),
            ("queue_full", &self.overflowed),
            ("refused", &self.refused),
        ]
        .map(|(outcome, count)| Reading::new(count.load(Relaxed) as f64).with("outcome", outcome))
        .into()
    }
}
