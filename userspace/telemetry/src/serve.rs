//! Small HTTP/1 endpoints for people and scrapers: metrics, readiness, administration.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    future::ready,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full, channel::Channel};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

/// Connections served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// A client that sends no whole request head in this time is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub const TEXT: &str = "text/plain; charset=utf-8";
pub const JSON: &str = "application/json";
/// A JSON object a line.
const NDJSON: &str = "application/x-ndjson";
/// The content type of [`crate::metrics::Metrics::encode`].
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content type of [`crate::metrics::Metrics::encode_openmetrics`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Reply {
    /// An answer in plain text.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
        }
    }

    /// The answer 200.
    pub fn ok(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body: body.into(),
        }
    }
}

/// What a request says beside its path.
struct Asked {
    query: String,
    /// The types of content that are wanted (RFC 9110, 12.5.1); empty when it does not say.
    accept: String,
}

/// The value of a parameter of a query, decoded; of several with one name the first.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

/// Lines that come as long as somebody reads them.
pub type Lines = Channel<Bytes>;
/// Where such lines are written.
pub type LineSender = http_body_util::channel::Sender<Bytes>;

type Handler = Arc<dyn Fn(Asked) -> BoxFuture<Reply> + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Opener = Arc<dyn Fn(&str, LineSender) + Send + Sync>;

/// How many pieces of a stream wait for its reader.
const STREAM_BUFFER: usize = 64;

/// What answers which path, by the one method that it is for.
#[derive(Clone, Default)]
pub struct Router {
    routes: BTreeMap<&'static str, (Method, Handler)>,
    streams: BTreeMap<&'static str, Opener>,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `GET path` by calling `handler` with the query, which is empty without a `?`. The
    /// handler must not block for long.
    pub fn get(
        self,
        path: &'static str,
        handler: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(move |asked| Box::pin(ready(handler(&asked.query))));
        self.route(Method::GET, path, handler)
    }

