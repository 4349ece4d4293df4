//! The CONNECT request: who is called, and what is said about the caller (wire contract §2).
//!
//! Baggage and `forwarded` are claims, for telemetry. Identity always comes from TLS.

use std::{fmt::Write as _, net::SocketAddr};

use http::{HeaderMap, HeaderValue, StatusCode, header::HeaderName, uri::Authority};
use sluice_model::{Workload, workload::OwnerKind};

use crate::hpack::{self, Name};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request to open a stream.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// Whom the stream is for: `IP:PORT` or `HOST:PORT`.
    pub authority: Authority,
    pub forwarded: ForwardedFor,
    pub baggage: Baggage,
}

/// The client that the stream stands for, and the service that it called, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedFor {
    pub client: SocketAddr,
    pub host: Option<String>,
}

impl ForwardedFor {
    fn header(&self) -> String {
        match &self.host {
            Some(host) => format!("for=\"{}\";host={host}", self.client),
            None => format!("for=\"{}\"", self.client),
        }
    }

    /// From a request's headers; `None` when there is no such header or it makes no sense.
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(FORWARDED)?.to_str().ok()?;
        let (mut client, mut host) = (None, None);
        for pair in text.split(';') {
            let (key, value) = pair.split_once('=')?;
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "for" => client = value.parse().ok(),
                "host" => host = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self {
            client: client?,
            host,
        })
    }
}

/// What one side says about its workload, as the W3C `baggage` header writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage(String);

impl Baggage {
    /// About a workload.
    pub fn of(workload: &Workload) -> Self {
        let owner = match workload.owner_kind {
            OwnerKind::Deployment => "k8s.deployment.name",
            OwnerKind::CronJob => "k8s.cronjob.name",
            OwnerKind::Pod => "k8s.pod.name",
            OwnerKind::Job => "k8s.job.name",
        };
        let fields: [(&str, &str); 7] = [
            ("k8s.cluster.name", &workload.cluster),
            ("k8s.namespace.name", &workload.namespace),
            (owner, &workload.owner_name),
            ("service.name", &workload.canonical_name),
            ("service.version", &workload.canonical_revision),
            ("cloud.region", &workload.locality.region),
            ("cloud.availability_zone", &workload.locality.zone),
        ];
        let mut text = String::new();
        for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{key}={value}");
        }
        Self(text)
    }

    /// From headers; empty when there is none.
    pub fn parse(headers: &HeaderMap) -> Self {
        let text = headers.get(BAGGAGE).and_then(|value| value.to_str().ok());
        Self(text.unwrap_or_default().to_owned())
    }

    /// A field's value, for example of `k8s.namespace.name`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.split(',').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == key).then_some(value.trim())
        })
    }

    /// As a header's value; `None` when there is nothing to say, or a label holds what a header may
    /// not: telemetry is then poorer, and nothing is broken.
    fn value(&self) -> Option<&[u8]> {
        let value = HeaderValue::from_str(&self.0).ok()?;
        (!value.is_empty()).then_some(self.0.as_bytes())
    }
}

impl ConnectRequest {
    /// The header block of the request.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(256);
        hpack::encode(&mut block, Name::METHOD, b"CONNECT");
        let authority = self.authority.as_str().as_bytes();
        hpack::encode(&mut block, Name::AUTHORITY, authority);
        for (name, value) in [
            (FORWARDED, self.forwarded.header()),
            (TRACEPARENT, traceparent()),
        ] {
            hpack::encode(&mut block, Name::Text(name.as_str()), value.as_bytes());
        }
        encode_baggage(&mut block, &self.baggage);
        block
    }
}

/// The header block of an answer.
pub(crate) fn encode_answer(status: StatusCode, baggage: &Baggage) -> Vec<u8> {
    let mut block = Vec::with_capacity(128);
    hpack::encode_status(&mut block, status);
    encode_baggage(&mut block, baggage);
    block
}

fn encode_baggage(block: &mut Vec<u8>, baggage: &Baggage) {
    if let Some(value) = baggage.value() {
        hpack::encode(block, Name::Text(BAGGAGE.as_str()), value);
    }
}

/// A W3C trace context of its own for every connection, not sampled.
fn traceparent() -> String {
    format!(
        "00-{:032x}-{:016x}-00",
        rand::random::<u128>(),
        rand::random::<u64>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_round_trips_and_takes_quotes() {
        let with_host = ForwardedFor {
            client: "10.0.0.1:4000".parse().unwrap(),
            host: Some("web.shop.svc.cluster.local".into()),
        };
        let v6 = ForwardedFor {
            client: "[fd00::1]:4000".parse().unwrap(),
            host: None,
        };
        for value in [with_host.clone(), v6] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED, value.header().parse().unwrap());
            assert_eq!(ForwardedFor::parse(&headers), Some(value));
        }
        let mut headers = HeaderMap::new();
        let quoted = "for=\"10.0.0.1:4000\";host=\"web.shop.svc.cluster.local\"";
        headers.insert(FORWARDED, quoted.parse().unwrap());
        assert_eq!(ForwardedFor::parse(&headers), Some(with_host));
        headers.insert(FORWARDED, "nonsense".parse().unwrap());
        assert_eq!(ForwardedFor::parse(&headers), None);
    }

    #[test]
    fn traceparents_are_well_formed_and_differ() {
        let (a, b) = (traceparent(), traceparent());
        assert_ne!(a, b);
        let parts: Vec<_> = a.split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2]);
    }
}
