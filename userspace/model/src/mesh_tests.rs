use super::*;
use crate::{
    NetworkRange,
    service::{LoadBalancing, Visibility},
    workload::Profile,
};

fn service(namespace: &str, hostname: &str, vips: &[&str], ranges: &[&str]) -> Service {
    let address = |ip: &&str| NetworkAddress::new("".into(), ip.parse().unwrap());
    let range = |range: &&str| NetworkRange::new("".into(), range.parse().unwrap());
    Service {
        name: hostname.into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        vips: vips.iter().map(address).collect(),
        ranges: ranges.iter().map(range).collect(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        canonical: false,
        visibility: Visibility::Public,
    }
}

fn workload(name: &str, ips: &[&str], of: &[&Service]) -> Workload {
    let identity = "spiffe://td/ns/shop/sa/a".parse().unwrap();
    Workload {
        uid: Uid::pod("c", "shop", name),
        own_name: None,
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        node: "".into(),
        health: Health::Ready,
        profile: Arc::new(Profile {
            services: of.iter().map(|s| (s.key(), Vec::new())).collect(),
            ..Profile::of(&identity)
        }),
    }
}

/// What an address stands for, by name.
fn at(mesh: &Mesh, ip: &str) -> String {
    match mesh.destination(&"".into(), ip.parse().unwrap()) {
        Destination::Service(service) => service.key().to_string(),
        Destination::Workload(workload) => workload.name().to_owned(),
        Destination::Unknown => "unknown".to_owned(),
    }
}

#[test]
fn an_address_wins_over_a_range_and_a_longer_prefix_over_a_shorter() {
    let wide = service(
        "a",
        "wide",
        &[],
        &["10.0.0.0/8", "fd00::/16", "10.1.0.0/16"],
    );
    let narrow = service(
        "a",
        "narrow",
        &["10.1.2.3"],
        &["10.1.2.0/24", "fd00:1::/32"],
    );
    let pod = workload("pod", &["10.1.2.4", "fd00:1::4"], &[]);
    let mesh: Mesh = [
        Update::Service(wide),
        Update::Service(narrow.clone()),
        Update::from(pod),
    ]
    .into_iter()
    .collect();
    for (ip, expected) in [
        ("10.1.2.3", "a/narrow"),
        ("10.1.2.4", "pod"),
        ("10.1.2.5", "a/narrow"),
        ("::ffff:10.1.2.5", "a/narrow"),
        ("10.1.3.5", "a/wide"),
        ("10.200.0.1", "a/wide"),
        ("11.0.0.1", "unknown"),
        ("fd00:1::4", "pod"),
        ("fd00:1::5", "a/narrow"),
        ("fd00:2::5", "a/wide"),
        ("fd01::1", "unknown"),
    ] {
        assert_eq!(at(&mesh, ip), expected, "{ip}");
    }
    assert!(matches!(
        mesh.destination(&"elsewhere".into(), "10.1.2.5".parse().unwrap()),
        Destination::Unknown
    ));
    let mut edit = mesh.edit();
    edit.apply(Update::RemoveService(narrow.key()));
    let mesh = edit.finish();
    assert_eq!(at(&mesh, "10.1.2.5"), "a/wide");
    assert_eq!(at(&mesh, "10.1.2.4"), "pod");
}

#[test]
fn a_shared_address_has_the_same_owner_whatever_came_first() {
    let (one, two) = (
        service("a", "one", &["10.0.0.1"], &["10.9.0.0/16"]),
        service("b", "two", &["10.0.0.1"], &["10.9.0.0/16"]),
    );
    for order in [[&one, &two], [&two, &one]] {
        let updates = order.map(|service| Update::Service(service.clone()));
        let mesh: Mesh = updates.into_iter().collect();
        assert_eq!(at(&mesh, "10.0.0.1"), "a/one");
        assert_eq!(at(&mesh, "10.9.0.1"), "a/one");
        let mut edit = mesh.edit();
        edit.apply(Update::RemoveService(one.key()));
        let mesh = edit.finish();
        assert_eq!(at(&mesh, "10.0.0.1"), "b/two", "the other one has it now");
        assert_eq!(at(&mesh, "10.9.0.1"), "b/two");
        let mut edit = mesh.edit();
        edit.apply(Update::RemoveService(two.key()));
        let mesh = edit.finish();
        assert_eq!(at(&mesh, "10.0.0.1"), "unknown");
        assert_eq!(at(&mesh, "10.9.0.1"), "unknown");
    }
}

#[test]
fn a_name_is_looked_up_at_home_first_and_wildcards_by_their_longest_domain() {
    let canonical = Service {
        canonical: true,
        ..service("c", "db.example.com", &[], &[])
    };
    let hidden = Service {
        visibility: Visibility::Namespace,
        ..service("a", "own.example.com", &[], &[])
    };
    let all = [
        service("a", "db.example.com", &[], &[]),
        service("b", "db.example.com", &[], &[]),
        canonical,
        hidden,
        service("a", "*.example.com", &[], &[]),
        service("a", "*.deep.example.com", &[], &[]),
        Service {
            visibility: Visibility::Namespace,
            ..service("b", "*.example.org", &[], &[])
        },
    ];
    let mesh: Mesh = all.iter().cloned().map(Update::Service).collect();
    let found = |host: &str, namespace: &str| {
        let service = mesh.resolve(host, namespace)?;
        Some(service.key().to_string())
    };
    for (host, namespace, expected) in [
        ("db.example.com", "b", Some("b/db.example.com")),
        ("DB.example.com.", "a", Some("a/db.example.com")),
        ("db.example.com", "z", Some("c/db.example.com")),
        ("own.example.com", "a", Some("a/own.example.com")),
        // Not seen from elsewhere, where another name matches.
        ("own.example.com", "b", Some("a/*.example.com")),
        ("x.example.com", "z", Some("a/*.example.com")),
        ("x.y.example.com", "z", Some("a/*.example.com")),
        ("x.deep.example.com", "z", Some("a/*.deep.example.com")),
        ("deep.example.com", "z", Some("a/*.example.com")),
        ("example.com", "z", None),
        ("x.example.org", "b", Some("b/*.example.org")),
        ("x.example.org", "z", None),
        ("com", "z", None),
        ("", "z", None),
    ] {
        let expected = expected.map(ToOwned::to_owned);
        assert_eq!(found(host, namespace), expected, "{host} for {namespace}");
    }
    let mut edit = mesh.edit();
    edit.apply(Update::RemoveService(all[4].key()));
    assert!(edit.finish().resolve("x.example.com", "z").is_none());
}

#[test]
fn a_name_without_vips_stands_for_its_ready_endpoints() {
    let headless = service("shop", "db", &[], &[]);
    let vip = service("shop", "web", &["10.96.0.1"], &[]);
    let mut ending = workload("ending", &["10.0.0.2"], &[&headless, &vip]);
    ending.health = Health::Terminating;
    let mut starting = workload("starting", &["10.0.0.3"], &[&headless]);
    starting.health = Health::NotReady;
    let ready = workload("ready", &["10.0.0.1", "fd00::1"], &[&headless]);
    let update = |workload: &Workload| Update::from(workload.clone());
    let mesh: Mesh = [
        Update::Service(headless.clone()),
        update(&ending),
        update(&starting),
        update(&ready),
    ]
    .into_iter()
    .collect();
    let addresses = |mesh: &Mesh, service: &Service| {
        let all = mesh.addresses_of(service, &"".into());
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&mesh, &headless), ["10.0.0.1", "fd00::1"]);
    assert_eq!(addresses(&mesh, &vip), ["10.96.0.1"]);
    let mut everything = headless.clone();
    everything.load_balancing.allow_unhealthy = true;
    assert_eq!(addresses(&mesh, &everything).len(), 4);
    let mut edit = mesh.edit();
    edit.apply(Update::RemoveWorkload(ready.uid));
    assert_eq!(addresses(&edit.finish(), &headless), ["10.0.0.2"]);
}

