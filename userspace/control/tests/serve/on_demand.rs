//! Clients that ask for what they need, when they need it.

use std::collections::BTreeMap;

use sluice_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    workload,
};

use crate::{
    discovery::{ask, names},
    world::{Stream, World, pod},
};

const WEB: &str = "c//Pod/shop/web";
const DB: &str = "c//Pod/shop/db";
const SERVICE: &str = "shop/front.shop.svc.cluster.local";

/// A service of every pod with the label `tier: front`.
const FRONT: &str = "apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {tier: front}, ports: [{port: 80}]}
";

fn front(name: &str, ip: &str) -> String {
    pod(name, ip).replace("labels: {", "labels: {tier: front, ")
}

fn change(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..ask(workload::TYPE_URL)
    }
}

/// A stream that has asked for nothing yet, and was told so.
async fn begin(world: &World) -> Stream {
    let mut stream = world.stream().await;
    stream.send(change(&["*"], &["*"])).await;
    assert_eq!(content(&stream.next().await), (vec![], vec![]));
    stream
}

fn content(response: &DeltaDiscoveryResponse) -> (Vec<&str>, Vec<&str>) {
    let removed = response.removed_resources.iter().map(String::as_str);
    (names(response), removed.collect())
}

#[tokio::test]
async fn names_are_answered_one_by_one() {
    let world = World::start().await;
    let mut stream = begin(&world).await;
    stream.send(change(&["/10.0.0.1"], &[])).await;
    let found = stream.next().await;
    assert_eq!(names(&found), [WEB]);
    assert_eq!(found.resources[0].aliases, ["/10.0.0.1"]);
    stream.send(change(&["/10.0.0.7"], &[])).await;
    assert_eq!(content(&stream.next().await), (vec![], vec!["/10.0.0.7"]));
    // What it never asked for is none of its business; what it asked for is, once it exists.
    world.write("db.yaml", &pod("db", "10.0.0.2"));
    assert!(stream.is_silent().await);
    world.write("late.yaml", &pod("late", "10.0.0.7"));
    assert_eq!(names(&stream.next().await), ["c//Pod/shop/late"]);
    // Asked for by another of its names, it is told again.
    stream.send(change(&["c//Pod/shop/late"], &[])).await;
    assert_eq!(names(&stream.next().await), ["c//Pod/shop/late"]);
    stream.send(change(&["shop/nobody.example"], &[])).await;
    assert_eq!(content(&stream.next().await).1, ["shop/nobody.example"]);
}

#[tokio::test]
async fn a_workload_has_all_its_addresses_as_other_names() {
    let world = World::start().await;
    let both = pod("web", "10.0.0.1").replace(
        "podIP: 10.0.0.1",
        "podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]",
    );
    world.publish("web.yaml", &both).await;
    let mut stream = begin(&world).await;
    for name in ["/fd00::1", WEB, "/10.0.0.1"] {
        stream.send(change(&[name], &[])).await;
        let found = stream.next().await;
        assert_eq!(names(&found), [WEB], "{name}");
        assert_eq!(
            found.resources[0].aliases,
            ["/10.0.0.1", "/fd00::1"],
            "{name}"
        );
    }
    // Whoever has everything needs no other names.
    let mut all = world.stream().await;
    all.send(ask(workload::TYPE_URL)).await;
    assert!(all.next().await.resources[0].aliases.is_empty());
}

#[tokio::test]
async fn a_pod_that_takes_an_address_over_takes_its_name() {
    let world = World::start().await;
    let mut stream = begin(&world).await;
    stream.send(change(&["/10.0.0.1"], &[])).await;
    assert_eq!(names(&stream.next().await), [WEB]);
    world.write("web.yaml", &pod("web", "10.0.0.9"));
    // It is not at that address any more, and nobody has asked for it otherwise.
    assert_eq!(
        content(&stream.next().await),
        (vec![], vec!["/10.0.0.1", WEB])
    );
    world.write("db.yaml", &pod("db", "10.0.0.1"));
    assert_eq!(content(&stream.next().await), (vec![DB], vec![]));
}

