//! Trust that is withdrawn or renewed while traffic flows: revoked certificates, replaced roots.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Event, Flood, Serve};
use sluice_tests::process;
use sluice_tests::scenario::{Scenario, scenario_with};
use sluice_tests::{Pod, eventually, eventually_within};

use tokio::io::AsyncReadExt as _;

use crate::stranger::{Authority, Tunnel, inside, tls};

/// Runs a test in a mesh that reads a list, which names nothing yet.
fn with_list(test: impl FnOnce(&mut Scenario) -> Result<()>) {
    let empty = Authority::foreign().and_then(|authority| authority.revoke(&[]));
    let options = Options {
        crl: Some(empty.expect("an empty list")),
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, test);
}

/// The serial number of a pod's certificate.
fn serial(s: &Scenario, pod: &Pod) -> Result<String> {
    let dump = s.mesh.ztunnel(pod.node()).config_dump()?;
    let all = dump["certificates"].as_array().context("no certificates")?;
    let own = all.iter().find(|one| one["identity"] == pod.spiffe_id());
    let serial = own.and_then(|one| one["serialNumber"].as_str());
    Ok(serial.context("no certificate of the pod")?.to_owned())
}

fn is_cut(connection: &Connection) -> Result<()> {
    match connection.event(PATIENCE)? {
        Some(Event::Broken(how)) if how.starts_with("reset") => Ok(()),
        other => bail!("not cut: {other:?}"),
    }
}

/// What was counted of a pair's connections that ended for a revoked certificate.
fn counted(s: &Scenario, node: &str, reporter: &str) -> Result<[f64; 3]> {
    let metric = |name, labels: &[(&str, &str)]| s.mesh.ztunnel(node).metric(name, labels);
    let who = ("reporter", reporter);
    let failed = [who, ("response_flags", "CERT_REVOKED")];
    let denied = [who, ("reason", "revoked"), ("connection", "established")];
    Ok([
        metric("istio_tcp_connections_failed_total", &failed)?,
        metric("sluice_denied_connections_total", &denied)?,
        metric("istio_crl_policy_rejections_total", &[who])?,
    ])
}

