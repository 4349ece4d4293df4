use super::*;
use crate::{
    NetworkAddress, Uid, Update, Workload,
    service::{LoadBalancing, Port, Visibility},
    workload::{Health, Profile},
};

fn service(namespace: &str, hostname: &str, vips: &[&str]) -> Service {
    let address = |ip: &&str| NetworkAddress::new("".into(), ip.parse().unwrap());
    Service {
        name: hostname.split('.').next().unwrap().into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        vips: vips.iter().map(address).collect(),
        ranges: vec![],
        ports: vec![],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        canonical: false,
        visibility: Visibility::Public,
    }
}

/// A service as Kubernetes names it.
fn kubernetes(namespace: &str, name: &str, vips: &[&str]) -> Service {
    let host = format!("{name}.{namespace}.svc.cluster.local");
    Service {
        canonical: true,
        ..service(namespace, &host, vips)
    }
}

fn endpoint(name: &str, of: &Service, ips: &[&str], health: Health) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/{}/sa/x", of.namespace);
    let mut profile = Profile::of(&identity.parse().unwrap());
    profile.services = [(of.key(), Vec::<Port>::new())].into_iter().collect();
    Workload {
        uid: Uid::pod("Kubernetes", &of.namespace, name),
        own_name: None,
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        node: "a".into(),
        health,
        profile: Arc::new(profile),
    }
}

fn mesh(services: impl IntoIterator<Item = Service>) -> Mesh {
    services.into_iter().map(Update::Service).collect()
}

fn resolve(mesh: &Mesh, namespace: &str, name: &str) -> Option<Host> {
    let asker = Asker {
        namespace,
        network: &"".into(),
        cluster_domain: "cluster.local",
    };
    mesh.host(name, &asker)
}

/// `HOST` or `HOST via ALIAS`, where the host is named by namespace and name.
fn found(mesh: &Mesh, namespace: &str, name: &str) -> String {
    match resolve(mesh, namespace, name) {
        None => "nothing".into(),
        Some(host) => {
            let service = host.service.key().to_string();
            match host.alias_of {
                Some(alias) => format!("{service} via {alias}"),
                None => service,
            }
        }
    }
}

#[test]
fn names_are_found_in_every_form_that_pods_use() {
    let catalog = "shop/catalog.shop.svc.cluster.local";
    let mesh = mesh([kubernetes("shop", "catalog", &["10.96.0.1"])]);
    let host = "catalog.shop.svc.cluster.local";
    for (namespace, name, expected) in [
        ("shop", host, catalog.to_owned()),
        ("web", host, catalog.to_owned()),
        // as they are
        ("shop", "catalog", catalog.to_owned()),
        ("web", "catalog", "nothing".to_owned()),
        ("web", "catalog.shop", catalog.to_owned()),
        ("web", "catalog.shop.svc", catalog.to_owned()),
        // with a search domain
        ("web", "catalog.web.svc.cluster.local", "nothing".to_owned()),
        (
            "web",
            "catalog.shop.web.svc.cluster.local",
            format!("{catalog} via {host}"),
        ),
        (
            "web",
            "catalog.shop.svc.web.svc.cluster.local",
            format!("{catalog} via {host}"),
        ),
        (
            "web",
            "catalog.shop.svc.cluster.local.web.svc.cluster.local",
            format!("{catalog} via {host}"),
        ),
        (
            "web",
            "catalog.shop.svc.cluster.local.cluster.local",
            format!("{catalog} via {host}"),
        ),
        // of another namespace, which no pod of this one searches
        (
            "web",
            "catalog.shop.other.svc.cluster.local",
            "nothing".to_owned(),
        ),
        // not of the mesh
        (
            "shop",
            "catalogs.shop.svc.cluster.local",
            "nothing".to_owned(),
        ),
        (
            "shop",
            "a.catalog.shop.svc.cluster.local",
            "nothing".to_owned(),
        ),
        ("shop", "svc.cluster.local", "nothing".to_owned()),
        ("shop", "cluster.local", "nothing".to_owned()),
        ("shop", ".", "nothing".to_owned()),
        ("shop", "", "nothing".to_owned()),
        ("shop", "a..b.svc.cluster.local", "nothing".to_owned()),
    ] {
        assert_eq!(
            found(&mesh, namespace, name),
            expected,
            "{name} in {namespace}"
        );
    }
}

#[test]
fn a_pod_of_a_headless_service_is_no_service_with_a_search_domain() {
    let db = kubernetes("shop", "db", &["10.96.0.2"]);
    let (zero, name) = (
        kubernetes("db", "zero", &["10.96.0.3"]),
        "zero.db.shop.svc.cluster.local",
    );
    // For a pod in `shop`, both the pod `zero` of `db`, and the service `zero` in `db`.
    assert_eq!(
        found(&mesh([zero.clone()]), "shop", name),
        "db/zero.db.svc.cluster.local via zero.db.svc.cluster.local"
    );
    assert_eq!(found(&mesh([zero, db]), "shop", name), "nothing");
}

