//! Pods join and leave the mesh while they run.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually, eventually_within, objects};

const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");
const NONE: (&str, &str) = ("istio.io/dataplane-mode", "none");

fn at(pod: &Pod, port: u16) -> String {
    SocketAddr::from((pod.v4(), port)).to_string()
}

fn port_of(connection: &Connection) -> Result<&str> {
    let (_, port) = connection
        .local
        .rsplit_once(':')
        .context("a local address has a port")?;
    Ok(port)
}

/// Uses a new connection and ends it; returns the fields that find it in the client's log.
fn greet(client: &Pod, server: &str) -> Result<String> {
    let mut connection = Connection::open(client, server)?;
    ensure!(connection.line()?.starts_with("220 "));
    ensure!(connection.exchange("hello")? == "250 hello");
    Ok(format!("{}:{}", client.v4(), port_of(&connection)?))
}

/// A new connection of this pod goes through a tunnel; returns the client's identity.
fn expect_tunnelled(s: &Scenario, client: &Pod, server: &str) -> Result<String> {
    let src = greet(client, server)?;
    let fields = [
        ("direction", "outbound"),
        ("src.addr", src.as_str()),
        ("dst.hbone_addr", server),
    ];
    // A while, not more: a connection that was not captured has no line, and another is tried.
    eventually_within(PATIENCE / 10, || {
        let log = s.mesh.ztunnel(client.node()).access_log()?;
        let line = log.iter().find(|line| line.has(&fields));
        let line = line.with_context(|| format!("{src} → {server} was not tunnelled"))?;
        Ok(line.get("src.identity").to_owned())
    })
}

#[test]
fn a_label_takes_effect_at_once_and_connections_survive_it() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", None)?;
        let client = s.pod("a", "shop", "client")?;
        let server = s.pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        let smtp = at(&server, 80);
        let mut before = Connection::open(&client, &smtp)?;
        before.line()?;

        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.wait_until_enrolled(&client)?;
        s.mesh.wait_until_enrolled(&server)?;
        eventually(|| expect_tunnelled(s, &client, &smtp))?;
        let mut during = Connection::open(&client, &smtp)?;
        during.line()?;
        ensure!(before.exchange("labelled")? == "250 labelled");

        s.mesh.apply_namespace("shop", None)?;
        s.mesh.wait_until_released(&client)?;
        s.mesh.wait_until_released(&server)?;
        ensure!(before.exchange("unlabelled")? == "250 unlabelled");
        ensure!(during.exchange("unlabelled")? == "250 unlabelled");
        let after = greet(&client, &smtp)?;

        // For half a minute the node still serves peers that have not heard; then all is closed.
        eventually(|| {
            let pods = s.mesh.ztunnel("b").pods()?;
            ensure!(pods.is_empty(), "still there: {pods}");
            ensure!(!server.netns.has_listener(15008)?, "15008 still listens");
            Ok(())
        })?;
        ensure!(before.exchange("forgotten")? == "250 forgotten");
        ensure!(during.exchange("forgotten")? == "250 forgotten");

        let src = format!("{}:{}", client.v4(), port_of(&during)?);
        drop(during);
        let line = s
            .mesh
            .ztunnel("a")
            .wait_for_access(&[("direction", "outbound"), ("src.addr", &src)])?;
        ensure!(line.get("error").is_empty(), "{}", line.text());
        // The log knows the connection of the mesh's time, and none of the others.
        let before = format!("{}:{}", client.v4(), port_of(&before)?);
        for line in s.mesh.ztunnel("a").access_log()? {
            let src = line.get("src.addr");
            ensure!(src != after && src != before, "{}", line.text());
        }
        Ok(())
    });
}

