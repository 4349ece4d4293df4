//! What a request says, and what a refusal means.

use std::{collections::HashSet, sync::Arc};

use http::{HeaderMap, Method, StatusCode};
use sluice_hbone::{Baggage, ConnectRequest, ForwardedFor, OpenError, Traceparent};
use sluice_model::{
    Uid, Workload,
    workload::{Health, Locality, OwnerKind, Profile},
};
use tokio::{sync::mpsc, task::spawn_local, time::timeout};
use tokio_rustls::TlsAcceptor;

use crate::{
    authority::{WEB, id},
    fixtures::{PATIENCE, World, on_worker, request, source_alone},
};

fn workload() -> Workload {
    Workload {
        uid: Uid::pod("west", "shop", "web-1"),
        own_name: None,
        ips: [].into(),
        node: "a".into(),
        health: Health::Ready,
        profile: Arc::new(Profile {
            cluster: "west".into(),
            canonical_name: "web".into(),
            canonical_revision: "v2".into(),
            owner_kind: OwnerKind::Deployment,
            owner_name: "web-deployment".into(),
            locality: Locality {
                region: "eu".into(),
                ..Locality::default()
            },
            ..Profile::of(&id(WEB))
        }),
    }
}

const BAGGAGE: &str = "k8s.cluster.name=west,k8s.namespace.name=shop,\
                       k8s.deployment.name=web-deployment,service.name=web,service.version=v2,\
                       cloud.region=eu";

/// What arrives, read with nothing of our own.
#[test]
fn a_request_is_a_bare_connect_with_three_headers() {
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let (sender, mut seen) = mpsc::unbounded_channel();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(tls).accept(tcp).await.unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(
                tls.get_ref().1.server_name(),
                None,
                "nobody is named in the clear"
            );
            let mut connection = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let _ = respond.send_response(http::Response::new(()), false);
                let _ = sender.send(request.into_parts().0);
            }
        });
        let cases = [
            ("10.0.0.2:80", "10.0.0.1:4000", None),
            ("[fd00::2]:80", "[fd00::1]:4000", None),
            (
                "db.shop.svc.cluster.local:5432",
                "10.0.0.1:4000",
                Some("db.shop.svc.cluster.local"),
            ),
        ];
        let mut traces = HashSet::new();
        for (authority, client, host) in cases {
            let request = ConnectRequest {
                authority: authority.parse().unwrap(),
                forwarded: ForwardedFor {
                    client: client.parse().unwrap(),
                    host: host.map(ToOwned::to_owned),
                },
                baggage: Baggage::of(&workload()),
                trace: Traceparent::begin(false),
            };
            source.open_with(&source.key, &request).await.unwrap();
            let arrived = timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
            assert_eq!(arrived.method, Method::CONNECT);
            let uri = arrived.uri.into_parts();
            assert_eq!(uri.authority.unwrap(), authority);
            assert_eq!((uri.scheme, uri.path_and_query), (None, None));
            let forwarded = match host {
                Some(host) => format!("for=\"{client}\";host={host}"),
                None => format!("for=\"{client}\""),
            };
            assert_eq!(only(&arrived.headers, "forwarded"), forwarded);
            assert_eq!(only(&arrived.headers, "baggage"), BAGGAGE);
            let trace: Vec<_> = only(&arrived.headers, "traceparent").split('-').collect();
            let lengths: Vec<_> = trace.iter().map(|part| part.len()).collect();
            assert_eq!(lengths, [2, 32, 16, 2], "{trace:?}");
            assert!(traces.insert(trace[1].to_owned()), "a trace used twice");
            assert_eq!(arrived.headers.len(), 3, "{:?}", arrived.headers);
        }
    });
}

fn only<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0].to_str().unwrap()
}

#[test]
fn both_sides_describe_themselves() {
    on_worker(async {
        let (sender, mut seen) = mpsc::unbounded_channel();
        let world = World::serving(move |incoming| {
            sender
                .send((
                    incoming.authority().unwrap().to_string(),
                    incoming.forwarded().unwrap(),
                    incoming.baggage(),
                ))
                .unwrap();
            let stream = incoming.accept(&Baggage::of(&workload()));
            async {
                std::future::pending::<()>().await;
                drop(stream);
            }
        })
        .await;
        let request = ConnectRequest {
            baggage: Baggage::of(&workload()),
            ..request("10.0.0.2:80")
        };
        let opened = world
            .source
            .open_with(&world.source.key, &request)
            .await
            .unwrap();
        assert_eq!(opened.baggage, Baggage::of(&workload()));
        assert_eq!(opened.baggage.get("service.version"), Some("v2"));
        let (authority, forwarded, baggage) = seen.recv().await.unwrap();
        assert_eq!(authority, "10.0.0.2:80");
        assert_eq!(forwarded, request.forwarded);
        assert_eq!(baggage, request.baggage);
    });
}

/// A name that no header may hold costs telemetry and not the connection.
#[test]
fn what_a_header_may_not_hold_is_left_out() {
    on_worker(async {
        let (sender, mut seen) = mpsc::unbounded_channel();
        let world = World::serving(move |incoming| {
            sender.send(incoming.baggage()).unwrap();
            let _ = incoming.accept(&Baggage::default());
            async {}
        })
        .await;
        let mut workload = workload();
        workload.profile_mut().canonical_name = "web\r\nx-evil: 1".into();
        let request = ConnectRequest {
            baggage: Baggage::of(&workload),
            ..request("10.0.0.2:80")
        };
        world
            .source
            .open_with(&world.source.key, &request)
            .await
            .unwrap();
        assert_eq!(seen.recv().await.unwrap(), Baggage::default());
    });
}

#[test]
fn a_refusal_says_its_status_and_what_it_means() {
    on_worker(async {
        let world = World::serving(|incoming| {
            let status = incoming
                .authority()
                .and_then(http::uri::Authority::port_u16);
            incoming.refuse(StatusCode::from_u16(status.unwrap()).unwrap());
            async {}
        })
        .await;
        for (status, text) in [
            (
                400,
                "http status: 400 (the peer did not understand the request)",
            ),
            (401, "http status: 401 (the peer's policy denies it)"),
            (403, "http status: 403"),
            (
                503,
                "http status: 503 (the peer cannot reach the workload, or does not know it)",
            ),
        ] {
            let opened = world.source.open(&format!("10.0.0.2:{status}")).await;
            let error = opened.unwrap_err();
            assert!(
                matches!(error, OpenError::Refused(refused) if refused == status),
                "{error:?}"
            );
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(
            world.destination.accepted(),
            1,
            "a refusal breaks no tunnel"
        );
    });
}
