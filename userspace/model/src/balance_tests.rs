use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::*;
use crate::{
    Ips, Uid,
    workload::{Locality, Profile},
};

/// A workload on a node of a place, `REGION/ZONE/SUBZONE`.
fn workload(name: &str, place: &str, node: &str) -> Workload {
    let mut parts = place.split('/').map(Into::into);
    let mut part = || parts.next().unwrap_or_default();
    let locality = Locality {
        region: part(),
        zone: part(),
        subzone: part(),
    };
    Workload {
        uid: Uid::pod("c", "shop", name),
        own_name: None,
        ips: Ips::default(),
        node: node.into(),
        health: Health::Ready,
        profile: Arc::new(Profile {
            locality,
            ..Profile::of(&"spiffe://td/ns/shop/sa/a".parse().unwrap())
        }),
    }
}

fn with(mut workload: Workload, health: Health, capacity: u32) -> Workload {
    workload.health = health;
    workload.profile_mut().capacity = capacity;
    workload
}

fn policy(mode: Mode, preference: &[Scope]) -> LoadBalancing {
    LoadBalancing {
        mode,
        preference: preference.to_vec(),
        allow_unhealthy: false,
    }
}

/// How often each endpoint is chosen in 100 rolls. All candidates are, and nobody else is.
fn shares(
    endpoints: &[Workload],
    policy: &LoadBalancing,
    client: Option<&Workload>,
) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for roll in 0..100 {
        let roll = f64::from(roll) / 100.0;
        if let Some(chosen) = choose(endpoints, |w| w, policy, client, roll) {
            *shares.entry(chosen.name().to_owned()).or_default() += 1;
        }
    }
    let candidates = candidates(endpoints, |w| w, policy, client);
    let candidates: BTreeSet<&str> = candidates.map(Workload::name).collect();
    assert!(shares.keys().eq(candidates), "{shares:?}");
    shares
}

fn names(shares: BTreeMap<String, u32>) -> Vec<String> {
    shares.into_keys().collect()
}

#[test]
fn connections_are_shared_by_capacity() {
    let place = |name, capacity| with(workload(name, "", "n"), Health::Ready, capacity);
    let endpoints = [place("big", 3), place("small", 1), place("none", 0)];
    let found = shares(&endpoints, &LoadBalancing::default(), None);
    assert_eq!(found, [("big".into(), 75), ("small".into(), 25)].into());
    let nobody = [place("none", 0)];
    assert!(shares(&nobody, &LoadBalancing::default(), None).is_empty());
}

#[test]
fn those_about_to_end_serve_only_when_nobody_else_does() {
    use Health::{NotReady, Ready, Terminating};
    for (healths, expected) in [
        ([Ready, Terminating, NotReady], vec!["a"]),
        ([NotReady, Terminating, Terminating], vec!["b", "c"]),
        ([NotReady, NotReady, NotReady], vec![]),
    ] {
        let endpoints: Vec<Workload> = ["a", "b", "c"]
            .iter()
            .zip(healths)
            .map(|(name, health)| with(workload(name, "", "n"), health, 1))
            .collect();
        let found = names(shares(&endpoints, &LoadBalancing::default(), None));
        assert_eq!(found, expected, "{healths:?}");
        let everybody = LoadBalancing {
            allow_unhealthy: true,
            ..LoadBalancing::default()
        };
        assert_eq!(shares(&endpoints, &everybody, None).len(), 3);
    }
}

#[test]
fn preferences_hold_while_somebody_near_is_ready() {
    use Scope::{Network, Node, Region, Subzone, Zone};
    let zones = [Network, Region, Zone];
    let nodes = [Network, Region, Zone, Subzone, Node];
    let client = workload("client", "eu/1/x", "n1");
    let all = |near: Health, same_zone: Health| {
        [
            with(workload("node", "eu/1/x", "n1"), near, 1),
            with(workload("zone", "eu/1/y", "n2"), same_zone, 1),
            workload("region", "eu/2/x", "n3"),
            // The same name of a zone means nothing in another region.
            workload("far", "us/1/x", "n4"),
        ]
    };
    use Health::{NotReady, Ready};
    for (mode, preference, endpoints, expected) in [
        (
            Mode::Failover,
            &zones[..],
            all(Ready, Ready),
            vec!["node", "zone"],
        ),
        (Mode::Failover, &nodes[..], all(Ready, Ready), vec!["node"]),
        (
            Mode::Failover,
            &nodes[..],
            all(NotReady, Ready),
            vec!["zone"],
        ),
        (
            Mode::Failover,
            &zones[..],
            all(NotReady, NotReady),
            vec!["region"],
        ),
        (Mode::Strict, &[Node][..], all(Ready, Ready), vec!["node"]),
        (Mode::Strict, &[Node][..], all(NotReady, Ready), vec![]),
        (
            Mode::Standard,
            &[][..],
            all(Ready, Ready),
            vec!["far", "node", "region", "zone"],
        ),
    ] {
        let policy = policy(mode, preference);
        let found = names(shares(&endpoints, &policy, Some(&client)));
        assert_eq!(found, expected, "{mode:?} {preference:?}");
    }
    // Kept to its node, a client has what is about to end there before what is elsewhere.
    let ending = all(Health::Terminating, Ready);
    let policy = policy(Mode::Strict, &[Node]);
    assert_eq!(names(shares(&ending, &policy, Some(&client))), ["node"]);
}