/// One end's certificate is revoked: the other end cuts what rests on it, and the owner gets another
/// certificate.
fn one_end_is_revoked(client_is: bool) {
    with_list(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let bystander = s.enrolled_pod("a", "shop", "batch")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let other = s.enrolled_pod("b", "shop", "orders")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let _other = podtool::serve(&other, "orders", Serve::Echo, "[::]:80")?;
        let to = |pod: &Pod| format!("{}:80", pod.v4());
        let mut doomed = Vec::new();
        for _ in 0..2 {
            doomed.push(Connection::open(&client, &to(&server))?);
        }
        let mut untouched = Connection::open(&bystander, &to(&other))?;
        for connection in doomed.iter_mut().chain([&mut untouched]) {
            connection.exchange("before")?;
        }
        let (revoked, node, reporter, direction) = if client_is {
            (&client, "b", "destination", "inbound")
        } else {
            (&server, "a", "source", "outbound")
        };
        let number = serial(s, revoked)?;
        let authority = Authority::of_mesh(s.mesh.state())?;
        s.mesh.write_crl(&authority.revoke(&[&number])?)?;
        for connection in &doomed {
            is_cut(connection)?;
        }
        let found = s.mesh.ztunnel(node);
        eventually(|| {
            let lines = found.access_log()?;
            let told = lines.iter().filter(|line| {
                let error = line.get("error");
                line.has(&[("direction", direction)])
                    && error.starts_with(&format!("cut: certificate {number} is revoked by "))
                    && error.ends_with(&revoked.spiffe_id())
            });
            ensure!(told.count() == 2, "not two lines that say why");
            ensure!(counted(s, node, reporter)? == [2.0; 3], "not counted twice");
            Ok(())
        })?;
        ensure!(untouched.exchange("after")? == "after");
        // Whoever holds the key that was revoked is kept out; the owner has another by now.
        eventually(|| {
            ensure!(serial(s, revoked)? != number, "still the revoked one");
            let mut again = Connection::open(&client, &to(&server))?;
            ensure!(again.exchange("again")? == "again");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn connections_of_a_revoked_client_are_cut() {
    one_end_is_revoked(true);
}

#[test]
fn connections_to_a_revoked_server_are_cut() {
    one_end_is_revoked(false);
}

#[test]
fn a_revoked_certificate_is_refused_and_a_broken_list_changes_nothing() {
    with_list(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Greet, "[::]:80")?;
        let address = SocketAddr::new(server.v4().into(), 15008);
        let authority = Authority::of_mesh(s.mesh.state())?;
        let issue = || authority.issue("spiffe://cluster.local/ns/legacy/sa/stranger");
        let (bad, good) = (issue()?, issue()?);
        let target = format!("{}:80", server.v4());
        let greet = |credentials| {
            inside(&stranger.netns, async || {
                let tunnel = Tunnel::open(address, credentials).await?;
                tunnel.greeting(&target).await
            })
        };
        greet(&bad)?;
        let number = bad.serial();
        s.mesh.write_crl(&authority.revoke(&[&number])?)?;
        // Says nothing after TLS: the alert would be lost if the server closed on something unread.
        let hello = || {
            inside(&stranger.netns, async || {
                let mut stream = tls(address, Some(&bad), &["h2"]).await?;
                Ok(stream.read(&mut [0]).await?)
            })
        };
        let refused = || {
            let Err(error) = hello() else {
                bail!("a revoked client is served");
            };
            let error = format!("{error:#}");
            ensure!(error.contains("CertificateRevoked"), "{error}");
            Ok(())
        };
        eventually(refused)?;
        greet(&good)?;
        let far = s.mesh.ztunnel("b");
        far.wait_for_access(&[
            ("direction", "inbound"),
            ("error", "TLS with the peer: its certificate is revoked"),
        ])?;
        let which = format!("refused: certificate {number} is revoked by");
        far.wait_for_line(&[&which])?;
        let new = [("reason", "revoked"), ("connection", "new")];
        ensure!(far.metric("sluice_denied_connections_total", &new)? >= 1.0);

        // The last good list stays, for a worker that starts now as well.
        s.mesh.write_crl("garbage")?;
        eventually(|| {
            let told = far.log()?.contains("the last good ones stay");
            ensure!(told, "nothing is said of the broken list");
            Ok(())
        })?;
        refused()?;
        let killed = far.kill_worker()?;
        s.mesh.ztunnel_mut("b").wait_for_successor(killed)?;
        s.mesh.ztunnel_mut("b").wait_until_ready()?;
        eventually(refused)?;
        greet(&good)?;
        // And for a broker that starts now: those who are revoked stay so.
        let far = s.mesh.ztunnel_mut("b");
        far.stop(PATIENCE)?;
        far.restart()?;
        s.mesh.wait_until_enrolled(&server)?;
        eventually(refused)?;
        greet(&good)?;
        Ok(())
    });
}

/// A root of ours, with its key.
fn own_root(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

#[test]
fn a_supplied_ca_is_replaced_under_traffic_without_a_failed_connection() -> Result<()> {
    let [old, new] = [own_root("old")?, own_root("new")?];
    let directory = tempfile::tempdir()?;
    let write = |name: &str, text: &str| {
        let (file, draft) = (directory.path().join(name), directory.path().join("draft"));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &file))
    };
    write("ca-key.pem", &old.key().serialize_pem())?;
    write("root-cert.pem", &old.pem())?;
    let options = Options {
        cacerts: Some(directory.path().to_owned()),
        ztunnel: ["--certificate-ttl", "6"].map(str::to_owned).into(),
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let address = format!("{}:80", server.v4());
        let flood = podtool::start_flood(
            &client,
            "flood",
            &address,
            &["--seconds", "32", "--rate", "40", "--concurrency", "8"],
        )?;
        let steps = [
            ("root-cert.pem", old.pem() + &new.pem()),
            ("ca-key.pem", new.key().serialize_pem()),
            ("root-cert.pem", new.pem()),
        ];
        for (name, text) in steps {
            write(name, &text)?;
            // Twice, since a certificate may have been under way.
            for _ in 0..2 {
                let before = [serial(s, &client)?, serial(s, &server)?];
                eventually(|| {
                    let now = [serial(s, &client)?, serial(s, &server)?];
                    let renewed = now.iter().zip(&before).all(|(now, before)| now != before);
                    ensure!(renewed, "certificates are not renewed after {name}");
                    Ok(())
                })?;
            }
        }
        let flood = eventually_within(PATIENCE * 3, || Flood::parse(&flood.log()?))?;
        ensure!(
            flood.attempted > 1000 && flood.ok == flood.attempted,
            "{flood:?}"
        );
        // The new CA's are let in, the old one's are not.
        let tunnel = |key: &KeyPair, root: String| {
            let ca = tempfile::tempdir()?;
            fs::write(ca.path().join("ca-key.pem"), key.serialize_pem())?;
            fs::write(ca.path().join("root-cert.pem"), root)?;
            let authority = Authority::of_mesh(ca.path())?;
            let credentials = authority.issue("spiffe://cluster.local/ns/shop/sa/web")?;
            inside(&client.netns, async || {
                let address = SocketAddr::new(server.v4().into(), 15008);
                let tunnel = Tunnel::open(address, &credentials).await?;
                let (status, _) = tunnel.connect(&address_of(&server)).await?;
                ensure!(status.is_success(), "{status}");
                Ok(())
            })
        };
        tunnel(new.key(), new.pem())?;
        ensure!(tunnel(old.key(), old.pem()).is_err(), "the old CA counts");
        Ok(())
    });
    Ok(())
}

