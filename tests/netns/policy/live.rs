//! Established connections when policy, a label, or an identity changes: those that would not be
//! let through any more are cut with the reason, and nothing else is disturbed.

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::scenario;
use sluice_tests::{Pod, eventually, objects};

use super::{PORTS, Stage};

/// A connection that has been greeted and answered, `CLIENT:PORT`.
struct Held {
    name: String,
    connection: Connection,
}

impl Held {
    fn open(stage: &Stage<'_>, client: &Pod, port: u16) -> Result<Self> {
        let address = format!("{}:{port}", stage.server.v4());
        let mut held = Self {
            name: format!("{}:{port}", client.name()),
            connection: Connection::open(client, &address)?,
        };
        held.connection.line().with_context(|| held.name.clone())?;
        held.is_alive()?;
        Ok(held)
    }

    /// Every client to every port; those of one client share a tunnel.
    fn all(stage: &Stage<'_>) -> Result<Vec<Self>> {
        let pairs = stage
            .clients
            .iter()
            .flat_map(|c| PORTS.map(|port| (c, port)));
        pairs
            .map(|(client, port)| Self::open(stage, client, port))
            .collect()
    }

    fn is_alive(&mut self) -> Result<()> {
        let answer = self.connection.exchange("still there?");
        answer.map(|_| ()).with_context(|| self.name.clone())
    }

    /// A reset, and never an end that could be taken for the server's own.
    fn is_cut(&self) -> Result<()> {
        match self.connection.event(PATIENCE)? {
            Some(Event::Broken(how)) if how.starts_with("reset") => Ok(()),
            other => bail!("{} is not cut: {other:?}", self.name),
        }
    }
}

/// Exactly these are cut, each with a line in the server's log that gives the reason.
fn only_cut(stage: &Stage<'_>, held: Vec<Held>, cut: &str, reason: &str) -> Result<Vec<Held>> {
    let doomed: Vec<&str> = cut.split_whitespace().collect();
    let mut left = Vec::new();
    for mut one in held {
        if doomed.contains(&&*one.name) {
            one.is_cut()?;
        } else {
            one.is_alive()?;
            left.push(one);
        }
    }
    let far = stage.s.mesh.ztunnel("b");
    eventually(|| {
        let lines = far.access_log()?;
        let mut found: Vec<String> = lines
            .iter()
            .filter(|line| line.get("error") == reason)
            .map(|line| {
                let to = line.get("dst.hbone_addr");
                let to = if to.is_empty() {
                    line.get("dst.addr")
                } else {
                    to
                };
                let port = to.rsplit(':').next().unwrap_or_default();
                format!("{}:{port}", line.get("src.workload"))
            })
            .collect();
        found.sort();
        let mut wanted = doomed.clone();
        wanted.sort_unstable();
        ensure!(
            found == wanted,
            "lines with {reason:?}: {found:?}, and not {wanted:?}"
        );
        Ok(())
    })?;
    Ok(left)
}

const BY_RULE: &str = "cut, since policy has changed: denied by policy shop/test, rule 0";

#[test]
fn what_a_new_policy_denies_is_cut_and_nothing_else() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let workers = [s.mesh.ztunnel("a").worker()?, s.mesh.ztunnel("b").worker()?];
        let held = Held::all(&stage)?;

        // Of two streams in one tunnel, one.
        stage.apply(&[authorization!(
            "shop",
            "action: DENY",
            "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], \
                      to: [{operation: {ports: ['80']}}]}]",
        )])?;
        let held = only_cut(&stage, held, "web:80", BY_RULE)?;

        // ALLOW policies narrow down what is left, plaintext included.
        stage.apply(&[authorization!(
            "shop",
            "rules:",
            "- from: [{source: {namespaces: [shop]}}]",
            "- to: [{operation: {ports: ['81']}}]",
        )])?;
        let none = "cut, since policy has changed: \
                    allow policies exist, but none allowed this connection";
        let mut held = only_cut(&stage, held, "batch:80 old:80", none)?;

        let denied = |reason, policy| {
            let labels = [
                ("reporter", "destination"),
                ("connection", "established"),
                ("reason", reason),
                ("policy", policy),
            ];
            s.mesh
                .ztunnel("b")
                .metric("sluice_denied_connections_total", &labels)
        };
        ensure!(
            denied("deny_policy", "shop/test")? == 1.0,
            "the first was not counted"
        );
        ensure!(
            denied("no_allow_matched", "")? == 2.0,
            "the others were not counted"
        );

        // Once there is no policy, what is left goes on and the others can come again.
        stage.apply(&[])?;
        held.iter_mut().try_for_each(Held::is_alive)?;
        Held::all(&stage)?;
        let now = [s.mesh.ztunnel("a").worker()?, s.mesh.ztunnel("b").worker()?];
        ensure!(now == workers, "a worker was replaced");
        Ok(())
    });
}

