//! The mesh's own settings, beside those that the control plane was started with.

use std::sync::Arc;

use sluice_model::TrustDomain;
use sluice_objects::{Code, Located, MeshConfig, Objects, Severity};

use super::{Config, Translation};

/// The settings that count: those in the root namespace.
pub(super) fn of<'a>(objects: &'a Objects, config: &Config) -> Option<&'a Located<MeshConfig>> {
    let mut all = objects.mesh_configs.values();
    all.find(|settings| settings.namespace == config.root_namespace)
        .map(|settings| &**settings)
}

/// The configuration with the aliases that the settings add, each once.
pub(super) fn with_aliases(objects: &Objects, config: &Config) -> Config {
    let settings = of(objects, config);
    let more = settings.map_or(&[][..], |settings| &settings.trust_domain_aliases);
    let mut all: Vec<TrustDomain> = Vec::new();
    for alias in config.trust_domain_aliases.iter().chain(more) {
        if *alias != config.trust_domain && !all.contains(alias) {
            all.push(alias.clone());
        }
    }
    Config {
        trust_domain_aliases: all,
        ..config.clone()
    }
}

/// Makes trust domains one, and reports settings that do not count.
pub(super) fn apply(objects: &Objects, config: &Config, translation: &mut Translation) {
    let settings = of(objects, config);
    let domains = equivalent_domains(config);
    for workload in &mut translation.workloads {
        workload.profile_mut().equivalent_domains = domains.clone();
    }
    if let Some(settings) = settings {
        report_contradictions(settings, config, translation);
    }
    for other in objects.mesh_configs.values() {
        if other.namespace != config.root_namespace {
            let root = &config.root_namespace;
            let message = format!("not read: it is not in the root namespace, {root}");
            let field = "metadata.namespace";
            let diagnostic =
                other
                    .origin
                    .diagnostic(Severity::Info, Code::UnusedSetting, field, message);
            translation.diagnostics.push(diagnostic);
        }
    }
}

/// The mesh's own trust domain and its aliases; nothing where there are none.
fn equivalent_domains(config: &Config) -> Arc<[TrustDomain]> {
    if config.trust_domain_aliases.is_empty() {
        return Arc::default();
    }
    let own = [config.trust_domain.clone()];
    let aliases = config.trust_domain_aliases.iter().cloned();
    own.into_iter().chain(aliases).collect()
}

fn report_contradictions(
    settings: &Located<MeshConfig>,
    config: &Config,
    translation: &mut Translation,
) {
    for (name, given, flag, ours) in [
        (
            "trustDomain",
            &settings.trust_domain,
            "--trust-domain",
            config.trust_domain.as_str(),
        ),
        (
            "rootNamespace",
            &settings.root_namespace,
            "--root-namespace",
            &*config.root_namespace,
        ),
    ] {
        if given.as_deref().is_some_and(|given| given != ours) {
            translation.diagnostics.push(settings.origin.diagnostic(
                Severity::Warning,
                Code::UnusedSetting,
                format!("data.mesh.{name}"),
                format!("has no effect: the control plane runs with {flag} {ours}, which counts"),
            ));
        }
    }
}
