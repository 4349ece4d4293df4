//! Mistakes in the directory: each is reported with its place, and none takes anything away.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::process::Process;
use sluice_tests::run::ProcessId;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually, objects};

/// The address of the service in front of the server.
const VIP: &str = "10.96.0.5";

/// A mistake: a file that is written, and what is said about it.
struct Mistake {
    what: &'static str,
    /// The file's name; it may hold something good already.
    file: &'static str,
    text: String,
    severity: &'static str,
    object: Option<&'static str>,
    field: &'static str,
    /// What stands in the line that is named; its first occurrence.
    at: &'static str,
    message: &'static str,
}

/// A server that only `web` may reach, by its address and by a service.
struct Stage<'a> {
    s: &'a mut Scenario,
    server: Pod,
    web: Pod,
    batch: Pod,
    processes: Vec<ProcessId>,
    _server: Process,
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let process = podtool::serve(&server, "catalog", Serve::Greet, "[::]:80")?;
        s.mesh.apply_service("shop", "catalog", VIP, &[(80, 80)])?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let batch = s.enrolled_pod("a", "shop", "batch")?;
        s.mesh.config().apply("policy", &policy())?;
        s.mesh.settle()?;
        let processes = processes(s)?;
        Ok(Self {
            s,
            server,
            web,
            batch,
            processes,
            _server: process,
        })
    }

    /// The good configuration is in force: the one client is served, the other is not, and nobody
    /// was replaced.
    fn all_is_well(&mut self) -> Result<()> {
        // What was written before this is applied, as far as it can be.
        self.s.mesh.settle()?;
        let direct = SocketAddr::new(self.server.v4().into(), 80);
        for address in [direct, SocketAddr::new(VIP.parse()?, 80)] {
            for (client, wanted) in [(&self.web, Outcome::Served), (&self.batch, Outcome::Reset)] {
                let outcome = attempt(client, address)?;
                ensure!(
                    outcome == wanted,
                    "{} → {address}: {outcome:?}",
                    client.name()
                );
            }
        }
        let now = processes(self.s)?;
        ensure!(now == self.processes, "a process was replaced");
        Ok(())
    }

    fn wait_until_correct(&self) -> Result<()> {
        eventually(|| {
            let errors = self.s.mesh.config_errors()?;
            ensure!(errors.is_empty(), "{errors:#?}");
            Ok(())
        })
    }

    /// Waits until the mistake is all that is reported.
    fn wait_for_report(&self, mistake: &Mistake) -> Result<()> {
        let line = mistake
            .text
            .lines()
            .position(|line| line.contains(mistake.at))
            .context("the text has no such line")?
            + 1;
        let file = self.s.mesh.config().file(mistake.file);
        eventually(|| {
            let (kept, errors): (Vec<Value>, Vec<Value>) = self
                .s
                .mesh
                .config_errors()?
                .into_iter()
                .partition(|finding| finding["code"] == "NotApplied");
            let [error] = &errors[..] else {
                anyhow::bail!("not one error: {errors:#?}");
            };
            // Of a policy it may also be said what is in force in its place.
            let same = |finding: &Value| finding["object"] == error["object"];
            ensure!(kept.iter().all(same), "{kept:#?}");
            let as_wanted = error["severity"] == mistake.severity
                && error["file"] == file.display().to_string().as_str()
                && error["line"] == line
                && error["object"] == mistake.object.map_or(Value::Null, Value::from)
                && error["field"] == mistake.field
                && error["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(mistake.message));
            ensure!(as_wanted, "line {line} is meant: {error:#}");
            Ok(())
        })
    }
}

/// The control plane, the brokers and the workers.
fn processes(s: &mut Scenario) -> Result<Vec<ProcessId>> {
    let gone = "a process is gone";
    let mut all = vec![ProcessId::of(s.mesh.control()?.pid()).context(gone)?];
    for node in ["a", "b"] {
        let ztunnel = s.mesh.ztunnel_mut(node);
        all.push(ztunnel.worker()?);
        all.push(ProcessId::of(ztunnel.broker().pid()).context(gone)?);
    }
    Ok(all)
}

fn policy() -> String {
    objects::allow_principals("shop", "catalog", &["cluster.local/ns/shop/sa/web"])
}

