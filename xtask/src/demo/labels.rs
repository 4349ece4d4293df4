//! One label captures the traffic of running pods, and frees it again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::podtool::{self, Connection, Flood};
use sluice_tests::{eventually, objects};

use super::claims::Claims;
use super::servers::{HTTP_PORT, get};
use super::shop::{ECHO_PORT, LEGACY, Shop};

/// The file that `Mesh::apply_namespace` wrote.
const NAMESPACE_FILE: &str = "namespace-legacy";
/// Longer than both transitions take, which is looked at.
const FLOOD_SECONDS: &str = "10";

pub(crate) fn prove(shop: &mut Shop, claims: &mut Claims) -> Result<()> {
    let echo = format!("{}:{ECHO_PORT}", shop.legacy_catalog.v4());
    let url = format!("http://{}:{HTTP_PORT}/", shop.legacy_catalog.v4());
    let mut before = Connection::open(&shop.legacy_web, &echo).context("before the label")?;
    before.exchange("plain")?;
    // A program that runs all the while, without knowing of any mesh.
    let options = [
        "--seconds",
        FLOOD_SECONDS,
        "--rate",
        "50",
        "--concurrency",
        "8",
    ];
    let mut flood = podtool::start_flood(&shop.legacy_web, "flood-labels", &echo, &options)?;

    label(shop, Some("ambient"))?;
    claims.observe(
        "Labelling a namespace captures the next connection of a running pod",
        || {
            let line = eventually(|| {
                get(&shop.legacy_web, &url, "labelled")?;
                outbound(shop)?
                    .pop()
                    .context("node a's ztunnel has not carried it")
            })?;
            Ok(format!("log of a: {} → {}", line.0, line.1))
        },
    );
    let during = Connection::open(&shop.legacy_web, &echo).and_then(|mut connection| {
        connection.exchange("meshed")?;
        Ok(connection)
    });

    label(shop, None)?;
    claims.observe("Removing the label frees it", || {
        shop.mesh.wait_until_released(&shop.legacy_web)?;
        shop.mesh.wait_until_released(&shop.legacy_catalog)?;
        let (count, fresh) = eventually(|| {
            let before = outbound(shop)?.len();
            get(&shop.legacy_web, &url, "unlabelled")?;
            // Those that were captured before may still be ending.
            let after = outbound(shop)?.len();
            ensure!(
                before == after,
                "node a's ztunnel still carries the pod's connections"
            );
            ensure!(after > 0, "there was nothing to free it from");
            Ok((after, get(&shop.legacy_web, &url, "unlabelled")?))
        })?;
        let seen = fresh.client_as_seen()?;
        Ok(format!(
            "catalog sees {seen}; the log of a stays at {count} connections of the pod"
        ))
    });
    let ended_early = flood.log()?.contains('}');
    claims.observe("Established connections survive both", || {
        let answer = before.exchange("after")?;
        ensure!(
            answer == "after",
            "the connection from before the label says {answer}"
        );
        let mut during = during?;
        let answer = during.exchange("after")?;
        ensure!(
            answer == "after",
            "the connection from under the label says {answer}"
        );
        // It must have been the mesh that carried it, which is logged when it ends.
        let (_, port) = during
            .local
            .rsplit_once(':')
            .context("an address has a port")?;
        let source = format!("{}:{port}", shop.legacy_web.v4());
        drop(during);
        let carried = [("direction", "outbound"), ("src.addr", source.as_str())];
        shop.mesh.ztunnel("a").wait_for_access(&carried)?;
        Ok("one made before the label and one made under it exchange lines afterwards".to_owned())
    });
    claims.observe(
        "A program that connects all the while notices neither",
        || {
            let report = eventually(|| {
                let log = flood.log()?;
                ensure!(log.contains('}'), "podtool flood has not ended");
                Flood::parse(&log)
            })?;
            flood.stop(Duration::from_secs(1))?;
            ensure!(
                !ended_early,
                "it ended before the label was removed: {report:?}"
            );
            ensure!(report.ok == report.attempted && report.ok > 0, "{report:?}");
            Ok(format!(
                "{} of {} connections at 50/s were made and answered",
                report.ok, report.attempted
            ))
        },
    );
    Ok(())
}

fn label(shop: &Shop, mode: Option<&str>) -> Result<()> {
    shop.mesh
        .config()
        .apply(NAMESPACE_FILE, &objects::namespace(LEGACY, mode))
}

/// Source and destination identities of what node a's ztunnel carried for the pod.
fn outbound(shop: &Shop) -> Result<Vec<(String, String)>> {
    let source = shop.legacy_web.spiffe_id();
    let wanted = [("direction", "outbound"), ("src.identity", source.as_str())];
    let log = shop.mesh.ztunnel("a").access_log()?;
    Ok(log
        .iter()
        .filter(|line| line.has(&wanted))
        .map(|line| {
            (
                line.get("src.identity").to_owned(),
                line.get("dst.identity").to_owned(),
            )
        })
        .collect())
}
