//! Waiting until what was written into the directory is in force everywhere.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::eventually::eventually;
use crate::mesh::Mesh;

/// The workload that carries the marker.
const MARKER: &str = "settled";

impl Mesh {
    /// Waits until every ztunnel has what is in the directory now.
    ///
    /// A marker is written after everything else; where it has arrived and all that was sent is
    /// acknowledged, the rest has arrived too, removals included. The kernel captures what it knows.
    pub fn settle(&self) -> Result<()> {
        static REVISION: AtomicU64 = AtomicU64::new(1);
        let number = REVISION.fetch_add(1, Ordering::Relaxed);
        let revision = format!("revision-{number}");
        // For documentation (RFC 5737), of a range that no test uses, and another one each time.
        let ip = Ipv4Addr::new(203, 0, 113, (number % 250) as u8 + 1);
        self.config().apply(MARKER, &marker(&revision, ip))?;
        eventually(|| {
            for ztunnel in self.ztunnels() {
                let dump = ztunnel.config_dump()?;
                ensure!(
                    has_marker(&dump, &revision),
                    "node {} has not got the configuration",
                    ztunnel.node().name()
                );
                ensure!(
                    !self.bypasses() || ztunnel.captures(ip)?,
                    "the kernel of node {} has not got the addresses",
                    ztunnel.node().name()
                );
            }
            let clients = self.ask_control("/clients")?;
            let clients: Value = serde_json::from_str(&clients).context("parsing /clients")?;
            ensure!(is_acknowledged(&clients), "not acknowledged: {clients}");
            Ok(())
        })
    }
}

fn marker(revision: &str, ip: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {MARKER}, namespace: default}}\n\
         spec: {{nodeName: {revision}}}\n\
         status: {{phase: Running, podIP: {ip}}}\n"
    )
}

fn has_marker(dump: &Value, revision: &str) -> bool {
    let mut workloads = dump["workloads"].as_array().into_iter().flatten();
    workloads.any(|workload| workload["name"] == MARKER && workload["node"] == revision)
}

fn is_acknowledged(clients: &Value) -> bool {
    let mut types = clients
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|client| client["types"].as_object())
        .flat_map(|types| types.values());
    types.all(|progress| progress["sent"]["nonce"] == progress["acknowledged"]["nonce"])
}
