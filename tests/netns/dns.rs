//! DNS queries of pods.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::place::Place;
use sluice_tests::podtool::{self, Answer, Connection, Serve};
use sluice_tests::process::{self, Process};
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::topology::{WIRE_V4, WIRE_V6};
use sluice_tests::{Pod, eventually, objects};

use crate::catalog::{self, VIPS};

/// Options by which a client asks.
const SOCKETS: [&[&str]; 2] = [CONNECTED, UNCONNECTED];
const CONNECTED: &[&str] = &["--socket", "connected"];
const UNCONNECTED: &[&str] = &["--socket", "unconnected"];
const CATALOG: &str = "catalog.shop.svc.cluster.local.";

/// A client on node `a`, a service, and a DNS server outside that sends everything back.
struct Stage<'a> {
    s: &'a mut Scenario,
    client: Pod,
    server: Process,
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        catalog::declare(s)?;
        let server = podtool::answer_datagrams(s.topology.wire(), "dns", "[::]:53")?;
        s.mesh.settle()?;
        Ok(Self { s, client, server })
    }

    /// How many datagrams came to the server from a pod.
    fn forwarded(&self, from: &Pod) -> Result<usize> {
        let log = self.server.log()?;
        let of = |ip: IpAddr| log.matches(&format!("{ip}]:")).count();
        // An IPv4 client is shown in its IPv4-mapped form.
        Ok(of(from.v4().into()) + of(from.v6().into()))
    }

    /// Writes the client's pod with this value of the annotation.
    fn annotate(&self, value: &str) -> Result<()> {
        let text = objects::pod(&self.client, &[]);
        let text = objects::with_annotation(&text, "ambient.istio.io/dns-capture", value);
        self.s.mesh.config().apply("pod-shop-web", &text)
    }
}

/// The server's addresses, as an application may write them.
fn servers() -> [String; 3] {
    [
        SocketAddr::from((WIRE_V4, 53)).to_string(),
        SocketAddr::from((WIRE_V6, 53)).to_string(),
        format!("[::ffff:{WIRE_V4}]:53"),
    ]
}

fn query(name: &str, kind: RecordType) -> Result<Message> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name)?, kind));
    Ok(message)
}

fn ask(place: &Place, server: &str, bytes: &[u8], socket: &[&str]) -> Result<Answer> {
    let answer = podtool::exchange_datagrams(place, server, bytes, socket)?;
    // Resolvers refuse what does not come from the server that they asked.
    ensure!(
        answer.from == server && answer.peer == server,
        "asked {server}, and see {answer:?}"
    );
    Ok(answer)
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let data = answer.answers.iter().map(|record| &record.data);
    data.filter_map(|data| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    })
    .collect()
}

/// Whether a query comes back as it is: the server sends back what it gets.
fn comes_back(place: &Place, server: &str, bytes: &[u8], socket: &[&str]) -> Result<()> {
    let answer = ask(place, server, bytes, socket)?;
    ensure!(
        answer.bytes == bytes,
        "sent {bytes:x?}, got {:x?}",
        answer.bytes
    );
    Ok(())
}

/// Options by which glibc's resolver asks by TCP alone.
const BY_TCP: &str = "use-vc";

fn resolves(place: &Place, server: &str, socket: &[&str]) -> Result<()> {
    for (kind, vip) in [(RecordType::A, VIPS[0]), (RecordType::AAAA, VIPS[1])] {
        let bytes = query(CATALOG, kind)?.to_vec()?;
        let answer = Message::from_vec(&ask(place, server, &bytes, socket)?.bytes)?;
        ensure!(
            answer.metadata.message_type == MessageType::Response
                && answer.metadata.authoritative
                && answer.metadata.id == 4711
                && answer.metadata.response_code == ResponseCode::NoError,
            "{answer}"
        );
        let expected: IpAddr = vip.parse()?;
        ensure!(addresses(&answer) == [expected], "{answer}");
        ensure!(
            answer.answers.iter().all(|record| record.ttl == 30),
            "{answer}"
        );
    }
    Ok(())
}

#[test]
fn names_of_the_mesh_are_answered_to_every_kind_of_socket() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        for server in servers() {
            for socket in SOCKETS {
                resolves(&stage.client, &server, socket)
                    .with_context(|| format!("{server}, {socket:?}"))?;
            }
        }
        ensure!(stage.forwarded(&stage.client)? == 0, "the server was asked");
        let asked = |kind| {
            let labels = [
                ("request_query_type", kind),
                ("source_canonical_service", "web"),
            ];
            stage
                .s
                .mesh
                .ztunnel("a")
                .metric("istio_dns_requests_total", &labels)
        };
        ensure!(asked("A")? == 6.0 && asked("AAAA")? == 6.0);
        Ok(())
    });
}

