use sluice_model::{
    ServiceKey, Uid,
    authz::{Action, PolicyKey, Scope},
    service::{LoadBalancing, Mode, Port, Scope as Place},
    workload::{Health, Locality, OwnerKind, TunnelProtocol},
};
use sluice_objects::{Severity, Store, scan::FileText};

use super::*;

pub(crate) fn config() -> Config {
    Config {
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: vec!["old.example.com".parse().unwrap()],
        cluster: "c".into(),
        network: "net".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
    }
}

/// Translates YAML in which nothing is wrong.
pub(crate) fn of(documents: &[&str]) -> Translation {
    translate(&objects(documents), &config())
}

/// The objects of documents in which nothing is wrong.
pub(crate) fn objects(documents: &[&str]) -> Arc<Objects> {
    let mut store = Store::default();
    let text = FileText::Text(documents.join("\n---\n")).into();
    store.reload([("f.yaml", text)]);
    let snapshot = store.snapshot();
    let errors = snapshot
        .diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error);
    assert_eq!(errors.collect::<Vec<_>>(), Vec::<&Diagnostic>::new());
    snapshot.objects
}

const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
const AMBIENT: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, \
                       labels: {istio.io/dataplane-mode: ambient}}}";

/// A pod `web` of `shop` at 10.0.0.1 with more metadata, spec and status.
fn pod(metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop{metadata}}}
spec: {{nodeName: n1, containers: [{{name: m, ports: [{{name: http, containerPort: 8080}}]}}]{spec}}}
status: {{podIP: 10.0.0.1{status}}}"
    )
}

fn plain() -> String {
    pod(", labels: {app: web}", "", "")
}

fn service(spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {{{spec}}}}}"
    )
}

fn key() -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
    }
}

fn port(service_port: u16, target_port: u16) -> Port {
    Port {
        service_port,
        target_port,
    }
}

fn only(translation: Translation) -> Workload {
    let mut workloads = translation.workloads;
    assert_eq!(workloads.len(), 1);
    workloads.remove(0)
}

#[test]
fn a_pod_becomes_a_workload() {
    let status = ", podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]";
    let web = only(of(&[AMBIENT, &pod("", ", serviceAccountName: sa", status)]));
    assert_eq!(web.uid, Uid("c//Pod/shop/web".into()));
    assert_eq!(
        web.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::1"]
    );
    assert_eq!(
        web.identity().unwrap().to_string(),
        "spiffe://cluster.local/ns/shop/sa/sa"
    );
    assert_eq!(
        (&*web.node, &*web.network, &*web.cluster),
        ("n1", "net", "c")
    );
    assert_eq!(web.protocol, TunnelProtocol::Hbone);
    assert!(web.health == Health::Ready && !web.host_network);
    assert_eq!(
        (&*web.canonical_name, &*web.canonical_revision),
        ("web", "latest")
    );
    assert_eq!(web.capacity, 1);
}

#[test]
fn a_workload_is_named_after_its_labels_and_owner() {
    let owner = |kind: &str, name: &str, labels: &str| {
        let reference =
            format!("{{kind: {kind}, name: {name}, apiVersion: v1, uid: u, controller: true}}");
        let metadata = format!(", ownerReferences: [{reference}], labels: {{{labels}}}");
        let web = only(of(&[SHOP, &pod(&metadata, "", "")]));
        (
            web.owner_kind,
            web.owner_name.to_string(),
            web.canonical_name.to_string(),
        )
    };
    use OwnerKind::{CronJob, Deployment, Job, Pod};
    for (kind, name, labels, expected) in [
        (
            "ReplicaSet",
            "api-5d9c",
            "pod-template-hash: 5d9c",
            (Deployment, "api", "api"),
        ),
        ("ReplicaSet", "api-5d9c", "", (Pod, "api-5d9c", "api-5d9c")),
        ("StatefulSet", "db", "app: pg", (Pod, "db", "pg")),
        ("Job", "backup-28000000", "", (CronJob, "backup", "backup")),
        ("Job", "backup-1", "", (Job, "backup-1", "backup-1")),
        (
            "Job",
            "b",
            "app: a, app.kubernetes.io/name: n",
            (Job, "b", "n"),
        ),
        (
            "Job",
            "b",
            "app.kubernetes.io/name: n, service.istio.io/canonical-name: c",
            (Job, "b", "c"),
        ),
    ] {
        let (kind_found, name_found, canonical) = owner(kind, name, labels);
        assert_eq!(
            (kind_found, &*name_found, &*canonical),
            expected,
            "{kind} {name} {labels}"
        );
    }
    let versions = pod(
        ", labels: {version: v2, app.kubernetes.io/version: '3'}",
        "",
        "",
    );
    assert_eq!(&*only(of(&[SHOP, &versions])).canonical_revision, "3");
}

