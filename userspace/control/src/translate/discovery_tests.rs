//! Services that no Service describes, endpoints that are no pods, and where both are.

use std::collections::BTreeMap;

use sluice_model::service::{LoadBalancing, Mode, Scope as Place, Visibility};

use super::*;

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{{spec}}}"
    )
}

fn machine(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop, labels: {{app: vm}}}}
spec: {{{spec}}}"
    )
}

fn host(hostname: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: hostname.into(),
    }
}

/// The addresses of a workload, or the name to resolve.
fn address(workload: &Workload) -> String {
    let ips = workload.ips.iter().map(ToString::to_string);
    ips.chain(workload.hostname.as_ref().map(ToString::to_string))
        .collect::<Vec<_>>()
        .join(" ")
}

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, \
                     {number: 443, name: tls, protocol: TLS}]";

#[test]
fn a_static_service_entry_is_a_service_of_each_host_with_listed_endpoints() {
    let spec = format!(
        "hosts: [a.example.com, b.example.com], resolution: STATIC, {PORTS}, \
         addresses: [192.0.2.1, 198.51.100.0/24, 'fd00:1::/64'], \
         subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/db'], endpoints: [\
         {{address: 203.0.113.1, ports: {{http: 9080}}, locality: eu/1/x, weight: 3, \
           serviceAccount: db, labels: {{app: db}}}}, \
         {{address: 203.0.113.2}}, {{address: 203.0.113.2, ports: {{http: 9081}}}}]"
    );
    let translation = of(&[SHOP, &entry("ext", &spec)]);
    let hosts: Vec<_> = translation.services.iter().map(|s| &*s.hostname).collect();
    assert_eq!(hosts, ["a.example.com", "b.example.com"]);
    for service in &translation.services {
        let vips: Vec<_> = service.vips.iter().map(ToString::to_string).collect();
        assert_eq!(vips, ["net/192.0.2.1"]);
        let ranges: Vec<_> = service.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["net/198.51.100.0/24", "net/fd00:1::/64"]);
        assert_eq!(service.ports, [port(80, 8080), port(443, 443)]);
        assert_eq!(service.load_balancing, LoadBalancing::default());
        assert_eq!(service.subject_alt_names.len(), 1);
        assert_eq!(&*service.name, "ext");
    }
    let [first, second, third] = &translation.workloads[..] else {
        panic!("{:#?}", translation.workloads)
    };
    assert_eq!(
        &*first.uid.0,
        "c/networking.istio.io/ServiceEntry/shop/ext/203.0.113.1"
    );
    for key in [host("a.example.com"), host("b.example.com")] {
        assert_eq!(first.services[&key], [port(80, 9080), port(443, 443)]);
        assert_eq!(second.services[&key], [port(80, 8080), port(443, 443)]);
        // The same address on other ports is another endpoint.
        assert_eq!(third.services[&key], [port(80, 9081), port(443, 443)]);
    }
    assert_eq!(address(second), address(third));
    assert_eq!((first.capacity, second.capacity), (3, 1));
    let Locality {
        region,
        zone,
        subzone,
    } = &first.locality;
    assert_eq!((&**region, &**zone, &**subzone), ("eu", "1", "x"));
    assert_eq!(
        (&*first.service_account, &*first.canonical_name),
        ("db", "db")
    );
    assert_eq!(first.protocol, TunnelProtocol::None);
}

#[test]
fn where_an_endpoint_is_found_depends_on_the_resolution() {
    let all = |resolution: &str, rest: &str| {
        let spec = format!("resolution: {resolution}, {PORTS}, addresses: [192.0.2.1], {rest}");
        of(&[SHOP, &entry("ext", &spec)])
    };
    let endpoints = |translation: &Translation, key: &ServiceKey| -> Vec<String> {
        let all = translation.workloads.iter();
        let of = all.filter(|workload| workload.services.contains_key(key));
        of.map(address).collect()
    };
    let one = host("a.example.com");
    let none = all("NONE", "hosts: [a.example.com]");
    assert_eq!(none.services[0].load_balancing.mode, Mode::Passthrough);
    assert!(none.workloads.is_empty());
    // Each host is its own endpoint.
    let dns = all("DNS", "hosts: [a.example.com, b.example.com]");
    assert_eq!(dns.services[0].load_balancing.mode, Mode::Standard);
    assert_eq!(endpoints(&dns, &one), ["a.example.com"]);
    assert_eq!(endpoints(&dns, &host("b.example.com")), ["b.example.com"]);
    assert_eq!(
        &*dns.workloads[0].uid.0,
        "c/networking.istio.io/ServiceEntry/shop/ext/a.example.com"
    );
    let listed =
        "hosts: ['*.example.com'], endpoints: [{address: us.example.com}, {address: 192.0.2.9}]";
    let listed = all("DNS", listed);
    let wildcard = host("*.example.com");
    assert_eq!(
        endpoints(&listed, &wildcard),
        ["192.0.2.9", "us.example.com"]
    );
    let dynamic = all("DYNAMIC_DNS", "hosts: ['*.example.com', a.example.com]");
    assert!(endpoints(&dynamic, &wildcard).is_empty());
    assert_eq!(endpoints(&dynamic, &one), ["a.example.com"]);
}

