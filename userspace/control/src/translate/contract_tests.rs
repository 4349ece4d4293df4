//! The conversion of objects to what travels, field by field: every field of the contract (wire
//! contract §6, §10, §14) is in a table here, with the objects that set it and what is sent.

use std::collections::{BTreeMap, BTreeSet};

use sluice_proto::{security, workload as wire};

use super::*;

/// The fields of a message, by name. A field that the contract has and this list does not, or the
/// other way round, does not compile.
macro_rules! fields {
    ($message:expr => $($path:ident)::+ { $($field:ident),* $(,)? }) => {{
        let $($path)::+ { $($field),* } = $message;
        BTreeMap::from([$((stringify!($field), format!("{:?}", $field))),*])
    }};
}

type Fields = BTreeMap<&'static str, String>;

fn of_workload(message: wire::Workload) -> Fields {
    fields!(message => wire::Workload {
        uid, name, namespace, addresses, hostname, network, tunnel_protocol, trust_domain,
        service_account, waypoint, network_gateway, node, canonical_name, canonical_revision,
        workload_type, workload_name, native_tunnel, application_tunnel, services,
        authorization_policies, status, cluster_id, locality, network_mode, extensions, capacity,
    })
}

fn of_service(message: wire::Service) -> Fields {
    fields!(message => wire::Service {
        name, namespace, hostname, addresses, ports, subject_alt_names, waypoint, load_balancing,
        ip_families, extensions, canonical, ingress_use_waypoint, weighted_waypoints, visibility,
    })
}

fn of_policy(message: security::Authorization) -> Fields {
    fields!(message => security::Authorization {
        name, namespace, scope, action, rules, dry_run, extensions,
    })
}

fn of_match(message: security::Match) -> Fields {
    fields!(message => security::Match {
        namespaces, not_namespaces, service_accounts, not_service_accounts, principals,
        not_principals, source_ips, not_source_ips, destination_ips, not_destination_ips,
        destination_ports, not_destination_ports, extensions,
    })
}

/// Objects, a field, and what is sent in it: all of it, or a part where it begins with `…`.
type Row<'a> = (Vec<String>, &'a str, &'a str);

/// Checks a table, which has a row for every field but for those that are never sent.
fn check(rows: &[Row<'_>], never: &[&str], convert: impl Fn(Translation) -> Vec<Fields>) {
    let mut seen = BTreeSet::new();
    let mut all = BTreeSet::new();
    let mut wrong = Vec::new();
    for (objects, field, expected) in rows {
        let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
        let messages = convert(of(&objects));
        for fields in &messages {
            all.extend(fields.keys().copied());
            for absent in never {
                let value = &fields[absent];
                let empty = ["None", "[]", "false", "\"\"", "{}"].contains(&value.as_str());
                assert!(empty, "{absent}: {value}");
            }
        }
        let matches = |fields: &Fields| match expected.strip_prefix('…') {
            Some(part) => fields[field].contains(part),
            None => fields[field] == *expected,
        };
        let found: Vec<_> = messages.iter().map(|fields| &fields[field]).collect();
        if !messages.iter().any(matches) {
            wrong.push(format!("{field}: {expected}, found {found:?}"));
        }
        seen.insert(*field);
    }
    assert_eq!(wrong, [""; 0]);
    let missing: Vec<_> = all.difference(&seen).collect();
    let missing: Vec<_> = missing.into_iter().filter(|f| !never.contains(f)).collect();
    assert_eq!(missing, Vec::<&&str>::new(), "without a row");
}

fn workloads(translation: Translation) -> Vec<Fields> {
    let all = translation.workloads.iter();
    all.map(|workload| of_workload(workload.into())).collect()
}

fn services(translation: Translation) -> Vec<Fields> {
    let all = translation.services.iter();
    all.map(|service| of_service(service.into())).collect()
}

fn policies(translation: Translation) -> Vec<Fields> {
    let all = translation.policies.iter();
    all.map(|policy| of_policy(policy.into())).collect()
}

/// The matches of the one rule there is, as one message each.
fn matches(translation: Translation) -> Vec<Fields> {
    let policy = authorized(&translation).expect("a policy");
    let rules = security::Authorization::from(policy).rules;
    let clauses = rules.into_iter().flat_map(|rule| rule.clauses);
    clauses
        .flat_map(|clause| clause.matches)
        .map(of_match)
        .collect()
}

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: ext, namespace: shop}}\nspec: {{hosts: [api.example.com], \
         ports: [{{number: 443, name: tls, protocol: TLS}}], {spec}}}"
    )
}

