//! What passes between the nodes, seen from the wire, and who the two ends are.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::Pod;
use sluice_tests::capture::{Capture, Segment, reassemble};
use sluice_tests::mesh::HBONE_PORT;
use sluice_tests::topology::{WIRE_V4, WIRE_V6};

use super::claims::Claims;
use super::servers::{HTTP_PORT, get};
use super::shop::{CATALOG_VIP, Shop};

/// What requests carry and the wire must not show.
const MARKER: &str = "APPLES-AND-PEARS";

/// Begins to record what passes between the nodes. Started before the first request, it has
/// every tunnel from its first byte.
pub(crate) fn record(shop: &Shop, name: &str) -> Result<Capture> {
    Capture::start(
        shop.topology.wire(),
        name,
        &shop.topology.node("a").wire_port(),
    )
}

/// `capture` goes on since before the first request.
pub(crate) fn prove(shop: &mut Shop, capture: Capture, claims: &mut Claims) {
    claims.observe(
        "Between the nodes there is only TLS on port 15008, no plaintext",
        || {
            request_marked(&shop.web, &format!("http://{CATALOG_VIP}/"))?;
            only_tls(&between_nodes(capture)?)
        },
    );
    claims.observe(
        "The same request between pods outside the mesh is readable there",
        || {
            let capture = record(shop, "legacy")?;
            request_marked(
                &shop.legacy_web,
                &format!("http://{}:{HTTP_PORT}/", shop.legacy_catalog.v4()),
            )?;
            let segments = between_nodes(capture)?;
            let seen = marked(&segments);
            ensure!(!seen.is_empty(), "the marker {MARKER} was not captured");
            let (from, to) = (seen[0].from, seen[0].to);
            Ok(format!(
                "the marker {MARKER} is in {} segments, first {from} → {to}",
                seen.len()
            ))
        },
    );
    claims.observe("Both ends know the other's SPIFFE ID", || identities(shop));
}

fn request_marked(client: &Pod, url: &str) -> Result<()> {
    let answer = get(client, url, MARKER)?;
    ensure!(
        answer.body.contains(MARKER),
        "the server did not get the marker: {}",
        answer.body
    );
    Ok(())
}

/// What was captured, without the nodes' traffic with the control plane, which runs elsewhere.
fn between_nodes(capture: Capture) -> Result<Vec<Segment>> {
    let control = [IpAddr::from(WIRE_V4), IpAddr::from(WIRE_V6)];
    let mut segments = capture.finish()?;
    segments.retain(|segment| {
        !control.contains(&segment.from.ip()) && !control.contains(&segment.to.ip())
    });
    Ok(segments)
}

fn marked(segments: &[Segment]) -> Vec<&Segment> {
    segments
        .iter()
        .filter(|segment| segment.contains(MARKER.as_bytes()))
        .collect()
}

fn only_tls(segments: &[Segment]) -> Result<String> {
    let payload: Vec<_> = segments.iter().filter(|s| !s.payload.is_empty()).collect();
    ensure!(!payload.is_empty(), "nothing passed between the nodes");
    if let Some(other) = payload
        .iter()
        .find(|segment| !segment.uses_port(HBONE_PORT))
    {
        bail!(
            "{} → {} carried {} bytes",
            other.from,
            other.to,
            other.payload.len()
        );
    }
    ensure!(
        marked(segments).is_empty(),
        "the marker {MARKER} is on the wire"
    );
    let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<&Segment>> = BTreeMap::new();
    for segment in segments.iter().filter(|s| s.syn || !s.payload.is_empty()) {
        streams
            .entry((segment.from, segment.to))
            .or_default()
            .push(segment);
    }
    let mut records = 0;
    for ((from, to), stream) in &streams {
        let bytes = reassemble(stream)
            .with_context(|| format!("{from} → {to} was not captured from its first byte"))?;
        records += tls_records(&bytes).with_context(|| format!("{from} → {to}"))?;
    }
    Ok(format!(
        "{} segments with payload, all on {HBONE_PORT}; the {} streams they belong to are {records} \
         TLS records from the first byte on; the marker occurs 0 times",
        payload.len(),
        streams.len()
    ))
}

/// Counts the records that a stream consists of, as RFC 8446 §5.1 lays them out.
fn tls_records(mut bytes: &[u8]) -> Result<usize> {
    const HEADER: usize = 5;
    const HANDSHAKE: u8 = 22;
    let mut count = 0;
    while let [kind, 3, 1..=3, high, low, ..] = *bytes {
        ensure!(
            (20..=23).contains(&kind),
            "record {count} has the content type {kind}"
        );
        ensure!(
            count > 0 || kind == HANDSHAKE,
            "it begins with content type {kind}"
        );
        count += 1;
        let length = usize::from(u16::from_be_bytes([high, low]));
        // The last record may still have been under way.
        bytes = bytes.get(HEADER + length..).unwrap_or_default();
    }
    ensure!(
        bytes.len() < HEADER,
        "after {count} records comes no TLS: {:02x?}",
        &bytes[..HEADER]
    );
    Ok(count)
}

/// What the access logs of the two ztunnels say of the same request.
fn identities(shop: &mut Shop) -> Result<String> {
    let (web, catalog) = (shop.web.spiffe_id(), shop.catalog.spiffe_id());
    let both = [
        ("src.identity", web.as_str()),
        ("dst.identity", catalog.as_str()),
    ];
    let mut outbound = vec![("direction", "outbound")];
    outbound.extend(both);
    shop.mesh.ztunnel("a").wait_for_access(&outbound)?;
    let mut inbound = vec![("direction", "inbound")];
    inbound.extend(both);
    shop.mesh.ztunnel("b").wait_for_access(&inbound)?;
    Ok(format!(
        "logs of a (outbound) and b (inbound): {web} → {catalog}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_told_from_plaintext() -> Result<()> {
        assert_eq!(tls_records(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 1, 9])?, 2);
        assert_eq!(tls_records(&[22, 3, 1, 0, 9, 9])?, 1);
        assert!(tls_records(b"GET / HTTP/1.1\r\n").is_err());
        assert!(tls_records(&[23, 3, 3, 0, 0]).is_err());
        assert!(tls_records(&[22, 3, 1, 0, 0, b'G', b'E', b'T', b' ', b'/']).is_err());
        Ok(())
    }
}
