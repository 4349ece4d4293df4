//! What operators ask a node: dumps, levels of the log, the end of a worker, and `sluicectl`.

use std::{net::SocketAddr, thread};

use anyhow::{Context, Error, Result, anyhow, ensure};
use serde_json::Value;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Event, Flood, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually, http, objects, sluicectl};

const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);
const VIP: &str = "10.96.0.1";

/// A client on node a, a server with a service on node b.
struct Shop {
    web: Pod,
    catalog: Pod,
    _server: Process,
}

impl Shop {
    fn build(s: &Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh
            .apply_service("shop", "catalog", VIP, &[(80, 8080)])?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let server = podtool::serve(&catalog, "catalog", Serve::Greet, "[::]:8080")?;
        s.mesh.settle()?;
        Ok(Self {
            web,
            catalog,
            _server: server,
        })
    }

    /// A connection that has reached the server.
    fn connect(&self) -> Result<Connection> {
        let connection = Connection::open(&self.web, &format!("{VIP}:80"))?;
        let greeting = connection.event(PATIENCE)?;
        ensure!(matches!(greeting, Some(Event::Line(_))), "{greeting:?}");
        Ok(connection)
    }
}

/// A request to the admin port of a node.
fn ask(s: &Scenario, node: &str, method: &str, path: &str) -> Result<http::Response> {
    http::request(&s.mesh.ztunnel(node).node().netns, method, ADMIN, path)
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field]
        .as_str()
        .with_context(|| format!("{field} is no text in {value:#}"))
}

type IsForm = fn(&Value) -> bool;

/// Asserts that each of these fields is there, in the form that operators' tools read it in (wire
/// contract §13).
fn has_fields(value: &Value, fields: &[(&str, IsForm)]) -> Result<()> {
    for (name, is_form) in fields {
        ensure!(is_form(&value[*name]), "{name} in {value:#}");
    }
    Ok(())
}

fn find<'a>(dump: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let all = dump[list]
        .as_array()
        .with_context(|| format!("no {list}"))?;
    let found = all.iter().find(|one| one["name"] == name);
    found.with_context(|| format!("no {name} among the {list}"))
}

#[test]
fn a_dump_is_what_operators_tools_read() {
    scenario(|s| {
        let shop = Shop::build(s)?;
        let principal = shop.web.spiffe_id().replace("spiffe://", "");
        let policy = objects::allow_principals("shop", "catalog", &[&principal]);
        s.mesh.config().apply("policy", &policy)?;
        s.mesh.settle()?;
        let connection = shop.connect()?;
        let dump = s.mesh.ztunnel("a").config_dump()?;
        let catalog = find(&dump, "workloads", "catalog")?;
        has_fields(
            catalog,
            &[
                ("uid", Value::is_string),
                ("workloadIps", Value::is_array),
                ("namespace", Value::is_string),
                ("serviceAccount", Value::is_string),
                ("workloadName", Value::is_string),
                ("workloadType", Value::is_string),
                ("canonicalName", Value::is_string),
                ("canonicalRevision", Value::is_string),
                ("clusterId", Value::is_string),
                ("trustDomain", Value::is_string),
                ("locality", Value::is_object),
                ("node", Value::is_string),
                ("network", Value::is_string),
                ("hostname", Value::is_string),
                ("capacity", Value::is_u64),
                ("waypoint", Value::is_null),
                ("authorizationPolicies", Value::is_array),
            ],
        )?;
        ensure!(catalog["protocol"] == "HBONE" && catalog["status"] == "Healthy");
        let service = find(&dump, "services", "catalog")?;
        has_fields(
            service,
            &[
                ("hostname", Value::is_string),
                ("loadBalancer", Value::is_object),
                ("subjectAltNames", Value::is_array),
                ("ipFamilies", Value::is_string),
            ],
        )?;
        ensure!(service["vips"][0] == format!("/{VIP}"), "{service:#}");
        ensure!(service["ports"]["80"] == 8080, "{service:#}");
        let endpoints = service["endpoints"].as_object().context("no endpoints")?;
        let endpoint = endpoints.values().next().context("no endpoint")?;
        ensure!(endpoint["workloadUid"] == catalog["uid"], "{service:#}");
        ensure!(endpoint["port"]["80"] == 8080, "{service:#}");
        let policies = dump["policies"].as_array().context("no policies")?;
        let allow = policies.iter().find(|one| one["action"] == "Allow");
        let allow = allow.context("no ALLOW policy")?;
        ensure!(allow["scope"] == "WorkloadSelector", "{allow:#}");
        let allowed = &allow["rules"][0][0][0]["principals"][0]["Exact"];
        ensure!(*allowed == principal, "{allow:#}");
        certificates(&dump, &shop.web)?;
        connections(s, &shop, &connection)
    });
}

