//! What operators ask the control plane itself.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use sluice_telemetry::{
    metrics::Metrics,
    serve::{JSON, Readiness, Reply, Router, parameter},
};
use tokio::sync::watch;

use crate::{feed::Published, xds::Clients};

/// The pages: `/healthz/ready`, `/config/errors`, `/config/status`, `/config/addresses`,
/// `/config/mtls?pod=NAMESPACE/NAME&port=PORT`, `/clients`, `/metrics`.
pub fn router(
    published: watch::Receiver<Arc<Published>>,
    clients: Clients,
    readiness: Readiness,
    metrics: Arc<Metrics>,
) -> Router {
    let (policies, given, asked) = (published.clone(), published.clone(), published.clone());
    Router::new()
        .readiness(readiness)
        .metrics(metrics)
        .get("/config/errors", move |_| {
            json(&published.borrow().diagnostics)
        })
        .get("/config/addresses", move |_| {
            json(&given.borrow().addresses)
        })
        .get("/config/status", move |_| json(&policies.borrow().statuses))
        .get("/config/mtls", move |query| mtls(&asked.borrow(), query))
        .get("/clients", move |_| json(&clients.statuses()))
}

/// What a port of a pod accepts, and why.
fn mtls(published: &Published, query: &str) -> Reply {
    let pod = parameter(query, "pod").unwrap_or_default();
    let port = parameter(query, "port").and_then(|port| port.parse().ok());
    let (Some((namespace, name)), Some(port)) = (pod.split_once('/'), port) else {
        let usage = "ask as /config/mtls?pod=NAMESPACE/NAME&port=PORT\n";
        return Reply::text(StatusCode::BAD_REQUEST, usage);
    };
    match published.mtls(namespace, name, port) {
        Some(found) => json(&Mtls {
            mode: if found.strict { "STRICT" } else { "PERMISSIVE" },
            from: found.to_string(),
        }),
        None => Reply::text(StatusCode::NOT_FOUND, format!("there is no pod {pod}\n")),
    }
}

#[derive(Serialize)]
struct Mtls {
    mode: &'static str,
    from: String,
}

fn json(value: &(impl Serialize + ?Sized)) -> Reply {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            Reply::ok(JSON, body)
        }
        Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