fn address_of(server: &Pod) -> String {
    format!("{}:80", server.v4())
}

/// The root of the CA, in the state directory.
fn roots(s: &Scenario) -> Result<Vec<String>> {
    let text = fs::read_to_string(s.mesh.state().join("root-cert.pem"))?;
    let parts = text.split_inclusive("-----END CERTIFICATE-----");
    let certificates = parts.filter(|part| part.contains("BEGIN"));
    Ok(certificates.map(|part| part.trim().to_owned()).collect())
}

#[test]
fn a_root_is_replaced_under_traffic_without_a_failed_connection() {
    const LIFE: u64 = 6;
    let seconds = |flag: &str, seconds: u64| [flag.to_owned(), seconds.to_string()];
    let options = Options {
        ztunnel: seconds("--certificate-ttl", LIFE).into(),
        control: [
            seconds("--root-announcement", LIFE),
            seconds("--root-overlap", 2 * LIFE),
        ]
        .concat(),
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let address = format!("{}:80", server.v4());
        let old = roots(s)?;
        let flood = podtool::start_flood(
            &client,
            "flood",
            &address,
            &["--seconds", "32", "--rate", "40", "--concurrency", "8"],
        )?;
        let mut command = client.command(s.topology.run().binaries().sluicectl()?);
        command
            .arg("rotate-root")
            .arg("--state-dir")
            .arg(s.mesh.state());
        process::finish_within(s.topology.run(), command, PATIENCE)?.success()?;
        for step in [2, 1] {
            eventually_within(Duration::from_secs(5 * LIFE), || {
                let found = roots(s)?.len();
                ensure!(found == step, "{found} roots, and not {step}");
                Ok(())
            })?;
        }
        let new = roots(s)?;
        ensure!(new != old, "the root is the old one");
        let flood = eventually_within(PATIENCE * 2, || Flood::parse(&flood.log()?))?;
        ensure!(
            flood.attempted > 1000 && flood.ok == flood.attempted,
            "{flood:?}"
        );
        // Both ends believe the new one only: who was certified by it alone is let in.
        let authority = Authority::of_mesh(s.mesh.state())?;
        let credentials = authority.issue("spiffe://cluster.local/ns/shop/sa/web")?;
        let address = SocketAddr::new(server.v4().into(), 15008);
        inside(&client.netns, async || {
            let tunnel = Tunnel::open(address, &credentials).await?;
            let (status, _) = tunnel.connect(&format!("{}:80", server.v4())).await?;
            ensure!(status.is_success(), "{status}");
            Ok(())
        })?;
        Ok(())
    });
}
