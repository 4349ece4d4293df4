//! What is wrong only when objects are seen together.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use sluice_model::Name;

use crate::{
    Code, Diagnostic, Objects, Origin, Severity,
    kinds::{Addressing, Object, Phase, selects},
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
        let selected = service.selector.as_ref().is_some_and(|selector| {
            let mut pods = objects.pods_of(&service.namespace);
            pods.any(|pod| selects(selector, &pod.labels))
        });
        let external = matches!(service.addressing, Addressing::ExternalName(_));
        if !selected && !external {
            diagnostics.push(service.origin.diagnostic(
                Severity::Warning,
                Code::NoEndpoints,
                "spec.selector",
                "selects nothing: no pod has these labels, and no EndpointSlice is given",
            ));
        }
    }
    diagnostics
}

/// Warnings about addresses that name more than one thing.
pub(crate) fn shared_addresses(objects: &Objects) -> Vec<Diagnostic> {
    let mut owners: HashMap<IpAddr, &Origin> = HashMap::new();
    let mut diagnostics = Vec::new();
    let mut claim = |ip: IpAddr, field: &str, origin| {
        if let Some(first) = owners.get(&ip) {
            let Origin { object, file, .. } = first;
            let (file, line) = (file.display(), first.line());
            let message = format!("{ip} is the address of {object} too ({file}:{line})");
            diagnostics.push(Origin::diagnostic(
                origin,
                Severity::Warning,
                Code::SharedAddress,
                field,
                message,
            ));
        } else {
            owners.insert(ip, origin);
        }
    };
    // Pods of the host's network share their node's address, and those that ended gave it back.
    let pods = objects.pods.values();
    for pod in pods.filter(|pod| !pod.host_network && pod.phase != Phase::Terminated) {
        for ip in &pod.ips {
            claim(*ip, "status.podIP", &pod.origin);
        }
    }
    for service in objects.services.values() {
        if let Addressing::Virtual(vips) = &service.addressing {
            for vip in vips {
                claim(*vip, "spec.clusterIP", &service.origin);
            }
        }
    }
    diagnostics
}
