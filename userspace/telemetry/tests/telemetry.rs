//! What scrapers, probes and readers of logs see.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use sluice_model::authz::{PolicyKey, RuleId};
use sluice_telemetry::{
    LineFormat,
    access::{AccessLog, Direction, Filter, Lines, Peer},
    metrics::{self, Counter, Metrics, Reporter, ResponseFlags, Security, TcpLabels},
    serve::{Readiness, Reply, Router, serve},
    spans::{Config, Side, Span, Tracer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `f` logs at level info.
fn logged(json: bool, f: impl FnOnce()) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_writer(move || writer.clone())
        .event_format(LineFormat { json })
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
}

fn access_log(error: Option<&'static str>) {
    let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let error: Option<&dyn std::fmt::Display> = error.as_ref().map(|e| e as _);
    AccessLog {
        src: Peer {
            workload: Some("web-1"),
            namespace: Some("shop"),
            cluster: Some(""),
            identity: Some(&web),
            ..Peer::unknown("10.0.0.1:1234".parse().unwrap())
        },
        rule: Some(&RuleId {
            policy: PolicyKey {
                namespace: "shop".into(),
                name: "allow-web".into(),
            },
            rule: 2,
        }),
        ..line(error)
    }
    .emit();
}

fn line<'a>(error: Option<&'a dyn std::fmt::Display>) -> AccessLog<'a> {
    AccessLog {
        direction: Direction::Inbound,
        src: Peer::unknown("10.0.0.1:1234".parse().unwrap()),
        dst: Peer::unknown("10.0.0.2:15008".parse().unwrap()),
        port: 8080,
        hbone_addr: Some(&"10.0.0.2:8080"),
        service: None,
        path: None,
        bytes_sent: 12,
        bytes_received: 3456,
        duration: Duration::from_micros(5_900),
        rule: None,
        trace: None,
        error,
    }
}

#[test]
fn an_access_line_has_the_fixed_form() {
    let line = logged(false, || access_log(None));
    let (time, rest) = line.split_once('\t').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(
        rest,
        "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:1234 src.workload=\"web-1\" \
         src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" \
         dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 direction=\"inbound\" \
         bytes_sent=12 bytes_recv=3456 duration=\"5ms\" policy=\"shop/allow-web\" policy_rule=2\n"
    );
}