#[test]
fn strict_mutual_tls_cuts_established_plaintext() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let held = Held::all(&stage)?;
        stage.apply(&[concat!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n",
            "metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n",
        )])?;
        let reason = "cut, since policy has changed: denied by policy \
                      istio-system/istio_converted_static_strict, rule 0: a PeerAuthentication \
                      demands mutual TLS, and this is plaintext";
        only_cut(&stage, held, "old:80 old:81", reason)?;
        let labels = [
            ("connection", "established"),
            ("reason", "mutual_tls_required"),
        ];
        let cut = s
            .mesh
            .ztunnel("b")
            .metric("sluice_denied_connections_total", &labels)?;
        ensure!(cut == 2.0, "{cut} counted, and not 2");
        Ok(())
    });
}

#[test]
fn a_label_that_brings_a_policy_cuts_what_it_denies() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.apply(&[authorization!(
            "shop",
            "selector: {matchLabels: {tier: locked}}",
            "action: DENY",
            "rules: [{from: [{source: {namespaces: [other]}}]}]",
        )])?;
        let held = Held::all(&stage)?;
        s.mesh.apply_pod(&stage.server, &[("tier", "locked")])?;
        s.mesh.settle()?;
        only_cut(&stage, held, "batch:80 batch:81", BY_RULE)?;
        Ok(())
    });
}

/// What it said of itself under its old service account ends with that, both what it dialled and
/// what others dialled.
#[test]
fn a_changed_service_account_ends_what_was_proven_under_the_old_one() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let [web, batch, _] = &stage.clients;
        let _server = podtool::serve(web, "web-90", Serve::Greet, "[::]:90")?;
        let mut to_web = Connection::open(batch, &format!("{}:90", web.v4()))?;
        to_web.line()?;
        to_web.exchange("hello")?;
        let mut held = Held::all(&stage)?;
        let renamed =
            objects::pod(web, &[]).replace("serviceAccountName: web", "serviceAccountName: web-v2");
        s.mesh.config().apply(
            "serviceaccount-shop-web-v2",
            &objects::service_account("shop", "web-v2"),
        )?;
        s.mesh.config().apply("pod-shop-web", &renamed)?;
        for one in &mut held {
            if one.name.starts_with("web:") {
                one.is_cut()?;
            } else {
                one.is_alive()?;
            }
        }
        let inbound = to_web.event(PATIENCE)?;
        ensure!(
            matches!(&inbound, Some(Event::Broken(how)) if how.starts_with("reset")),
            "what others had dialled was not cut: {inbound:?}"
        );
        let reason = "cut: the pod's service account has changed, and with it its identity \
                      spiffe://cluster.local/ns/shop/sa/web";
        let near = s.mesh.ztunnel("a");
        near.wait_for_access(&[("direction", "outbound"), ("error", reason)])?;
        // Both ends of the other one notice, each by itself; who is first cuts it.
        let stale = "cut: spiffe://cluster.local/ns/shop/sa/web is not the destination's identity \
                     any more";
        eventually(|| {
            let lines = near.access_log()?;
            let told = lines.iter().any(|line| {
                line.has(&[("direction", "inbound"), ("error", reason)])
                    || line.has(&[("src.workload", "batch"), ("error", stale)])
            });
            ensure!(
                told,
                "neither end of the connection to web says why it was cut"
            );
            Ok(())
        })?;
        // It is somebody else from now on.
        Held::open(&stage, web, 80)?;
        let identity = "spiffe://cluster.local/ns/shop/sa/web-v2";
        s.mesh
            .ztunnel("b")
            .wait_for_access(&[("src.identity", identity)])?;
        Ok(())
    });
}

