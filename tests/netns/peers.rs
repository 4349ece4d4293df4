//! Whoever reaches a pod's ports: garbage is answered as the wire contract says, and harms nobody.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, StatusCode, Version};
use rcgen::SanType;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::run::ProcessId;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::stranger::{Authority, Credentials, PATIENCE, Tunnel, connect, inside, tls};

const GUEST: &str = "spiffe://cluster.local/ns/legacy/sa/guest";
const OUTCAST: &str = "spiffe://cluster.local/ns/legacy/sa/outcast";
/// What follows the TLS handshake of a tunnel (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A server in the mesh, a client in the mesh, and a pod outside of it where strangers live.
struct Stage<'a> {
    s: &'a Scenario,
    server: Pod,
    friend: Pod,
    outside: Pod,
    authority: Authority,
    guest: Credentials,
    worker: ProcessId,
    _process: Process,
}

impl<'a> Stage<'a> {
    fn build(s: &'a Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let process = podtool::serve(&server, "catalog", Serve::Greet, "[::]:80")?;
        s.mesh
            .apply_service("shop", "catalog", "10.96.0.5", &[(8080, 80)])?;
        s.mesh.config().apply(
            "outcast",
            "apiVersion: security.istio.io/v1\n\
             kind: AuthorizationPolicy\n\
             metadata: {name: outcast, namespace: shop}\n\
             spec:\n\
             \x20 action: DENY\n\
             \x20 rules: [{from: [{source: {serviceAccounts: [legacy/outcast]}}]}]\n",
        )?;
        let friend = s.enrolled_pod("a", "shop", "web")?;
        let outside = s.pod("a", "legacy", "stranger")?;
        s.mesh.settle()?;
        let authority = Authority::of_mesh(s.mesh.state())?;
        let stage = Self {
            s,
            friend,
            outside,
            guest: authority.issue(GUEST)?,
            authority,
            worker: s.mesh.ztunnel("b").worker()?,
            server,
            _process: process,
        };
        stage.all_is_well()?;
        Ok(stage)
    }

    fn tunnel_port(&self) -> SocketAddr {
        SocketAddr::new(self.server.v4().into(), 15008)
    }

    fn authority(&self, port: u16) -> String {
        format!("{}:{port}", self.server.v4())
    }

    /// Runs a stranger's client.
    fn outside<T: Send>(&self, client: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.outside.netns, client)
    }

    /// Nobody panicked, nobody was replaced, and whoever behaves is served: by a tunnel that is
    /// there already, and by a new one.
    fn all_is_well(&self) -> Result<()> {
        let ztunnel = self.s.mesh.ztunnel("b");
        ensure!(!ztunnel.log()?.contains("panicked"), "a panic");
        ensure!(ztunnel.worker()? == self.worker, "another worker");
        let address = SocketAddr::new(self.server.v4().into(), 80);
        ensure!(attempt(&self.friend, address)? == Outcome::Served);
        let greeting = self.outside(async || {
            let tunnel = Tunnel::open(self.tunnel_port(), &self.guest).await?;
            tunnel.greeting(&self.authority(80)).await
        })?;
        // A stranger's address is its own even if its certificate is another's.
        ensure!(
            greeting.contains(&self.outside.v4().to_string()),
            "{greeting}"
        );
        Ok(())
    }

    /// Waits for the reason that is logged when a tunnel does not come to be.
    fn wait_for_reason(&self, seen: usize, words: &str) -> Result<()> {
        eventually(|| {
            let lines = self.s.mesh.ztunnel("b").access_log()?;
            let found = lines[seen..].iter().any(|line| {
                line.has(&[
                    ("message", "connection failed"),
                    ("direction", "inbound"),
                    ("dst.addr", &self.tunnel_port().to_string()),
                ]) && line
                    .get("src.addr")
                    .starts_with(&self.outside.v4().to_string())
                    && line.get("error").contains(words)
            });
            ensure!(found, "no failed connection because of {words:?}");
            Ok(())
        })
    }
}

