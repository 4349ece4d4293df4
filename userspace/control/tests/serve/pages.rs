//! The pages for operators.

use serde_json::Value;
use sluice_proto::{discovery::DeltaDiscoveryRequest, workload};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    discovery::{answer, ask},
    world::{World, eventually, pod},
};

async fn get(world: &World, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(world.status).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn json(world: &World, path: &str) -> Value {
    let (status, body) = get(world, path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn errors_are_listed_while_they_last() {
    let world = World::start().await;
    assert_eq!(json(&world, "/config/errors").await, serde_json::json!([]));
    let published = world.published.clone();
    world.write("web.yaml", &pod("web", "10.0.0.300"));
    eventually("noticed", || !published.borrow().diagnostics.is_empty()).await;
    let errors = json(&world, "/config/errors").await;
    assert_eq!(
        (&errors[0]["severity"], &errors[0]["code"]),
        (&"error".into(), &"InvalidValue".into())
    );
    assert_eq!(errors[0]["object"], "Pod shop/web");
    assert_eq!(
        (&errors[0]["line"], &errors[0]["field"]),
        (&Value::from(12), &"status.podIP".into())
    );
    assert!(errors[0]["file"].as_str().unwrap().ends_with("/web.yaml"));
    assert!(
        errors[0]["message"]
            .as_str()
            .unwrap()
            .contains("10.0.0.300")
    );
    world.write("web.yaml", &pod("web", "10.0.0.3"));
    eventually("resolved", || published.borrow().diagnostics.is_empty()).await;
    assert_eq!(json(&world, "/config/errors").await, serde_json::json!([]));
}

#[tokio::test]
async fn clients_and_counters_are_shown() {
    let world = World::start().await;
    assert_eq!(get(&world, "/healthz/ready").await.0, 200);
    let mut stream = world.stream().await;
    let request = DeltaDiscoveryRequest {
        type_url: workload::TYPE_URL.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    stream.send(request).await;
    let first = stream.next().await;
    let clients = json(&world, "/clients").await;
    assert_eq!(clients[0]["node"], "n1");
    assert_eq!(clients[0]["credential"], "joinToken");
    assert!(
        clients[0]["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    let progress = &clients[0]["types"][workload::TYPE_URL];
    assert_eq!(progress["sent"]["nonce"], first.nonce.as_str());
    assert!(progress["acknowledged"].is_null());
    stream.send(answer(&first)).await;
    let stale = DeltaDiscoveryRequest {
        response_nonce: "of another day".to_owned(),
        ..ask(workload::TYPE_URL)
    };
    stream.send(stale).await;
    world.write("db.yaml", &pod("db", "10.0.0.2"));
    let second = stream.next().await;
    stream.send(answer(&second)).await;
    let status = || world.clients.statuses().remove(0).types[workload::TYPE_URL].clone();
    eventually("acknowledged", || {
        status()
            .acknowledged
            .is_some_and(|mark| mark.nonce == second.nonce)
    })
    .await;
    let (_, metrics) = get(&world, "/metrics").await;
    for line in [
        "pilot_xds 1",
        "pilot_xds_pushes_total{type=\"Address\"} 2",
        "pilot_xds_expired_nonce_total{type=\"Address\"} 1",
        // One answers a request, the other tells of a change.
        "pilot_xds_config_size_bytes_count{type=\"Address\"} 2",
        "pilot_xds_push_time_count{type=\"Address\"} 1",
        "pilot_proxy_convergence_time_count 1",
        "istio_build{component=\"test\",tag=\"0\"} 1",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "{line} not in {metrics}"
        );
    }
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: shop
spec: {{{spec}}}
"
    )
}

/// The one condition of the one policy, once its reason is `reason`.
async fn condition(world: &World, reason: &str) -> Value {
    let published = world.published.clone();
    let name = format!("the reason {reason}");
    eventually(&name, || {
        let statuses = &published.borrow().statuses;
        statuses.len() == 1 && format!("{:?}", statuses[0].conditions[0].reason) == reason
    })
    .await;
    let mut page = json(world, "/config/status").await;
    assert_eq!(page[0]["object"], "AuthorizationPolicy shop/p");
    assert!(page[0]["file"].as_str().unwrap().ends_with("/p.yaml"));
    assert_eq!(page[0]["conditions"].as_array().unwrap().len(), 1);
    assert_eq!(page[0]["conditions"][0]["type"], "ZtunnelAccepted");
    page[0]["conditions"][0].take()
}

#[tokio::test]
async fn every_policy_has_a_status() {
    let world = World::start().await;
    assert_eq!(json(&world, "/config/status").await, serde_json::json!([]));
    world.write("p.yaml", &policy("rules: [{}]"));
    let accepted = condition(&world, "Accepted").await;
    assert_eq!(
        (&accepted["status"], &accepted["message"]),
        (&"True".into(), &"in force".into())
    );
    world.write(
        "p.yaml",
        &policy("rules: [{}, {to: [{operation: {hosts: [x]}}]}]"),
    );
    let unsupported = condition(&world, "UnsupportedValue").await;
    assert_eq!(unsupported["status"], "False");
    let message = unsupported["message"].as_str().unwrap();
    assert!(
        message.contains("spec.rules[1].to[0].operation.hosts"),
        "{message}"
    );
    world.write("p.yaml", &policy("rulez: []"));
    let invalid = condition(&world, "Invalid").await;
    assert_eq!(invalid["status"], "False");
    let message = invalid["message"].as_str().unwrap();
    assert!(message.contains("spec.rulez: unknown field"), "{message}");
    assert!(
        message.ends_with("; its last good version stays in force"),
        "{message}"
    );
    world.remove("p.yaml");
    let published = world.published.clone();
    eventually("gone", || published.borrow().statuses.is_empty()).await;
}

/// What DNS will answer, and by what connections are known.
#[tokio::test]
async fn hosts_without_an_address_are_given_one() {
    let world = World::start().await;
    let entry = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: shop}
spec:
  hosts: [db.example.com]
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  resolution: DNS
";
    world.publish("ext.yaml", entry).await;
    assert_eq!(json(&world, "/config/errors").await, serde_json::json!([]));
    let given = json(&world, "/config/addresses").await;
    assert_eq!(given[0]["service"], "shop/db.example.com");
    let addresses: Vec<std::net::IpAddr> =
        serde_json::from_value(given[0]["addresses"].clone()).unwrap();
    // As a ztunnel would ask that has seen a connection to it.
    for address in &addresses {
        let mut stream = world.stream().await;
        let subscribe = DeltaDiscoveryRequest {
            resource_names_subscribe: vec![format!("/{address}")],
            ..ask(workload::TYPE_URL)
        };
        stream.send(subscribe).await;
        let found = stream.next().await;
        let service = found.resources.last().unwrap();
        assert_eq!(service.name, "shop/db.example.com");
        let aliases = addresses.iter().map(|ip| format!("/{ip}"));
        assert_eq!(service.aliases, aliases.collect::<Vec<_>>());
    }
    let world = world.restart().await;
    assert_eq!(json(&world, "/config/addresses").await, given);
    let refused = entry.replace(
        "namespace: shop}",
        "namespace: shop, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}}",
    );
    world.publish("ext.yaml", &refused).await;
    assert_eq!(
        json(&world, "/config/addresses").await,
        serde_json::json!([])
    );
}

#[tokio::test]
async fn a_port_tells_which_peer_authentication_counts() {
    let world = World::start().await;
    let published = world.published.clone();
    world.write("web.yaml", &pod("web", "10.0.0.3"));
    eventually("served", || {
        published.borrow().mtls("shop", "web", 80).is_some()
    })
    .await;
    let path = "/config/mtls?pod=shop/web&port=80";
    let told = json(&world, path).await;
    assert_eq!(
        (&told["mode"], &told["from"]),
        (&"PERMISSIVE".into(), &"no PeerAuthentication".into())
    );
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: all, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    world.write("strict.yaml", strict);
    let is_strict = || {
        published
            .borrow()
            .mtls("shop", "web", 80)
            .is_some_and(|mtls| mtls.strict)
    };
    eventually("strict", is_strict).await;
    let told = json(&world, path).await;
    assert_eq!(told["mode"], "STRICT");
    let from = told["from"].as_str().unwrap();
    assert!(
        from.starts_with("PeerAuthentication shop/all (")
            && from.ends_with("strict.yaml:1), for its namespace"),
        "{from}"
    );
    for (path, status) in [
        ("/config/mtls?pod=shop/nobody&port=80", 404),
        ("/config/mtls?pod=shop/web", 400),
    ] {
        assert_eq!(get(&world, path).await.0, status, "{path}");
    }
}