fn certificates(dump: &Value, pod: &Pod) -> Result<()> {
    let all = dump["certificates"].as_array().context("no certificates")?;
    let own = all.iter().find(|one| one["identity"] == pod.spiffe_id());
    let own = own.context("no certificate of web")?;
    ensure!(own["state"] == "Available", "{own:#}");
    let leaf = &own["certChain"][0];
    for certificate in [leaf, &own["rootCerts"][0]] {
        ensure!(text(certificate, "pem")?.starts_with("-----BEGIN CERTIFICATE-----"));
        let serial = text(certificate, "serialNumber")?;
        ensure!(serial.chars().all(|c| c.is_ascii_digit()), "{serial}");
        let from: jiff::Timestamp = text(certificate, "validFrom")?.parse()?;
        let until: jiff::Timestamp = text(certificate, "expirationTime")?.parse()?;
        let now = jiff::Timestamp::now();
        ensure!(from < now && now < until, "{certificate:#}");
    }
    Ok(())
}

/// The connection is there on both nodes, and is gone when it is closed.
fn connections(s: &Scenario, shop: &Shop, connection: &Connection) -> Result<()> {
    let state = |node: &str, pod: &Pod, direction: &str| -> Result<Value> {
        let dump = s.mesh.ztunnel(node).config_dump()?;
        let states = dump["workloadState"].as_object().context("no states")?;
        let mut states = states.values();
        let state = states.find(|state| state["info"]["name"] == pod.name());
        let state = state.with_context(|| format!("no state of {}", pod.name()))?;
        ensure!(state["state"] == "Up", "{state:#}");
        Ok(state["connections"][direction].clone())
    };
    let (_, port) = connection.local.rsplit_once(':').context("no port")?;
    let source = format!("{}:{port}", shop.web.v4());
    let (pod, tunnel) = (
        format!("{}:8080", shop.catalog.v4()),
        format!("{}:15008", shop.catalog.v4()),
    );
    for (node, of, direction, original, actual, peer) in [
        (
            "a",
            &shop.web,
            "outbound",
            &format!("{VIP}:80"),
            &tunnel,
            &shop.catalog,
        ),
        ("b", &shop.catalog, "inbound", &pod, &pod, &shop.web),
    ] {
        let all = state(node, of, direction)?;
        // The server has greeted; how much of it is exact elsewhere.
        let greeting = all[0]["bytesReceived"].as_u64();
        ensure!(greeting > Some(0), "{all:#}");
        let expected = serde_json::json!([{
            "src": source, "originalDst": original, "actualDst": actual, "protocol": "HBONE",
            "peer": peer.spiffe_id(), "bytesSent": 0, "bytesReceived": greeting,
        }]);
        ensure!(all == expected, "{all:#} instead of {expected:#}");
        let page: Value = serde_json::from_str(&ask(s, node, "GET", "/connections")?.body)?;
        let uid = format!("Kubernetes//Pod/shop/{}", of.name());
        ensure!(page[&uid][direction] == expected, "{page:#}");
    }
    Ok(())
}

#[test]
fn what_goes_straight_in_the_kernel_is_listed_as_well() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("a", "shop", "catalog")?;
        let _server = podtool::serve(&catalog, "catalog", Serve::Greet, "[::]:8080")?;
        s.mesh.settle()?;
        let address = SocketAddr::from((catalog.v4(), 8080));
        let straight = || -> Result<Vec<Value>> {
            let page: Value = serde_json::from_str(&ask(s, "a", "GET", "/connections")?.body)?;
            let list = |pod: &str, direction: &str| {
                let all = page[format!("Kubernetes//Pod/shop/{pod}")][direction].as_array();
                let all = all.cloned().unwrap_or_default().into_iter();
                all.filter(|one| one["protocol"] == "DIRECT")
                    .collect::<Vec<_>>()
            };
            let (out, into) = (list("web", "outbound"), list("catalog", "inbound"));
            ensure!(out == into, "{page:#}");
            Ok(out)
        };
        // The first ones go through the ztunnel, until the kernel knows that they need not.
        let mut held = Vec::new();
        eventually(|| {
            held.push(Connection::open(&web, &address.to_string())?);
            let all = straight()?;
            let to = all.first().map(|one| &one["actualDst"]);
            ensure!(to.is_some_and(|to| *to == address.to_string()), "{all:#?}");
            Ok(())
        })?;
        drop(held);
        eventually(|| {
            let left = straight()?;
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })
    });
}