/// Reads until the peer ends the connection, in whatever way.
async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<String> {
    let mut end = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut end)).await;
    Ok(match read.context("the connection stays open")? {
        Ok(_) => "closed".to_owned(),
        Err(error) => error.to_string(),
    })
}

#[test]
fn what_is_no_tunnel_is_closed() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        // A record header that announces more than a record may hold, and a ClientHello cut short.
        let too_long = [0x16, 3, 1, 0xff, 0xff, 1, 2, 3];
        let cut_short = [0x16, 3, 1, 0, 5, 1, 0xff, 0xff, 0xff, 3];
        for garbage in [
            &b"GET / HTTP/1.1\r\nhost: catalog\r\n\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n",
            PREFACE,
            &[0; 4096],
            &[0xff; 70_000],
            &too_long,
            &cut_short,
        ] {
            let seen = s.mesh.ztunnel("b").access_log()?.len();
            stage.outside(async || {
                let mut tcp = TcpStream::connect(stage.tunnel_port()).await?;
                // It may be closed before all is sent.
                let _ = tcp.write_all(garbage).await;
                until_closed(&mut tcp).await
            })?;
            stage.wait_for_reason(seen, "TLS with the peer")?;
            stage.all_is_well()?;
        }
        // Scans connect and leave.
        stage.outside(async || {
            for _ in 0..50 {
                TcpStream::connect(stage.tunnel_port()).await?;
            }
            Ok(())
        })?;
        stage.all_is_well()
    });
}

#[test]
fn peers_without_an_identity_of_the_mesh_are_turned_away() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let mesh = &stage.authority;
        let long_ago = |params: &mut rcgen::CertificateParams| {
            params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
            params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
        };
        let dns = vec![SanType::DnsName("catalog.shop".try_into()?)];
        let uri = |text: &str| -> Result<Vec<SanType>> { Ok(vec![SanType::URI(text.try_into()?)]) };
        for (what, credentials, alert, reason) in [
            (
                "no certificate",
                None,
                "CertificateRequired",
                "no certificates",
            ),
            (
                "another root",
                Some(Authority::foreign()?.issue(GUEST)?),
                "UnknownCA",
                "UnknownIssuer",
            ),
            (
                "a root of the same name with another key",
                Some(Authority::impostor(s.mesh.state())?.issue(GUEST)?),
                "alert",
                "BadSignature",
            ),
            (
                "another trust domain",
                Some(mesh.issue("spiffe://elsewhere/ns/shop/sa/web")?),
                "alert",
                "trust domain",
            ),
            (
                "a DNS name only",
                Some(mesh.issue_with(dns, |_| {})?),
                "alert",
                "identity",
            ),
            (
                "a URI that is no identity",
                Some(mesh.issue("spiffe://cluster.local/shop/web")?),
                "alert",
                "identity",
            ),
            (
                "an expired certificate",
                Some(mesh.issue_with(uri(GUEST)?, long_ago)?),
                "CertificateExpired",
                "expired",
            ),
        ] {
            let seen = s.mesh.ztunnel("b").access_log()?.len();
            let end = stage.outside(async || {
                let mut stream = tls(stage.tunnel_port(), credentials.as_ref(), &["h2"]).await?;
                // TLS 1.3: the client may speak before it hears what becomes of its certificate.
                let _ = stream.write_all(PREFACE).await;
                until_closed(&mut stream).await
            })?;
            ensure!(end.contains(alert), "{what}: {end}");
            stage.wait_for_reason(seen, reason).context(what)?;
            stage.all_is_well().context(what)?;
        }
        Ok(())
    });
}

