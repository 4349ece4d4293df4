//! What is captured and what is left alone, and whom each end believes to talk to.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::access_log::AccessLine;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::objects;
use sluice_tests::place::Place;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::topology::{WIRE_V4, WIRE_V6};
use sluice_tests::{Pod, eventually};

/// A namespace in the mesh and one outside it.
fn label_namespaces(s: &Scenario) -> Result<()> {
    s.mesh.apply_namespace("shop", Some("ambient"))?;
    s.mesh.apply_namespace("legacy", None)
}

/// Declares a service of both families in front of a pod, and waits until node `a` knows it.
fn front(s: &Scenario, pod: &Pod, vips: [&str; 2], ports: &[(u16, &str)]) -> Result<()> {
    let text = objects::service_selecting(
        pod.namespace(),
        pod.name(),
        &vips,
        ("app", pod.name()),
        ports,
    );
    s.mesh
        .config()
        .apply(&format!("service-{}", pod.name()), &text)?;
    wait_for_service(s, pod.name())
}

fn wait_for_service(s: &Scenario, name: &str) -> Result<()> {
    eventually(|| {
        let dump = s.mesh.ztunnel("a").config_dump()?;
        let services = dump["services"].as_array().context("no services")?;
        let found = services.iter().any(|service| service["name"] == name);
        ensure!(found, "node a does not know service {name}");
        Ok(())
    })
}

/// Without the mark of an IPv4 address in an IPv6 socket.
fn plain(address: &str) -> Result<SocketAddr> {
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// How a server that greets sees the connection: its own end and the peer.
fn as_seen_by(greeting: &str) -> Result<(SocketAddr, SocketAddr)> {
    let field = |name: &str| {
        greeting
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .with_context(|| format!("no {name} in {greeting}"))
    };
    Ok((plain(field("local=")?)?, plain(field("peer=")?)?))
}

fn lines_of(s: &Scenario) -> Result<Vec<AccessLine>> {
    let mut lines = s.mesh.ztunnel("a").access_log()?;
    lines.extend(s.mesh.ztunnel("b").access_log()?);
    Ok(lines)
}

/// Connects, and checks that each end sees the other as if nothing stood between: the client what
/// it dialled, the server the client's address and source port. `server` is the server's end.
fn expect_transparent(
    client: &Pod,
    dialled: &str,
    options: &[&str],
    server: SocketAddr,
    log: &Process,
) -> Result<SocketAddr> {
    let mut connection = Connection::open_with(client, dialled, options)?;
    ensure!(
        connection.peer == dialled,
        "dialled {dialled}, getpeername says {}",
        connection.peer
    );
    let own: IpAddr = if server.is_ipv4() {
        client.v4().into()
    } else {
        client.v6().into()
    };
    let own = SocketAddr::new(own, plain(&connection.local)?.port());
    let greeting = connection.line()?;
    let seen = as_seen_by(&greeting)?;
    ensure!(
        seen == (server, own),
        "{own} dialled {dialled}; the server at {server} sees {greeting}"
    );
    // What accept itself returned, not only getpeername later.
    let log = log.log()?;
    let accepted = log
        .lines()
        .filter_map(|line| line.strip_prefix("accepted from="))
        .filter_map(|line| line.split_whitespace().next())
        .map(plain)
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        accepted.contains(&own),
        "accept never returned {own}, but {accepted:?}"
    );
    ensure!(connection.exchange("hello")? == "250 hello");
    Ok(own)
}

#[test]
fn both_ends_see_each_other_as_if_nothing_stood_between() {
    scenario(|s| {
        label_namespaces(s)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let near = s.enrolled_pod("a", "shop", "near")?;
        let far = s.enrolled_pod("b", "shop", "far")?;
        let vips = [["10.96.0.1", "fd96::1"], ["10.96.0.2", "fd96::2"]];
        for (server, [vip4, vip6]) in [&near, &far].into_iter().zip(vips) {
            front(s, server, [vip4, vip6], &[(8080, "80"), (8081, "81")])?;
            // Port 80 is a socket of both families, 81 one of IPv4 alone.
            let both = podtool::serve(server, server.name(), Serve::Greet, "[::]:80")?;
            let name = format!("{}-v4", server.name());
            let v4_only = podtool::serve(server, &name, Serve::Greet, "0.0.0.0:81")?;
            let (v4, v6) = (server.v4(), server.v6());
            let cases = [
                (format!("{v4}:80"), v4.into(), 80, &both),
                (format!("[{v6}]:80"), v6.into(), 80, &both),
                (format!("[::ffff:{v4}]:80"), v4.into(), 80, &both),
                (format!("{vip4}:8080"), v4.into(), 80, &both),
                (format!("[{vip6}]:8080"), v6.into(), 80, &both),
                (format!("[::ffff:{vip4}]:8080"), v4.into(), 80, &both),
                (format!("{v4}:81"), v4.into(), 81, &v4_only),
                (format!("{vip4}:8081"), v4.into(), 81, &v4_only),
                (format!("[::ffff:{vip4}]:8081"), v4.into(), 81, &v4_only),
            ];
            for (dialled, ip, port, log) in &cases {
                let at = SocketAddr::new(*ip, *port);
                let own = expect_transparent(&client, dialled, &[], at, log)
                    .with_context(|| format!("to {}", server.name()))?;
                // And the mesh carried it; or let it go straight, as it does on one node when it has
                // judged the same before.
                s.mesh.ztunnel("a").wait_for_access(&[
                    ("direction", "outbound"),
                    ("src.addr", &own.to_string()),
                    ("dst.identity", &server.spiffe_id()),
                ])?;
            }
        }
        Ok(())
    });
}