#[test]
fn a_pods_own_label_beats_its_namespace() {
    scenario(|s| {
        s.mesh.apply_namespace("in", Some("ambient"))?;
        s.mesh.apply_namespace("out", None)?;
        let server = s.enrolled_pod("b", "in", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        let smtp = at(&server, 80);
        let refuses = s.pod("a", "in", "refuses")?;
        let wants = s.pod("a", "out", "wants")?;
        s.mesh.wait_until_enrolled(&refuses)?;

        s.mesh.apply_pod(&refuses, &[NONE])?;
        s.mesh.apply_pod(&wants, &[AMBIENT])?;
        s.mesh.wait_until_released(&refuses)?;
        s.mesh.wait_until_enrolled(&wants)?;
        let direct = greet(&refuses, &smtp)?;
        let identity = expect_tunnelled(s, &wants, &smtp)?;
        ensure!(identity == wants.spiffe_id(), "{identity}");
        let log = s.mesh.ztunnel("a").access_log()?;
        ensure!(log.iter().all(|line| line.get("src.addr") != direct));

        // Without labels of their own they are as their namespaces again.
        s.mesh.apply_pod(&refuses, &[])?;
        s.mesh.apply_pod(&wants, &[])?;
        s.mesh.wait_until_enrolled(&refuses)?;
        s.mesh.wait_until_released(&wants)?;
        expect_tunnelled(s, &refuses, &smtp)?;
        greet(&wants, &smtp).map(drop)
    });
}

#[test]
fn a_pod_that_comes_back_under_its_name_is_another_pod() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        let smtp = at(&server, 80);
        let first = s.enrolled_pod("a", "shop", "phoenix")?;
        let old_address = first.v4();
        let identity = expect_tunnelled(s, &first, &smtp)?;
        ensure!(identity == first.spiffe_id(), "{identity}");

        drop(first);
        let second = s.pod_as("a", "shop", "phoenix", "reborn")?;
        ensure!(second.v4() != old_address);
        // Enrolled is what the list has said all the time; that its listeners are there is new.
        eventually(|| {
            ensure!(second.netns.has_listener(15008)?, "not enrolled yet");
            Ok(())
        })?;
        s.mesh.wait_until_enrolled(&second)?;
        let identity = eventually(|| expect_tunnelled(s, &second, &smtp))?;
        ensure!(identity == second.spiffe_id(), "{identity}");
        // It also serves, in its new namespace.
        let _echo = podtool::serve(&second, "echo", Serve::Greet, "[::]:81")?;
        s.mesh.settle()?;
        expect_tunnelled(s, &server, &at(&second, 81))?;

        // The same pod under another account gets the certificate of that.
        let text = objects::pod(&second, &[]).replace(": reborn\n", ": renamed\n");
        let account = objects::service_account("shop", "renamed");
        s.mesh.config().apply("serviceaccount-renamed", &account)?;
        s.mesh.config().apply("pod-shop-phoenix", &text)?;
        eventually(|| {
            let identity = expect_tunnelled(s, &second, &smtp)?;
            ensure!(identity.ends_with("/sa/renamed"), "{identity}");
            Ok(())
        })
    });
}

