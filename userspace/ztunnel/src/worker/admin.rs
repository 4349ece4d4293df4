//! What operators and scrapers can ask of the worker. What changes something, or tells of more than
//! one should, is served on loopback alone.

mod dump;
mod explain;
mod index;
mod logging;
mod profile;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use serde_json::json;
use sluice_model::Uid;
use sluice_telemetry::{
    Levels,
    serve::{JSON, Readiness, Reply, Router, TEXT, serve},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};

use super::{Shared, connections::Threads, sockets::Sockets};
use crate::link::PodId;

/// What is asked, and what answers.
pub(super) struct Operators {
    pub(super) shared: Arc<Shared>,
    pub(super) readiness: Readiness,
    pub(super) levels: Arc<Levels>,
    pub(super) threads: Threads,
    pub(super) sockets: Sockets,
    /// The pods of this node that are in the mesh.
    pub(super) pods: watch::Receiver<BTreeMap<PodId, Uid>>,
    /// Ends the worker.
    pub(super) quit: Arc<Notify>,
}

impl Operators {
    /// Binds the endpoints and serves them in the background.
    pub(super) async fn start(self) -> Result<()> {
        let settings = &self.shared.settings;
        ensure!(
            settings.admin.ip().is_loopback(),
            "{} is not loopback: whoever reaches the admin port may change and end the worker",
            settings.admin
        );
        let counted = (self.threads.clone(), self.sockets.clone());
        let metrics = Router::new().metrics_after(self.shared.metrics.clone(), move || {
            let (threads, sockets) = counted.clone();
            async move { _ = tokio::join!(threads.count(), sockets.count()) }
        });
        let ready = Router::new().readiness(self.readiness.clone());
        let endpoints = [
            (settings.metrics, metrics),
            (settings.readiness, ready),
            (settings.admin, Arc::new(self).admin()),
        ];
        for (address, router) in endpoints {
            let listener = listen(address).await?;
            tokio::spawn(serve(listener, router));
        }
        Ok(())
    }

    fn admin(self: Arc<Self>) -> Router {
        let (asked, dumped, connected) = (self.clone(), self.clone(), self.clone());
        let (certified, levels, quit) = (self.clone(), self.levels.clone(), self.quit.clone());
        Router::new()
            .get("/", |_| Reply::ok(index::HTML, index::PAGE))
            .get("/explain", move |query| asked.explain(query))
            .get_later("/config_dump", move |_| {
                let operators = dumped.clone();
                async move { pretty(&dump::all(&operators).await) }
            })
            .get_later("/connections", move |_| {
                let operators = connected.clone();
                async move { pretty(&json!(operators.threads.connections().await)) }
            })
            .get("/certificates", move |_| {
                pretty(&json!(dump::certificates(&certified.shared)))
            })
            .get_later("/debug/pprof/profile", profile::cpu)
            .get_later("/debug/pprof/heap", profile::heap)
            .stream("/trace", {
                let trace = self.shared.trace.clone();
                move |query, sender| super::trace::open(&trace, query, sender)
            })
            .post("/logging", move |query| logging::change(&levels, query))
            .post("/quitquitquit", move |_| {
                tracing::warn!("an operator ends this worker; the broker starts the next");
                quit.notify_one();
                Reply::ok(TEXT, "the worker ends, and the next one takes over\n")
            })
            .readiness(self.readiness.clone())
    }

    fn explain(&self, query: &str) -> Reply {
        let pods: BTreeSet<Uid> = self.pods.borrow().values().cloned().collect();
        match explain::answer(&self.shared, &pods, query) {
            Ok(said) => pretty(&json!(said)),
            Err(reason) => Reply::text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        }
    }
}

fn pretty(value: &serde_json::Value) -> Reply {
    Reply::ok(JSON, format!("{value:#}\n"))
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for operators"))
}