#[test]
fn a_failed_connection_is_an_error_and_cannot_forge_a_line() {
    let line = logged(false, || access_log(Some("peer said\n2026\tinfo")));
    assert!(line.contains("\terror\taccess\t"), "{line}");
    assert!(
        line.ends_with(" error=\"peer said\\n2026\\tinfo\"\n"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    let message = logged(false, || tracing::info!("a\nb"));
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn json_lines_parse() {
    let line = logged(true, || access_log(Some("refused")));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["scope"], "access");
    assert_eq!(line["message"], "connection complete");
    assert_eq!(line["src.addr"], "10.0.0.1:1234");
    assert_eq!(line["bytes_recv"], 3456);
    assert_eq!(line["error"], "refused");
    assert!(line.get("dst.workload").is_none());
}

#[test]
fn the_access_log_tells_of_what_was_asked_for() {
    let admitted = |filter: &Filter, error: bool, millis, port, namespace| {
        let error: Option<&dyn std::fmt::Display> = error.then_some(&"refused" as _);
        let src = Peer {
            namespace,
            ..Peer::unknown("10.0.0.1:1234".parse().unwrap())
        };
        filter.admits(&AccessLog {
            src,
            port,
            duration: Duration::from_millis(millis),
            ..line(error)
        })
    };
    let (shop, other) = (Some("shop"), Some("other"));
    let errors = Filter::new(Lines::Errors);
    assert!(admitted(&errors, true, 0, 80, shop));
    assert!(!admitted(&errors, false, 0, 80, shop));
    let off = Filter::new(Lines::Off);
    assert!(!admitted(&off, true, 0, 80, shop));
    let long = Filter::default().lasting(Duration::from_millis(100));
    assert!(admitted(&long, false, 100, 80, shop));
    assert!(!admitted(&long, false, 99, 80, shop));
    assert!(admitted(&long, true, 0, 80, shop), "failures are short");
    let few = Filter::default()
        .of_namespaces(vec!["shop".to_owned()])
        .to_ports(vec![80, 81]);
    assert!(admitted(&few, false, 0, 81, shop));
    assert!(!admitted(&few, true, 0, 82, shop));
    assert!(!admitted(&few, true, 0, 80, other));
    let sampled = Filter::default().sampling(0.5);
    let taken = (0..10).filter(|_| admitted(&sampled, false, 0, 80, shop));
    assert_eq!(taken.count(), 5);
    assert!((0..10).all(|_| admitted(&sampled, true, 0, 80, shop)));
}

fn labels(workload: &str) -> TcpLabels {
    TcpLabels {
        reporter: Reporter::Destination,
        source: metrics::Peer {
            workload: workload.into(),
            principal: Some("spiffe://td/ns/a/sa/b".parse().unwrap()),
            ..Default::default()
        },
        destination: metrics::Peer::default(),
        service: Default::default(),
        security: Security::MutualTls,
        flags: ResponseFlags::None,
    }
}

/// The value of the one series of `metric` that has the `label`.
fn value(text: &str, metric: &str, label: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    let line = lines.next()?;
    assert_eq!(
        lines.next(),
        None,
        "several series of {metric} with {label}"
    );
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn bytes_are_counted_while_a_connection_lives_and_none_of_them_twice() {
    let metrics = Metrics::new("ztunnel", "0.1.0");
    let [mut first, mut second] = [(); 2].map(|()| metrics.tcp().open(labels("web")));
    let counted = || {
        let text = metrics.encode();
        ["received", "sent"].map(|what| {
            value(
                &text,
                &format!("istio_tcp_{what}_bytes_total"),
                "source_workload=\"web\"",
            )
        })
    };
    first.carried(100, 0);
    second.carried(0, 20);
    assert_eq!(counted(), [Some(100), Some(20)]);
    // Nothing new, something new, and another one's in between.
    first.carried(100, 0);
    second.carried(5, 20);
    first.carried(130, 7);
    assert_eq!(counted(), [Some(135), Some(27)]);
    assert_eq!((first.counted(), second.counted()), ((130, 7), (5, 20)));
    first.failed(ResponseFlags::Connect);
    drop((first, second));
    assert_eq!(counted(), [Some(135), Some(27)]);
}

#[test]
fn connections_are_counted_under_istios_names() {
    let metrics = Metrics::new("ztunnel", "0.1.0");
    let mut good = metrics.tcp().open(labels("web"));
    good.carried(7, 10);
    good.carried(7, 15);
    let mut denied = metrics.tcp().open(labels("evil"));
    denied.failed(ResponseFlags::Denied);
    denied.failed(ResponseFlags::Connect);
    drop(denied);

    let text = metrics.encode();
    let web = "source_workload=\"web\"";
    assert_eq!(
        value(&text, "istio_tcp_connections_opened_total", web),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", web),
        None
    );
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", web), Some(15));
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", web), Some(7));
    let deny = "response_flags=\"DENY\"";
    assert_eq!(
        value(&text, "istio_tcp_connections_failed_total", deny),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", deny),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_opened_total", "\"evil\""),
        Some(1)
    );
    assert!(
        text.contains(
            "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"web\",\
         source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\",\
         source_workload_namespace=\"unknown\",source_principal=\"spiffe://td/ns/a/sa/b\",\
         source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",\
         destination_service=\"unknown\",destination_service_namespace=\"unknown\",\
         destination_service_name=\"unknown\",destination_workload=\"unknown\",\
         destination_canonical_service=\"unknown\",destination_canonical_revision=\"unknown\",\
         destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",\
         destination_app=\"unknown\",destination_version=\"unknown\",\
         destination_cluster=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\"} 1"
        ),
        "{text}"
    );
    assert!(
        text.contains("istio_build{component=\"ztunnel\",tag=\"0.1.0\"} 1"),
        "{text}"
    );

    drop(good);
    let text = metrics.encode();
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", web),
        Some(1)
    );
}

/// Sends one request and returns the status line and the body.
async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> (String, String) {
    let (head, body) = exchange(address, method, path, "").await;
    (head.lines().next().unwrap().to_owned(), body)
}

/// The answer to a request with these headers, each with its end: head and body.
async fn exchange(
    address: std::net::SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let metrics = Arc::new(Metrics::new("ztunnel", "0.1.0"));
    let events = Counter::<u64>::default();
    metrics.register("sluice_events", "Events", events.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Router::new().metrics(metrics)));
    let plain = "content-type: text/plain; version=0.0.4; charset=utf-8";
    let openmetrics = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,\
                      application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
    for (accept, expected) in [
        (None, plain),
        (Some("*/*"), plain),
        (Some("text/html, nonsense;;q=, */*;q=0.1"), plain),
        (Some("application/openmetrics-text;q=0"), plain),
        (
            Some("application/openmetrics-text;q=0.2, text/plain;q=0.3"),
            plain,
        ),
        (Some("application/openmetrics-text"), openmetrics),
        (
            Some("Application/OpenMetrics-Text; Q=0.5, */*"),
            openmetrics,
        ),
        (Some(prometheus), openmetrics),
    ] {
        let headers = accept.map(|accept| format!("Accept: {accept}\r\n"));
        for path in ["/metrics", "/stats/prometheus"] {
            let (head, body) =
                exchange(address, "GET", path, headers.as_deref().unwrap_or_default()).await;
            assert!(
                head.lines().any(|line| line == expected),
                "{accept:?}: {head}"
            );
            let described = body
                .lines()
                .find(|line| line.starts_with("# TYPE sluice_events"));
            let is_open = expected == openmetrics;
            let name = if is_open {
                "sluice_events"
            } else {
                "sluice_events_total"
            };
            assert_eq!(
                described,
                Some(&*format!("# TYPE {name} counter")),
                "{accept:?}"
            );
            assert!(body.contains("\nsluice_events_total 0\n"), "{body}");
            assert_eq!(body.ends_with("# EOF\n"), is_open, "{accept:?}");
        }
    }
}