#[test]
fn other_hosts_are_found_with_and_without_search_domains() {
    let mesh = mesh([service("shop", "www.example.com", &["240.0.0.1"])]);
    let host = "shop/www.example.com";
    assert_eq!(found(&mesh, "web", "www.example.com"), host);
    for domain in [
        "web.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
    ] {
        let name = format!("www.example.com.{domain}");
        let expected = format!("{host} via www.example.com");
        assert_eq!(found(&mesh, "web", &name), expected, "{name}");
    }
    assert_eq!(found(&mesh, "web", "example.com"), "nothing");
}

#[test]
fn the_longest_wildcard_counts_and_a_whole_name_before_it() {
    let mesh = mesh([
        service("shop", "*.com", &["240.0.0.1"]),
        service("shop", "*.example.com", &["240.0.0.2"]),
        service("shop", "www.example.com", &["240.0.0.3"]),
    ]);
    for (name, expected) in [
        ("www.example.com", "shop/www.example.com"),
        ("api.example.com", "shop/*.example.com"),
        ("a.b.example.com", "shop/*.example.com"),
        ("example.com", "shop/*.com"),
        ("com", "nothing"),
        ("example.org", "nothing"),
        (
            "api.example.com.shop.svc.cluster.local",
            "shop/*.example.com via api.example.com",
        ),
    ] {
        assert_eq!(found(&mesh, "shop", name), expected, "{name}");
    }
}

#[test]
fn the_askers_namespace_counts_first_then_the_one_in_the_name() {
    let host = "catalog.shop.svc.cluster.local";
    let mesh = mesh([
        service("beta", "example.com", &["240.0.0.1"]),
        service("alpha", "example.com", &["240.0.0.2"]),
        service("web", "example.com", &["240.0.0.3"]),
        service("alpha", host, &["240.0.0.4"]),
        kubernetes("shop", "catalog", &["10.96.0.1"]),
        service("web", host, &["240.0.0.5"]),
    ]);
    assert_eq!(found(&mesh, "web", "example.com"), "web/example.com");
    assert_eq!(found(&mesh, "beta", "example.com"), "beta/example.com");
    // The same for every node, whatever the order in which it heard of them.
    assert_eq!(found(&mesh, "other", "example.com"), "alpha/example.com");
    assert_eq!(found(&mesh, "web", host), format!("web/{host}"));
    assert_eq!(found(&mesh, "other", host), format!("shop/{host}"));
}

#[test]
fn what_is_removed_is_found_no_more() {
    let (one, other) = (
        service("alpha", "example.com", &["240.0.0.1"]),
        service("beta", "example.com", &["240.0.0.2"]),
    );
    let mut edit = mesh([one.clone(), other.clone()]).edit();
    edit.apply(Update::RemoveService(one.key()));
    let mesh = edit.finish();
    assert_eq!(found(&mesh, "web", "example.com"), "beta/example.com");
    let mut edit = mesh.edit();
    edit.apply(Update::Service(other.clone()));
    edit.apply(Update::RemoveService(other.key()));
    assert_eq!(found(&edit.finish(), "web", "example.com"), "nothing");
}

#[test]
fn a_service_without_addresses_of_its_own_has_those_of_its_ready_endpoints() {
    let mut headless = kubernetes("shop", "db", &[]);
    let build = |headless: &Service| -> Mesh {
        [
            Update::Service(headless.clone()),
            Update::from(endpoint(
                "db-0",
                headless,
                &["10.0.0.1", "fd00::1"],
                Health::Ready,
            )),
            Update::from(endpoint("db-1", headless, &["10.0.0.2"], Health::NotReady)),
        ]
        .into_iter()
        .collect()
    };
    let addresses = |mesh: &Mesh| {
        let host = resolve(mesh, "shop", "db").unwrap();
        let mut ips: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
        ips.sort();
        ips
    };
    assert_eq!(addresses(&build(&headless)), ["10.0.0.1", "fd00::1"]);
    headless.load_balancing.allow_unhealthy = true;
    let all = ["10.0.0.1", "10.0.0.2", "fd00::1"];
    assert_eq!(addresses(&build(&headless)), all);
    // Without any, others may know more.
    assert_eq!(resolve(&mesh([headless]), "shop", "db"), None);
}

#[test]
fn addresses_of_other_networks_are_of_no_use() {
    let mut catalog = kubernetes("shop", "catalog", &["10.96.0.1", "fd96::1"]);
    catalog.vips[0].network = "far".into();
    let host = resolve(&mesh([catalog.clone()]), "shop", "catalog").unwrap();
    assert_eq!(host.addresses, ["fd96::1".parse::<IpAddr>().unwrap()]);
    catalog.vips.truncate(1);
    assert_eq!(resolve(&mesh([catalog]), "shop", "catalog"), None);
}
