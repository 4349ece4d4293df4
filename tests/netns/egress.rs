//! Pods that may go only to what the mesh knows.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Flood, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::topology::{WIRE_V4, WIRE_V6};
use sluice_tests::{Pod, eventually, objects};

use crate::catalog::{self, VIPS};

const ANNOTATION: &str = "sluice.io/outbound-traffic-policy";
const REGISTRY_ONLY: &str = "REGISTRY_ONLY";
/// Where a server listens that the mesh does not know.
pub(super) const OUTSIDE: [IpAddr; 2] = [IpAddr::V4(WIRE_V4), IpAddr::V6(WIRE_V6)];
pub(super) const PORT: u16 = 8888;

/// A client on node `a`, a server behind a service on node `b`, and a server outside the mesh.
pub(super) struct Stage<'a> {
    pub(super) s: &'a mut Scenario,
    pub(super) client: Pod,
    server: Pod,
    outside: Process,
    _server: Process,
}

impl<'a> Stage<'a> {
    pub(super) fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        catalog::declare(s)?;
        let serving = podtool::serve(&server, "catalog", Serve::Greet, "[::]:8080")?;
        let address = format!("[::]:{PORT}");
        let outside = podtool::serve(s.topology.wire(), "outside", Serve::Greet, &address)?;
        s.mesh.settle()?;
        Ok(Self {
            s,
            client,
            server,
            outside,
            _server: serving,
        })
    }

    /// Writes the client's pod, with a policy of its own or without.
    fn annotate(&self, policy: Option<&str>) -> Result<()> {
        let mut text = objects::pod(&self.client, &[]);
        if let Some(policy) = policy {
            text = objects::with_annotation(&text, ANNOTATION, policy);
        }
        self.s.mesh.config().apply("pod-shop-web", &text)
    }

    fn accepted_outside(&self) -> Result<usize> {
        Ok(self.outside.log()?.matches("accepted from=").count())
    }

    fn refused_in_kernel(&self) -> Result<f64> {
        let reason = [("reason", "not_in_registry")];
        let ztunnel = self.s.mesh.ztunnel("a");
        ztunnel.metric("sluice_kernel_verdicts_total", &reason)
    }

    /// The service and its pod, by both families.
    pub(super) fn known(&self) -> Result<Vec<SocketAddr>> {
        let [v4, v6] = self.server.ips();
        let pods = [SocketAddr::new(v4, 8080), SocketAddr::new(v6, 8080)];
        let [vip4, vip6] = [VIPS[0].parse()?, VIPS[1].parse()?];
        let vips = [SocketAddr::new(vip4, 80), SocketAddr::new(vip6, 80)];
        Ok([vips, pods].concat())
    }

    fn reaches_the_known(&self) -> Result<()> {
        for address in self.known()? {
            greeted(&self.client, address)?;
        }
        Ok(())
    }

    /// Every address outside is refused by `connect` itself.
    fn refused_outside(&self) -> Result<()> {
        for ip in OUTSIDE {
            denied(&self.client, SocketAddr::new(ip, PORT))?;
        }
        Ok(())
    }

    fn reaches_the_outside(&self) -> Result<()> {
        for ip in OUTSIDE {
            greeted(&self.client, SocketAddr::new(ip, PORT))?;
        }
        Ok(())
    }
}

pub(super) fn greeted(client: &Pod, address: SocketAddr) -> Result<()> {
    let connection = Connection::open(client, &address.to_string())?;
    let line = connection.line()?;
    ensure!(line.starts_with("220 "), "{address}: {line}");
    Ok(())
}

/// A service at this address whose one endpoint is the IPv4 address outside.
pub(super) fn external(vip: IpAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: external, namespace: shop}}\n\
         spec: {{clusterIP: {vip}, ports: [{{name: tcp, port: 80, targetPort: {PORT}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: external-1\n  \
         namespace: shop\n  labels: {{kubernetes.io/service-name: external}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{WIRE_V4}]}}]\n\
         ports: [{{name: tcp, port: {PORT}}}]\n"
    )
}

