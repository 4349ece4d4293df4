//! ServiceEntries, WorkloadEntries and nodes with mistakes, each with the place where it is reported.

use super::*;

const ENTRY: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: ext
  namespace: shop
spec:
  hosts:
  - db.example.com
  addresses:
  - 192.0.2.1
  ports:
  - number: 5432
    name: tcp
    protocol: TCP
  resolution: STATIC
  endpoints:
  - address: 203.0.113.1
";

const MACHINE: &str = "apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata:
  name: vm
  namespace: shop
spec:
  address: 192.0.2.7
  labels: {app: vm}
";

#[test]
fn good_entries_of_every_version_are_read() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = format!("{ENTRY}---\n{MACHINE}").replace("io/v1beta1", "io/v1");
        let text = text.replace("io/v1\n", &format!("io/{version}\n"));
        assert_findings(&text, &[]);
        let snapshot = read(&text);
        assert_eq!(snapshot.count(Kind::ServiceEntry), 1);
        assert_eq!(snapshot.count(Kind::WorkloadEntry), 1);
    }
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.0.0.0/24}\n";
    assert_findings(node, &[]);
    assert_eq!(read(node).count(Kind::Node), 1);
}

#[test]
fn service_entries_are_checked() {
    for (from, to, line, field, words) in [
        ("db.example.com", "'*'", 8, "spec.hosts[0]", "not a name"),
        (
            "db.example.com",
            "a.*.com",
            8,
            "spec.hosts[0]",
            "not a name",
        ),
        (
            "\n  - db.example.com",
            " []",
            7,
            "spec.hosts",
            "needs a host",
        ),
        (
            "192.0.2.1",
            "192.0.2.300",
            10,
            "spec.addresses[0]",
            "not an IP address",
        ),
        (
            "192.0.2.1",
            "192.0.2.0/33",
            10,
            "spec.addresses[0]",
            "(CIDR)",
        ),
        ("5432", "0", 12, "spec.ports[0].number", "not a port"),
        ("5432", "many", 12, "spec.ports[0].number", "expected i32"),
        (
            "name: tcp\n    ",
            "",
            12,
            "spec.ports[0].name",
            "needs a name",
        ),
        (
            "protocol: TCP",
            "protocol: TPC",
            14,
            "spec.ports[0].protocol",
            "TPC",
        ),
        (
            "protocol: TCP",
            "targetPort: 99999",
            14,
            "spec.ports[0].targetPort",
            "not a port",
        ),
        (
            "protocol: TCP",
            "targetport: 1",
            14,
            "spec.ports[0].targetport",
            "unknown field",
        ),
        (
            "protocol: TCP",
            "protocol: TCP\n  - number: 5432\n    name: other",
            15,
            "spec.ports[1].number",
            "twice",
        ),
        (
            "protocol: TCP",
            "protocol: TCP\n  - number: 1\n    name: tcp",
            16,
            "spec.ports[1].name",
            "twice",
        ),
        ("STATIC", "STATICK", 15, "spec.resolution", "STATICK"),
        (
            "  resolution: STATIC",
            "  location: OUTSIDE\n  resolution: STATIC",
            15,
            "spec.location",
            "OUTSIDE",
        ),
        ("STATIC", "NONE", 16, "spec.endpoints", "was dialled"),
        (
            "203.0.113.1",
            "db.internal",
            17,
            "spec.endpoints[0].address",
            "host name",
        ),
        (
            "203.0.113.1",
            "203.0.113",
            17,
            "spec.endpoints[0].address",
            "neither",
        ),
        (
            "203.0.113.1",
            "203.0.113.1\n    ports: {http: 80}",
            18,
            "spec.endpoints[0].ports[\"http\"]",
            "has this name",
        ),
        (
            "203.0.113.1",
            "203.0.113.1\n    ports: {tcp: 0}",
            18,
            "spec.endpoints[0].ports[\"tcp\"]",
            "not a port",
        ),
        (
            "203.0.113.1",
            "203.0.113.1\n    serviceAccount: a/b",
            18,
            "spec.endpoints[0].serviceAccount",
            "not a name",
        ),
        (
            "203.0.113.1",
            "203.0.113.1\n    weight: -1",
            18,
            "spec.endpoints[0].weight",
            "expected u32",
        ),
        (
            "  resolution",
            "  workloadSelector: {labels: {app: x}}\n  resolution",
            15,
            "spec.workloadSelector",
            "not both",
        ),
        (
            "  resolution",
            "  exportTo: ['*', shop]\n  resolution",
            15,
            "spec.exportTo",
            "stand alone",
        ),
        (
            "  resolution",
            "  exportTo: [Shop]\n  resolution",
            15,
            "spec.exportTo[0]",
            "not a name",
        ),
    ] {
        let text = ENTRY.replace(from, to);
        assert_ne!(text, ENTRY);
        assert_findings(
            &text,
            &[(Error, line, "ServiceEntry shop/ext", field, words)],
        );
        assert_eq!(read(&text).count(Kind::ServiceEntry), 0, "{text}");
    }
}

