//! What is wrong only when objects are seen together.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use sluice_model::Name;

use crate::{
    Code, Diagnostic, Labels, Objects, Origin, Severity,
    kinds::{Addressing, ExternalAddress, Object, Phase, selects},
    read::DEFAULT_NAMESPACE,
};

/// An error when an object refers to something that it cannot do without.
pub(crate) fn dangling(object: &Object, namespaces: &BTreeSet<Name>) -> Option<Diagnostic> {
    let Object::Pod(pod) = object else {
        return None;
    };
    if pod.namespace.as_ref() == DEFAULT_NAMESPACE || namespaces.contains(&pod.namespace) {
        return None;
    }
    Some(pod.origin.diagnostic(
        Severity::Error,
        Code::UnknownNamespace,
        "metadata.namespace",
        format!("the namespace {:?} does not exist", pod.namespace),
    ))
}

/// Warnings about objects that are applied, but without any effect.
pub(crate) fn without_effect(objects: &Objects) -> Vec<Diagnostic> {
    let slices = objects.endpoint_slices.values();
    let with_slices: BTreeSet<(&Name, &Name)> = slices
        .filter_map(|slice| Some((&slice.namespace, slice.service.as_ref()?)))
        .collect();
    let mut diagnostics = Vec::new();
    for service in objects.services.values() {
        if with_slices.contains(&(&service.namespace, &service.name)) {
            continue;
        }
        if let Addressing::ExternalName(host) = &service.addressing {
            let message = format!(
                "only another name for {host}, in DNS: nothing is enforced for it, and connections \
                 are what those to {host} are"
            );
            let field = "spec.externalName";
            let origin = &service.origin;
            diagnostics.push(origin.diagnostic(Severity::Info, Code::ExternalName, field, message));
            continue;
        }
        let selector = service.selector.as_ref();
        if !selector.is_some_and(|selector| any_selected(objects, &service.namespace, selector)) {
            diagnostics.push(service.origin.diagnostic(
                Severity::Warning,
                Code::NoEndpoints,
                "spec.selector",
                "selects nothing: no pod and no WorkloadEntry has these labels, and no \
                 EndpointSlice is given",
            ));
        }
    }
    for entry in objects.service_entries.values() {
        let Some(selector) = &entry.selector else {
            continue;
        };
        if !any_selected(objects, &entry.namespace, selector) {
            diagnostics.push(entry.origin.diagnostic(
                Severity::Warning,
                Code::NoEndpoints,
                "spec.workloadSelector",
                "selects nothing: no pod and no WorkloadEntry has these labels",
            ));
        }
    }
    diagnostics
}

fn any_selected(objects: &Objects, namespace: &Name, selector: &Labels) -> bool {
    let mut pods = objects.pods_of(namespace);
    let mut entries = objects.workload_entries_of(namespace);
    pods.any(|pod| selects(selector, &pod.labels))
        || entries.any(|entry| selects(selector, &entry.external.labels))
}

/// Warnings about addresses that name more than one thing.
pub(crate) fn shared_addresses(objects: &Objects) -> Vec<Diagnostic> {
    let mut owners = Owners::default();
    // Pods of the host's network share their node's address, and those that ended gave it back.
    let pods = objects.pods.values();
    for pod in pods.filter(|pod| !pod.host_network && pod.phase != Phase::Terminated) {
        for ip in &pod.ips {
            owners.claim((*ip).into(), "status.podIP".into(), &pod.origin);
        }
    }
    for entry in objects.workload_entries.values() {
        if let ExternalAddress::Ip(ip) = entry.external.address {
            owners.claim(ip.into(), "spec.address".into(), &entry.origin);
        }
    }
    for service in objects.services.values() {
        if let Addressing::Virtual(vips) = &service.addressing {
            for vip in vips {
                owners.claim((*vip).into(), "spec.clusterIP".into(), &service.origin);
            }
        }
    }
    for entry in objects.service_entries.values() {
        for (i, range) in entry.addresses.iter().enumerate() {
            owners.claim(*range, format!("spec.addresses[{i}]"), &entry.origin);
        }
    }
    owners.diagnostics
}

/// The first owner of each address, and complaints about the others.
#[derive(Default)]
struct Owners<'a> {
    first: HashMap<IpNet, &'a Origin>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Owners<'a> {
    fn claim(&mut self, range: IpNet, field: String, origin: &'a Origin) {
        let Some(first) = self.first.get(&range) else {
            self.first.insert(range, origin);
            return;
        };
        let Origin { object, file, .. } = first;
        let (file, line) = (file.display(), first.line());
        let shown = match range.prefix_len() == range.max_prefix_len() {
            true => range.addr().to_string(),
            false => range.to_string(),
        };
        let message = format!("{shown} is the address of {object} too ({file}:{line})");
        self.diagnostics.push(origin.diagnostic(
            Severity::Warning,
            Code::SharedAddress,
            field,
            message,
        ));
    }
}