#[test]
fn other_protocols_inside_tls_are_closed() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let refused = stage.outside(async || {
            let stream = tls(stage.tunnel_port(), Some(&stage.guest), &["http/1.1"]).await;
            Ok(stream.err().map(|error| format!("{error:#}")))
        })?;
        let refused = refused.context("HTTP/1.1 was agreed on")?;
        ensure!(refused.contains("NoApplicationProtocol"), "{refused}");
        stage.all_is_well()?;
        let with_garbage = [PREFACE, &[0xff; 200]].concat();
        // DATA for stream 0, which there is not (RFC 9113 §6.1).
        let for_nobody = [
            PREFACE,
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            &[0, 0, 1, 0, 0, 0, 0, 0, 0, 7],
        ]
        .concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: catalog\r\n\r\n"[..],
            b"CONNECT 10.244.2.10:80 HTTP/1.1\r\nhost: 10.244.2.10:80\r\n\r\n",
            &with_garbage,
            &for_nobody,
        ] {
            for protocols in [&["h2"][..], &[]] {
                stage.outside(async || {
                    let mut stream =
                        tls(stage.tunnel_port(), Some(&stage.guest), protocols).await?;
                    stream.write_all(bytes).await?;
                    until_closed(&mut stream).await
                })?;
                stage.all_is_well()?;
            }
        }
        Ok(())
    });
}

#[test]
fn requests_are_answered_as_the_contract_says() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let outcast = stage.authority.issue(OUTCAST)?;
        let (v4, v6) = (stage.server.v4(), stage.server.v6());
        let rows = [
            (format!("{v4}:80"), &stage.guest, 200),
            (
                "catalog.shop.svc.cluster.local:8080".to_owned(),
                &stage.guest,
                200,
            ),
            (format!("{}:80", stage.friend.v4()), &stage.guest, 400),
            ("127.0.0.1:80".to_owned(), &stage.guest, 400),
            (format!("[{v6}]:80"), &stage.guest, 400),
            (v4.to_string(), &stage.guest, 400),
            (
                "catalog.shop.svc.cluster.local".to_owned(),
                &stage.guest,
                400,
            ),
            (format!("{v4}:0"), &stage.guest, 400),
            (format!("{v4}:15001"), &stage.guest, 503),
            (format!("{v4}:15006"), &stage.guest, 503),
            (format!("{v4}:15008"), &stage.guest, 503),
            (format!("{v4}:15080"), &stage.guest, 503),
            (format!("{v4}:9"), &stage.guest, 503),
            (
                "nowhere.shop.svc.cluster.local:80".to_owned(),
                &stage.guest,
                503,
            ),
            // The service has no such port.
            (
                "catalog.shop.svc.cluster.local:9".to_owned(),
                &stage.guest,
                503,
            ),
            (format!("{v4}:80"), &outcast, 401),
            // Policy comes before the application: whoever is denied learns nothing of its ports.
            (format!("{v4}:9"), &outcast, 401),
        ];
        for (authority, credentials, wanted) in rows {
            let status = stage.outside(async || {
                let tunnel = Tunnel::open(stage.tunnel_port(), credentials).await?;
                if wanted == 200 {
                    let greeting = tunnel.greeting(&authority).await?;
                    ensure!(greeting.starts_with("220 "), "{greeting}");
                    return Ok(StatusCode::OK);
                }
                let (status, mut stream) = tunnel.connect(&authority).await?;
                let rest = timeout(PATIENCE, stream.receive.data()).await?;
                ensure!(rest.is_none(), "a refusal with a body");
                // The tunnel itself is fine: the next request is judged by itself.
                let (again, _) = tunnel.connect(&authority).await?;
                ensure!(again == status);
                Ok(status)
            });
            let status = status.with_context(|| authority.clone())?;
            ensure!(status == wanted, "{authority}: {status}, not {wanted}");
        }
        stage.all_is_well()?;

        // By IPv6 the same, with the address that was dialled.
        let greeting = stage.outside(async || {
            let tunnel = Tunnel::open(SocketAddr::new(v6.into(), 15008), &stage.guest).await?;
            tunnel.greeting(&format!("[{v6}]:80")).await
        })?;
        ensure!(greeting.starts_with("220 "), "{greeting}");

        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let status = stage.outside(async || {
                let tunnel = Tunnel::open(stage.tunnel_port(), &stage.guest).await?;
                let request = Request::builder()
                    .method(method.clone())
                    .version(Version::HTTP_2)
                    .uri(format!("https://{v4}:80/"))
                    .body(())?;
                Ok(tunnel.ask(request).await?.0)
            })?;
            ensure!(status == StatusCode::BAD_REQUEST, "{method}: {status}");
        }
        stage.all_is_well()
    });
}

