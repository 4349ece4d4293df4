use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use sluice_model::{
    ServiceKey, Uid,
    authz::{PolicyKey, Scope},
};

use super::*;
use crate::store::Store;

const ORIGIN: &str = "Kubernetes/cluster.local";

fn taken() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn resource(kind: Kind, name: &str, value: Vec<u8>) -> Bytes {
    let mut bytes = Vec::new();
    write_resource(&mut bytes, kind, name.to_owned(), value).unwrap();
    Bytes::from(bytes).slice(1 + size_of::<u32>()..)
}

/// A store as a control plane would have filled it: a pod behind a service, and a policy.
fn store() -> Store {
    let pod = workload::Workload {
        uid: "c//Pod/shop/web".to_owned(),
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "web".to_owned(),
        node: "n1".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        authorization_policies: vec!["shop/closed".to_owned()],
        services: BTreeMap::from([(
            "shop/web.shop.svc".to_owned(),
            workload::PortList::default(),
        )])
        .into_iter()
        .collect(),
        ..Default::default()
    };
    let service = workload::Service {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "web.shop.svc".to_owned(),
        ..Default::default()
    };
    let policy = security::Authorization {
        name: "closed".to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::WorkloadSelector.into(),
        ..Default::default()
    };
    let addresses = [
        (
            "c//Pod/shop/web",
            workload::Address::from(pod).encode_to_vec(),
        ),
        (
            "shop/web.shop.svc",
            workload::Address::from(service).encode_to_vec(),
        ),
    ];
    let mut store = Store::default();
    for (kind, resources) in [
        (
            Kind::Address,
            addresses
                .map(|(name, value)| resource(Kind::Address, name, value))
                .to_vec(),
        ),
        (
            Kind::Authorization,
            vec![resource(
                Kind::Authorization,
                "shop/closed",
                policy.encode_to_vec(),
            )],
        ),
    ] {
        let response = store.response(resources);
        assert_eq!(store.apply(vec![(kind, response)])[0].rejected, []);
    }
    store
}

fn written() -> Vec<u8> {
    let mut bytes = Vec::new();
    Snapshot::write(&store().mesh().load(), ORIGIN, taken(), &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_back_as_the_same_mesh() {
    let snapshot = Snapshot::parse(written(), ORIGIN).unwrap();
    assert_eq!(snapshot.taken(), taken());
    let mut restored = Store::default();
    assert_eq!(restored.restore(snapshot), []);
    let (before, after) = (store().mesh().load_full(), restored.mesh().load_full());
    let uid = Uid::pod("c", "shop", "web");
    assert_eq!(
        before.workload(&uid).unwrap(),
        after.workload(&uid).unwrap()
    );
    let service = ServiceKey {
        namespace: "shop".into(),
        hostname: "web.shop.svc".into(),
    };
    assert_eq!(
        before.service(&service).unwrap(),
        after.service(&service).unwrap()
    );
    let policy = PolicyKey {
        namespace: "shop".into(),
        name: "closed".into(),
    };
    assert_eq!(
        before.policy(&policy).unwrap(),
        after.policy(&policy).unwrap()
    );
    for kind in Kind::ALL {
        assert!(!restored.is_answered(kind), "a snapshot is no answer");
    }
}

#[test]
fn everything_is_asked_for_again_by_name() {
    let mut restored = Store::default();
    restored.restore(Snapshot::parse(written(), ORIGIN).unwrap());
    let mesh = restored.mesh().load();
    let versions = |kind| {
        let versions = restored.versions(kind, &mesh);
        let versions = versions.map(|(name, version)| (name.to_owned(), version.to_string()));
        versions.collect::<BTreeMap<_, _>>()
    };
    let unknown = |name: &str| (name.to_owned(), String::new());
    assert_eq!(
        versions(Kind::Address),
        BTreeMap::from(["c//Pod/shop/web", "shop/web.shop.svc"].map(unknown))
    );
    assert_eq!(
        versions(Kind::Authorization),
        BTreeMap::from(["shop/closed"].map(unknown))
    );
}

#[test]
fn a_policy_that_cannot_be_read_closes_what_it_is_for() {
    let snapshot = Snapshot {
        taken: taken(),
        addresses: Vec::new(),
        policies: vec![resource(Kind::Authorization, "shop/closed", vec![0xff])],
    };
    let mut restored = Store::default();
    assert_eq!(restored.restore(snapshot).len(), 1);
    let mesh = restored.mesh().load();
    let [policy] = &mesh.policies().collect::<Vec<_>>()[..] else {
        panic!("{:?}", mesh.policies().len())
    };
    // In force for its whole namespace, since its scope cannot be read either.
    assert_eq!(
        ***policy,
        Policy::stand_in(policy.key.clone(), Scope::Namespace)
    );
}

#[test]
fn what_is_no_snapshot_of_this_mesh_is_refused_with_the_reason() {
    let parse = |bytes: &[u8]| Snapshot::parse(bytes.to_vec(), ORIGIN).unwrap_err();
    assert_eq!(parse(b""), SnapshotError::Foreign);
    assert_eq!(parse(b"{\"kind\": \"List\"}"), SnapshotError::Foreign);
    assert_eq!(parse(&MAGIC), SnapshotError::Damaged);
    let mut newer = written();
    newer[MAGIC.len()] = 9;
    assert_eq!(parse(&newer), SnapshotError::Format(9));
    let other = Snapshot::parse(written(), "Kubernetes/other.example").unwrap_err();
    assert_eq!(
        other.to_string(),
        "it is of the mesh Kubernetes/cluster.local, and this one is Kubernetes/other.example"
    );
    let whole = written();
    for length in MAGIC.len()..whole.len() {
        assert!(
            Snapshot::parse(whole[..length].to_vec(), ORIGIN).is_err(),
            "{length}"
        );
    }
}

proptest! {
    #[test]
    fn a_changed_byte_is_noticed(place in any::<prop::sample::Index>(), change in 1_u8..) {
        let mut bytes = written();
        *place.get_mut(&mut bytes) ^= change;
        prop_assert!(Snapshot::parse(bytes, ORIGIN).is_err());
    }

    /// Even when the checksum is right.
    #[test]
    fn nonsense_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = written();
        bytes.truncate(MAGIC.len() + 4 + 8 + 4 + ORIGIN.len());
        bytes.extend(body);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        if let Ok(snapshot) = Snapshot::parse(bytes, ORIGIN) {
            Store::default().restore(snapshot);
        }
    }
}