/// What glibc's resolver finds in a pod that is configured as Kubernetes does it.
fn getent(client: &Pod, server: IpAddr, options: &str, name: &str) -> Result<Vec<String>> {
    let file = client.run.dir().join("resolv.conf");
    let search = "search shop.svc.cluster.local svc.cluster.local cluster.local";
    let text = format!("nameserver {server}\n{search}\noptions ndots:5 {options}\n");
    std::fs::write(&file, text)?;
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\"";
    let mut command = client.command("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&file);
    command.arg(name);
    let finished = process::finish_within(&client.run, command, PATIENCE)?;
    let mut found: Vec<String> = finished
        .success()?
        .lines()
        .filter(|line| line.contains("STREAM"))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    found.sort();
    Ok(found)
}

#[test]
fn a_resolver_finds_services_by_every_form_of_their_names() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        for server in [IpAddr::from(WIRE_V4), IpAddr::from(WIRE_V6)] {
            for name in ["catalog", "catalog.shop", "catalog.shop.svc", CATALOG] {
                for options in ["", BY_TCP] {
                    let what = format!("{name} by {server} {options}");
                    let found = getent(&stage.client, server, options, name);
                    let found = found.with_context(|| what.clone())?;
                    ensure!(found == VIPS, "{what}: {found:?}");
                }
            }
        }
        let by_tcp = [("request_protocol", "tcp")];
        let ztunnel = stage.s.mesh.ztunnel("a");
        ensure!(ztunnel.metric("istio_dns_requests_total", &by_tcp)? == 16.0);
        // None of them had to be tried with another search domain.
        ensure!(stage.forwarded(&stage.client)? == 0);
        Ok(())
    });
}

#[test]
fn sockets_that_are_bound_are_captured_alike() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let [v4, v6, mapped] = servers();
        let own4 = format!("{}:40004", stage.client.v4());
        let own6 = format!("[{}]:40006", stage.client.v6());
        let both = "[::]:40008".to_owned();
        for (server, own) in [(&v4, &own4), (&v6, &own6), (&mapped, &both), (&v6, &both)] {
            for socket in SOCKETS {
                let options = [socket, &["--bind", own]].concat();
                resolves(&stage.client, server, &options)
                    .with_context(|| format!("{server}, {options:?}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn everything_else_is_forwarded_byte_for_byte() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let unknown = query("example.com.", RecordType::A)?;
        let mut with_options = unknown.clone();
        with_options.set_edns({
            let mut edns = Edns::new();
            edns.set_max_payload(1400).set_dnssec_ok(true);
            edns
        });
        let mut update = query("shop.svc.cluster.local.", RecordType::SOA)?;
        update.metadata.op_code = OpCode::Update;
        let messages = [
            unknown.to_vec()?,
            with_options.to_vec()?,
            update.to_vec()?,
            query(&format!("_http._tcp.{CATALOG}"), RecordType::SRV)?.to_vec()?,
            query(CATALOG, RecordType::TXT)?.to_vec()?,
            b"no message at all".to_vec(),
            b"x".to_vec(),
        ];
        let mut sent = 0;
        for server in servers() {
            for socket in SOCKETS {
                for bytes in &messages {
                    comes_back(&stage.client, &server, bytes, socket)
                        .with_context(|| format!("{server}, {socket:?}"))?;
                    sent += 1;
                }
            }
        }
        // Not more: no query was captured again on its way out.
        ensure!(stage.forwarded(&stage.client)? == sent);
        let ztunnel = stage.s.mesh.ztunnel("a");
        let forwarded = ztunnel.metric("istio_dns_upstream_requests_total", &[])?;
        let took = ztunnel.metric("istio_dns_upstream_request_duration_seconds_count", &[])?;
        let failed = ztunnel.metric("istio_dns_upstream_failures_total", &[])?;
        ensure!((forwarded, took, failed) == (sent as f64, sent as f64, 0.0));
        Ok(())
    });
}

#[test]
fn a_socket_that_asks_two_servers_hears_from_both() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let second = stage.s.pod("b", "elsewhere", "dns")?;
        let log = podtool::answer_datagrams(&second, "second", "[::]:53")?;
        let bytes = query("example.com.", RecordType::A)?.to_vec()?;
        let [first4, first6, first_mapped] = servers();
        let second4 = SocketAddr::from((second.v4(), 53)).to_string();
        let second6 = SocketAddr::from((second.v6(), 53)).to_string();
        let pairs = [
            [first4.as_str(), &second4],
            [&first6, &second6],
            [&first_mapped, &second6],
        ];
        for pair in pairs {
            let answers = podtool::exchange_with_both(&stage.client, pair, &bytes)?;
            let mut from: Vec<_> = answers.iter().map(|answer| answer.from.as_str()).collect();
            from.sort_unstable();
            let mut expected = pair;
            expected.sort_unstable();
            ensure!(from == expected, "asked {pair:?}, heard from {from:?}");
        }
        let both = (
            stage.forwarded(&stage.client)?,
            log.log()?.matches("datagram").count(),
        );
        ensure!(both == (pairs.len(), pairs.len()), "asked {both:?} times");
        Ok(())
    });
}