/// `connect` fails with `EPERM`, which the kernel alone can answer.
fn denied(client: &Pod, address: SocketAddr) -> Result<()> {
    match Connection::open(client, &address.to_string()) {
        Ok(_) => bail!("connected to {address}"),
        Err(error) => {
            let text = error.to_string();
            ensure!(text.contains("Operation not permitted"), "{text}");
            Ok(())
        }
    }
}

#[test]
fn a_pod_held_to_the_registry_is_refused_the_rest_at_connect() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.reaches_the_outside()?;
        let outside = SocketAddr::new(OUTSIDE[0], PORT);
        let before = Connection::open(&stage.client, &outside.to_string())?;
        before.line()?;
        stage.annotate(Some(REGISTRY_ONLY))?;
        eventually(|| stage.refused_outside())?;
        // What was let through while it was allowed is cut.
        let end = before.event(PATIENCE)?;
        ensure!(
            matches!(&end, Some(Event::Broken(how)) if how.starts_with("reset")),
            "{end:?}"
        );

        let (accepted, refused) = (stage.accepted_outside()?, stage.refused_in_kernel()?);
        stage.refused_outside()?;
        let mapped = format!("[::ffff:{WIRE_V4}]:{PORT}");
        denied(&stage.client, mapped.parse()?)?;
        // What is no address of a mesh is not known either.
        denied(&stage.client, "169.254.169.254:80".parse()?)?;
        ensure!(stage.refused_in_kernel()? == refused + 4.0);
        ensure!(stage.accepted_outside()? == accepted, "something got out");
        stage.reaches_the_known()?;
        let own = format!("{}:{PORT}", stage.client.v4());
        let _own = podtool::serve(&stage.client, "own", Serve::Greet, &own)?;
        greeted(&stage.client, own.parse()?)?;

        // Another pod of the node and namespace is as free as before.
        let free = stage.s.enrolled_pod("a", "shop", "free")?;
        greeted(&free, outside)?;

        stage.annotate(None)?;
        eventually(|| stage.reaches_the_outside())?;
        stage.reaches_the_known()
    });
}

#[test]
fn what_becomes_known_is_reachable_and_what_is_forgotten_is_not() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let mesh = &stage.s.mesh;
        mesh.config().apply(
            "mesh",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
             data:\n  mesh: |\n    outboundTrafficPolicy:\n      mode: REGISTRY_ONLY\n",
        )?;
        eventually(|| stage.refused_outside())?;
        // A pod that joins later is held to it as well.
        let later = stage.s.enrolled_pod("a", "shop", "later")?;
        let outside = SocketAddr::new(OUTSIDE[0], PORT);
        eventually(|| denied(&later, outside))?;

        let vip: SocketAddr = "10.96.0.9:80".parse()?;
        denied(&stage.client, vip)?;
        let external = external(vip.ip());
        mesh.config().apply("external", &external)?;
        eventually(|| greeted(&stage.client, vip))?;
        greeted(&stage.client, outside)?;
        greeted(&later, outside)?;
        denied(&stage.client, SocketAddr::new(OUTSIDE[1], PORT))?;

        mesh.config().delete("external")?;
        eventually(|| denied(&stage.client, outside))?;
        denied(&stage.client, vip)?;
        stage.reaches_the_known()?;

        // The namespace's own policy beats the mesh's, and a Sidecar for some of its pods both.
        let namespace = objects::namespace("shop", Some("ambient"));
        let namespace = objects::with_annotation(&namespace, ANNOTATION, "ALLOW_ANY");
        mesh.config().apply("namespace-shop", &namespace)?;
        eventually(|| stage.reaches_the_outside())?;
        mesh.config().apply(
            "sidecar",
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
             metadata: {name: web, namespace: shop}\nspec:\n  \
             workloadSelector: {labels: {app: web}}\n  \
             outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n",
        )?;
        eventually(|| stage.refused_outside())?;
        greeted(&later, outside)
    });
}

