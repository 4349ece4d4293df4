//! What a control plane serves that starts again.

use prost::Message as _;
use sluice_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    security,
};

use crate::world::{World, eventually};

fn policy(port: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: shop}}
spec: {{rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}
"
    )
}

/// The policy `p` as a node gets it that connects now: how many rules it has, and its version.
async fn served(world: &World) -> Option<(usize, String)> {
    let mut stream = world.stream().await;
    let request = DeltaDiscoveryRequest {
        type_url: security::TYPE_URL.to_owned(),
        ..Default::default()
    };
    stream.send(request).await;
    let DeltaDiscoveryResponse { resources, .. } = stream.next().await;
    let found = resources.into_iter().find(|r| r.name == "shop/p")?;
    let message = security::Authorization::decode(&*found.resource?.value).unwrap();
    assert_eq!(message.action(), security::Action::Allow);
    Some((message.rules.len(), found.version))
}

#[tokio::test]
async fn a_policy_that_broke_is_served_as_it_last_was() {
    let world = World::start().await;
    assert_eq!(served(&world).await, None);
    world.write("p.yaml", &policy("80"));
    let published = world.published.clone();
    let before = published.borrow().resources.len();
    eventually("applied", || published.borrow().resources.len() > before).await;
    let good = served(&world).await;
    assert_eq!(good.as_ref().map(|(rules, _)| *rules), Some(1));
    world.write("p.yaml", &policy("http"));
    eventually("noticed", || !published.borrow().diagnostics.is_empty()).await;
    assert_eq!(served(&world).await, good);

    let world = world.restart().await;
    assert_eq!(served(&world).await, good, "not even sent again");
    let told = world.published.borrow().diagnostics.clone();
    let told: Vec<_> = told.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|m| m.contains("from before the restart")));
}

#[tokio::test]
async fn without_a_memory_a_broken_policy_allows_nothing() {
    let world = World::start().await;
    world.write("p.yaml", &policy("http"));
    let published = world.published.clone();
    eventually("noticed", || !published.borrow().diagnostics.is_empty()).await;
    assert_eq!(served(&world).await, None, "a new one is not applied");
    let world = world.restart().await;
    assert_eq!(served(&world).await, None, "nor after a restart");
    world.forget();
    let world = world.restart().await;
    assert_eq!(served(&world).await.map(|(rules, _)| rules), Some(0));
}