fn owned(kind: &str, name: &str, labels: &str) -> String {
    let reference =
        format!("{{kind: {kind}, name: {name}, apiVersion: v1, uid: u, controller: true}}");
    pod(
        &format!(", ownerReferences: [{reference}], labels: {{{labels}}}"),
        "",
        "",
    )
}

#[test]
fn every_field_of_a_workload() {
    let plain = || vec![AMBIENT.to_owned(), pod("", "", "")];
    let with = |metadata: &str, spec: &str, status: &str| {
        vec![AMBIENT.to_owned(), pod(metadata, spec, status)]
    };
    let and = |more: String| [plain(), vec![more]].concat();
    let labelled = || with(", labels: {app: web}", "", "");
    let selects = || {
        let ports = "clusterIP: 10.96.0.1, selector: {app: web}, \
                     ports: [{port: 80, targetPort: http}, {name: raw, port: 81}]";
        [labelled(), vec![service(ports)]].concat()
    };
    let selected = "selector: {matchLabels: {app: web}}, rules: [{}]";
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}";
    let node = "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {\
                topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, \
                topology.istio.io/subzone: rack}}}";
    let sidecar = "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                   metadata: {name: default, namespace: shop}\n\
                   spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    let endpoint = "resolution: STATIC, addresses: [192.0.2.1], \
                    endpoints: [{address: 203.0.113.1, weight: 7, locality: eu/eu-1/rack}]";
    let rows: Vec<Row<'_>> = vec![
        (plain(), "uid", "\"c//Pod/shop/web\""),
        (
            and(entry(endpoint)),
            "uid",
            "\"c/networking.istio.io/ServiceEntry/shop/ext/203.0.113.1\"",
        ),
        (plain(), "name", "\"web\""),
        (plain(), "namespace", "\"shop\""),
        (plain(), "addresses", "[[10, 0, 0, 1]]"),
        (
            with("", "", ", podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]"),
            "addresses",
            "[[10, 0, 0, 1], [253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]",
        ),
        (plain(), "hostname", "\"\""),
        (
            and(entry("resolution: DNS, addresses: [192.0.2.1]")),
            "hostname",
            "\"api.example.com\"",
        ),
        (plain(), "network", "\"net\""),
        (plain(), "tunnel_protocol", "1"),
        (
            vec![SHOP.to_owned(), pod("", "", "")],
            "tunnel_protocol",
            "0",
        ),
        (
            with(", labels: {istio.io/dataplane-mode: none}", "", ""),
            "tunnel_protocol",
            "0",
        ),
        // Which stands for `cluster.local`.
        (plain(), "trust_domain", "\"\""),
        // Which stands for `default`.
        (plain(), "service_account", "\"\""),
        (
            with("", ", serviceAccountName: sa", ""),
            "service_account",
            "\"sa\"",
        ),
        (plain(), "node", "\"n1\""),
        (plain(), "canonical_name", "\"web\""),
        (labelled(), "canonical_name", "\"web\""),
        (
            with(
                ", labels: {service.istio.io/canonical-name: shop-front}",
                "",
                "",
            ),
            "canonical_name",
            "\"shop-front\"",
        ),
        (plain(), "canonical_revision", "\"latest\""),
        (
            with(", labels: {version: v2}", "", ""),
            "canonical_revision",
            "\"v2\"",
        ),
        (
            vec![
                SHOP.to_owned(),
                owned("ReplicaSet", "api-5d9c", "pod-template-hash: 5d9c"),
            ],
            "workload_type",
            "0",
        ),
        (
            vec![SHOP.to_owned(), owned("Job", "backup-28000000", "")],
            "workload_type",
            "1",
        ),
        (plain(), "workload_type", "2"),
        (
            vec![SHOP.to_owned(), owned("Job", "once", "")],
            "workload_type",
            "3",
        ),
        (
            vec![
                SHOP.to_owned(),
                owned("ReplicaSet", "api-5d9c", "pod-template-hash: 5d9c"),
            ],
            "workload_name",
            "\"api\"",
        ),
        (
            selects(),
            "services",
            "{\"shop/web.shop.svc.cluster.local\": PortList { ports: [\
             Port { service_port: 80, target_port: 8080, app_protocol: Unknown }, \
             Port { service_port: 81, target_port: 81, app_protocol: Unknown }] }}",
        ),
        (plain(), "authorization_policies", "[]"),
        (
            [labelled(), vec![authorization("shop", selected)]].concat(),
            "authorization_policies",
            "[\"shop/p\"]",
        ),
        (
            and(strict.to_owned()),
            "authorization_policies",
            "[\"istio-system/istio_converted_static_strict\"]",
        ),
        (plain(), "status", "0"),
        (
            with("", "", ", conditions: [{type: Ready, status: 'False'}]"),
            "status",
            "1",
        ),
        (
            with(", deletionTimestamp: '2024-01-01T00:00:00Z'", "", ""),
            "status",
            "1",
        ),
        (plain(), "cluster_id", "\"c\""),
        (plain(), "locality", "None"),
        (
            and(node.to_owned()),
            "locality",
            "Some(Locality { region: \"eu\", zone: \"eu-1\", subzone: \"rack\" })",
        ),
        (plain(), "network_mode", "0"),
        (with("", ", hostNetwork: true", ""), "network_mode", "1"),
        (and(sidecar.to_owned()), "extensions", "…sluice"),
        (and(entry(endpoint)), "capacity", "Some(7)"),
    ];
    // Waypoints and gateways to other networks are not configured yet, and a native tunnel is for
    // workloads that speak HBONE themselves.
    let never = [
        "waypoint",
        "network_gateway",
        "native_tunnel",
        "application_tunnel",
    ];
    check(&rows, &never, workloads);
}