#[tokio::test]
async fn a_service_brings_its_workloads_for_as_long_as_they_are_its() {
    let world = World::start().await;
    world.publish("front.yaml", FRONT).await;
    world.publish("web.yaml", &front("web", "10.0.0.1")).await;
    for name in [SERVICE, "/10.96.0.1"] {
        let mut stream = begin(&world).await;
        stream.send(change(&[name], &[])).await;
        let both = stream.next().await;
        assert_eq!(names(&both), [WEB, SERVICE], "{name}");
        assert_eq!(both.resources[1].aliases, ["/10.96.0.1"]);
        world.write("db.yaml", &front("db", "10.0.0.2"));
        assert_eq!(content(&stream.next().await), (vec![DB], vec![]), "{name}");
        world.write("db.yaml", &pod("db", "10.0.0.2"));
        // It is there, but would grow stale unseen.
        assert_eq!(content(&stream.next().await), (vec![], vec![DB]), "{name}");
        world.write("db.yaml", &pod("db", "10.0.0.3"));
        assert!(stream.is_silent().await);
        // What is asked for by name as well stays, when the service is given up.
        stream.send(change(&[WEB], &[name])).await;
        assert_eq!(content(&stream.next().await), (vec![WEB], vec![]), "{name}");
        world.write("front.yaml", &FRONT.replace("port: 80", "port: 81"));
        assert_eq!(
            content(&stream.next().await),
            (vec![WEB], vec![]),
            "its ports"
        );
        stream.send(change(&[], &[WEB])).await;
        world.write("web.yaml", &front("web", "10.0.0.8"));
        assert!(stream.is_silent().await);
        world.publish("front.yaml", FRONT).await;
        world.publish("web.yaml", &front("web", "10.0.0.1")).await;
    }
}

#[tokio::test]
async fn an_address_within_a_range_stands_for_its_service() {
    let world = World::start().await;
    let entry = |name: &str, range: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{name}.example.com], \
             addresses: [{range}], resolution: NONE, ports: [{{number: 80, name: tcp, protocol: TCP}}]}}\n"
        )
    };
    world
        .publish("wide.yaml", &entry("wide", "198.51.0.0/16"))
        .await;
    world
        .publish("narrow.yaml", &entry("narrow", "198.51.100.0/24"))
        .await;
    for (address, service) in [
        ("/198.51.100.7", "shop/narrow.example.com"),
        ("/198.51.99.7", "shop/wide.example.com"),
    ] {
        let mut stream = begin(&world).await;
        stream.send(change(&[address], &[])).await;
        assert_eq!(content(&stream.next().await), (vec![service], vec![]));
    }
    let mut stream = begin(&world).await;
    stream.send(change(&["/198.52.0.1"], &[])).await;
    assert_eq!(content(&stream.next().await).1, ["/198.52.0.1"]);
}

#[tokio::test]
async fn what_a_client_has_counts_on_its_next_connection() {
    let world = World::start().await;
    world.publish("db.yaml", &pod("db", "10.0.0.2")).await;
    let mut stream = begin(&world).await;
    let mut versions = BTreeMap::new();
    for name in [WEB, DB] {
        stream.send(change(&[name], &[])).await;
        let mut found = stream.next().await;
        let resource = found.resources.remove(0);
        versions.insert(resource.name, resource.version);
    }
    drop(stream);
    let waits = |name: &str| (name.to_owned(), String::new());
    let known = versions.clone().into_iter();
    let first = DeltaDiscoveryRequest {
        // It waited for two, and has one that is gone.
        initial_resource_versions: known
            .chain([waits("/10.0.0.1"), waits("/10.0.0.7")])
            .chain([("c//Pod/shop/gone".to_owned(), "1".to_owned())])
            .collect(),
        ..change(&["*"], &["*"])
    };
    let mut stream = world.stream().await;
    stream.send(first).await;
    let response = stream.next().await;
    let (sent, removed) = content(&response);
    assert_eq!(removed, ["/10.0.0.7", "c//Pod/shop/gone"]);
    assert_eq!(sent, [WEB], "it waits for what has this address");
    world.write("db.yaml", &pod("db", "10.0.0.4"));
    assert_eq!(content(&stream.next().await), (vec![DB], vec![]));
}