#[test]
fn sockets_that_do_not_wait_or_are_bound_are_captured_alike() {
    scenario(|s| {
        label_namespaces(s)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let log = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        let (v4, v6) = (server.v4(), server.v6());
        let own4 = format!("{}:40004", client.v4());
        let own6 = format!("[{}]:40006", client.v6());
        let v4_at: SocketAddr = (v4, 80).into();
        let v6_at: SocketAddr = (v6, 80).into();
        let (to4, to6) = (v4_at.to_string(), v6_at.to_string());
        let mapped = format!("[::ffff:{v4}]:80");
        let cases: [(&str, SocketAddr, &[&str], Option<u16>); 9] = [
            (&to4, v4_at, &["--wait", "poll"], None),
            (&to6, v6_at, &["--wait", "poll"], None),
            (&mapped, v4_at, &["--wait", "poll"], None),
            (&to4, v4_at, &["--bind", "0.0.0.0:40001"], Some(40001)),
            (&to6, v6_at, &["--bind", "[::]:40002"], Some(40002)),
            (&mapped, v4_at, &["--bind", "[::]:40003"], Some(40003)),
            (&to4, v4_at, &["--bind", &own4], Some(40004)),
            (&to6, v6_at, &["--bind", &own6], Some(40006)),
            (
                &to4,
                v4_at,
                &["--bind", "0.0.0.0:40007", "--wait", "poll"],
                Some(40007),
            ),
        ];
        for (dialled, at, options, port) in cases {
            let own = expect_transparent(&client, dialled, options, at, &log)
                .with_context(|| format!("{options:?}"))?;
            ensure!(
                port.is_none_or(|port| own.port() == port),
                "{options:?} came from {own}"
            );
            s.mesh.ztunnel("a").wait_for_access(&[
                ("src.addr", &own.to_string()),
                ("dst.hbone_addr", &at.to_string()),
            ])?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_outside_the_mesh_is_not_touched() {
    scenario(|s| {
        label_namespaces(s)?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let opted_out = s.pod("a", "shop", "opted-out")?;
        s.mesh
            .apply_pod(&opted_out, &[("istio.io/dataplane-mode", "none")])?;
        let member = s.enrolled_pod("a", "shop", "member")?;
        s.mesh.wait_until_released(&opted_out)?;
        // Reached by addresses that the mesh knows and that it does not.
        let server = s.pod("b", "legacy", "server")?;
        let _log = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        for client in [&stranger, &opted_out] {
            for ip in server.ips() {
                let at = SocketAddr::new(ip, 80);
                let connection = Connection::open(client, &at.to_string())?;
                let own = plain(&connection.local)?;
                ensure!(
                    client.ips().contains(&own.ip()),
                    "{} dials from {own}",
                    client.name()
                );
                ensure!(plain(&connection.peer)? == at);
                let greeting = connection.line()?;
                ensure!(as_seen_by(&greeting)? == (at, own), "{own}: {greeting}");
            }
        }
        // A connection of a pod in the mesh is in the log, so theirs would have been.
        let at = SocketAddr::new(server.v4().into(), 80).to_string();
        Connection::open(&member, &at)?.line()?;
        s.mesh
            .ztunnel("a")
            .wait_for_access(&[("src.workload", "member"), ("dst.addr", &at)])?;
        for line in lines_of(s)? {
            let by = |pod: &Pod| {
                let of_pod = |ip: IpAddr| plain(line.get("src.addr")).is_ok_and(|a| a.ip() == ip);
                line.get("src.workload") == pod.name() || pod.ips().into_iter().any(of_pod)
            };
            ensure!(!by(&stranger) && !by(&opted_out), "{}", line.text());
        }
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_and_the_world_outside() {
    scenario(|s| {
        label_namespaces(s)?;
        let pod = s.enrolled_pod("a", "shop", "pod")?;
        front(s, &pod, ["10.96.0.1", "fd96::1"], &[(8080, "80")])?;
        let _own = podtool::serve(&pod, "own", Serve::Greet, "[::]:80")?;
        let (v4, v6): (IpAddr, IpAddr) = (pod.v4().into(), pod.v6().into());
        let loopback4 = IpAddr::from([127, 0, 0, 1]);
        let loopback6 = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        for (dialled, port, ip) in [
            ("127.0.0.1:80".to_owned(), 80, loopback4),
            ("[::1]:80".to_owned(), 80, loopback6),
            (format!("{v4}:80"), 80, v4),
            (format!("[{v6}]:80"), 80, v6),
            ("10.96.0.1:8080".to_owned(), 80, v4),
            ("[fd96::1]:8080".to_owned(), 80, v6),
        ] {
            let mut connection = Connection::open(&pod, &dialled)?;
            ensure!(connection.peer == dialled);
            let greeting = connection.line()?;
            let (server, client) = as_seen_by(&greeting)?;
            let own = SocketAddr::new(ip, plain(&connection.local)?.port());
            ensure!(
                (server, client) == (SocketAddr::new(ip, port), own),
                "{own} dialled {dialled}: {greeting}"
            );
            ensure!(connection.exchange("hello")? == "250 hello");
        }
        // Nothing listens: refused, as it would be without the mesh.
        for dialled in [format!("{v4}:9"), "127.0.0.1:9".to_owned()] {
            let refused = Connection::open(&pod, &dialled);
            ensure!(refused.is_err_and(|error| error.to_string().contains("refused")));
        }
        let wire = s.topology.wire();
        let _world = podtool::serve(wire, "world", Serve::Greet, "[::]:80")?;
        for (at, own) in [((WIRE_V4, 80).into(), v4), ((WIRE_V6, 80).into(), v6)] {
            let at: SocketAddr = at;
            let connection = Connection::open(&pod, &at.to_string())?;
            ensure!(plain(&connection.peer)? == at);
            let greeting = connection.line()?;
            let (server, client) = as_seen_by(&greeting)?;
            ensure!(
                server == at && client.ip() == own,
                "{own} dialled {at}: {greeting}"
            );
        }
        Ok(())
    });
}

#[test]
fn datagrams_pass_untouched() {
    scenario(|s| {
        label_namespaces(s)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        // The port of the mesh's own TCP listener is just a number for UDP.
        for port in [5353, 15008] {
            let name = format!("answer-{port}");
            let log = podtool::answer_datagrams(&server, &name, &format!("[::]:{port}"))?;
            for (ip, own) in server.ips().into_iter().zip(client.ips()) {
                let at = SocketAddr::new(ip, port);
                let answer = podtool::ask_by_datagram(&client, &at.to_string(), "question")?;
                let local = answer
                    .strip_prefix("local=")
                    .and_then(|rest| {
                        rest.strip_suffix(&format!(" peer={at} from={at} answer=question"))
                    })
                    .with_context(|| format!("{at} answered {answer}"))?;
                let local = plain(local)?;
                ensure!(local.ip() == own, "{answer}");
                let log = log.log()?;
                let mut from = log
                    .lines()
                    .filter_map(|l| l.strip_prefix("datagram from="))
                    .filter_map(|from| plain(from).ok());
                ensure!(from.any(|from| from == local), "{local} is not in {log}");
            }
        }
        Ok(())
    });
}

/// PERMISSIVE is the default: the two worlds talk in plaintext, on any port.
#[test]
fn plaintext_passes_between_pods_inside_and_outside() {
    scenario(|s| {
        label_namespaces(s)?;
        let member = s.enrolled_pod("a", "shop", "member")?;
        let stranger = s.pod("b", "legacy", "stranger")?;
        let mut servers = Vec::new();
        for port in [80, 8443, 65000] {
            let address = format!("[::]:{port}");
            servers.push(podtool::serve(
                &stranger,
                &format!("stranger-{port}"),
                Serve::Greet,
                &address,
            )?);
            servers.push(podtool::serve(
                &member,
                &format!("member-{port}"),
                Serve::Greet,
                &address,
            )?);
            for (member_ip, stranger_ip) in member.ips().into_iter().zip(stranger.ips()) {
                // Out of the mesh: the node's proxy connects, from the pod's own address.
                let out = SocketAddr::new(stranger_ip, port);
                let mut connection = Connection::open(&member, &out.to_string())?;
                ensure!(plain(&connection.peer)? == out);
                let (at, client) = as_seen_by(&connection.line()?)?;
                ensure!(at == out && client.ip() == member_ip, "{client} at {at}");
                ensure!(connection.exchange("hello")? == "250 hello");
                // Into the mesh: the application sees the client's address and port.
                let into = SocketAddr::new(member_ip, port);
                let connection = Connection::open(&stranger, &into.to_string())?;
                let own = plain(&connection.local)?;
                ensure!(own.ip() == stranger_ip && plain(&connection.peer)? == into);
                let greeting = connection.line()?;
                ensure!(as_seen_by(&greeting)? == (into, own), "{own}: {greeting}");
                drop(connection);
                s.mesh.ztunnel("a").wait_for_access(&[
                    ("direction", "inbound"),
                    ("src.addr", &own.to_string()),
                    ("dst.addr", &into.to_string()),
                    ("src.identity", ""),
                ])?;
            }
        }
        Ok(())
    });
}

/// Two pods behind a service whose target port has a name, which is another number in each.
fn pair(s: &Scenario) -> Result<[(Pod, Process); 2]> {
    let mut pods = Vec::new();
    for (node, name, port) in [("a", "one", 7001), ("b", "two", 7002)] {
        let pod = s.pod(node, "shop", name)?;
        let text = objects::pod(&pod, &[("group", "pair")]);
        let text = objects::with_named_port(&text, "greet", port);
        s.mesh.config().apply(&format!("pod-shop-{name}"), &text)?;
        s.mesh.wait_until_enrolled(&pod)?;
        let server = podtool::serve(&pod, name, Serve::Greet, &format!("[::]:{port}"))?;
        pods.push((pod, server));
    }
    let text = objects::service_selecting(
        "shop",
        "pair",
        &["10.96.0.9", "fd96::9"],
        ("group", "pair"),
        &[(80, "greet")],
    );
    s.mesh.config().apply("service-pair", &text)?;
    wait_for_service(s, "pair")?;
    pods.try_into()
        .map_err(|pods: Vec<_>| anyhow::anyhow!("{} pods", pods.len()))
}

/// Which endpoint answers.
fn endpoint(client: &Place, vip: &str) -> Result<SocketAddr> {
    let connection = Connection::open(client, vip)?;
    Ok(as_seen_by(&connection.line()?)?.0)
}

#[test]
fn a_service_spreads_connections_and_avoids_endpoints_that_are_gone() {
    scenario(|s| {
        label_namespaces(s)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let [(one, server), (two, _two)] = pair(s)?;
        for (vip, ends) in [
            ("10.96.0.9:80", [one.v4().into(), two.v4().into()]),
            ("[fd96::9]:80", [one.v6().into(), two.v6().into()]),
        ] {
            let ends: [IpAddr; 2] = ends;
            let wanted = [
                SocketAddr::new(ends[0], 7001),
                SocketAddr::new(ends[1], 7002),
            ];
            let mut counts = [0; 2];
            for _ in 0..24 {
                let at = endpoint(&client, vip)?;
                let index = wanted.iter().position(|end| *end == at);
                counts[index.with_context(|| format!("{at} is no endpoint of {vip}"))?] += 1;
            }
            // By chance alone, one in some hundred thousand runs has less.
            ensure!(counts.iter().all(|count| *count >= 2), "{vip}: {counts:?}");
        }
        // Its application is down, and nobody has said so to the control plane.
        drop(server);
        for attempt in 0..16 {
            let at = endpoint(&client, "10.96.0.9:80")
                .with_context(|| format!("attempt {attempt} without the application of one"))?;
            ensure!(at == SocketAddr::new(two.v4().into(), 7002));
        }
        // Its network is gone, and still nobody has. A client without a tunnel to it finds out.
        one.netns.ip_batch("link set eth0 down")?;
        let late = s.enrolled_pod("a", "shop", "late")?;
        for attempt in 0..4 {
            let at = endpoint(&late, "10.96.0.9:80")
                .with_context(|| format!("attempt {attempt} without the network of one"))?;
            ensure!(at == SocketAddr::new(two.v4().into(), 7002));
        }
        Ok(())
    });
}

#[test]
fn a_service_without_endpoints_resets_its_clients_soon() {
    scenario(|s| {
        label_namespaces(s)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let text = objects::service("shop", "empty", "10.96.0.7", &[(80, 80)]);
        s.mesh.config().apply("service-empty", &text)?;
        wait_for_service(s, "empty")?;
        for dialled in ["10.96.0.7:80", "[::ffff:10.96.0.7]:80"] {
            let connection = Connection::open(&client, dialled)?;
            match connection.event(PATIENCE)? {
                Some(Event::Broken(how)) if how.starts_with("reset") => {}
                other => bail!("{dialled} is not reset but {other:?}"),
            }
            let own = SocketAddr::new(client.v4().into(), plain(&connection.local)?.port());
            let line = s
                .mesh
                .ztunnel("a")
                .wait_for_access(&[("src.addr", &own.to_string())])?;
            ensure!(
                line.level == "error"
                    && line.get("error").contains("no healthy endpoint")
                    && line.get("error").contains("empty.shop.svc"),
                "{}",
                line.text()
            );
        }
        Ok(())
    });
}