fn service(name: &str, port: &str, selected: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 namespace: shop\n\
         spec:\n\
         \x20 clusterIP: {}\n\
         \x20 selector:\n\
         \x20   app: {selected}\n\
         \x20 ports:\n\
         \x20 - name: tcp-80\n\
         \x20   port: {port}\n\
         \x20   targetPort: 80\n",
        if name == "catalog" { VIP } else { "10.96.0.9" },
    )
}

/// Every mistake, with the good text of the file beside it; `None` when it is a new file.
fn mistakes(stage: &Stage<'_>) -> Vec<(Mistake, Option<String>)> {
    let good_policy = policy();
    let good_service = objects::service("shop", "catalog", VIP, &[(80, 80)]);
    let good_pod = objects::pod(&stage.server, &[]);
    let catalog_callers = Some("AuthorizationPolicy shop/catalog-callers");
    let new_pod = |namespace: &str, status: &str| {
        format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata:\n\
             \x20 name: new\n\
             \x20 namespace: {namespace}\n\
             spec:\n\
             \x20 nodeName: b\n\
             status:\n\
             \x20 phase: Running\n\
             {status}"
        )
    };
    let error = |what, file, text, object, field, at, message| Mistake {
        what,
        file,
        text,
        severity: "error",
        object,
        field,
        at,
        message,
    };
    vec![
        (
            error(
                "a policy that is no YAML any more",
                "policy",
                good_policy.replace("rules:\n", "rules: ]\n"),
                catalog_callers,
                "",
                "rules: ]",
                "",
            ),
            Some(good_policy.clone()),
        ),
        (
            error(
                "an unknown field in a policy",
                "policy",
                good_policy.replace("principals:", "principal:"),
                catalog_callers,
                "spec.rules[0].from[0].source.principal",
                "principal:",
                "unknown field",
            ),
            Some(good_policy.clone()),
        ),
        (
            error(
                "an action that there is not",
                "policy",
                good_policy.replace("ALLOW", "PERMIT"),
                catalog_callers,
                "spec.action",
                "PERMIT",
                "PERMIT",
            ),
            Some(good_policy.clone()),
        ),
        (
            error(
                "a target of an unknown kind",
                "policy",
                good_policy.replace(
                    "  selector:\n    matchLabels:\n      app: catalog\n",
                    "  targetRefs:\n  - kind: Gatewax\n    name: x\n    group: gateway.networking.k8s.io\n",
                ),
                catalog_callers,
                "spec.targetRefs[0].kind",
                "Gatewax",
                "Gatewax",
            ),
            Some(good_policy.clone()),
        ),
        (
            error(
                "a kind of policy that there is not",
                "policy",
                good_policy.replace("kind: AuthorizationPolicy", "kind: AuthorisationPolicy"),
                Some("AuthorisationPolicy shop/catalog-callers"),
                "kind",
                "kind:",
                "is not a kind of security.istio.io/v1",
            ),
            Some(good_policy.clone()),
        ),
        (
            error(
                "the same policy twice, the other time for everybody",
                "zz-policy",
                good_policy.replace("ns/shop/sa/web", "*"),
                catalog_callers,
                "metadata.name",
                "name: catalog-callers",
                "given twice",
            ),
            None,
        ),
        (
            error(
                "the server's pod loses its address",
                "pod-shop-catalog",
                good_pod
                    .lines()
                    .filter(|line| {
                        !["podIP", "- ip:"]
                            .iter()
                            .any(|field| line.trim_start().starts_with(field))
                    })
                    .map(|line| format!("{line}\n"))
                    .collect(),
                Some("Pod shop/catalog"),
                "status.podIP",
                "status:",
                "needs an address",
            ),
            Some(good_pod.clone()),
        ),
        (
            error(
                "the server's pod gets an address that is none",
                "pod-shop-catalog",
                good_pod.replace(&format!("podIP: {}", stage.server.v4()), "podIP: 10.244.2"),
                Some("Pod shop/catalog"),
                "status.podIP",
                "podIP: 10.244.2",
                "is not an IP address",
            ),
            Some(good_pod),
        ),
        (
            error(
                "a new pod without an address",
                "new",
                new_pod("shop", ""),
                Some("Pod shop/new"),
                "status.podIP",
                "status:",
                "needs an address",
            ),
            None,
        ),
        (
            error(
                "a pod in a namespace that there is not",
                "new",
                new_pod("shep", "  podIP: 10.244.2.99\n"),
                Some("Pod shep/new"),
                "metadata.namespace",
                "namespace: shep",
                "the namespace \"shep\" does not exist",
            ),
            None,
        ),
        (
            error(
                "port 0",
                "service-shop-catalog",
                service("catalog", "0", "catalog"),
                Some("Service shop/catalog"),
                "spec.ports[0].port",
                "port: 0",
                "0 is not a port",
            ),
            Some(good_service.clone()),
        ),
        (
            error(
                "port 70000",
                "service-shop-catalog",
                service("catalog", "70000", "catalog"),
                Some("Service shop/catalog"),
                "spec.ports[0].port",
                "port: 70000",
                "70000 is not a port",
            ),
            Some(good_service),
        ),
        (
            Mistake {
                severity: "warning",
                ..error(
                    "a service that selects nothing",
                    "new",
                    service("new", "80", "nobody"),
                    Some("Service shop/new"),
                    "spec.selector",
                    "selector:",
                    "selects nothing",
                )
            },
            None,
        ),
    ]
}