#[test]
fn selectors_find_pods_and_machines() {
    let web = pod(", labels: {app: vm}", "", "");
    let vm = machine(
        "vm",
        "address: 192.0.2.7, ports: {http: 7000}, labels: {tier: db}, weight: 2",
    );
    let spec = format!(
        "hosts: [a.example.com], resolution: STATIC, addresses: [192.0.2.1], {PORTS}, \
         workloadSelector: {{labels: {{app: vm}}}}"
    );
    let entry = entry("ext", &spec);
    let service = service(
        "clusterIP: 10.96.0.1, selector: {app: vm}, ports: [\
         {name: http, port: 80, targetPort: 8080}, {name: n, port: 81, targetPort: http}, \
         {name: o, port: 82, targetPort: 8082}]",
    );
    let translation = of(&[AMBIENT, &web, &vm, &entry, &service]);
    let [pod, vm] = &translation.workloads[..] else {
        panic!("{:#?}", translation.workloads)
    };
    let a = host("a.example.com");
    assert_eq!(pod.services[&a], [port(80, 8080), port(443, 443)]);
    assert_eq!(pod.protocol, TunnelProtocol::Hbone, "it stays what it is");
    assert_eq!(vm.services[&a], [port(80, 7000), port(443, 443)]);
    assert_eq!(
        vm.services[&key()],
        [port(80, 7000), port(81, 7000), port(82, 8082)]
    );
    assert_eq!(&*vm.uid.0, "c/networking.istio.io/WorkloadEntry/shop/vm");
    assert_eq!((vm.name(), vm.capacity), ("vm", 2));
    // Nothing selects it, and it is known by its address all the same.
    let alone = only(of(&[
        SHOP,
        &machine("vm", "address: 'fd00::7', serviceAccount: vm"),
    ]));
    assert_eq!(
        (address(&alone).as_str(), alone.services.len()),
        ("fd00::7", 0)
    );
    let identity = alone.identity().unwrap().to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/shop/sa/vm");
}

/// A list of addresses must not take a pod's traffic out of its tunnel.
#[test]
fn an_endpoint_with_the_address_of_a_pod_is_that_pod() {
    let spec = format!(
        "hosts: [a.example.com], resolution: STATIC, addresses: [192.0.2.1], {PORTS}, \
         endpoints: [{{address: 10.0.0.1, ports: {{http: 81}}}}]"
    );
    let web = only(of(&[AMBIENT, &plain(), &entry("ext", &spec)]));
    assert_eq!(web.uid, Uid("c//Pod/shop/web".into()));
    assert_eq!(web.protocol, TunnelProtocol::Hbone);
    assert_eq!(
        web.services[&host("a.example.com")],
        [port(80, 81), port(443, 443)]
    );
    let vm = machine("vm", "address: 10.0.0.1");
    let selecting = service("clusterIP: 10.96.0.1, selector: {app: vm}, ports: [{port: 80}]");
    let web = only(of(&[AMBIENT, &plain(), &vm, &selecting]));
    assert_eq!(web.protocol, TunnelProtocol::Hbone);
    assert_eq!(web.services[&key()], [port(80, 80)]);
}

#[test]
fn what_cannot_be_reached_is_left_out_and_reported() {
    let far = "address: 192.0.2.7, network: far";
    let spec = format!(
        "hosts: [a.example.com], resolution: STATIC, addresses: [192.0.2.1], {PORTS}, \
         endpoints: [{{{far}}}, {{address: 192.0.2.8, network: net}}]"
    );
    let translation = of(&[SHOP, &machine("vm", far), &entry("ext", &spec)]);
    let left: Vec<_> = translation.workloads.iter().map(address).collect();
    assert_eq!(left, ["192.0.2.8"]);
    let fields: Vec<_> = findings(&translation).into_iter().map(|(f, _)| f).collect();
    assert_eq!(fields, ["spec.endpoints[0].network", "spec.network"]);
}

