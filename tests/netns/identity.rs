//! Certificates: whose they are, how they are renewed, and what happens while nobody issues any.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Flood, Serve};
use sluice_tests::scenario::{Scenario, scenario, scenario_with};
use sluice_tests::{Pod, eventually, eventually_within};

use crate::stranger::{Authority, Tunnel, inside};

/// Serial numbers of the valid certificates of a node, by identity.
fn certificates(s: &Scenario, node: &str) -> Result<BTreeMap<String, String>> {
    let dump = s.mesh.ztunnel(node).config_dump()?;
    let entries = dump["certificates"].as_array().context("no certificates")?;
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let mut found = BTreeMap::new();
    for entry in entries {
        ensure!(entry["state"] == "Available", "{entry}");
        let double = found.insert(text(entry, "identity"), text(entry, "serialNumber"));
        ensure!(double.is_none(), "two certificates for {entry}");
    }
    Ok(found)
}

/// The certificate that a pod's tunnel port presents to a peer: its identity and serial number.
fn presented(authority: &Authority, from: &Pod, by: &Pod) -> Result<(String, String)> {
    let credentials = authority.issue("spiffe://cluster.local/ns/legacy/sa/stranger")?;
    inside(&from.netns, async || {
        let address = SocketAddr::new(by.v4().into(), 15008);
        let certificates = Tunnel::open(address, &credentials).await?.certificates;
        let identity = sluice_identity::peer_identity(&certificates)?;
        let leaf = certificates.first().context("no certificate")?;
        Ok((identity.to_string(), serial(leaf)?))
    })
}

/// The serial number of a certificate in DER, as hexadecimal: the first INTEGER of the inner
/// SEQUENCE after the version (RFC 5280 §4.1).
fn serial(der: &[u8]) -> Result<String> {
    // Both lengths take three bytes, and the version five.
    let (tag, length) = (der.get(13), der.get(14));
    ensure!(tag == Some(&2), "no serial number at its place");
    let length = usize::from(*length.context("a certificate that ends early")?);
    let digits = der.get(15..15 + length).context("a short serial number")?;
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn same_serial(a: &str, b: &str) -> bool {
    let digits = |text: &str| text.replace(':', "").to_lowercase();
    digits(a).trim_start_matches('0') == digits(b).trim_start_matches('0')
}

#[test]
fn a_service_account_has_one_certificate_on_a_node() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let shared = [
            s.pod_as("b", "shop", "catalog-1", "catalog")?,
            s.pod_as("b", "shop", "catalog-2", "catalog")?,
        ];
        let other = s.pod_as("b", "shop", "orders", "orders")?;
        let elsewhere = s.pod_as("a", "shop", "catalog-3", "catalog")?;
        for pod in shared.iter().chain([&other, &elsewhere]) {
            s.mesh.wait_until_enrolled(pod)?;
        }
        let id = |pod: &Pod| pod.spiffe_id();
        let wanted = BTreeSet::from([id(&shared[0]), id(&other)]);
        let on_b = eventually(|| {
            let found = certificates(s, "b")?;
            ensure!(
                found.keys().cloned().collect::<BTreeSet<_>>() == wanted,
                "{found:?}"
            );
            Ok(found)
        })?;
        let on_a = eventually(|| {
            let found = certificates(s, "a")?;
            ensure!(found.keys().eq([&id(&elsewhere)]), "{found:?}");
            Ok(found)
        })?;
        ensure!(
            on_a[&id(&elsewhere)] != on_b[&id(&shared[0])],
            "two nodes share a certificate"
        );
        let authority = Authority::of_mesh(s.mesh.state())?;
        for (pod, node) in [
            (&shared[0], &on_b),
            (&shared[1], &on_b),
            (&other, &on_b),
            (&elsewhere, &on_a),
        ] {
            let (identity, serial) = presented(&authority, &stranger, pod)?;
            ensure!(identity == id(pod), "{} presents {identity}", pod.name());
            ensure!(
                same_serial(&serial, &node[&identity]),
                "{} presents {serial}, and not {}",
                pod.name(),
                node[&identity]
            );
        }
        // With its last pod it is forgotten, after the time in which the pod still serves tunnels.
        s.mesh.config().delete("pod-shop-catalog-1")?;
        s.mesh.config().delete("pod-shop-orders")?;
        eventually(|| {
            let found = certificates(s, "b")?;
            ensure!(found.keys().eq([&id(&shared[0])]), "{found:?}");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn certificates_are_renewed_at_half_life_under_traffic() {
    const LIFE: Duration = Duration::from_secs(8);
    let options = Options {
        ztunnel: vec!["--certificate-ttl".into(), LIFE.as_secs().to_string()],
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let address = format!("{}:80", server.v4());
        let mut long = Connection::open(&client, &address)?;
        long.exchange("before")?;
        let mut flood = podtool::start_flood(
            &client,
            "flood",
            &address,
            &["--seconds", "14", "--rate", "40", "--concurrency", "8"],
        )?;
        let mut serials = BTreeSet::new();
        eventually_within(3 * LIFE, || {
            serials.extend(certificates(s, "b")?.into_values());
            ensure!(serials.len() >= 4, "only {serials:?}");
            Ok(())
        })?;
        let flood = eventually_within(PATIENCE, || Flood::parse(&flood.log()?))
            .with_context(|| format!("{:?}", flood.check()))?;
        ensure!(
            flood.attempted > 400 && flood.ok == flood.attempted,
            "{flood:?}"
        );
        // Longer than the certificate lived with which it began.
        ensure!(long.exchange("after")? == "after");
        // Renewed at half-life and not all the time.
        let log = s.mesh.control()?.log()?;
        let issued = |pod: &Pod| {
            log.lines()
                .filter(|line| {
                    line.contains("certificate issued") && line.contains(&pod.spiffe_id())
                })
                .count()
        };
        for pod in [&client, &server] {
            let issued = issued(pod);
            ensure!((4..=8).contains(&issued), "{issued} for {}", pod.name());
        }
        Ok(())
    });
}

#[test]
fn without_a_control_plane_traffic_goes_on() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let address = format!("{}:80", server.v4());
        let mut before = Connection::open(&client, &address)?;
        before.exchange("before")?;

        s.mesh.stop_control()?;
        ensure!(before.exchange("still")? == "still");
        let flood = podtool::flood(&client, &address, &["--count", "50"], PATIENCE)?;
        ensure!(flood.ok == 50, "{flood:?}");

        s.mesh.start_control()?;
        ensure!(before.exchange("still")? == "still");
        for node in ["a", "b"] {
            s.mesh.ztunnel_mut(node).wait_until_ready()?;
        }
        let flood = podtool::flood(&client, &address, &["--count", "50"], PATIENCE)?;
        ensure!(flood.ok == 50, "{flood:?}");
        Ok(())
    });
}