#[test]
fn health_follows_phase_condition_and_deletion() {
    let ready = |status| format!(", conditions: [{{type: Ready, status: '{status}'}}]");
    use Health::{NotReady, Ready, Terminating};
    for (metadata, status, expected) in [
        ("", String::new(), Ready),
        ("", ", phase: Running".to_owned(), Ready),
        ("", ready("True"), Ready),
        ("", ready("False"), NotReady),
        ("", ready("Unknown"), NotReady),
        ("", ", phase: Pending".to_owned(), NotReady),
        (
            ", deletionTimestamp: '2024-01-01T00:00:00Z'",
            String::new(),
            Terminating,
        ),
        (
            ", deletionTimestamp: '2024-01-01T00:00:00Z'",
            ready("False"),
            NotReady,
        ),
    ] {
        let web = only(of(&[SHOP, &pod(metadata, "", &status)]));
        assert_eq!(web.health, expected, "{metadata} {status}");
    }
    let done = pod("", "", ", phase: Succeeded");
    assert!(of(&[SHOP, &done]).workloads.is_empty());
}

#[test]
fn pods_of_the_hosts_network_are_in_plaintext() {
    let web = only(of(&[AMBIENT, &pod("", ", hostNetwork: true", "")]));
    assert!(web.host_network);
    assert_eq!(web.protocol, TunnelProtocol::None);
}

#[test]
fn a_service_has_names_addresses_and_ports() {
    let spec = "clusterIPs: [10.96.0.1, 'fd01::1'], selector: {app: web}, ports: [\
                {name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 9000}, \
                {name: c, port: 82}, {name: d, port: 53, protocol: UDP}, \
                {name: e, port: 83, targetPort: nowhere}]";
    let translation = of(&[SHOP, &plain(), &service(spec)]);
    let web = &translation.services[0];
    assert_eq!((web.key(), &*web.name), (key(), "web"));
    let vips: Vec<_> = web.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["net/10.96.0.1", "net/fd01::1"]);
    let all = [port(80, 0), port(81, 9000), port(82, 82), port(83, 0)];
    assert_eq!(
        web.ports, all,
        "named ports are the workloads' business, UDP is nobody's"
    );
    assert_eq!(web.load_balancing, LoadBalancing::default());
    let endpoint = &translation.workloads[0].services[&key()];
    assert_eq!(*endpoint, [port(80, 8080), port(81, 9000), port(82, 82)]);
}

#[test]
fn other_kinds_of_services() {
    let headless = of(&[SHOP, &service("clusterIP: None, selector: {app: web}")]);
    assert!(headless.services[0].vips.is_empty());
    let external = of(&[
        SHOP,
        &service("type: ExternalName, externalName: example.com"),
    ]);
    assert!(external.services.is_empty());
    let other = plain().replace("app: web", "app: db");
    let unselected = of(&[
        SHOP,
        &other,
        &service("clusterIP: 10.96.0.1, selector: {app: web}"),
    ]);
    assert!(only(unselected).services.is_empty());
}

#[test]
fn traffic_policies_become_load_balancing() {
    use Place::{Network, Node, Region, Subzone, Zone};
    for (spec, mode, preference, allow_unhealthy) in [
        (
            "internalTrafficPolicy: Cluster",
            Mode::Standard,
            vec![],
            false,
        ),
        (
            "internalTrafficPolicy: Local",
            Mode::Strict,
            vec![Node],
            false,
        ),
        (
            "publishNotReadyAddresses: true",
            Mode::Standard,
            vec![],
            true,
        ),
        (
            "trafficDistribution: PreferClose",
            Mode::Failover,
            vec![Network, Region, Zone],
            false,
        ),
        (
            "trafficDistribution: PreferSameZone",
            Mode::Failover,
            vec![Network, Region, Zone],
            false,
        ),
        (
            "trafficDistribution: PreferSameNode",
            Mode::Failover,
            vec![Network, Region, Zone, Subzone, Node],
            false,
        ),
    ] {
        let translation = of(&[SHOP, &service(&format!("clusterIP: 10.96.0.1, {spec}"))]);
        let expected = LoadBalancing {
            mode,
            preference,
            allow_unhealthy,
        };
        assert_eq!(translation.services[0].load_balancing, expected, "{spec}");
    }
}

/// A slice of the service `web` with these endpoints.
fn slice(endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: a, port: 7000}}, {{name: u, port: 53, protocol: UDP}}]
endpoints: [{endpoints}]"
    )
}

#[test]
fn slices_list_the_endpoints_of_services_without_a_selector() {
    let manual = service("clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}]");
    for endpoint in [
        "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}}",
        "{addresses: [10.0.0.1]}",
    ] {
        let web = only(of(&[SHOP, &plain(), &manual, &slice(endpoint)]));
        assert_eq!(web.services[&key()], [port(80, 7000)], "{endpoint}");
    }
    let foreign = "{addresses: [192.0.2.1], conditions: {ready: false}, nodeName: n, zone: z}, \
                   {addresses: [192.0.2.2], targetRef: {kind: Pod, name: gone}}";
    let translation = of(&[SHOP, &plain(), &manual, &slice(foreign)]);
    assert_eq!(translation.workloads.len(), 3);
    assert!(
        translation.workloads[0].services.is_empty(),
        "the pod is no endpoint"
    );
    let first = &translation.workloads[1];
    assert_eq!(
        &*first.uid.0,
        "c/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.1"
    );
    assert_eq!(first.services[&key()], [port(80, 7000)]);
    assert_eq!(
        (first.health, &*first.node, &*first.locality.zone),
        (Health::NotReady, "n", "z")
    );
    assert_eq!(first.protocol, TunnelProtocol::None);
    assert_eq!(translation.workloads[2].health, Health::Ready);
    // Where a selector speaks, a slice has nothing to add.
    let selecting = service("clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]");
    let web = only(of(&[SHOP, &plain(), &selecting, &slice(foreign)]));
    assert_eq!(web.services[&key()], [port(80, 80)]);
}