/// What a peer claims about itself is not believed: not the address of another, and no header at
/// all about who it is.
#[test]
fn claims_are_not_believed() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let outcast = stage.authority.issue(OUTCAST)?;
        let claiming = |forwarded: &str| -> Result<Request<()>> {
            let mut request = connect(&stage.authority(80))?;
            for (name, value) in [
                ("forwarded", forwarded),
                ("baggage", "k8s.namespace.name=shop,service.name=web"),
                (
                    "x-forwarded-client-cert",
                    "URI=spiffe://cluster.local/ns/shop/sa/web",
                ),
            ] {
                request.headers_mut().insert(name, value.try_into()?);
            }
            Ok(request)
        };
        let another = format!("for=\"{}:1234\"", stage.friend.v4());
        let own = format!("for=\"{}:1234\"", stage.outside.v4());
        for (forwarded, seen) in [
            (another.as_str(), stage.outside.v4().to_string()),
            (&own, format!("{}]:1234", stage.outside.v4())),
            ("for=nonsense", stage.outside.v4().to_string()),
        ] {
            let request = claiming(forwarded)?;
            let greeting = stage.outside(async || {
                let tunnel = Tunnel::open(stage.tunnel_port(), &stage.guest).await?;
                let (status, mut stream) = tunnel.ask(request).await?;
                ensure!(status == StatusCode::OK, "{status}");
                let data = timeout(PATIENCE, stream.receive.data()).await?;
                Ok(String::from_utf8_lossy(&data.context("no greeting")??).into_owned())
            })?;
            ensure!(greeting.contains(&seen), "{forwarded}: {greeting}");
        }
        let request = claiming(&another)?;
        let status = stage.outside(async || {
            let tunnel = Tunnel::open(stage.tunnel_port(), &outcast).await?;
            Ok(tunnel.ask(request).await?.0)
        })?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
        s.mesh.ztunnel("b").wait_for_access(&[
            ("direction", "inbound"),
            ("src.identity", OUTCAST),
            ("error", "denied by policy shop/outcast, rule 0"),
        ])?;
        stage.all_is_well()
    });
}

/// Peers that begin and then say nothing are given up.
#[test]
fn silent_peers_are_dropped() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let began = Instant::now();
        stage.outside(async || {
            let mut nothing = TcpStream::connect(stage.tunnel_port()).await?;
            let mut half_hello = TcpStream::connect(stage.tunnel_port()).await?;
            half_hello.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await?;
            let mut no_preface = tls(stage.tunnel_port(), Some(&stage.guest), &["h2"]).await?;
            let mut half_preface = tls(stage.tunnel_port(), Some(&stage.guest), &["h2"]).await?;
            half_preface.write_all(&PREFACE[..12]).await?;
            tokio::try_join!(
                until_closed(&mut nothing),
                until_closed(&mut half_hello),
                until_closed(&mut no_preface),
                until_closed(&mut half_preface),
            )
        })?;
        ensure!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        stage.wait_for_reason(0, "no TLS and HTTP/2 session within")?;
        stage.all_is_well()
    });
}

