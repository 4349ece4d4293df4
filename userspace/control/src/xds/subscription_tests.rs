use prost::Message as _;
use sluice_model::authz::{Action, Policy, PolicyKey, Scope};

use sluice_proto::discovery::{DeltaDiscoveryResponse, Resource};

use super::*;
use crate::{
    translate::Translation,
    xds::{Resources, Type},
};

/// Policies by name; the content differs with `dry_run`.
fn resources(names: &[(&str, bool)]) -> Resources {
    let policy = |(name, dry_run): &(&str, bool)| Policy {
        key: PolicyKey {
            namespace: "n".into(),
            name: (*name).into(),
        },
        scope: Scope::Global,
        action: Action::Allow,
        rules: [].into(),
        dry_run: *dry_run,
    };
    Resources::of(&Translation {
        policies: names.iter().map(policy).collect(),
        ..Translation::default()
    })
}

fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

/// What is sent and removed; `None` when nothing is said.
fn delta(
    subscription: &mut Subscription,
    resources: &Resources,
) -> Option<(Vec<String>, Vec<String>)> {
    let delta = subscription.delta(resources.set(Type::Authorization))?;
    let names = decode(&delta).into_iter().map(|r| r.name).collect();
    Some((
        names,
        delta.removed.iter().map(ToString::to_string).collect(),
    ))
}

fn decode(delta: &Delta) -> Vec<Resource> {
    let response = DeltaDiscoveryResponse::decode(delta.resources.clone());
    response.unwrap().resources
}

fn some(sent: &[&str], removed: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Some((owned(sent), owned(removed)))
}

#[test]
fn nothing_is_said_before_the_first_request() {
    let mut subscription = Subscription::default();
    assert_eq!(delta(&mut subscription, &resources(&[("a", false)])), None);
}

#[test]
fn everything_can_be_asked_for_in_two_ways() {
    for first in [request(&[], &[]), request(&["*"], &[])] {
        let mut subscription = Subscription::default();
        subscription.request(first);
        let two = resources(&[("a", false), ("b", false)]);
        assert_eq!(delta(&mut subscription, &two), some(&["n/a", "n/b"], &[]));
        assert_eq!(delta(&mut subscription, &two), None);
        // An acknowledgement changes nothing.
        subscription.request(request(&[], &[]));
        assert_eq!(delta(&mut subscription, &two), None);
        let changed = resources(&[("b", true), ("c", false)]);
        assert_eq!(
            delta(&mut subscription, &changed),
            some(&["n/b", "n/c"], &["n/a"])
        );
    }
}

#[test]
fn versions_from_an_earlier_connection_count() {
    let two = resources(&[("a", false), ("b", false)]);
    let version = |name: &str| {
        two.set(Type::Authorization).by_name[name]
            .version
            .to_string()
    };
    let mut subscription = Subscription::default();
    subscription.request(DeltaDiscoveryRequest {
        initial_resource_versions: [
            ("n/a".to_owned(), version("n/a")),
            ("n/b".to_owned(), "another".to_owned()),
            ("n/x".to_owned(), "any".to_owned()),
        ]
        .into(),
        ..DeltaDiscoveryRequest::default()
    });
    assert_eq!(delta(&mut subscription, &two), some(&["n/b"], &["n/x"]));
    assert_eq!(delta(&mut subscription, &two), None);
}

/// As a ztunnel asks that begins with a snapshot.
#[test]
fn names_without_versions_are_sent_again_or_removed() {
    let mut subscription = Subscription::default();
    subscription.request(DeltaDiscoveryRequest {
        initial_resource_versions: ["n/a", "n/x"]
            .map(|name| (name.to_owned(), String::new()))
            .into(),
        ..DeltaDiscoveryRequest::default()
    });
    let two = resources(&[("a", false), ("b", false)]);
    assert_eq!(
        delta(&mut subscription, &two),
        some(&["n/a", "n/b"], &["n/x"])
    );
}

#[test]
fn the_same_content_has_the_same_version() {
    let version = |dry_run| {
        resources(&[("a", dry_run)])
            .set(Type::Authorization)
            .version
            .clone()
    };
    assert_eq!(version(false), version(false));
    assert_ne!(version(false), version(true));
}

#[test]
fn names_are_followed_until_they_are_given_up() {
    let mut subscription = Subscription::default();
    subscription.request(request(&["*"], &["*"]));
    let two = resources(&[("a", false), ("b", false)]);
    assert_eq!(
        delta(&mut subscription, &two),
        some(&[], &[]),
        "an answer, but nothing in it"
    );
    subscription.request(request(&["n/a", "n/x"], &[]));
    assert_eq!(delta(&mut subscription, &two), some(&["n/a"], &["n/x"]));
    assert_eq!(delta(&mut subscription, &two), None);
    subscription.request(request(&["n/x"], &[]));
    assert_eq!(
        delta(&mut subscription, &two),
        some(&[], &["n/x"]),
        "asked again, told again"
    );
    subscription.request(request(&["n/a"], &[]));
    assert_eq!(delta(&mut subscription, &two), some(&["n/a"], &[]));
    let changed = resources(&[("a", true), ("b", true), ("x", false)]);
    assert_eq!(
        delta(&mut subscription, &changed),
        some(&["n/a", "n/x"], &[])
    );
    subscription.request(request(&[], &["n/a"]));
    let gone = resources(&[("b", false)]);
    assert_eq!(
        delta(&mut subscription, &gone),
        some(&[], &["n/x"]),
        "a was given up"
    );
}

#[test]
fn leaving_the_wildcard_keeps_what_was_asked_for() {
    let mut subscription = Subscription::default();
    subscription.request(request(&[], &[]));
    let two = resources(&[("a", false), ("b", false)]);
    delta(&mut subscription, &two);
    subscription.request(request(&["n/a"], &["*"]));
    assert_eq!(delta(&mut subscription, &two), some(&["n/a"], &[]));
    let changed = resources(&[("a", true), ("b", true)]);
    assert_eq!(delta(&mut subscription, &changed), some(&["n/a"], &[]));
}