#[test]
fn the_worker_is_changed_by_post_on_loopback_alone() {
    scenario(|s| {
        let shop = Shop::build(s)?;
        let node = s.mesh.ztunnel("a").node();
        for path in ["/logging", "/quitquitquit"] {
            let answer = ask(s, "a", "GET", path)?;
            ensure!(answer.status == 405, "GET {path}: {}", answer.status);
        }
        let index = ask(s, "a", "GET", "/")?;
        for path in ["/config_dump", "/explain", "/logging", "/quitquitquit"] {
            ensure!(index.body.contains(path), "{path} is not on the page");
        }
        // Nobody else reaches it, not even from the node's own pods or by its other address.
        let elsewhere = SocketAddr::new(node.v4().into(), 15000);
        let reached = http::request(&node.netns, "GET", elsewhere, "/");
        ensure!(reached.is_err(), "{elsewhere} answers");
        let told = |node: &str, count: usize| {
            eventually(|| {
                let lines = s.mesh.ztunnel(node).access_log()?.len();
                ensure!(lines == count, "{lines} lines of node {node}, not {count}");
                Ok(())
            })
        };
        // The other node tells of every connection.
        drop(shop.connect()?);
        told("a", 1)?;
        told("b", 1)?;
        for (level, count) in [("access:off", 2), ("access=off", 3)] {
            let answer = ask(s, "a", "POST", &format!("/logging?level={level}"))?;
            ensure!(
                answer.status == 200 && answer.body.contains("access=off"),
                "{}",
                answer.body
            );
            drop(shop.connect()?);
            told("b", count)?;
        }
        let answer = ask(s, "a", "POST", "/logging?level=access=loud")?;
        ensure!(
            answer.status == 400 && answer.body.contains("TARGET=LEVEL"),
            "{}",
            answer.body
        );
        let answer = ask(s, "a", "POST", "/logging?reset")?;
        ensure!(
            answer.status == 200 && !answer.body.contains("access=off"),
            "{}",
            answer.body
        );
        drop(shop.connect()?);
        told("b", 4)?;
        told("a", 2)?;
        let worker = s.mesh.ztunnel("a").quit_worker()?;
        s.mesh.ztunnel_mut("a").wait_for_successor(worker)?;
        eventually(|| {
            let outcome = attempt(&shop.web, SocketAddr::new(VIP.parse()?, 80))?;
            ensure!(outcome == Outcome::Served, "{outcome:?}");
            Ok(())
        })
    });
}

/// The pages of both nodes' ztunnels are on loopback, so each is asked there.
fn status(s: &Scenario, node: &str) -> Result<(Option<i32>, Value)> {
    let run = sluicectl::run(s.mesh.ztunnel(node).node(), ["status", "--output", "json"])?;
    let said = serde_json::from_str(&run.stdout)
        .with_context(|| format!("{}{}", run.stdout, run.stderr))?;
    Ok((run.status.code(), said))
}

#[test]
fn the_status_names_what_is_not_well() {
    scenario(|s| {
        let shop = Shop::build(s)?;
        let _connection = shop.connect()?;
        let (code, said) = status(s, "a")?;
        ensure!(
            code == Some(0) && said["problems"] == serde_json::json!([]),
            "{said:#}"
        );
        let node = &said["nodes"][0];
        ensure!(
            node["node"] == "a" && node["readiness"] == "ready",
            "{said:#}"
        );
        ensure!(
            node["enrolled"] == 1 && node["expected"] == 1 && node["connections"] == 1,
            "{said:#}"
        );
        ensure!(
            node["certificates"][0]["identity"] == shop.web.spiffe_id(),
            "{said:#}"
        );
        let table = sluicectl::run(s.mesh.ztunnel("a").node(), ["status"])?.success()?;
        ensure!(
            table.contains("shop/web") && table.contains("enrolled"),
            "{table}"
        );
        // A pod that is announced, and that nobody can enrol.
        let lost = "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: shop}\n\
                    spec: {nodeName: a, containers: []}\nstatus: {podIP: 10.1.200.200}\n";
        s.mesh.config().apply("lost", lost)?;
        s.mesh.settle()?;
        let (code, said) = status(s, "a")?;
        ensure!(code == Some(1), "{code:?}: {said:#}");
        let problem = said["problems"][0].as_str().context("no problem")?;
        ensure!(
            problem.starts_with("shop/lost should be part of the mesh"),
            "{said:#}"
        );
        let run = sluicectl::run(
            s.mesh.ztunnel("a").node(),
            ["explain", "shop/lost", "shop/catalog:80"],
        )?;
        ensure!(
            run.stdout.contains("has not been enrolled"),
            "{}",
            run.stdout
        );
        s.mesh.config().delete("lost")?;
        s.mesh.settle()?;
        s.mesh.stop_control()?;
        eventually(|| {
            let (code, said) = status(s, "a")?;
            let problem = said["problems"][0].as_str().unwrap_or_default();
            ensure!(
                code == Some(1) && problem.contains("does not reach the control plane"),
                "{said:#}"
            );
            Ok(())
        })?;
        // In the namespace of the wire there is no ztunnel, and now no control plane either.
        let run = sluicectl::run(
            s.mesh.ztunnel("a").node(),
            ["status", "--ztunnel", "127.0.0.1:9"],
        )?;
        ensure!(run.status.code() == Some(2), "{}", run.status);
        ensure!(
            run.stderr.contains("--ztunnel and --status"),
            "{}",
            run.stderr
        );
        let dump = sluicectl::run(s.mesh.ztunnel("a").node(), ["dump", "--output", "yaml"])?;
        ensure!(dump.status.code() == Some(1), "{}", dump.status);
        ensure!(dump.stdout.contains("name: catalog"), "{}", dump.stdout);
        ensure!(!dump.stdout.contains("PRIVATE KEY"), "a private key");
        Ok(())
    });
}