#[test]
fn a_host_belongs_to_one_service_of_a_namespace() {
    let spec = |hosts: &str, vip: &str| {
        format!(
            "hosts: [{hosts}], resolution: STATIC, addresses: [{vip}], endpoints: [{{address: {vip}}}]"
        )
    };
    let old = entry(
        "z-old",
        &spec("x.example.com, web.shop.svc.cluster.local", "192.0.2.1"),
    )
    .replace(
        "name: z-old",
        "name: z-old, creationTimestamp: '2020-01-01T00:00:00Z'",
    );
    let young = entry(
        "a-young",
        &spec("x.example.com, y.example.com", "192.0.2.2"),
    );
    let web = service("clusterIP: 10.96.0.1, selector: {app: web}");
    let translation = of(&[SHOP, &plain(), &old, &young, &web]);
    let owners: BTreeMap<_, _> = translation
        .services
        .iter()
        .map(|service| (&*service.hostname, &*service.name))
        .collect();
    let expected = [
        ("web.shop.svc.cluster.local", "web"),
        ("x.example.com", "z-old"),
        ("y.example.com", "a-young"),
    ];
    assert_eq!(owners, expected.into());
    // The loser's endpoints are not the winner's.
    let of_x = translation.workloads.iter();
    let of_x = of_x.filter(|w| w.services.contains_key(&host("x.example.com")));
    assert_eq!(of_x.map(address).collect::<Vec<_>>(), ["192.0.2.1"]);
    let reported: Vec<_> = translation
        .diagnostics
        .iter()
        .map(|d| {
            (
                d.code,
                d.field.as_str(),
                d.object.as_ref().map(|o| &*o.name),
            )
        })
        .collect();
    let duplicate = sluice_objects::Code::DuplicateHost;
    assert_eq!(
        reported,
        [
            (duplicate, "spec.hosts[1]", Some("z-old")),
            (duplicate, "spec.hosts[0]", Some("a-young")),
        ]
    );
}

#[test]
fn pods_are_where_their_nodes_are() {
    let node = |labels: &str| {
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: n1, labels: {{{labels}}}}}}}")
    };
    let full = "topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, \
                topology.istio.io/subzone: rack";
    let found = |documents: &[&str]| {
        let all = of(documents).workloads;
        let Locality {
            region,
            zone,
            subzone,
        } = all.last().unwrap().locality.clone();
        [region, zone, subzone].map(|part| part.to_string())
    };
    assert_eq!(
        found(&[SHOP, &plain(), &node(full)]),
        ["eu", "eu-1", "rack"]
    );
    assert_eq!(found(&[SHOP, &plain(), &node("")]), ["", "", ""]);
    let other = node(full).replace("n1", "n2");
    assert_eq!(found(&[SHOP, &plain(), &other]), ["", "", ""]);
    let service = service("clusterIP: 10.96.0.1, ports: [{name: a, port: 80}]");
    for (endpoint, expected) in [
        ("nodeName: n1", ["eu", "eu-1", "rack"]),
        ("nodeName: n1, zone: eu-1", ["eu", "eu-1", "rack"]),
        // The slice knows better than a label that somebody changed.
        ("nodeName: n1, zone: eu-2", ["", "eu-2", ""]),
        ("zone: eu-2", ["", "eu-2", ""]),
    ] {
        let slice = slice(&format!("{{addresses: [192.0.2.1], {endpoint}}}"));
        let documents = [SHOP, &service, &slice, &node(full)];
        assert_eq!(found(&documents), expected, "{endpoint}");
    }
}

#[test]
fn endpoints_of_slices_end_as_pods_do() {
    use Health::{NotReady, Ready, Terminating};
    let service = service("clusterIP: 10.96.0.1, ports: [{name: a, port: 80}]");
    for (conditions, expected) in [
        ("", Ready),
        ("ready: true", Ready),
        ("ready: false", NotReady),
        (
            "ready: false, serving: true, terminating: true",
            Terminating,
        ),
        ("ready: false, serving: false, terminating: true", NotReady),
        ("ready: false, serving: true", NotReady),
        // With publishNotReadyAddresses everything is ready.
        ("ready: true, serving: true, terminating: true", Terminating),
    ] {
        let slice = slice(&format!(
            "{{addresses: [192.0.2.1], conditions: {{{conditions}}}}}"
        ));
        let found = only(of(&[SHOP, &service, &slice])).health;
        assert_eq!(found, expected, "{conditions}");
    }
}

