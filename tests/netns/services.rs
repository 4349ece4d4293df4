//! Services that stand before something else than pods, and endpoints that do not answer.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::scenario::{Scenario, scenario, scenario_with};
use sluice_tests::{Pod, PodSpec, eventually, objects};

/// Waits until node `a` knows of `count` endpoints of a service, and its kernel of the address.
fn wait_for_endpoints(s: &Scenario, hostname: &str, count: usize) -> Result<()> {
    s.mesh.settle()?;
    eventually(|| {
        let dump = s.mesh.ztunnel("a").config_dump()?;
        let services = dump["services"].as_array().context("no services")?;
        let known = services
            .iter()
            .any(|service| service["hostname"] == hostname);
        ensure!(known, "node a does not know {hostname}");
        let workloads = dump["workloads"].as_array().context("no workloads")?;
        let is_of = |key: &serde_json::Value| {
            let key = key.as_str().unwrap_or_default();
            key.rsplit_once('/').is_some_and(|(_, of)| of == hostname)
        };
        let found = workloads.iter().filter(|workload| {
            let services = workload["services"].as_array();
            services.is_some_and(|keys| keys.iter().any(is_of))
        });
        let found = found.count();
        ensure!(
            found == count,
            "{hostname} has {found} endpoints, not {count}"
        );
        Ok(())
    })
}

/// The server's end of a new connection, as the server sees it.
fn reached(client: &Pod, dialled: &str) -> Result<SocketAddr> {
    let connection = Connection::open(client, dialled)?;
    let greeting = connection.line()?;
    let local = greeting
        .split_whitespace()
        .find_map(|word| word.strip_prefix("local="))
        .with_context(|| format!("no local= in {greeting}"))?;
    let local: SocketAddr = local.parse()?;
    Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
}

/// A machine on node `b`: a pod that nobody has declared.
fn machine(s: &Scenario) -> Result<Pod> {
    s.topology.node("b").pod(PodSpec {
        namespace: "legacy",
        name: "machine",
        service_account: "machine",
    })
}

fn service_entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn an_endpoint_that_does_not_answer_costs_no_connection() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        // Beside the live endpoint, a tunnel behind which nobody listens (503), a port in plaintext
        // that is closed, and a tunnel to where there is none: a different failure each.
        let closed = s.enrolled_pod("b", "shop", "closed")?;
        let plain = s.pod("b", "legacy", "plain")?;
        let live = s.enrolled_pod("b", "shop", "live")?;
        let _server = podtool::serve(&live, "live", Serve::Greet, "[::]:7000")?;
        let ports = "ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 7000}], \
                     resolution: STATIC";
        for (i, dead) in [&closed, &plain].into_iter().enumerate() {
            let (vip, host) = (
                format!("192.0.2.{}", i + 1),
                format!("dead-{i}.example.com"),
            );
            let spec = format!(
                "hosts: [{host}], addresses: [{vip}], {ports}, \
                 endpoints: [{{address: {}}}, {{address: {}}}]",
                dead.v4(),
                live.v4()
            );
            s.mesh.config().apply(&host, &service_entry(&host, &spec))?;
            wait_for_endpoints(s, &host, 2)?;
            for attempt in 0..50 {
                let at = reached(&client, &format!("{vip}:80"))
                    .with_context(|| format!("attempt {attempt} beside {}", dead.name()))?;
                ensure!(at == SocketAddr::from((live.v4(), 7000)), "{at} answered");
            }
        }
        // The mesh did try the others.
        eventually(|| {
            let log = s.mesh.ztunnel("b").access_log()?;
            let refused = log.iter().any(|line| {
                line.get("dst.workload") == "closed" && line.get("error").contains("refused")
            });
            ensure!(refused, "nothing was sent to the endpoint that is down");
            Ok(())
        })
    });
}

#[test]
fn a_service_entry_leads_to_machines_in_plaintext_and_to_pods_through_their_tunnels() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let machine = machine(s)?;
        let pod = s.enrolled_pod("b", "shop", "pod")?;
        let _machine = podtool::serve(&machine, "machine", Serve::Greet, "[::]:7001")?;
        let _pod = podtool::serve(&pod, "pod", Serve::Greet, "[::]:7000")?;
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: vm, namespace: shop}}\n\
             spec: {{address: {}, ports: {{tcp: 7001}}, labels: {{tier: db}}}}\n",
            machine.v4()
        );
        s.mesh.config().apply("vm", &entry)?;
        let text = service_entry(
            "db",
            "hosts: [db.example.com], addresses: [192.0.2.9, 198.51.100.0/24, 'fd00:9::9'], \
             ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 7000}], \
             resolution: STATIC, workloadSelector: {labels: {tier: db}}",
        );
        s.mesh.config().apply("db", &text)?;
        wait_for_endpoints(s, "db.example.com", 1)?;
        let at_machine = SocketAddr::from((machine.v4(), 7001));
        for dialled in ["192.0.2.9:80", "198.51.100.77:80", "[fd00:9::9]:80"] {
            let at = reached(&client, dialled).with_context(|| dialled.to_owned())?;
            ensure!(at == at_machine, "{dialled} led to {at}");
        }
        // The same selector finds a pod, which is reached as it always is.
        s.mesh.config().delete("vm")?;
        s.mesh.apply_pod(&pod, &[("tier", "db")])?;
        eventually(|| {
            let at = reached(&client, "192.0.2.9:80")?;
            ensure!(at == SocketAddr::from((pod.v4(), 7000)), "led to {at}");
            Ok(())
        })?;
        let authority = SocketAddr::from((pod.v4(), 7000)).to_string();
        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("dst.service", "db.example.com"),
            ("dst.hbone_addr", &authority),
        ])?;
        Ok(())
    });
}