#[test]
fn every_field_of_a_service() {
    let web = |spec: &str| {
        vec![
            SHOP.to_owned(),
            service(&format!("selector: {{app: web}}, {spec}")),
        ]
    };
    let plain = || web("clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 8080}]");
    let prefers = |how: &str| {
        web(&format!(
            "clusterIP: 10.96.0.1, ports: [{{port: 80}}], {how}"
        ))
    };
    let ext = |spec: &str| vec![SHOP.to_owned(), entry(spec)];
    let rows: Vec<Row<'_>> = vec![
        (plain(), "name", "\"web\""),
        (plain(), "namespace", "\"shop\""),
        (plain(), "hostname", "\"web.shop.svc.cluster.local\""),
        (ext("resolution: STATIC"), "name", "\"ext\""),
        (ext("resolution: STATIC"), "hostname", "\"api.example.com\""),
        (
            plain(),
            "addresses",
            "[NetworkAddress { network: \"net\", address: [10, 96, 0, 1], length: None }]",
        ),
        (
            web("clusterIP: None, ports: [{port: 80}]"),
            "addresses",
            "[]",
        ),
        (
            ext("resolution: STATIC, addresses: [198.51.100.0/24]"),
            "addresses",
            "[NetworkAddress { network: \"net\", address: [198, 51, 100, 0], length: Some(24) }]",
        ),
        (
            plain(),
            "ports",
            "[Port { service_port: 80, target_port: 8080, app_protocol: Unknown }]",
        ),
        (plain(), "subject_alt_names", "[]"),
        (
            ext("resolution: STATIC, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/db']"),
            "subject_alt_names",
            "[\"spiffe://cluster.local/ns/shop/sa/db\"]",
        ),
        (plain(), "load_balancing", "None"),
        (
            prefers("internalTrafficPolicy: Local"),
            "load_balancing",
            "…mode: Strict",
        ),
        (
            prefers("internalTrafficPolicy: Local"),
            "load_balancing",
            "…[Node]",
        ),
        (
            prefers("trafficDistribution: PreferClose"),
            "load_balancing",
            "…[Network, Region, Zone]",
        ),
        (
            prefers("trafficDistribution: PreferSameNode"),
            "load_balancing",
            "…[Network, Region, Zone, Subzone, Node]",
        ),
        (
            prefers("trafficDistribution: PreferClose"),
            "load_balancing",
            "…mode: Failover",
        ),
        (
            prefers("publishNotReadyAddresses: true"),
            "load_balancing",
            "…health_policy: AllowAll",
        ),
        (
            ext("resolution: NONE, addresses: [192.0.2.1]"),
            "load_balancing",
            "…mode: Passthrough",
        ),
        // Nobody who receives it asks for the families.
        (plain(), "ip_families", "0"),
        (plain(), "canonical", "true"),
        (ext("resolution: STATIC"), "canonical", "true"),
        (
            ext("resolution: STATIC, exportTo: ['.']"),
            "canonical",
            "false",
        ),
        (plain(), "visibility", "0"),
        (
            ext("resolution: STATIC, exportTo: ['.']"),
            "visibility",
            "1",
        ),
    ];
    // There are no waypoints yet.
    let never = [
        "waypoint",
        "weighted_waypoints",
        "ingress_use_waypoint",
        "extensions",
    ];
    check(&rows, &never, services);
}

