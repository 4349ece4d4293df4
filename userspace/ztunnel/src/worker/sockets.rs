//! How many sockets the ztunnel has, as a metric: counted by the broker, when somebody scrapes.

use std::{sync::Arc, time::Duration};

use sluice_telemetry::metrics::{Kind, Metrics, Reading};
use tokio::sync::watch;

use crate::link::{AsyncLink, ToBroker, message::SocketCount};

/// A scrape goes without after this: scrapers wait longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the broker, and shows what it says.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    link: Arc<AsyncLink>,
    counts: watch::Sender<Vec<SocketCount>>,
}

impl Sockets {
    pub(super) fn show(metrics: &Metrics, link: Arc<AsyncLink>) -> Self {
        let counts = watch::Sender::<Vec<SocketCount>>::default();
        let shown = counts.subscribe();
        metrics.register_readings(
            Kind::Gauge,
            "sluice_sockets",
            "TCP sockets of the ztunnel in its pods' network namespaces, by purpose and state",
            move || shown.borrow().iter().map(reading).collect(),
        );
        Self { link, counts }
    }

    /// Brings the counts up to date, as far as the broker does. Where it does not answer none are shown,
    /// rather than those of another scrape.
    pub(super) async fn count(&self) {
        let mut counts = self.counts.subscribe();
        let answered = async {
            self.link
                .send_when_room(&ToBroker::CountSockets, &[])
                .await?;
            counts.changed().await.map_err(std::io::Error::other)
        };
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "the broker cannot be asked to count sockets"),
            Err(_) => tracing::warn!("the broker takes too long to count sockets"),
        }
        self.counts.send_replace(Vec::new());
    }

    /// The broker's answer.
    pub(super) fn hear(&self, counts: Vec<SocketCount>) {
        self.counts.send_replace(counts);
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn reading(counted: &SocketCount) -> Reading {
    Reading::new(counted.count as f64)
        .with("purpose", counted.purpose.clone())
        .with("state", counted.state.clone())
}