#[test]
fn the_restriction_outlives_workers_and_brokers() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.annotate(Some(REGISTRY_ONLY))?;
        eventually(|| stage.refused_outside())?;
        let accepted = stage.accepted_outside()?;

        let to = SocketAddr::new(OUTSIDE[0], PORT).to_string();
        let options = ["--seconds", "4", "--rate", "200", "--concurrency", "4"];
        let throughout = podtool::start_flood(&stage.client, "flood", &to, &options)?;

        // Without a control plane the next worker knows nothing that it could tell.
        stage.s.mesh.stop_control()?;
        let killed = stage.s.mesh.ztunnel("a").kill_worker()?;
        stage.refused_outside()?;
        stage.s.mesh.ztunnel_mut("a").wait_for_successor(killed)?;
        stage.refused_outside()?;
        // What goes meanwhile is forgotten when the successor has learned everything.
        stage.s.mesh.config().delete("service")?;
        stage.s.mesh.start_control()?;
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        let [vip, ..] = stage.known()?[..] else {
            bail!("the service has addresses");
        };
        eventually(|| denied(&stage.client, vip))?;
        stage.refused_outside()?;
        let pod = SocketAddr::new(stage.server.v4().into(), 8080);
        greeted(&stage.client, pod)?;

        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.kill_broker()?;
        ztunnel.broker().wait(PATIENCE)?;
        stage.refused_outside()?;
        stage.s.mesh.ztunnel_mut("a").restart()?;
        eventually(|| greeted(&stage.client, pod))?;
        stage.refused_outside()?;

        let log = eventually(|| {
            let log = throughout.log()?;
            ensure!(log.contains('}'), "the flood has not ended");
            Ok(log)
        })?;
        let flood = Flood::parse(&log)?;
        let denied = [("connect_denied".to_owned(), flood.attempted)];
        ensure!(
            flood.attempted > 100 && flood.failures == denied,
            "{flood:?}"
        );
        ensure!(stage.accepted_outside()? == accepted, "something got out");
        Ok(())
    });
}

/// A ServiceEntry with ranges of addresses: what is in one is known, and the kernel itself refuses
/// the rest.
#[test]
fn ranges_of_addresses_are_known_to_the_kernel() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.annotate(Some(REGISTRY_ONLY))?;
        eventually(|| stage.refused_outside())?;
        let [v4, v6] = OUTSIDE.map(|ip| SocketAddr::new(ip, PORT));
        let stranger: SocketAddr = "198.51.100.1:80".parse()?;
        let declare = |ranges: &str| {
            stage.s.mesh.config().apply(
                "outside",
                &format!(
                    "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                     metadata: {{name: outside, namespace: shop}}\n\
                     spec: {{hosts: [outside.example], addresses: [{ranges}], resolution: NONE, \
                     ports: [{{number: {PORT}, name: tcp, protocol: TCP}}]}}\n"
                ),
            )
        };
        declare(&format!("{WIRE_V4}/30"))?;
        eventually(|| greeted(&stage.client, v4))?;
        for unknown in [v6, stranger] {
            denied(&stage.client, unknown)?;
        }
        stage.reaches_the_known()?;
        let held = Connection::open(&stage.client, &v4.to_string())?;
        held.line()?;
        // All of IPv6 is nothing of IPv4.
        declare("\"::/0\"")?;
        eventually(|| greeted(&stage.client, v6))?;
        eventually(|| denied(&stage.client, v4))?;
        denied(&stage.client, stranger)?;
        ensure!(matches!(held.event(PATIENCE)?, Some(Event::Broken(_))));
        stage.s.mesh.config().delete("outside")?;
        eventually(|| stage.refused_outside())?;
        stage.reaches_the_known()
    });
}