#[test]
fn policies_in_dry_run_report_and_cut_nothing() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let mut held = Held::all(&stage)?;
        let dry_run = authorization!(
            "shop",
            "action: DENY",
            "rules: [{from: [{source: {namespaces: [other]}}]}]",
        )
        .replace(
            "name: test",
            "annotations: {istio.io/dry-run: 'true'}, name: trial",
        );
        stage.apply(&[&dry_run])?;
        held.iter_mut().try_for_each(Held::is_alive)?;
        Held::all(&stage)?;
        let far = s.mesh.ztunnel("b");
        let metric = |name: &str, labels: &[(&str, &str)]| far.metric(name, labels);
        for (enforced, dry_run, policy, count) in [
            ("allow", "deny", "shop/trial", 2.0),
            ("allow", "allow", "", 4.0),
        ] {
            let labels = [
                ("enforced", enforced),
                ("dry_run", dry_run),
                ("policy", policy),
            ];
            let found = metric("sluice_dry_run_decisions_total", &labels)?;
            ensure!(found == count, "{labels:?}: {found}, and not {count}");
        }
        let told = "policies in dry run would decide otherwise";
        let line = far.wait_for_line(&[told])?;
        ensure!(
            line.contains("denied by policy shop/trial, rule 0"),
            "{line}"
        );
        Ok(())
    });
}

/// While trust moves from one domain to another, what policies say of the old one holds for the new
/// one, and no longer.
#[test]
fn a_trust_domain_alias_holds_as_long_as_the_mesh_config_has_it() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let aliased = "apiVersion: v1\nkind: ConfigMap\n\
                       metadata: {name: istio, namespace: istio-system}\n\
                       data: {mesh: 'trustDomainAliases: [old.example]'}\n";
        s.mesh.config().apply("mesh-config", aliased)?;
        stage.apply(&[authorization!(
            "shop",
            "rules:",
            "- from: [{source: {principals: [old.example/ns/shop/sa/web]}}]",
            "- from: [{source: {principals: [cluster.local/ns/other/sa/batch]}}]",
        )])?;
        let [web, batch, old] = &stage.clients;
        let held = [(web, 80), (batch, 80)].map(|(client, port)| Held::open(&stage, client, port));
        let held = held.into_iter().collect::<Result<Vec<_>>>()?;
        let address = format!("{}:80", stage.server.v4()).parse()?;
        ensure!(attempt(old, address)? == Outcome::Reset, "plaintext got in");

        s.mesh.config().apply(
            "mesh-config",
            &aliased.replace("old.example", "other.example"),
        )?;
        s.mesh.settle()?;
        let none = "cut, since policy has changed: \
                    allow policies exist, but none allowed this connection";
        only_cut(&stage, held, "web:80", none)?;
        ensure!(attempt(web, address)? == Outcome::Reset, "web got in again");
        ensure!(
            attempt(batch, address)? == Outcome::Served,
            "batch was kept out"
        );
        Ok(())
    });
}

#[test]
fn an_audit_reports_and_cuts_nothing() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let mut held = Held::all(&stage)?;
        stage.apply(&[authorization!(
            "shop",
            "action: AUDIT",
            "rules:",
            "- to: [{operation: {ports: ['443']}}]",
            "- from: [{source: {notNamespaces: ['*']}}]",
        )])?;
        held.iter_mut().try_for_each(Held::is_alive)?;
        Held::all(&stage)?;
        let far = s.mesh.ztunnel("b");
        let audits = far.metric(
            "sluice_audited_connections_total",
            &[("policy", "shop/test")],
        )?;
        ensure!(
            audits == 2.0,
            "{audits} audits, and not those of the two without an identity"
        );
        let line = far.wait_for_line(&["\tpolicy\taudit\t"])?;
        ensure!(
            line.contains("policy=shop/test") && line.contains("policy_rule=1"),
            "{line}"
        );
        Ok(())
    });
}

/// Much happens elsewhere, and nobody is asked again.
#[test]
fn changes_elsewhere_disturb_nobody() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let mut held = Held::all(&stage)?;
        for round in 0..10 {
            let deny = authorization!("other", "action: DENY", "rules: [{}]");
            let far = format!(
                "{deny}---\n{}",
                objects::namespace(&format!("n{round}"), None)
            );
            stage.apply(&[&far])?;
            held.iter_mut().try_for_each(Held::is_alive)?;
        }
        for node in ["a", "b"] {
            let labels = [("connection", "established")];
            let ztunnel = s.mesh.ztunnel(node);
            let cut = ztunnel.metric("sluice_denied_connections_total", &labels)?;
            ensure!(cut == 0.0, "{cut} were cut on node {node}");
        }
        Ok(())
    });
}