#[test]
fn what_a_ztunnel_cannot_do_with_a_service_entry_is_reported() {
    let selector = "  workloadSelector: {labels: {app: x}}\n";
    let listed = "  endpoints:\n  - address: 203.0.113.1\n";
    for (from, to, line, field, code) in [
        (
            "protocol: TCP",
            "protocol: UDP",
            14,
            "spec.ports[0].protocol",
            Code::UnsupportedValue,
        ),
        (listed, "", 15, "spec.resolution", Code::NoEndpoints),
        (
            listed,
            selector,
            16,
            "spec.workloadSelector",
            Code::NoEndpoints,
        ),
        (
            "203.0.113.1",
            "unix:///run/x",
            17,
            "spec.endpoints[0].address",
            Code::UnsupportedValue,
        ),
        (
            "  resolution",
            "  subjectAltNames: [db.example.com]\n  resolution",
            15,
            "spec.subjectAltNames[0]",
            Code::UnsupportedValue,
        ),
        (
            "  resolution",
            "  exportTo: [other]\n  resolution",
            15,
            "spec.exportTo",
            Code::UnsupportedValue,
        ),
        (
            "  resolution",
            "  exportTo: ['~']\n  resolution",
            15,
            "spec.exportTo",
            Code::UnsupportedValue,
        ),
    ] {
        let text = ENTRY.replace(from, to);
        assert_ne!(text, ENTRY);
        assert_findings(
            &text,
            &[(Warning, line, "ServiceEntry shop/ext", field, "")],
        );
        let snapshot = read(&text);
        assert_eq!(snapshot.diagnostics[0].code, code, "{text}");
        assert_eq!(snapshot.count(Kind::ServiceEntry), 1, "it is applied");
    }
    let wildcard = ENTRY
        .replace("db.example", "'*.example")
        .replace(".com\n", ".com'\n");
    assert_findings(&wildcard, &[]);
    let alone = wildcard.replace(listed, "");
    let name = "ServiceEntry shop/ext";
    for (resolution, severity) in [
        ("DNS", Error),
        ("DNS_ROUND_ROBIN", Error),
        ("DYNAMIC_DNS", Warning),
    ] {
        let text = alone.replace("STATIC", resolution);
        let expected = [(severity, 15, name, "spec.resolution", "*.example.com")];
        assert_findings(&text, &expected);
    }
    assert_findings(&alone.replace("STATIC", "NONE"), &[]);
}

#[test]
fn workload_entries_are_checked() {
    let name = "WorkloadEntry shop/vm";
    for (from, to, severity, line, field) in [
        ("192.0.2.7", "192.0.2.700", Error, 7, "spec.address"),
        ("192.0.2.7", "127.0.0.1", Error, 7, "spec.address"),
        ("192.0.2.7", "VM.example.com", Error, 7, "spec.address"),
        ("192.0.2.7", "''", Warning, 7, "spec.address"),
        ("192.0.2.7", "unix:///run/x", Warning, 7, "spec.address"),
        ("labels", "label", Error, 8, "spec.label"),
        (
            "  labels",
            "  serviceAccount: A\n  labels",
            Error,
            8,
            "spec.serviceAccount",
        ),
    ] {
        let text = MACHINE.replace(from, to);
        assert_findings(&text, &[(severity, line, name, field, "")]);
    }
    let spec = MACHINE.split("spec:").next().unwrap();
    assert_findings(spec, &[(Error, 1, name, "spec", "needs a spec")]);
    let version = MACHINE.replace("io/v1beta1", "io/v2");
    assert_findings(&version, &[(Error, 1, name, "apiVersion", "v1alpha3")]);
}