#[test]
fn what_a_later_mesh_knows_beyond_an_earlier_one_is_found_without_looking_at_what_they_share() {
    let network = Name::default();
    // By asking for each address, one by one.
    let known = |mesh: &Mesh| -> Vec<u8> {
        let named = |last: &u8| at(mesh, &format!("10.0.{last}.1")) != "unknown";
        (0..=u8::MAX).filter(named).collect()
    };
    let beyond = |mesh: &Mesh, other: &Mesh| -> Vec<u8> {
        let nets = mesh.addresses_beyond(other, &network);
        let mut places: Vec<u8> = nets
            .map(|net| match net.addr() {
                IpAddr::V4(ip) => ip.octets()[2],
                IpAddr::V6(_) => panic!("{net} was not named"),
            })
            .collect();
        places.sort_unstable();
        places.dedup();
        places
    };
    let difference = |all: &[u8], but: &[u8]| -> Vec<u8> {
        let left = all.iter().filter(|place| !but.contains(place));
        left.copied().collect()
    };
    // Workloads come, change, take each other's addresses and go, and so do services.
    let mut numbers = (0_u64..).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
    let mut number = |below: u64| numbers.next().unwrap() % below;
    let mut meshes = vec![Mesh::default()];
    for round in 0..60 {
        let last = meshes.last().unwrap();
        let mut edit = last.edit();
        for _ in 0..if round == 0 { 400 } else { 3 } {
            let name = format!("w{}", number(400));
            let ip = format!("10.0.{}.1", number(200));
            let service_ip = format!("10.0.{}.1", 150 + number(100));
            let made = service("shop", &format!("s{}", number(30)), &[&service_ip], &[]);
            edit.apply(match number(10) {
                0..4 => Update::Workload(workload(&name, &[&ip], &[]).into()),
                4..7 => Update::RemoveWorkload(Uid::pod("c", "shop", &name)),
                7..9 => Update::Service(made),
                _ => Update::RemoveService(made.key()),
            });
        }
        meshes.push(edit.finish());
    }
    assert!(
        known(&meshes[1]).len() > 50,
        "there is something to compare"
    );
    for (place, later) in meshes.iter().enumerate() {
        for earlier in [
            &meshes[0],
            &meshes[place.saturating_sub(1)],
            &meshes[place / 2],
        ] {
            let (now, before) = (known(later), known(earlier));
            assert_eq!(beyond(later, earlier), difference(&now, &before));
            assert_eq!(beyond(earlier, later), difference(&before, &now));
        }
    }
}