#[test]
fn every_field_of_a_policy() {
    let policy =
        |namespace: &str, spec: &str| vec![SHOP.to_owned(), authorization(namespace, spec)];
    let dry = authorization("shop", "rules: [{}]").replace(
        "name: p",
        "name: p, annotations: {istio.io/dry-run: 'true'}",
    );
    let rows: Vec<Row<'_>> = vec![
        (policy("shop", "rules: [{}]"), "name", "\"p\""),
        (policy("shop", "rules: [{}]"), "namespace", "\"shop\""),
        (policy("istio-system", "rules: [{}]"), "scope", "0"),
        (policy("shop", "rules: [{}]"), "scope", "1"),
        (
            policy("shop", "selector: {matchLabels: {app: web}}, rules: [{}]"),
            "scope",
            "2",
        ),
        (policy("shop", "rules: [{}]"), "action", "0"),
        (policy("shop", "action: DENY, rules: [{}]"), "action", "1"),
        (policy("shop", ""), "rules", "[]"),
        (
            policy("shop", "rules: [{}]"),
            "rules",
            "[Rule { clauses: [] }]",
        ),
        (policy("shop", "rules: [{}]"), "dry_run", "false"),
        (vec![SHOP.to_owned(), dry], "dry_run", "true"),
    ];
    check(&rows, &["extensions"], policies);
}

#[test]
fn every_field_of_a_match() {
    let rule = |rule: &str| {
        vec![
            SHOP.to_owned(),
            authorization("shop", &format!("rules: [{rule}]")),
        ]
    };
    let from = |source: &str| rule(&format!("{{from: [{{source: {{{source}}}}}]}}"));
    let to = |operation: &str| rule(&format!("{{to: [{{operation: {{{operation}}}}}]}}"));
    let when = |key: &str, what: &str| rule(&format!("{{when: [{{key: {key}, {what}}}]}}"));
    let rows: Vec<Row<'_>> = vec![
        (from("namespaces: [a]"), "namespaces", "…Exact(\"a\")"),
        (from("namespaces: ['a*']"), "namespaces", "…Prefix(\"a\")"),
        (from("namespaces: ['*a']"), "namespaces", "…Suffix(\"a\")"),
        (from("namespaces: ['*']"), "namespaces", "…Presence("),
        (
            when("source.namespace", "values: [a]"),
            "namespaces",
            "…Exact(\"a\")",
        ),
        (
            from("notNamespaces: [a]"),
            "not_namespaces",
            "…Exact(\"a\")",
        ),
        (
            when("source.namespace", "notValues: [a]"),
            "not_namespaces",
            "…Exact(\"a\")",
        ),
        (
            from("serviceAccounts: [web, other/db]"),
            "service_accounts",
            "[ServiceAccountMatch { namespace: \"shop\", service_account: \"web\" }, \
             ServiceAccountMatch { namespace: \"other\", service_account: \"db\" }]",
        ),
        (
            from("notServiceAccounts: [web]"),
            "not_service_accounts",
            "[ServiceAccountMatch { namespace: \"shop\", service_account: \"web\" }]",
        ),
        (
            from("principals: [cluster.local/ns/a/sa/b]"),
            "principals",
            "…Exact(\"cluster.local/ns/a/sa/b\")",
        ),
        (
            when("source.principal", "values: ['*']"),
            "principals",
            "…Presence(",
        ),
        (from("notPrincipals: ['*']"), "not_principals", "…Presence("),
        (
            from("ipBlocks: [10.0.0.0/8]"),
            "source_ips",
            "[Address { address: [10, 0, 0, 0], length: 8 }]",
        ),
        (
            when("source.ip", "values: [10.0.0.1]"),
            "source_ips",
            "[Address { address: [10, 0, 0, 1], length: 32 }]",
        ),
        (
            from("notIpBlocks: [10.0.0.0/8]"),
            "not_source_ips",
            "[Address { address: [10, 0, 0, 0], length: 8 }]",
        ),
        (
            when("destination.ip", "values: [10.0.0.1]"),
            "destination_ips",
            "[Address { address: [10, 0, 0, 1], length: 32 }]",
        ),
        (
            when("destination.ip", "notValues: [10.0.0.0/24]"),
            "not_destination_ips",
            "[Address { address: [10, 0, 0, 0], length: 24 }]",
        ),
        (to("ports: ['80']"), "destination_ports", "[80]"),
        (
            when("destination.port", "values: ['81']"),
            "destination_ports",
            "[81]",
        ),
        (to("notPorts: ['80']"), "not_destination_ports", "[80]"),
    ];
    // What is said of trust domains travels there.
    check(&rows, &["extensions"], matches);
}