#[test]
fn every_mistake_is_reported_and_the_last_good_state_stays() {
    scenario(|s| {
        let mut stage = Stage::build(s)?;
        // This one outlives all mistakes.
        let mut long = Connection::open(&stage.web, &format!("{}:80", stage.server.v4()))?;
        long.line()?;
        stage.wait_until_correct()?;
        stage.all_is_well()?;
        for (mistake, good) in mistakes(&stage) {
            let config = stage.s.mesh.config().clone();
            let mut check = || -> Result<()> {
                config.apply(mistake.file, &mistake.text)?;
                stage.wait_for_report(&mistake)?;
                stage.all_is_well()?;
                match &good {
                    Some(good) => config.apply(mistake.file, good)?,
                    None => config.delete(mistake.file)?,
                }
                stage.wait_until_correct()?;
                stage.all_is_well()
            };
            check().context(mistake.what)?;
        }
        ensure!(long.exchange("still here")? == "250 still here");
        Ok(())
    });
}

/// Where one object of a file is wrong, the others of the file count; and what is said about it goes
/// to the log of the control plane too, once.
#[test]
fn the_rest_of_a_file_is_applied() {
    scenario(|s| {
        let mut stage = Stage::build(s)?;
        let other = "10.96.0.9";
        let both = format!(
            "{}---\n{}",
            service("wrong", "70000", "catalog").replace(other, "10.96.0.8"),
            service("right", "8080", "catalog"),
        );
        stage.s.mesh.config().apply("both", &both)?;
        let address = SocketAddr::new(other.parse()?, 8080);
        eventually(|| {
            let outcome = attempt(&stage.web, address)?;
            ensure!(outcome == Outcome::Served, "{outcome:?}");
            Ok(())
        })?;
        stage.all_is_well()?;
        let mistake = "70000 is not a port";
        let control = stage.s.mesh.control()?;
        control.wait_for_line(&[mistake])?;
        let log = control.log()?;
        let told: Vec<_> = log.lines().filter(|line| line.contains(mistake)).collect();
        let [line] = told[..] else {
            anyhow::bail!("not told once: {told:#?}");
        };
        let file = stage.s.mesh.config().file("both");
        let place = format!(
            "{}:12: Service shop/wrong: spec.ports[0].port: ",
            file.display()
        );
        ensure!(line.contains(&place), "{place} is not in {line}");

        // What a file does not say any more is gone, mistakes and all.
        stage.s.mesh.config().delete("both")?;
        stage.wait_until_correct()?;
        stage.all_is_well()
    });
}

/// A control plane that starts with mistakes in the directory serves what is right.
#[test]
fn a_control_plane_starts_among_mistakes() {
    scenario(|s| {
        let mut stage = Stage::build(s)?;
        let garbage = "kind: ]\n\u{feff}\t- :\n";
        stage.s.mesh.config().apply("aa-garbage", garbage)?;
        stage.s.mesh.stop_control()?;
        stage.s.mesh.start_control()?;
        stage.processes = processes(stage.s)?;
        stage.all_is_well()?;
        let errors = stage.s.mesh.config_errors()?;
        let file = stage.s.mesh.config().file("aa-garbage");
        ensure!(!errors.is_empty(), "nothing is reported");
        for error in &errors {
            ensure!(
                error["severity"] == "error"
                    && error["file"] == file.display().to_string().as_str(),
                "{error}"
            );
        }
        stage.s.mesh.config().delete("aa-garbage")?;
        stage.wait_until_correct()?;
        stage.all_is_well()
    });
}