#[test]
fn machines_are_endpoints_and_addresses_have_one_owner() {
    let service = SERVICE.replace("app: web", "app: vm");
    assert_findings(&format!("{MACHINE}---\n{service}"), &[]);
    let selecting = ENTRY.replace(
        "  endpoints:\n  - address: 203.0.113.1\n",
        "  workloadSelector: {labels: {app: vm}}\n",
    );
    assert_findings(&format!("{MACHINE}---\n{selecting}"), &[]);
    let pod = format!("{SHOP}{}", pod("a", "192.0.2.7"));
    let taken = "192.0.2.7 is the address of Pod shop/a too (f.yaml:3)";
    let expected = [(Warning, 21, "WorkloadEntry shop/vm", "spec.address", taken)];
    assert_findings(&format!("{pod}---\n{MACHINE}"), &expected);
    let other = ENTRY.replace("name: ext", "name: two");
    let taken = "192.0.2.1 is the address of ServiceEntry shop/ext too (f.yaml:1)";
    let field = "spec.addresses[0]";
    let expected = [(Warning, 28, "ServiceEntry shop/two", field, taken)];
    assert_findings(&format!("{ENTRY}---\n{other}"), &expected);
    let ranges = |text: &str| text.replace("192.0.2.1", "192.0.2.0/24");
    let taken = "192.0.2.0/24 is the address of ServiceEntry shop/ext too (f.yaml:1)";
    let expected = [(Warning, 28, "ServiceEntry shop/two", field, taken)];
    assert_findings(
        &format!("{}---\n{}", ranges(ENTRY), ranges(&other)),
        &expected,
    );
    // Within a range there is room for others.
    assert_findings(&format!("{}---\n{other}", ranges(ENTRY)), &[]);
}

#[test]
fn another_name_for_a_host_and_unknown_preferences_are_reported() {
    let external = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  \
                    type: ExternalName\n  externalName: db.example.com\n";
    let expected = [(
        Info,
        6,
        "Service shop/web",
        "spec.externalName",
        "db.example.com",
    )];
    assert_findings(external, &expected);
    assert_eq!(read(external).diagnostics[0].code, Code::ExternalName);
    let annotation = "{name: shop, annotations: {networking.istio.io/traffic-distribution: Near}}";
    let namespace = SHOP.replace("{name: shop}", annotation);
    let field = "metadata.annotations[\"networking.istio.io/traffic-distribution\"]";
    let expected = [(Warning, 1, "Namespace shop", field, "PreferSameZone")];
    assert_findings(namespace.trim_end_matches("---\n"), &expected);
}

#[test]
fn hosts_are_given_addresses_unless_that_is_refused_or_of_no_use() {
    let without = ENTRY.replace("  addresses:\n  - 192.0.2.1\n", "");
    let label = |value: &str| {
        let label = format!("  labels: {{networking.istio.io/enable-autoallocate-ip: {value}}}\n");
        without.replace("spec:\n", &format!("{label}spec:\n"))
    };
    let unresolved = without.replace("STATIC", "NONE");
    let (unresolved, _) = unresolved.split_once("  endpoints:").unwrap();
    let wildcard = without.replace("db.example.com", "'*.example.com'");
    for (text, given, expected) in [
        (without.clone(), true, None),
        (ENTRY.to_owned(), false, None),
        (label("'true'"), true, None),
        (label("'false'"), false, Some(Code::NoAddress)),
        (label("'no'"), true, Some(Code::IgnoredLabel)),
        (unresolved.to_owned(), false, Some(Code::NoAddress)),
        (wildcard, false, Some(Code::NoAddress)),
    ] {
        let snapshot = read(&text);
        let codes: Vec<_> = snapshot.diagnostics.iter().map(|d| d.code).collect();
        assert_eq!(codes, Vec::from_iter(expected), "{text}");
        let entry = snapshot.objects.service_entries.values().next().unwrap();
        assert_eq!(entry.may_be_given(&entry.hosts[0]), given, "{text}");
    }
}