#[test]
fn a_pod_that_cannot_be_enrolled_is_reported_and_keeps_nobody_else_out() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", None)?;
        let occupied = s.pod("a", "shop", "occupied")?;
        let late = s.pod("a", "shop", "late")?;
        let healthy = s.pod("a", "shop", "healthy")?;
        let squatter = podtool::serve(&occupied, "squatter", Serve::Echo, "[::]:15008")?;
        let netns = s.topology.run().dir().join("late-netns");
        let real = late.netns.path().display().to_string();
        let text = objects::pod(&late, &[]).replace(&real, &netns.display().to_string());
        s.mesh.config().apply("pod-shop-late", &text)?;

        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.wait_until_enrolled(&healthy)?;
        let state = |pod: &str| -> Result<String> {
            let pods = s.mesh.ztunnel("a").pods()?;
            let line = pods.lines().find_map(|line| {
                line.strip_prefix(&format!("shop/{pod} "))
                    .map(str::to_owned)
            });
            line.with_context(|| format!("{pod} is not in the list: {pods}"))
        };
        eventually(|| {
            let occupied = state("occupied")?;
            ensure!(
                occupied.starts_with("failed: ")
                    && occupied.contains("15008")
                    && occupied.contains("Address already in use"),
                "{occupied}"
            );
            let late = state("late")?;
            ensure!(
                late.starts_with("failed: ") && late.contains(&netns.display().to_string()),
                "{late}"
            );
            Ok(())
        })?;
        // Not in the mesh, and not harmed: what it serves itself answers.
        let mut connection = Connection::open(s.topology.wire(), &at(&occupied, 15008))?;
        ensure!(connection.exchange("hello")? == "hello");

        std::os::unix::fs::symlink(late.netns.path(), &netns)?;
        s.mesh.wait_until_enrolled(&late)?;
        let _late = podtool::serve(&late, "late", Serve::Greet, "[::]:80")?;
        eventually(|| expect_tunnelled(s, &healthy, &at(&late, 80)))?;

        drop((connection, squatter));
        s.mesh.wait_until_enrolled(&occupied)?;
        ensure!(state("occupied")? == "enrolled" && state("late")? == "enrolled");
        let log = s.mesh.ztunnel("a").log()?;
        for (pod, hint) in [
            ("shop/occupied", "does something in the pod use this port?"),
            ("shop/late", "No such file or directory"),
        ] {
            let told: Vec<_> = log
                .lines()
                .filter(|line| line.contains("pod not enrolled") && line.contains(pod))
                .collect();
            ensure!(
                told.len() == 1 && told[0].contains(hint),
                "told {} times why {pod} is not enrolled: {told:#?}",
                told.len()
            );
        }
        Ok(())
    });
}

#[test]
fn an_address_that_a_pod_gets_later_works_within_seconds() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let member = s.enrolled_pod("a", "shop", "member")?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        let [a, b, c, _] = server.v4().octets();
        let v4 = Ipv4Addr::new(a, b, c, 200);
        let v6 = Ipv6Addr::new(0xfd44, 2, 0, 0, 0, 0, 0, 200);
        server.netns.ip_batch(&format!(
            "address add {v4}/16 dev eth0\naddress add {v6}/64 dev eth0 nodad\n"
        ))?;
        for address in [SocketAddr::from((v4, 80)), SocketAddr::from((v6, 80))] {
            for client in [&stranger, &member] {
                eventually(|| {
                    let mut connection = Connection::open(client, &address.to_string())?;
                    connection.line()?;
                    ensure!(connection.exchange("hello")? == "250 hello");
                    Ok(())
                })
                .with_context(|| format!("{} dials {address}", client.name()))?;
            }
            // It was not let past the mesh.
            s.mesh.ztunnel("b").wait_for_access(&[
                ("direction", "inbound"),
                ("dst.addr", &address.to_string()),
                ("error", ""),
            ])?;
        }
        Ok(())
    });
}

#[test]
fn many_pods_join_within_seconds() {
    const PODS: usize = 20;
    scenario(|s| {
        s.mesh.apply_namespace("shop", None)?;
        let pods = (0..PODS)
            .map(|number| s.pod("a", "shop", &format!("pod{number}")))
            .collect::<Result<Vec<_>>>()?;
        let begin = Instant::now();
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        for pod in &pods {
            s.mesh.wait_until_enrolled(pod)?;
        }
        let took = begin.elapsed();
        ensure!(took < PATIENCE / 2, "{PODS} pods took {took:?}");
        // Each in its own name.
        let servers = pods
            .iter()
            .map(|pod| podtool::serve(pod, pod.name(), Serve::Greet, "[::]:80"))
            .collect::<Result<Vec<_>>>()?;
        for (client, server) in pods.iter().zip(pods.iter().skip(1)) {
            let identity = eventually(|| expect_tunnelled(s, client, &at(server, 80)))?;
            ensure!(identity == client.spiffe_id(), "{identity}");
        }
        drop(servers);
        Ok(())
    });
}
