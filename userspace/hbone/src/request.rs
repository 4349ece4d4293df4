//! The CONNECT request: who is called, and what is said about the caller (wire contract §2).
//!
//! Baggage and `forwarded` are claims, for telemetry. Identity always comes from TLS.

use std::net::SocketAddr;

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
    /// What the stream is a part of.
    pub trace: Traceparent,
}

/// A place in a trace (W3C Trace Context): the trace, and the span that others go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    pub trace: u128,
    pub span: u64,
    /// The trace is recorded.
    pub sampled: bool,
}

impl Traceparent {
    /// The only version of the header there is.
    const VERSION: &'static str = "00";
    /// The flag of a trace that is recorded.
    const SAMPLED: u8 = 1;

    /// The first place of a new trace.
    pub fn begin(sampled: bool) -> Self {
        // Zeros mean none.
        Self {
            trace: rand::random::<u128>().max(1),
            span: rand::random::<u64>().max(1),
            sampled,
        }
    }

    /// A place that goes on from this one.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span: rand::random::<u64>().max(1),
            ..self
        }
    }

    fn header(self) -> String {
        let flags = if self.sampled { Self::SAMPLED } else { 0 };
        let (version, trace, span) = (Self::VERSION, self.trace, self.span);
        format!("{version}-{trace:032x}-{span:016x}-{flags:02x}")
    }

    /// From a request's headers; `None` when there is no such header or it makes no sense.
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
        let mut part = |length: usize| {
            let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            parts
                .next()
                .filter(|p| p.len() == length && p.bytes().all(digit))
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let place = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & Self::SAMPLED != 0,
        };
        // Of later versions these parts are the same, and there may be more; of this one there are not.
        let is_whole = version != Self::VERSION || parts.next().is_none();
        (version != "ff" && is_whole && place.trace != 0 && place.span != 0).then_some(place)
    }
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
        let mut text = String::with_capacity(256);
        for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            let comma = if text.is_empty() { "" } else { "," };
            text.extend([comma, key, "=", value]);
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
            (TRACEPARENT, self.trace.header()),
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

    fn parse(value: &str) -> Option<Traceparent> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, value.parse().unwrap());
        Traceparent::parse(&headers)
    }

    #[test]
    fn traceparents_round_trip_and_differ() {
        for sampled in [true, false] {
            let place = Traceparent::begin(sampled);
            assert_ne!(place, Traceparent::begin(sampled));
            assert_eq!(parse(&place.header()), Some(place));
            let child = place.child();
            assert_ne!(child.span, place.span);
            assert_eq!((child.trace, child.sampled), (place.trace, sampled));
        }
        assert_eq!(Traceparent::parse(&HeaderMap::new()), None);
    }

    #[test]
    fn traceparents_are_taken_as_the_standard_says() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let place = parse(header).unwrap();
        assert_eq!(place.header(), header);
        assert_eq!(place.span, 0x00f0_67aa_0ba9_02b7);
        let later = format!("cc{}-more", &header[2..]);
        assert_eq!(parse(&later), Some(place));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
