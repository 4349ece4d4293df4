//! What `sluicectl explain` says of a connection is what becomes of it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::{Pod, sluicectl};

use super::Stage;

impl Stage<'_> {
    /// Asks the ztunnel of the client's node, and by the files: both must know that the connection
    /// is served, or why it is refused.
    pub(super) fn explain(&self, client: &Pod, port: u16, refused: Option<&str>) -> Result<()> {
        let live = self.explained(client, port, &[])?;
        let config = self.s.mesh.config().path().display().to_string();
        let by_files = self.explained(client, port, &["--dir", &config])?;
        for said in [&live, &by_files] {
            let outcome = if refused.is_some() {
                "denied"
            } else {
                "allowed"
            };
            ensure!(said["outcome"] == outcome, "not {outcome}: {said:#}");
            let reason = said["reason"].as_str().context("no reason")?;
            ensure!(
                refused.is_none_or(|expected| reason.starts_with(expected)),
                "another reason than {refused:?}: {said:#}"
            );
        }
        for field in ["outcome", "reason"] {
            ensure!(live[field] == by_files[field], "{live:#}\n{by_files:#}");
        }
        let views = |said: &Value| said["ends"][0]["policies"].clone();
        ensure!(views(&live) == views(&by_files), "{live:#}\n{by_files:#}");
        Ok(())
    }

    fn explained(&self, client: &Pod, port: u16, source: &[&str]) -> Result<Value> {
        let name = format!("{}/{}", client.namespace(), client.name());
        let server = format!(
            "pod/{}/{}:{port}",
            self.server.namespace(),
            self.server.name()
        );
        let mut arguments = vec!["explain", &name, &server, "--output", "json"];
        arguments.extend(source);
        let node = self.s.mesh.ztunnel(client.node()).node();
        let run = sluicectl::run(node, &arguments)?;
        let said: Value = serde_json::from_str(&run.stdout)
            .with_context(|| format!("{}{}", run.stdout, run.stderr))?;
        let expected = if said["outcome"] == "allowed" { 0 } else { 1 };
        ensure!(
            run.status.code() == Some(expected),
            "{}: {said:#}",
            run.status
        );
        Ok(said)
    }
}