fn authorization(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {namespace}}}
spec: {{{spec}}}"
    )
}

/// The one AuthorizationPolicy of a translation.
fn authorized(translation: &Translation) -> Option<&Policy> {
    translation.policies.iter().find(|p| &*p.key.name == "p")
}

fn findings(translation: &Translation) -> Vec<(&str, u32)> {
    let all = translation.diagnostics.iter();
    all.map(|d| (d.field.as_str(), d.line)).collect()
}

#[test]
fn the_scope_of_a_policy_is_its_namespace_and_selector() {
    let selector = "selector: {matchLabels: {app: web}}";
    let other = "selector: {matchLabels: {app: db}}";
    for (namespace, spec, scope, listed) in [
        ("istio-system", "", Scope::Global, false),
        ("istio-system", selector, Scope::Workload, true),
        ("shop", "", Scope::Namespace, false),
        ("shop", "selector: {}", Scope::Namespace, false),
        ("shop", selector, Scope::Workload, true),
        ("shop", other, Scope::Workload, false),
        ("elsewhere", selector, Scope::Workload, false),
    ] {
        let translation = of(&[SHOP, &plain(), &authorization(namespace, spec)]);
        let policy = authorized(&translation).unwrap();
        assert_eq!(policy.scope, scope, "{namespace} {spec}");
        let key = PolicyKey {
            namespace: namespace.into(),
            name: "p".into(),
        };
        let expected: &[PolicyKey] = if listed { &[key] } else { &[] };
        assert_eq!(
            translation.workloads[0].policies, expected,
            "{namespace} {spec}"
        );
        assert!(findings(&translation).is_empty());
    }
}

#[test]
fn what_ztunnels_do_not_enforce_is_reported() {
    let refs = |kind: &str| format!("targetRefs: [{{{kind}, name: web}}], rules: [{{}}]");
    let gateway = "group: gateway.networking.k8s.io, kind: Gateway";
    for (spec, field, words) in [
        (
            "action: CUSTOM, provider: {name: x}".to_owned(),
            "spec.action",
            "has no effect",
        ),
        (refs("kind: Service"), "spec.targetRefs", "protects nothing"),
        (refs(gateway), "spec.targetRefs", "protects nothing"),
    ] {
        let translation = of(&[SHOP, &authorization("shop", &spec)]);
        assert!(authorized(&translation).is_none(), "{spec}");
        assert_eq!(findings(&translation), [(field, 6)], "{spec}");
        let message = &translation.diagnostics[0].message;
        assert!(message.contains(words), "{message}");
    }
    for (action, words) in [("DENY", "denies nothing"), ("AUDIT", "reports nothing")] {
        let spec = format!("action: {action}");
        let translation = of(&[SHOP, &authorization("shop", &spec)]);
        assert!(authorized(&translation).unwrap().rules.is_empty());
        assert_eq!(findings(&translation), [("spec", 6)]);
        assert!(translation.diagnostics[0].message.contains(words));
    }
    let allow_nothing = of(&[SHOP, &authorization("shop", "action: ALLOW")]);
    assert!(findings(&allow_nothing).is_empty(), "this one is meant");
}

#[test]
fn dry_runs_and_actions_are_kept() {
    let with_annotation = |action: &str, dry_run: &str| {
        let metadata = format!("name: p, annotations: {{istio.io/dry-run: '{dry_run}'}}");
        let spec = format!("action: {action}, rules: [{{}}]");
        authorization("shop", &spec).replace("name: p", &metadata)
    };
    for (action, dry_run, expected) in [
        ("ALLOW", "true", (Action::Allow, true)),
        ("DENY", "true", (Action::Deny, true)),
        ("DENY", "false", (Action::Deny, false)),
        // To audit is to report already.
        ("AUDIT", "true", (Action::Audit, false)),
        ("AUDIT", "false", (Action::Audit, false)),
    ] {
        let translation = of(&[SHOP, &with_annotation(action, dry_run)]);
        let policy = authorized(&translation).unwrap();
        assert_eq!((policy.action, policy.dry_run), expected, "{action}");
        assert_eq!(policy.rules.len(), 1);
        assert!(policy.rules[0].clauses.is_empty(), "matches everything");
    }
}

#[path = "contract_tests.rs"]
mod contract;

#[path = "discovery_tests.rs"]
mod discovery;

#[path = "rules_tests.rs"]
mod rules;

#[path = "peer_tests.rs"]
mod peer;

#[path = "egress_tests.rs"]
mod egress;