#[tokio::test]
async fn spans_that_nobody_takes_are_counted_and_hold_nothing_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let metrics = Metrics::new("ztunnel", "0.1.0");
    let config = |endpoint: &str| Config {
        endpoint: endpoint.to_owned(),
        roots: Vec::new(),
        sampling: 1.0,
        resource: Vec::new(),
    };
    for bad in ["", "localhost:4317", "ftp://localhost:4317"] {
        assert!(Tracer::start(config(bad), &metrics).is_err(), "{bad:?}");
    }
    let tracer = Tracer::start(config(&endpoint), &metrics).unwrap();
    let now = std::time::SystemTime::now();
    let span = Span {
        trace: 1,
        id: 2,
        parent: None,
        side: Side::Client,
        name: "test",
        start: now,
        end: now,
        attributes: Vec::new(),
        error: None,
    };
    // The receiver accepts, and says nothing: the exporter waits, and the queue fills up.
    for _ in 0..10_000 {
        tracer.record(span.clone());
        tokio::task::yield_now().await;
    }
    let count = |outcome: &str| {
        let label = format!("outcome=\"{outcome}\"");
        value(&metrics.encode(), "sluice_spans_total", &label).unwrap()
    };
    assert!(
        count("queue_full") >= 10_000 - 4096 - 512,
        "{}",
        metrics.encode()
    );
    let overflowed = count("queue_full");
    // Now it is gone.
    drop(listener);
    let refused = async {
        while count("refused") + overflowed < 10_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused)
        .await
        .unwrap();
    assert_eq!(count("exported"), 0);
}