#[test]
fn with_resolution_none_the_dialled_address_itself_is_reached_and_named() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let machine = machine(s)?;
        let _server = podtool::serve(&machine, "machine", Serve::Greet, "[::]:7000")?;
        let range = range_of(machine.v4());
        let text = service_entry(
            "all",
            &format!(
                "hosts: ['*.example.com'], addresses: [{range}], \
                 ports: [{{number: 7000, name: tcp, protocol: TCP}}]"
            ),
        );
        s.mesh.config().apply("all", &text)?;
        wait_for_endpoints(s, "*.example.com", 0)?;
        let at = SocketAddr::from((machine.v4(), 7000));
        // The kernel hears of it a moment after the worker.
        eventually(|| {
            let before = captured(s)?;
            ensure!(reached(&client, &at.to_string())? == at);
            ensure!(captured(s)? > before, "not captured");
            Ok(())
        })?;
        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("dst.addr", &at.to_string()),
            ("dst.service", "*.example.com"),
        ])?;
        Ok(())
    });
}

fn captured(s: &Scenario) -> Result<f64> {
    let captured = [("reason", "captured")];
    let ztunnel = s.mesh.ztunnel("a");
    ztunnel.metric("sluice_kernel_verdicts_total", &captured)
}

/// The 256 addresses around one.
fn range_of(ip: Ipv4Addr) -> String {
    let [a, b, c, _] = ip.octets();
    format!("{a}.{b}.{c}.0/24")
}

#[test]
fn a_pod_that_ends_serves_until_another_is_ready() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let old = s.enrolled_pod("b", "shop", "old")?;
        let new = s.enrolled_pod("b", "shop", "new")?;
        let _old = podtool::serve(&old, "old", Serve::Greet, "[::]:7000")?;
        let _new = podtool::serve(&new, "new", Serve::Greet, "[::]:7000")?;
        let service = objects::service_selecting(
            "shop",
            "web",
            &["10.96.0.9"],
            ("tier", "web"),
            &[(80, "7000")],
        );
        let ending = objects::pod(&old, &[("tier", "web")]).replacen(
            "metadata:\n",
            "metadata:\n  deletionTimestamp: 2024-01-01T00:00:00Z\n",
            1,
        );
        s.mesh.config().apply("web", &service)?;
        s.mesh.config().apply("pod-shop-old", &ending)?;
        wait_for_endpoints(s, "web.shop.svc.cluster.local", 1)?;
        let at = reached(&client, "10.96.0.9:80").context("to the only one, which ends")?;
        ensure!(at.ip() == old.v4(), "{at} answered");
        s.mesh.apply_pod(&new, &[("tier", "web")])?;
        wait_for_endpoints(s, "web.shop.svc.cluster.local", 2)?;
        for _ in 0..20 {
            let at = reached(&client, "10.96.0.9:80")?;
            ensure!(at.ip() == new.v4(), "{at} answered");
        }
        Ok(())
    });
}

#[test]
fn a_host_is_resolved_for_each_connection() {
    const NAMESERVER: &str = "127.0.0.1:5300";
    let options = Options {
        ztunnel: vec!["--nameserver".to_owned(), NAMESERVER.to_owned()],
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let machine = |name| {
            s.topology.node("b").pod(sluice_tests::PodSpec {
                namespace: "legacy",
                name,
                service_account: name,
            })
        };
        let (before, after) = (machine("before")?, machine("after")?);
        let _before = podtool::serve(&before, "before", Serve::Greet, "[::]:7000")?;
        let _after = podtool::serve(&after, "after", Serve::Greet, "[::]:7000")?;
        let text = service_entry(
            "db",
            "hosts: [db.example.com], addresses: [192.0.2.9], resolution: DNS, \
             ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 7000}]",
        );
        s.mesh.config().apply("db", &text)?;
        wait_for_endpoints(s, "db.example.com", 1)?;
        let node = s.topology.node("a");
        let names = podtool::answer_names(node, "names", NAMESERVER, before.v4())?;
        let at = reached(&client, "192.0.2.9:80")?;
        ensure!(at == SocketAddr::from((before.v4(), 7000)), "{at} answered");
        // The name moves.
        drop(names);
        let names = podtool::answer_names(node, "names-2", NAMESERVER, after.v4())?;
        let at = reached(&client, "192.0.2.9:80")?;
        ensure!(at == SocketAddr::from((after.v4(), 7000)), "{at} answered");
        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("dst.addr", &at.to_string()),
            ("dst.service", "db.example.com"),
        ])?;
        // Nobody knows it any more: the client is told by a reset, and the log says why.
        drop(names);
        ensure!(reached(&client, "192.0.2.9:80").is_err());
        eventually(|| {
            let log = s.mesh.ztunnel("a").access_log()?;
            let why =
                |error: &str| error.contains("db.example.com") && error.contains("no address");
            ensure!(log.iter().any(|line| why(line.get("error"))), "no line");
            Ok(())
        })
    });
}
