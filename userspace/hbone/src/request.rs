//! The CONNECT request: who is called, and what is said about the caller (wire contract §2).
//!
//! Baggage and `forwarded` are claims, for telemetry. Identity always comes from TLS.

use std::{fmt::Write as _, net::SocketAddr};

use http::{HeaderMap, HeaderValue, Method, Request, Version, header::HeaderName, uri::Authority};
use sluice_model::{Workload, workload::OwnerKind};

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

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        // A label may hold what a header may not; telemetry is then poorer, and nothing is broken.
        if let Ok(value) = HeaderValue::from_str(&self.0)
            && !self.0.is_empty()
        {
            headers.insert(BAGGAGE, value);
        }
    }
}

impl ConnectRequest {
    pub(crate) fn to_http(&self) -> Result<Request<()>, http::Error> {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(self.authority.as_str())
            .version(Version::HTTP_2)
            .header(FORWARDED, self.forwarded.header())
            .header(TRACEPARENT, traceparent())
            .body(())?;
        self.baggage.write(request.headers_mut());
        Ok(request)
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

    #[test]
    fn connect_has_no_scheme_and_no_path() {
        let request = ConnectRequest {
            authority: "10.0.0.2:80".parse().unwrap(),
            forwarded: ForwardedFor {
                client: "10.0.0.1:4000".parse().unwrap(),
                host: None,
            },
            baggage: Baggage("k8s.namespace.name=shop".into()),
        };
        let http = request.to_http().unwrap();
        assert_eq!(http.uri().authority().unwrap(), "10.0.0.2:80");
        assert_eq!(
            (http.uri().scheme(), http.uri().path_and_query()),
            (None, None)
        );
        assert_eq!(
            Baggage::parse(http.headers()).get("k8s.namespace.name"),
            Some("shop")
        );
    }
}