    /// As [`Router::get`], by a handler that takes its time.
    pub fn get_later<F: Future<Output = Reply> + Send + 'static>(
        self,
        path: &'static str,
        handler: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(move |asked| Box::pin(handler(asked.query)));
        self.route(Method::GET, path, handler)
    }

    /// Answers `POST path`, for what changes something: a browser that follows a link does not.
    pub fn post(
        self,
        path: &'static str,
        handler: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(move |asked| Box::pin(ready(handler(&asked.query))));
        self.route(Method::POST, path, handler)
    }

    /// Answers `GET path` with lines of JSON that have no end: `open` is called with the query, and begins
    /// a task that writes them. Writing fails when nobody reads any more.
    pub fn stream(
        mut self,
        path: &'static str,
        open: impl Fn(&str, LineSender) + Send + Sync + 'static,
    ) -> Self {
        self.streams.insert(path, Arc::new(open));
        self
    }

    /// The answer to a request for a path that streams, if it is one.
    fn open(&self, method: &Method, path: &str, query: &str) -> Option<Response<Lines>> {
        let open = self.streams.get(path).filter(|_| method == Method::GET)?;
        let (sender, lines) = Channel::new(STREAM_BUFFER);
        open(query, sender);
        let mut response = Response::new(lines);
        let content_type = header::HeaderValue::from_static(NDJSON);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        Some(response)
    }

    fn route(mut self, method: Method, path: &'static str, handler: Handler) -> Self {
        self.routes.insert(path, (method, handler));
        self
    }

    /// Serves readiness at `/healthz/ready`.
    pub fn readiness(self, readiness: Readiness) -> Self {
        self.get("/healthz/ready", move |_| readiness.reply())
    }

    /// Serves metrics at the paths where scrapers look for them, in the format that they ask for.
    pub fn metrics(self, metrics: Arc<crate::metrics::Metrics>) -> Self {
        self.metrics_after(metrics, || ready(()))
    }

    /// As [`Router::metrics`]; for each scrape, `gather` brings them up to date first.
    pub fn metrics_after<F: Future<Output = ()> + Send + 'static>(
        self,
        metrics: Arc<crate::metrics::Metrics>,
        gather: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(move |asked: Asked| {
            let (metrics, gathered) = (metrics.clone(), gather());
            Box::pin(async move {
                gathered.await;
                if prefers_openmetrics(&asked.accept) {
                    Reply::ok(OPENMETRICS, metrics.encode_openmetrics())
                } else {
                    Reply::ok(PROMETHEUS, metrics.encode())
                }
            })
        });
        self.route(Method::GET, "/stats/prometheus", handler.clone())
            .route(Method::GET, "/metrics", handler)
    }

    async fn reply(&self, method: &Method, path: &str, asked: Asked) -> Response<Full<Bytes>> {
        let (reply, allowed) = match self.routes.get(path) {
            None => (Reply::text(StatusCode::NOT_FOUND, "no such page\n"), None),
            Some((served, _)) if method != served => {
                let text = format!("only {served} is served here\n");
                (
                    Reply::text(StatusCode::METHOD_NOT_ALLOWED, text),
                    Some(served),
                )
            }
            Some((_, handler)) => (handler(asked).await, None),
        };
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        let content_type = header::HeaderValue::from_static(reply.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        // Method names are header values.
        let allowed =
            allowed.and_then(|method| header::HeaderValue::from_str(method.as_str()).ok());
        if let Some(allowed) = allowed {
            headers.insert(header::ALLOW, allowed);
        }
        response
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

/// Serves for as long as the future is polled. Dropping it closes the listener; requests that are
/// under way finish.
pub async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            unreachable!("nobody closes the semaphore")
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(stream, &router).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "telemetry endpoint cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: &Router) {
    let service = service_fn(|request: Request<Incoming>| {
        let uri = request.uri();
        let accept = request.headers().get(header::ACCEPT);
        let accept = accept.and_then(|value| value.to_str().ok());
        let asked = Asked {
            query: uri.query().unwrap_or_default().to_owned(),
            accept: accept.unwrap_or_default().to_owned(),
        };
        async move {
            let stream = router.open(request.method(), request.uri().path(), &asked.query);
            Ok::<_, Infallible>(match stream {
                Some(stream) => stream.map(Either::Right),
                None => router
                    .reply(request.method(), request.uri().path(), asked)
                    .await
                    .map(Either::Left),
            })
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "telemetry client");
    }
}

/// Whether a scraper asks for OpenMetrics, and likes it no less than plain text. One that takes
/// anything gets plain text.
fn prefers_openmetrics(accept: &str) -> bool {
    let weight = |wanted: &str| {
        let mut ranges = accept.split(',').map(|range| range.split(';'));
        ranges.find_map(|mut range| {
            range
                .next()
                .filter(|media| media.trim().eq_ignore_ascii_case(wanted))?;
            let mut parameters = range.filter_map(|parameter| parameter.split_once('='));
            let weight = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
            Some(weight.map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0)))
        })
    };
    let openmetrics: f64 = weight("application/openmetrics-text").unwrap_or(0.0);
    openmetrics > 0.0 && openmetrics >= weight("text/plain").unwrap_or(0.0)
}

/// What there is to say of a process that is ready.
type Explanation = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the process still waits for before it can serve.
#[derive(Clone, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
    explanation: Arc<OnceLock<Explanation>>,
}

impl Readiness {
    /// Adds something to wait for, under a name for operators, until [`Task::done`] is called.
    pub fn pending(&self, name: &'static str) -> Task {
        self.with(|pending| pending.insert(name));
        Task {
            readiness: self.clone(),
            name,
        }
    }

    /// Has something said, once it is ready, beside that it is. The first caller counts.
    pub fn explain(&self, explanation: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let _ = self.explanation.set(Box::new(explanation));
    }

    pub fn is_ready(&self) -> bool {
        self.with(|pending| pending.is_empty())
    }

    fn reply(&self) -> Reply {
        let names = self.with(|pending| pending.iter().copied().collect::<Vec<_>>());
        if names.is_empty() {
            return match self.explanation.get().and_then(|explain| explain()) {
                Some(text) => Reply::text(StatusCode::OK, format!("ready, {text}\n")),
                None => Reply::text(StatusCode::OK, "ready\n"),
            };
        }
        let body = format!("not ready, pending: {}\n", names.join(", "));
        Reply::text(StatusCode::INTERNAL_SERVER_ERROR, body)
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeSet<&'static str>) -> T) -> T {
        // Whoever panicked while holding it can have left nothing half done in a set of names.
        f(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = self.with(|pending| pending.clone());
        f.debug_tuple("Readiness").field(&pending).finish()
    }
}

/// Something that readiness waits for. Dropped, it stays pending: whoever gave up is not ready.
#[must_use = "readiness waits until it is done"]
#[derive(Debug)]
pub struct Task {
    readiness: Readiness,
    name: &'static str,
}

impl Task {
    pub fn done(self) {
        self.readiness.with(|pending| pending.remove(self.name));
    }
}
