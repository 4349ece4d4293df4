//! Kubernetes objects as YAML text, for the configuration directory.

use std::fmt::Write;

use crate::topology::Pod;

/// A namespace; `mode` is the value of `istio.io/dataplane-mode`, if it is labelled.
#[must_use]
pub fn namespace(name: &str, mode: Option<&str>) -> String {
    let labels = mode
        .map(|mode| format!("  labels:\n    istio.io/dataplane-mode: {mode}\n"))
        .unwrap_or_default();
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{labels}")
}

#[must_use]
pub fn service_account(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// A pod as it would be in a cluster, with the annotation that names its network namespace. It
/// has the label `app: <name>` and those given.
#[must_use]
pub fn pod(pod: &Pod, labels: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 namespace: {namespace}\n\
         \x20 annotations:\n\
         \x20   sluice.io/netns: {netns}\n\
         \x20 labels:\n\
         \x20   app: {name}\n",
        name = pod.name(),
        namespace = pod.namespace(),
        netns = pod.netns.path().display(),
    );
    for (label, value) in labels {
        let _ = writeln!(text, "    {label}: \"{value}\"");
    }
    let [v4, v6] = pod.ips();
    let _ = write!(
        text,
        "spec:\n\
         \x20 nodeName: {node}\n\
         \x20 serviceAccountName: {account}\n\
         status:\n\
         \x20 phase: Running\n\
         \x20 podIP: {v4}\n\
         \x20 podIPs:\n\
         \x20 - ip: {v4}\n\
         \x20 - ip: \"{v6}\"\n\
         \x20 conditions:\n\
         \x20 - type: Ready\n\
         \x20   status: \"True\"\n",
        node = pod.node(),
        account = pod.service_account(),
    );
    text
}

/// Adds an annotation to the text of a [`pod`] or [`namespace`].
#[must_use]
pub fn with_annotation(object: &str, name: &str, value: &str) -> String {
    let line = format!("    {name}: {value}\n");
    let annotations = "  annotations:\n";
    if object.contains(annotations) {
        object.replacen(annotations, &format!("{annotations}{line}"), 1)
    } else {
        let metadata = "metadata:\n";
        object.replacen(metadata, &format!("{metadata}{annotations}{line}"), 1)
    }
}

/// Makes the text of a [`pod`] name another node than the one it is on: one whose ztunnel is not
/// of this mesh, so that nobody here enrols the pod.
#[must_use]
pub fn on_node(pod: &str, node: &str) -> String {
    let lines = pod
        .lines()
        .map(|line| match line.strip_prefix("  nodeName: ") {
            Some(_) => format!("  nodeName: {node}\n"),
            None => format!("{line}\n"),
        });
    lines.collect()
}

/// Makes the text of a [`pod`] name one of its ports.
#[must_use]
pub fn with_named_port(pod: &str, name: &str, port: u16) -> String {
    let containers = format!(
        "spec:\n\
         \x20 containers:\n\
         \x20 - name: app\n\
         \x20   ports:\n\
         \x20   - name: {name}\n\
         \x20     containerPort: {port}\n"
    );
    pod.replacen("spec:\n", &containers, 1)
}

/// A service that selects `app: <name>`; `ports` are (port, target port).
#[must_use]
pub fn service(namespace: &str, name: &str, cluster_ip: &str, ports: &[(u16, u16)]) -> String {
    let ports: Vec<_> = ports
        .iter()
        .map(|(port, target)| (*port, target.to_string()))
        .collect();
    let ports: Vec<_> = ports
        .iter()
        .map(|(port, to)| (*port, to.as_str()))
        .collect();
    service_selecting(namespace, name, &[cluster_ip], ("app", name), &ports)
}

/// A service with addresses of one or both families, that selects by any label; `ports` are
/// (port, target port or its name).
#[must_use]
pub fn service_selecting(
    namespace: &str,
    name: &str,
    cluster_ips: &[&str],
    (label, value): (&str, &str),
    ports: &[(u16, &str)],
) -> String {
    let mut text = format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 namespace: {namespace}\n\
         spec:\n\
         \x20 selector:\n\
         \x20   {label}: {value}\n\
         \x20 clusterIPs:\n",
    );
    for ip in cluster_ips {
        let _ = writeln!(text, "  - \"{ip}\"");
    }
    text.push_str("  ports:\n");
    for (port, target) in ports {
        let _ = write!(
            text,
            "  - name: tcp-{port}\n    port: {port}\n    targetPort: {target}\n    protocol: TCP\n"
        );
    }
    text
}

/// The addresses behind a service, by IPv4; `ports` are (service port, target port).
#[must_use]
pub fn endpoint_slice(
    namespace: &str,
    service: &str,
    pods: &[&Pod],
    ports: &[(u16, u16)],
) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata:\n\
         \x20 name: {service}-v4\n\
         \x20 namespace: {namespace}\n\
         \x20 labels:\n\
         \x20   kubernetes.io/service-name: {service}\n\
         addressType: IPv4\n\
         endpoints:\n",
    );
    for pod in pods {
        let _ = write!(
            text,
            "- addresses: [\"{}\"]\n\
             \x20 nodeName: {}\n\
             \x20 conditions:\n\
             \x20   ready: true\n\
             \x20 targetRef:\n\
             \x20   kind: Pod\n\
             \x20   name: {}\n\
             \x20   namespace: {}\n",
            pod.v4(),
            pod.node(),
            pod.name(),
            pod.namespace()
        );
    }
    text.push_str("ports:\n");
    for (port, target) in ports {
        let _ = write!(
            text,
            "- name: tcp-{port}\n  port: {target}\n  protocol: TCP\n"
        );
    }
    text
}

/// mTLS mode (`STRICT`, `PERMISSIVE`) of all workloads of a namespace.
#[must_use]
pub fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata:\n\
         \x20 name: default\n\
         \x20 namespace: {namespace}\n\
         spec:\n\
         \x20 mtls:\n\
         \x20   mode: {mode}\n"
    )
}

/// Only these principals may reach the pods with the label `app: <app>`.
#[must_use]
pub fn allow_principals(namespace: &str, app: &str, principals: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata:\n\
         \x20 name: {app}-callers\n\
         \x20 namespace: {namespace}\n\
         spec:\n\
         \x20 selector:\n\
         \x20   matchLabels:\n\
         \x20     app: {app}\n\
         \x20 action: ALLOW\n\
         \x20 rules:\n\
         \x20 - from:\n\
         \x20   - source:\n\
         \x20       principals:\n",
    );
    for principal in principals {
        let _ = writeln!(text, "        - {principal}");
    }
    text
}