#[test]
fn greedy_peers_get_their_share_and_no_more() {
    const STREAMS: usize = 300;
    scenario(|s| {
        let stage = Stage::build(s)?;
        let authority = stage.authority(80);
        // Begun all at once, before the server has said how many it takes.
        stage.outside(async || {
            let tunnel = Tunnel::open(stage.tunnel_port(), &stage.guest).await?;
            let mut asked = JoinSet::new();
            let mut requests = tunnel.requests.clone().ready().await?;
            for _ in 0..STREAMS {
                let (answer, send) = requests.send_request(connect(&authority)?, false)?;
                asked.spawn(async move {
                    let answer = answer.await?;
                    Ok::<_, h2::Error>((answer.status(), send, answer.into_body()))
                });
                requests = requests.ready().await?;
            }
            let mut open = Vec::new();
            let mut refused = 0;
            // Those above the limit are refused, or wait until others are done.
            while open.len() + refused < STREAMS {
                let next = timeout(Duration::from_secs(3), asked.join_next()).await;
                let Ok(Some(next)) = next else { break };
                match next? {
                    Ok((StatusCode::OK, send, body)) => open.push((send, body)),
                    Ok((status, ..)) => bail!("a stream got {status}"),
                    Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => refused += 1,
                    Err(error) => return Err(error).context("a stream broke"),
                }
            }
            ensure!(
                open.len() == 200,
                "{} streams at once, {refused} refused",
                open.len()
            );
            for (send, body) in &mut open {
                let data = timeout(PATIENCE, body.data())
                    .await?
                    .context("no greeting")??;
                ensure!(data.starts_with(b"220 "));
                send.send_data(Bytes::from_static(b"bye\n"), true)?;
            }
            drop(open);
            // The rest is served then.
            while let Some(next) = timeout(PATIENCE, asked.join_next()).await? {
                ensure!(next??.0 == StatusCode::OK);
            }
            Ok(())
        })?;
        stage.all_is_well()?;

        // More headers than are taken; the answer may be a status or the end of the stream.
        for size in [70 << 10, 1 << 20] {
            let answer = stage.outside(async || {
                let tunnel = Tunnel::open(stage.tunnel_port(), &stage.guest).await?;
                let mut request = connect(&authority)?;
                for i in 0..size / 1024 {
                    let name: http::HeaderName = format!("x-{i}").try_into()?;
                    request
                        .headers_mut()
                        .insert(name, "x".repeat(1000).try_into()?);
                }
                Ok(tunnel.ask(request).await.map(|(status, _)| status))
            })?;
            if let Ok(status) = answer {
                ensure!(
                    status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "{size} bytes of headers: {status}"
                );
            }
            stage.all_is_well()?;
        }
        Ok(())
    });
}

#[test]
fn the_other_ports_lead_nowhere() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        // A reset may come before the client has seen that it was connected.
        let ended = |error: &io::Error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            )
        };
        for (port, garbage) in [
            (15001, &b"GET / HTTP/1.1\r\n\r\n"[..]),
            (15006, b"GET / HTTP/1.1\r\n\r\n"),
            (15006, &[0xff; 5000]),
        ] {
            let address = SocketAddr::new(stage.server.v4().into(), port);
            let answer = stage.outside.netns.enter(|| -> io::Result<usize> {
                let mut tcp = BlockingStream::connect_timeout(&address, PATIENCE)?;
                tcp.set_read_timeout(Some(PATIENCE))?;
                tcp.write_all(garbage)?;
                tcp.read(&mut [0; 16])
            })?;
            ensure!(
                answer.as_ref().map_or_else(ended, |bytes| *bytes == 0),
                "neither end nor reset by {address}: {answer:?}"
            );
            stage.all_is_well().with_context(|| address.to_string())?;
        }
        // The application itself is in the same namespace as the listeners.
        for port in [15001, 15006, 15008] {
            for host in ["127.0.0.1".to_owned(), stage.server.v4().to_string()] {
                let address = format!("{host}:{port}");
                let connection = match Connection::open(&stage.server, &address) {
                    Err(error) if error.to_string().contains("refused") => continue,
                    other => other?,
                };
                // The tunnel port waits for a handshake, that is all.
                if port != 15008 {
                    let event = connection.event(PATIENCE)?;
                    ensure!(
                        matches!(event, Some(Event::Eof | Event::Broken(_))),
                        "{address}: {event:?}"
                    );
                }
            }
        }
        stage.all_is_well()
    });
}