#[test]
fn annotations_prefer_where_the_service_does_not_say() {
    use Place::{Network, Node, Region, Subzone, Zone};
    let zone = vec![Network, Region, Zone];
    let node = vec![Network, Region, Zone, Subzone, Node];
    let annotation = |value: &str| {
        format!(", annotations: {{networking.istio.io/traffic-distribution: {value}}}")
    };
    for (namespace, own, spec, expected) in [
        ("", "", "", None),
        ("PreferClose", "", "", Some(zone.clone())),
        ("PreferClose", "PreferSameNode", "", Some(node.clone())),
        ("PreferClose", "Any", "", None),
        ("", "prefersamenode", "", Some(node.clone())),
        ("", "PreferSameRegion", "", Some(vec![Network, Region])),
        ("", "PreferSameNetwork", "", Some(vec![Network])),
        (
            "",
            "PreferSameNode",
            "trafficDistribution: PreferClose",
            Some(zone),
        ),
        (
            "PreferClose",
            "",
            "internalTrafficPolicy: Local",
            Some(vec![Node]),
        ),
    ] {
        let annotated = |value: &str| match value {
            "" => String::new(),
            value => annotation(value),
        };
        let shop = SHOP.replace("name: shop", &format!("name: shop{}", annotated(namespace)));
        let service = service(&format!("clusterIP: 10.96.0.1, {spec}"));
        let service = service.replace(
            "namespace: shop",
            &format!("namespace: shop{}", annotated(own)),
        );
        let found = of(&[&shop, &service]).services.remove(0).load_balancing;
        let case = format!("{namespace} {own} {spec}");
        assert_eq!(
            found.preference,
            expected.clone().unwrap_or_default(),
            "{case}"
        );
        let mode = match expected {
            None => Mode::Standard,
            Some(_) if spec.contains("Local") => Mode::Strict,
            Some(_) => Mode::Failover,
        };
        assert_eq!(found.mode, mode, "{case}");
        // A ServiceEntry has the annotation alone.
        if spec.is_empty() {
            let external = entry(
                "x",
                "hosts: [x.example.com], resolution: STATIC, addresses: [192.0.2.1]",
            )
            .replace(
                "namespace: shop",
                &format!("namespace: shop{}", annotated(own)),
            );
            let service = of(&[&shop, &external]).services.remove(0);
            assert_eq!(service.load_balancing, found, "{case}");
        }
    }
}

#[test]
fn names_are_for_those_they_are_exported_to() {
    let base = "hosts: [x.example.com], resolution: STATIC, addresses: [192.0.2.1]";
    for (export, expected) in [
        (None, Visibility::Public),
        (Some("'*'"), Visibility::Public),
        (Some("."), Visibility::Namespace),
        (Some("shop"), Visibility::Namespace),
        (Some("., shop"), Visibility::Namespace),
        (Some("~"), Visibility::Namespace),
        (Some("., other"), Visibility::Public),
    ] {
        let list = export.map(|names| format!(", exportTo: [{}]", names.replace('~', "'~'")));
        let spec = format!("{base}{}", list.unwrap_or_default());
        let service_entry = of(&[SHOP, &entry("x", &spec)]).services.remove(0);
        assert_eq!(service_entry.visibility, expected, "{export:?}");
        let text = export.map(|names| names.trim_matches('\'').to_owned());
        let annotation = text.map(|names| {
            format!("namespace: shop, annotations: {{networking.istio.io/exportTo: '{names}'}}")
        });
        let web = service("clusterIP: 10.96.0.1, selector: {app: web}");
        let web = web.replace(
            "namespace: shop",
            &annotation.unwrap_or("namespace: shop".to_owned()),
        );
        let web = of(&[SHOP, &plain(), &web]).services.remove(0);
        assert_eq!(web.visibility, expected, "{export:?}");
    }
}

/// Which namespace's service of this hostname is the canonical one.
fn canonical(translation: &Translation, hostname: &str) -> Vec<String> {
    let services = translation.services.iter();
    services
        .filter(|service| service.canonical && *service.hostname == *hostname)
        .map(|service| service.namespace.to_string())
        .collect()
}

#[test]
fn of_a_host_in_several_namespaces_the_oldest_that_all_may_see_is_canonical() {
    let entry = |namespace: &str, year: u32, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: e, namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}
spec: {{hosts: [a.example.com, web.shop.svc.cluster.local], resolution: STATIC, {PORTS}, \
addresses: [192.0.2.1], {spec}}}"
        )
    };
    let (old, older, oldest) = (
        entry("bank", 2022, ""),
        entry("zoo", 2021, ""),
        entry("attic", 2020, "exportTo: ['.']"),
    );
    let translation = of(&[SHOP, &old, &older, &oldest]);
    assert_eq!(canonical(&translation, "a.example.com"), ["zoo"]);
    let alone = of(&[SHOP, &oldest]);
    assert_eq!(canonical(&alone, "a.example.com"), [""; 0]);
    // A Service's own name stays its own, whatever is older.
    let web = service("clusterIP: 10.96.0.1, ports: [{port: 80}]");
    let translation = of(&[SHOP, &web, &old, &older]);
    let name = &*key().hostname.clone();
    assert_eq!(canonical(&translation, name), ["shop"]);
    assert_eq!(canonical(&translation, "a.example.com"), ["zoo"]);
}