#[test]
fn other_queries_by_tcp_go_through() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let _server = podtool::serve(stage.s.topology.wire(), "tcp", Serve::Echo, "[::]:53")?;
        for server in servers() {
            let mut connection = Connection::open(&stage.client, &server)?;
            ensure!(connection.peer == server && connection.exchange("query")? == "query");
        }
        Ok(())
    });
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let _server = podtool::serve(stage.s.topology.wire(), "tcp", Serve::Greet, "[::]:53")?;
        for server in servers() {
            let started = Instant::now();
            let connection = Connection::open(&stage.client, &server)?;
            connection.line()?;
            let took = started.elapsed();
            ensure!(took < Duration::from_secs(9), "{server}: {took:?}");
        }
        Ok(())
    });
}

#[test]
fn a_host_without_an_address_is_given_one_that_leads_to_it() {
    scenario(|s| {
        let Stage { s, client, server } = Stage::build(s)?;
        s.mesh.apply_namespace("outside", None)?;
        let host = s.pod("b", "outside", "host")?;
        let _greets = podtool::serve(&host, "host", Serve::Greet, "[::]:7000")?;
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: api, namespace: shop}}\n\
             spec: {{hosts: [api.example.com], resolution: STATIC, \
             ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 7000}}], \
             endpoints: [{{address: {}}}]}}\n",
            host.v4()
        );
        s.mesh.config().apply("entry", &entry)?;
        s.mesh.settle()?;
        let given: serde_json::Value =
            serde_json::from_str(&s.mesh.ask_control("/config/addresses")?)?;
        for (kind, range) in [
            (RecordType::A, "240.240.0.0/16"),
            (RecordType::AAAA, "2001:2::/48"),
        ] {
            let bytes = query("api.example.com.", kind)?.to_vec()?;
            let answer = ask(&client, &servers()[0], &bytes, CONNECTED)?;
            let answer = Message::from_vec(&answer.bytes)?;
            let [vip] = addresses(&answer)[..] else {
                anyhow::bail!("not one address: {answer}");
            };
            let range: ipnet::IpNet = range.parse()?;
            ensure!(range.contains(&vip), "{vip}");
            ensure!(given.to_string().contains(&vip.to_string()), "{given}");
            // By it the host is reached, as the host that it is.
            let connection = Connection::open(&client, &SocketAddr::new(vip, 80).to_string())?;
            connection.line()?;
            drop(connection);
            s.mesh.ztunnel("a").wait_for_access(&[
                ("direction", "outbound"),
                ("dst.service", "api.example.com"),
            ])?;
        }
        drop(server);
        Ok(())
    });
}

#[test]
fn a_server_that_does_not_answer_fails_the_query_in_time() {
    scenario(|s| {
        let Stage { s, client, server } = Stage::build(s)?;
        drop(server);
        let server = &servers()[0];
        let bytes = query("example.com.", RecordType::A)?.to_vec()?;
        let started = Instant::now();
        let answer = Message::from_vec(&ask(&client, server, &bytes, CONNECTED)?.bytes)?;
        ensure!(
            answer.metadata.response_code == ResponseCode::ServFail,
            "{answer}"
        );
        ensure!(started.elapsed() < Duration::from_secs(10));
        let ztunnel = s.mesh.ztunnel("a");
        ensure!(ztunnel.metric("istio_dns_upstream_failures_total", &[])? == 1.0);
        resolves(&client, server, CONNECTED)
    });
}

#[test]
fn pods_that_opt_out_and_others_ask_for_themselves() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let outside = stage.s.pod("a", "elsewhere", "other")?;
        let bytes = query(CATALOG, RecordType::A)?.to_vec()?;
        for server in servers() {
            for socket in SOCKETS {
                comes_back(&outside, &server, &bytes, socket)?;
            }
        }
        stage.annotate("\"false\"")?;
        eventually(|| comes_back(&stage.client, &servers()[0], &bytes, CONNECTED))?;
        for server in servers() {
            for socket in SOCKETS {
                comes_back(&stage.client, &server, &bytes, socket)?;
            }
        }
        stage.annotate("\"true\"")?;
        eventually(|| resolves(&stage.client, &servers()[0], CONNECTED))
    });
}

#[test]
fn queries_survive_the_death_of_the_worker() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let ztunnel = stage.s.mesh.ztunnel("a");
        let unknown = query("example.com.", RecordType::A)?.to_vec()?;
        for _ in 0..3 {
            let killed = ztunnel.kill_worker()?;
            // At once: they wait in the broker's sockets for the next worker.
            resolves(&stage.client, &servers()[0], CONNECTED)?;
            comes_back(&stage.client, &servers()[1], &unknown, UNCONNECTED)?;
            // It may serve before the broker has written down who it is.
            eventually(|| {
                ensure!(ztunnel.worker()? != killed, "the same worker");
                Ok(())
            })?;
        }
        Ok(())
    });
}
