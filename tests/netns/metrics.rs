//! What scrapers get, as the judge of Prometheus sees it.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::podtool::{self, Serve};
use sluice_tests::process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{eventually, objects};

const LIMIT: Duration = Duration::from_secs(60);

/// Gauges whose names, which are Istio's, promtool would have otherwise.
const ISTIOS: [&str; 2] = ["istio_active_proxy_count", "istio_pending_proxy_count"];

/// Has metrics in the text format checked: neither errors nor advice.
fn check(s: &Scenario, of: &str, text: &str) -> Result<()> {
    let run = s.topology.run();
    let path = run.dir().join(format!("{of}.metrics"));
    let ours = |line: &&str| !ISTIOS.iter().any(|name| line.contains(name));
    let text: Vec<&str> = text.lines().filter(ours).collect();
    fs::write(&path, text.join("\n") + "\n")
        .with_context(|| format!("writing {}", path.display()))?;
    let mut promtool = s.topology.wire().command("promtool");
    promtool
        .args(["check", "metrics"])
        .stdin(File::open(&path)?);
    let judged = process::finish_within(run, promtool, LIMIT).context("promtool")?;
    ensure!(
        judged.status.success() && judged.stderr.is_empty() && judged.stdout.is_empty(),
        "{of}: {} {}",
        judged.stdout,
        judged.stderr
    );
    Ok(())
}

#[test]
fn promtool_has_nothing_to_say_of_any_process() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let batch = s.enrolled_pod("a", "shop", "batch")?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&catalog, "catalog", Serve::Greet, "[::]:80")?;
        let allow = objects::allow_principals("shop", "catalog", &["cluster.local/ns/shop/sa/web"]);
        s.mesh.config().apply("allow", &allow)?;
        let address = (catalog.v4(), 80).into();
        // Series of every kind: those who were served, and those who were not.
        eventually(|| {
            use sluice_tests::outcome::{Outcome, attempt};
            let found = [attempt(&web, address)?, attempt(&batch, address)?];
            ensure!(found == [Outcome::Served, Outcome::Reset], "{found:?}");
            Ok(())
        })?;
        for (node, reporter) in [("a", "source"), ("b", "destination")] {
            let labels = [("reporter", reporter)];
            eventually(|| {
                let ztunnel = s.mesh.ztunnel(node);
                let closed = ztunnel.metric("istio_tcp_connections_closed_total", &labels)?;
                ensure!(closed >= 1.0, "nothing is counted on {node}");
                Ok(())
            })?;
            check(
                s,
                &format!("ztunnel-{node}"),
                &s.mesh.ztunnel(node).metrics()?,
            )?;
        }
        let control = s.mesh.ask_control("/metrics")?;
        ensure!(control.contains("pilot_xds_pushes_total{"), "{control}");
        check(s, "control", &control)
    });
}