/// What node `a` holds after some seconds of what it was asked for while this was done.
fn heap_while(s: &Scenario, act: impl FnOnce() -> Result<()>) -> Result<http::Response> {
    thread::scope(|scope| {
        let heap = scope.spawn(|| {
            loop {
                let heap = ask(s, "a", "GET", "/debug/pprof/heap?seconds=3")?;
                if heap.status != 503 {
                    return Ok::<_, Error>(heap);
                }
            }
        });
        // Only one may look at a time: that one has begun when this one is refused.
        let acted = eventually(|| {
            let refused = ask(s, "a", "GET", "/debug/pprof/heap?seconds=1")?;
            ensure!(
                refused.status == 503,
                "{}: {}",
                refused.status,
                refused.body
            );
            Ok(())
        })
        .and_then(|()| act());
        let heap = heap.join().map_err(|_| anyhow!("the question panicked"))?;
        acted.and(heap)
    })
}

#[test]
fn a_profile_tells_where_processor_time_goes() {
    scenario(|s| {
        let shop = Shop::build(s)?;
        let bad = ask(s, "a", "GET", "/debug/pprof/profile?seconds=0")?;
        ensure!(bad.status == 400, "{}: {}", bad.status, bad.body);
        let heap: Value = serde_json::from_str(&ask(s, "a", "GET", "/debug/pprof/heap")?.body)?;
        let (used, mapped) = (heap["inUseBytes"].as_u64(), heap["mappedBytes"].as_u64());
        ensure!(used > Some(100_000) && mapped <= used, "{heap:#}");
        let worker = s.mesh.ztunnel("a").worker()?;
        let _echo = podtool::serve(&shop.catalog, "echo", Serve::Echo, "[::]:8081")?;
        let to = format!("{}:8081", shop.catalog.v4());
        // Functions are named. On a busy machine the worker may have too little processor time for that.
        let mut floods = 0;
        eventually(|| {
            // New connections, for as long as samples are taken and beyond.
            floods += 1;
            let options = ["--seconds", "6", "--rate", "200", "--concurrency", "16"];
            let name = format!("flood-{floods}");
            let mut flood = podtool::start_flood(&shop.web, &name, &to, &options)?;
            eventually(|| {
                ensure!(flood.log()?.contains("begin"), "the flood has not begun");
                Ok(())
            })?;
            let profile = ask(s, "a", "GET", "/debug/pprof/profile?seconds=2")?;
            // Nobody has lost a connection by it.
            flood.wait(PATIENCE)?;
            let flood = Flood::parse(&flood.log()?)?;
            ensure!(flood.ok == flood.attempted && flood.ok > 0, "{flood:?}");
            let (status, body) = (profile.status, profile.body);
            ensure!(status == 200, "{status}: {body}");
            for name in [
                "sluice_ztunnel::worker::shard::run",
                "sluice_ztunnel::worker::outbound",
            ] {
                let bytes = body.len();
                ensure!(body.contains(name), "no {name} in {bytes} bytes");
            }
            Ok(())
        })?;
        // Of memory, what was asked for meanwhile and is held: here, by connections that idle. Those that a
        // busy machine makes too late are seen by nobody, and others are made.
        let mut idle = Vec::new();
        eventually(|| {
            let heap = heap_while(s, || {
                let name = format!("idle-{}", idle.len());
                idle.push(podtool::hold(&shop.web, &name, &to, 500)?);
                Ok(())
            })?;
            ensure!(heap.status == 200, "{}: {}", heap.status, heap.body);
            for name in ["inuse_space", "sluice_ztunnel::worker::outbound"] {
                let bytes = heap.body.len();
                ensure!(heap.body.contains(name), "no {name} in {bytes} bytes");
            }
            Ok(())
        })?;
        // The worker is still the same.
        ensure!(s.mesh.ztunnel("a").worker()? == worker, "another worker");
        Ok(())
    });
}