#[tokio::test]
async fn the_endpoints_answer_as_their_readers_expect() {
    let readiness = Readiness::default();
    let xds = readiness.pending("xds");
    let ca = readiness.pending("ca");
    let metrics = Arc::new(Metrics::new("ztunnel", "0.1.0"));
    let events = Counter::<u64>::default();
    metrics.register("sluice_events", "Events", events.clone());
    events.inc();
    metrics.register_foreign("sluice_verdicts", "Verdicts", "reason", || {
        vec![("captured", 3), ("local", 0)]
    });
    let old = Arc::new(AtomicBool::new(true));
    let is_old = old.clone();
    readiness.explain(move || is_old.load(Relaxed).then(|| "but old".to_owned()));
    let is_old = old.clone();
    metrics.register_gauge("sluice_age_seconds", "Age", move || {
        is_old.load(Relaxed).then_some(1.5)
    });
    let router = Router::new()
        .readiness(readiness.clone())
        .metrics(metrics)
        .get("/echo", |query| {
            Reply::text(StatusCode::ACCEPTED, query.to_owned())
        })
        .get_later("/later", |query| async move {
            tokio::task::yield_now().await;
            let given = sluice_telemetry::serve::parameter(&query, "b").unwrap_or_default();
            Reply::text(StatusCode::OK, given)
        })
        .post("/change", |query| {
            Reply::text(StatusCode::OK, query.to_owned())
        });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, router));

    let (status, body) = ask(address, "GET", "/healthz/ready").await;
    assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
    assert_eq!(body, "not ready, pending: ca, xds\n");
    xds.done();
    drop(ca);
    let (_, body) = ask(address, "GET", "/healthz/ready").await;
    assert_eq!(
        body, "not ready, pending: ca\n",
        "giving up is not being ready"
    );
    readiness.pending("ca").done();
    let (status, body) = ask(address, "GET", "/healthz/ready").await;
    assert_eq!((&*status, &*body), ("HTTP/1.1 200 OK", "ready, but old\n"));
    let (_, body) = ask(address, "GET", "/metrics").await;
    assert!(body.contains("\nsluice_age_seconds 1.5\n"), "{body}");
    old.store(false, Relaxed);
    let (status, body) = ask(address, "GET", "/healthz/ready").await;
    assert_eq!((&*status, &*body), ("HTTP/1.1 200 OK", "ready\n"));
    let (_, body) = ask(address, "GET", "/metrics").await;
    assert!(!body.contains("sluice_age_seconds"), "{body}");
    assert!(readiness.is_ready());

    for path in ["/metrics", "/stats/prometheus"] {
        let (_, body) = ask(address, "GET", path).await;
        assert!(body.contains("sluice_events_total 1"), "{body}");
        for sample in ["{reason=\"captured\"} 3", "{reason=\"local\"} 0"] {
            let sample = format!("sluice_verdicts_total{sample}");
            assert!(body.contains(&sample), "{body}");
        }
    }
    let (status, body) = ask(address, "GET", "/echo?a=b").await;
    assert_eq!((&*status, &*body), ("HTTP/1.1 202 Accepted", "a=b"));
    let (status, _) = ask(address, "POST", "/metrics").await;
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
    let (_, body) = ask(address, "GET", "/later?a=1&b=x%3Dy+z&b=2").await;
    assert_eq!(
        body, "x=y z",
        "parameters are decoded, and the first counts"
    );
    let (status, body) = ask(address, "POST", "/change?to=1").await;
    assert_eq!((&*status, &*body), ("HTTP/1.1 200 OK", "to=1"));
    let (status, body) = ask(address, "GET", "/change?to=1").await;
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(body, "only POST is served here\n");
    let (status, _) = ask(address, "GET", "/none").await;
    assert_eq!(status, "HTTP/1.1 404 Not Found");
}
