//! What operators ask the control plane itself.

use std::sync::Arc;

use serde::Serialize;
use sluice_telemetry::{
    metrics::Metrics,
    serve::{JSON, Readiness, Reply, Router},
};
use tokio::sync::watch;

use crate::{feed::Published, xds::Clients};

/// The pages: `/healthz/ready`, `/config/errors`, `/config/status`, `/config/addresses`,
/// `/clients`, `/metrics`.
pub fn router(
    published: watch::Receiver<Arc<Published>>,
    clients: Clients,
    readiness: Readiness,
    metrics: Arc<Metrics>,
) -> Router {
    let (policies, given) = (published.clone(), published.clone());
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
        .get("/clients", move |_| json(&clients.statuses()))
}

fn json(value: &(impl Serialize + ?Sized)) -> Reply {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            Reply::ok(JSON, body)
        }
        Err(error) => Reply::text(http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
