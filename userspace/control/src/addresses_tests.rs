use std::fs;

use crate::translate::tests::of;

use super::*;

fn entry(name: &str, hosts: &[&str], more: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, \
         namespace: shop}}, spec: {{hosts: [{}], ports: [{{number: 80, name: t, protocol: TCP}}], \
         resolution: DNS{more}}}}}",
        hosts.join(", ")
    )
}

/// What each host has after `addresses` gave, and how many problems there were.
fn give(addresses: &mut Addresses, documents: &[String]) -> (BTreeMap<String, Vec<IpAddr>>, usize) {
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let mut translation = of(&documents);
    let problems = addresses.give(&mut translation, &"net".into()).len();
    let services = translation.services.into_iter();
    let of_host = services.map(|service| {
        let ips = service.vips.iter().map(|vip| {
            assert_eq!(&*vip.network, "net");
            vip.ip
        });
        (service.hostname.to_string(), ips.collect())
    });
    (of_host.collect(), problems)
}

/// Two names of the same place, in the order of the alphabet.
fn rivals() -> [String; 2] {
    let mut seen: BTreeMap<Place, String> = BTreeMap::new();
    for i in 0.. {
        let host = format!("h{i:06}.example");
        let place = Place::free(&format!("shop/{host}"), &HashSet::new()).unwrap();
        if let Some(first) = seen.insert(place, host.clone()) {
            return [first, host];
        }
    }
    unreachable!("there are fewer places than names")
}

#[test]
fn addresses_are_of_both_families_and_the_same_in_whatever_order() {
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let documents = [
        entry(
            "a",
            &["a.example", "'*.wild.example'"],
            ", endpoints: [{address: x.example}]",
        ),
        entry("b", &["b.example"], ""),
        entry("c", &["c.example"], ", addresses: [192.0.2.1]"),
    ];
    let mut addresses = Addresses::open(state.path()).unwrap();
    let (given, problems) = give(&mut addresses, &documents);
    assert_eq!(problems, 0);
    assert_eq!(given["*.wild.example"], Vec::<IpAddr>::new());
    assert_eq!(given["c.example"], ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = given["a.example"][..] else {
        panic!("{given:?}")
    };
    assert_eq!(v4.octets()[..2], [240, 240]);
    assert!(v6.to_string().starts_with("2001:2::f0f0:"), "{v6}");
    assert_ne!(given["a.example"], given["b.example"]);
    let listed = addresses.given();
    let names: Vec<_> = listed.iter().map(|given| &*given.service).collect();
    assert_eq!(names, ["shop/a.example", "shop/b.example"]);
    assert_eq!(listed[0].addresses[..], given["a.example"]);
    // Another control plane, which hears of them in another order.
    let mut addresses = Addresses::open(other.path()).unwrap();
    give(&mut addresses, &documents[1..]);
    let mut reversed = documents.clone();
    reversed.reverse();
    assert_eq!(give(&mut addresses, &reversed).0, given);
}

#[test]
fn two_hosts_of_one_place_keep_what_they_have_over_restarts() {
    let state = tempfile::tempdir().unwrap();
    let [first, second] = rivals();
    let (one, two) = (entry("one", &[&first], ""), entry("two", &[&second], ""));
    let mut addresses = Addresses::open(state.path()).unwrap();
    // The one that would come second was there first.
    let before = give(&mut addresses, std::slice::from_ref(&two)).0[&second].clone();
    let both = give(&mut addresses, &[one.clone(), two.clone()]).0;
    assert_eq!(both[&second], before);
    assert_ne!(both[&first], before);
    let mut addresses = Addresses::open(state.path()).unwrap();
    assert_eq!(give(&mut addresses, &[one.clone(), two]).0, both);
    // Without the other, it keeps what it has: its clients know it.
    assert_eq!(give(&mut addresses, &[one]).0[&first], both[&first]);
}

#[test]
fn what_objects_name_themselves_is_not_given() {
    let state = tempfile::tempdir().unwrap();
    let mut addresses = Addresses::open(state.path()).unwrap();
    let a = entry("a", &["a.example"], "");
    let own = give(&mut addresses, std::slice::from_ref(&a)).0["a.example"][0];
    let other = entry("b", &["b.example"], &format!(", addresses: [{own}]"));
    let given = give(&mut addresses, &[a, other]).0;
    assert_eq!(given["b.example"], [own]);
    assert!(!given["a.example"].contains(&own));
    assert_eq!(given["a.example"].len(), 2);
}

#[test]
fn the_last_place_is_found_and_none_is_given_twice() {
    let mut used: HashSet<Place> = (1..=PLACES).map(Place).collect();
    assert_eq!(Place::free("shop/a", &used), None);
    for place in [Place(1), Place(4711), Place(PLACES)] {
        used.remove(&place);
        assert_eq!(Place::free("shop/a", &used), Some(place));
        used.insert(place);
        for ip in place.addresses() {
            assert_eq!(Place::of(ip), Some(place));
        }
    }
    assert_eq!(Place(PLACES).addresses()[0].to_string(), "240.240.255.254");
    for beyond in [
        "240.240.0.0",
        "240.240.255.255",
        "240.241.0.1",
        "2001:2::1",
        "::1",
    ] {
        assert_eq!(Place::of(beyond.parse().unwrap()), None, "{beyond}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_reported() {
    let state = tempfile::tempdir().unwrap();
    for text in [
        "nonsense",
        r#"{"shop/a.example": "10.0.0.1"}"#,
        r#"{"shop/a.example": "240.240.1.1", "shop/b.example": "240.240.1.1"}"#,
    ] {
        fs::write(state.path().join(FILE), text).unwrap();
        let mut addresses = Addresses::open(state.path()).unwrap();
        let (given, problems) = give(&mut addresses, &[entry("a", &["a.example"], "")]);
        assert_eq!((given["a.example"].len(), problems), (2, 1), "{text}");
        let mut addresses = Addresses::open(state.path()).unwrap();
        let (again, problems) = give(&mut addresses, &[entry("a", &["a.example"], "")]);
        assert_eq!((again, problems), (given, 0), "{text}: written anew");
    }
}
