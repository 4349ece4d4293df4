//! Where the connections of workloads may go.

use std::collections::BTreeMap;

use sluice_model::{Name, workload::Egress};
use sluice_objects::{
    Code, Located, Objects, OutboundPolicy, Pod, Severity, Sidecar, kinds::selects,
};

use super::{Config, Pods, Translation, mesh_config, oldest_first};

/// Says for each pod where it may go.
pub(super) fn apply(
    objects: &Objects,
    config: &Config,
    pods: &mut Pods<'_>,
    translation: &mut Translation,
) {
    let scopes = Scopes::of(objects, config);
    for (late, first) in &scopes.without_effect {
        let message =
            format!("has no effect: the older Sidecar {first} is for all of them already");
        let field = "spec.workloadSelector";
        let diagnostic =
            late.origin
                .diagnostic(Severity::Warning, Code::Conflicted, field, message);
        translation.diagnostics.push(diagnostic);
    }
    for (pod, workload) in pods {
        workload.profile_mut().egress = match scopes.effective(objects, pod) {
            OutboundPolicy::AllowAny => Egress::Anywhere,
            OutboundPolicy::RegistryOnly => Egress::Registry,
        };
    }
}

/// What is said about outbound traffic, by how wide it reaches.
#[derive(Default)]
struct Scopes<'a> {
    mesh: Option<OutboundPolicy>,
    /// For whole namespaces; that of the root namespace is for all.
    namespaces: BTreeMap<&'a Name, &'a Located<Sidecar>>,
    /// Oldest first.
    selectors: Vec<&'a Located<Sidecar>>,
    /// With the name of the one that counts.
    without_effect: Vec<(&'a Located<Sidecar>, &'a Name)>,
    root: Name,
}

impl<'a> Scopes<'a> {
    fn of(objects: &'a Objects, config: &Config) -> Self {
        let mut scopes = Self {
            mesh: mesh_config::of(objects, config).and_then(|settings| settings.outbound),
            root: config.root_namespace.clone(),
            ..Self::default()
        };
        for sidecar in oldest_first(&objects.sidecars, |sidecar| sidecar.created) {
            if !sidecar.selector.is_empty() {
                scopes.selectors.push(sidecar);
            } else if let Some(first) = scopes.namespaces.get(&sidecar.namespace) {
                scopes.without_effect.push((sidecar, &first.value.name));
            } else {
                scopes.namespaces.insert(&sidecar.namespace, sidecar);
            }
        }
        scopes
    }

    /// The narrowest scope that says something counts; within one, the annotation.
    fn effective(&self, objects: &Objects, pod: &Pod) -> OutboundPolicy {
        let selected = || {
            let own = self.selectors.iter().find(|sidecar| {
                sidecar.namespace == pod.namespace && selects(&sidecar.selector, &pod.labels)
            });
            own.and_then(|sidecar| sidecar.outbound)
        };
        let whole = |namespace| {
            let sidecar = self.namespaces.get(namespace);
            sidecar.and_then(|sidecar| sidecar.outbound)
        };
        let annotated = || objects.namespace(&pod.namespace)?.outbound;
        pod.outbound
            .or_else(selected)
            .or_else(annotated)
            .or_else(|| whole(&pod.namespace))
            .or_else(|| whole(&self.root))
            .or(self.mesh)
            .unwrap_or(OutboundPolicy::AllowAny)
    }
}
