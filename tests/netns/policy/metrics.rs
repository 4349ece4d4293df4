//! What is counted of connections that policy let through, and of those that it did not.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::Connection;
use sluice_tests::samples::{self, Sample};
use sluice_tests::scenario::scenario;
use sluice_tests::{Pod, eventually};

use super::{PORTS, Stage};

/// All labels of one series, in words: those that depend on the case come first.
fn labels(own: &[(&str, &str)], source: (&Pod, bool), server: &Pod) -> BTreeMap<String, String> {
    let (client, tunnel) = source;
    let known = |principal: String| {
        if tunnel {
            principal
        } else {
            "unknown".to_owned()
        }
    };
    let mut labels: BTreeMap<String, String> = own
        .iter()
        .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
        .collect();
    let unknown = "unknown".to_owned();
    for (end, pod) in [("source", client), ("destination", server)] {
        for (label, value) in [
            ("workload", pod.name().to_owned()),
            ("canonical_service", pod.name().to_owned()),
            ("canonical_revision", "latest".to_owned()),
            ("workload_namespace", pod.namespace().to_owned()),
            ("principal", known(pod.spiffe_id())),
            ("app", pod.name().to_owned()),
            ("version", "latest".to_owned()),
            ("cluster", "Kubernetes".to_owned()),
        ] {
            labels.insert(format!("{end}_{label}"), value);
        }
    }
    for label in ["service", "service_namespace", "service_name"] {
        let label = format!("destination_{label}");
        labels.entry(label).or_insert_with(|| unknown.clone());
    }
    labels.insert("request_protocol".to_owned(), "tcp".to_owned());
    let security = if tunnel { "mutual_tls" } else { "unknown" };
    labels.insert("connection_security_policy".into(), security.into());
    labels
}

/// The values of the five metrics of exactly this series; what was never counted is not shown.
fn series(samples: &[Sample], labels: &BTreeMap<String, String>) -> [f64; 5] {
    [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_connections_failed_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ]
    .map(|name| {
        let sample = samples
            .iter()
            .find(|sample| sample.name == name && sample.labels == *labels);
        sample.map_or(0.0, |sample| sample.value)
    })
}

#[test]
fn metrics_count_who_talked_to_whom() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let [web, batch, old] = &stage.clients;
        s.mesh
            .apply_service("shop", "catalog", "10.96.0.5", &[(8080, PORTS[0])])?;
        stage.apply(&[authorization!(
            "shop",
            "action: DENY",
            "rules: [{from: [{source: {namespaces: [other]}}]}]",
        )])?;
        let direct = SocketAddr::new(stage.server.v4().into(), PORTS[0]);
        let vip = "10.96.0.5:8080".parse()?;
        let talk = |client: &Pod, address: SocketAddr| -> Result<[f64; 5]> {
            let mut connection = Connection::open(client, &address.to_string())?;
            let greeting = connection.line()?;
            let answer = connection.exchange("ping")?;
            let sent = u16::try_from(greeting.len() + answer.len() + 4)?;
            // Both lines end in CR LF. Opened, closed, failed, received, sent:
            Ok([1.0, 1.0, 0.0, 5.0, f64::from(sent)])
        };
        let by_web = talk(web, vip)?;
        let by_old = talk(old, direct)?;
        ensure!(attempt(batch, direct)? == Outcome::Reset);
        let service = [
            ("destination_service", "catalog.shop.svc.cluster.local"),
            ("destination_service_namespace", "shop"),
            ("destination_service_name", "catalog"),
        ];
        let opened = [1.0, 0.0, 0.0, 0.0, 0.0];
        let failed = [0.0, 1.0, 1.0, 0.0, 0.0];
        for (node, reporter, client, tunnel, flags, service, wanted) in [
            ("a", "source", web, true, "-", &service[..], by_web),
            ("b", "destination", web, true, "-", &service, by_web),
            ("a", "source", batch, false, "-", &[], opened),
            ("a", "source", batch, false, "CONNECT", &[], failed),
            ("b", "destination", batch, true, "-", &[], opened),
            ("b", "destination", batch, true, "DENY", &[], failed),
            ("b", "destination", old, false, "-", &[], by_old),
        ] {
            let mut own = vec![("reporter", reporter), ("response_flags", flags)];
            own.extend(service);
            let labels = labels(&own, (client, tunnel), &stage.server);
            eventually(|| {
                let text = s.mesh.ztunnel(node).metrics()?;
                let found = series(&samples::parse(&text), &labels);
                ensure!(
                    found == wanted,
                    "{found:?} of {wanted:?} on node {node} for {labels:#?}\n{text}"
                );
                Ok(())
            })?;
        }
        Ok(())
    });
}