#[test]
fn a_wrong_join_token_is_refused_and_told_to_nobody() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&server, "catalog", Serve::Echo, "[::]:80")?;
        let file = s.mesh.join_tokens().to_owned();
        let tokens = fs::read_to_string(&file)?;
        let token = tokens
            .lines()
            .find_map(|line| line.strip_prefix("a "))
            .context("no token of node a")?;
        let replace = |text: &str| -> Result<()> {
            let draft = file.with_extension("draft");
            fs::write(&draft, text)?;
            Ok(fs::rename(&draft, &file)?)
        };
        let log_of = |s: &Scenario| s.mesh.ztunnel("a").log();

        replace(&tokens.replace(token, "another"))?;
        let seen = log_of(s)?.len();
        let killed = s.mesh.ztunnel("a").kill_worker()?;
        s.mesh.ztunnel_mut("a").wait_for_successor(killed)?;
        eventually(|| {
            let answer = s.mesh.ztunnel("a").readiness()?;
            // It goes on with what it was told before.
            let expected = "the control plane is not reached yet";
            ensure!(answer.body.contains(expected), "{}", answer.body);
            Ok(())
        })?;
        eventually(|| {
            let log = log_of(s)?;
            let why = log[seen..]
                .lines()
                .any(|line| line.contains("the control plane refuses this node; check its token"));
            ensure!(why, "the log does not say why:\n{}", &log[seen..]);
            Ok(())
        })?;
        let (topology, mesh) = (&s.topology, &mut s.mesh);
        let control = mesh.control()?;
        let address = topology.node("a").v4().to_string();
        eventually(|| {
            let log = control.log()?;
            let refused = log.lines().any(|line| {
                line.contains("call refused")
                    && line.contains("its token is not a join token")
                    && line.contains(&address)
            });
            ensure!(refused, "no refusal of {address}");
            Ok(())
        })?;
        for log in [control.log()?, s.mesh.ztunnel("a").log()?] {
            ensure!(!log.contains(token), "the token is in a log");
        }

        // Once it is right, it is taken without a restart.
        replace(&tokens)?;
        let waiting = s.mesh.ztunnel("a").worker()?;
        eventually(|| {
            let answer = s.mesh.ztunnel("a").readiness()?;
            ensure!(answer.body == "ready\n", "{}", answer.body);
            Ok(())
        })?;
        ensure!(s.mesh.ztunnel("a").worker()? == waiting, "another worker");
        let mut connection = Connection::open(&client, &format!("{}:80", server.v4()))?;
        ensure!(connection.exchange("hello")? == "hello");
        Ok(())
    });
}
