//! Names in policies that nothing has: most likely misspelt, and without effect.

use std::collections::BTreeSet;

use sluice_model::{Name, SpiffeId, authz::StringMatch};
use sluice_objects::{
    AuthorizationPolicy, Code, Diagnostic, Located, Objects, Origin, Severity,
    kinds::{AccountName, Attribute, Terms},
};

use crate::translate::Config;

/// Kubernetes gives every namespace a service account of this name.
const DEFAULT_ACCOUNT: &str = "default";

/// Warnings about namespaces, service accounts and principals that do not exist.
pub(super) fn missing(objects: &Objects, config: &Config) -> Vec<Diagnostic> {
    let accounts = objects.service_accounts.keys().map(|(ns, name)| (ns, name));
    let pods = objects.pods.values();
    let used = pods.map(|pod| (&pod.namespace, &pod.service_account));
    let machines = objects.workload_entries.values();
    let machines = machines.filter_map(|entry| {
        let account = entry.external.service_account.as_ref()?;
        Some((&entry.namespace, account))
    });
    let known = Known {
        objects,
        config,
        accounts: accounts.chain(used).chain(machines).collect(),
    };
    let mut findings: Vec<_> = namespaced(objects)
        .filter(|origin| !known.has_namespace(&origin.object.namespace))
        .map(|origin| {
            let field = "metadata.namespace";
            let message = no_namespace(&origin.object.namespace);
            origin.diagnostic(Severity::Warning, Code::UnknownNamespace, field, message)
        })
        .collect();
    for policy in objects.authorization_policies.values() {
        let mut walk = Walk {
            known: &known,
            policy,
            findings: Vec::new(),
        };
        walk.rules();
        findings.append(&mut walk.findings);
    }
    findings
}

/// Every object of a namespace but pods, which are not in force without theirs.
fn namespaced(objects: &Objects) -> impl Iterator<Item = &Origin> {
    let accounts = objects.service_accounts.values().map(|o| &o.origin);
    let services = objects.services.values().map(|o| &o.origin);
    let slices = objects.endpoint_slices.values().map(|o| &o.origin);
    let entries = objects.service_entries.values().map(|o| &o.origin);
    let machines = objects.workload_entries.values().map(|o| &o.origin);
    let policies = objects.authorization_policies.values().map(|o| &o.origin);
    let peers = objects.peer_authentications.values().map(|o| &o.origin);
    accounts
        .chain(services)
        .chain(slices)
        .chain(entries)
        .chain(machines)
        .chain(policies)
        .chain(peers)
}

fn no_namespace(name: &str) -> String {
    format!("the namespace {name:?} does not exist")
}

/// What a name can refer to.
struct Known<'a> {
    objects: &'a Objects,
    config: &'a Config,
    accounts: BTreeSet<(&'a Name, &'a Name)>,
}

impl Known<'_> {
    /// The root namespace is named by the mesh's settings, and need not be given as an object.
    fn has_namespace(&self, name: &Name) -> bool {
        self.objects.has_namespace(name) || *name == self.config.root_namespace
    }

    fn has_namespace_like(&self, pattern: &StringMatch) -> bool {
        match pattern {
            StringMatch::Exact(name) => self.has_namespace(name),
            StringMatch::Presence => true,
            StringMatch::Prefix(_) | StringMatch::Suffix(_) => {
                let names = self.objects.namespaces.keys();
                let mut all = names.chain([&self.config.root_namespace]);
                all.any(|name| pattern.matches(name))
            }
        }
    }

    /// Why there is no such service account.
    fn account(&self, namespace: &Name, name: &Name) -> Result<(), (Code, String)> {
        if !self.has_namespace(namespace) {
            return Err((Code::UnknownNamespace, no_namespace(namespace)));
        }
        if **name == *DEFAULT_ACCOUNT || self.accounts.contains(&(namespace, name)) {
            return Ok(());
        }
        let message = format!("no ServiceAccount and no pod has the name {namespace}/{name}");
        Err((Code::UnknownServiceAccount, message))
    }

    /// Why no peer has this principal, as far as our own trust domain goes.
    fn principal(&self, pattern: &StringMatch) -> Result<(), (Code, String)> {
        let StringMatch::Exact(text) = pattern else {
            return Ok(());
        };
        match format!("spiffe://{text}").parse::<SpiffeId>() {
            Ok(id) if *id.trust_domain() == self.config.trust_domain => {
                self.account(id.namespace(), id.service_account())
            }
            Ok(_) => Ok(()),
            Err(_) => {
                let message = format!(
                    "no certificate has the principal {text:?}; principals are \
                     TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT"
                );
                Err((Code::InvalidPrincipal, message))
            }
        }
    }
}

/// Follows the names in the rules of one policy.
struct Walk<'a> {
    known: &'a Known<'a>,
    policy: &'a Located<AuthorizationPolicy>,
    findings: Vec<Diagnostic>,
}

impl Walk<'_> {
    fn rules(&mut self) {
        let policy = self.policy;
        for (i, rule) in policy.rules.iter().enumerate() {
            for (j, source) in rule.from.iter().enumerate() {
                let field = |name: &str| format!("spec.rules[{i}].from[{j}].source.{name}");
                self.namespaces(&field("namespaces"), &source.namespaces);
                self.namespaces(&field("notNamespaces"), &source.not_namespaces);
                self.principals(&field("principals"), &source.principals);
                self.principals(&field("notPrincipals"), &source.not_principals);
                self.accounts(&field("serviceAccounts"), &source.service_accounts);
                self.accounts(&field("notServiceAccounts"), &source.not_service_accounts);
            }
            for (j, condition) in rule.when.iter().enumerate() {
                let field = format!("spec.rules[{i}].when[{j}]");
                match &condition.attribute {
                    Attribute::SourceNamespace(terms) => {
                        self.terms(&field, terms, Self::namespaces)
                    }
                    Attribute::SourcePrincipal(terms) => {
                        self.terms(&field, terms, Self::principals)
                    }
                    Attribute::SourceServiceAccount(terms) => {
                        self.terms(&field, terms, Self::accounts);
                    }
                    Attribute::SourceIp(_)
                    | Attribute::DestinationIp(_)
                    | Attribute::DestinationPort(_)
                    | Attribute::L7(_) => {}
                }
            }
        }
    }

    fn terms<T>(&mut self, field: &str, terms: &Terms<T>, check: fn(&mut Self, &str, &[T])) {
        check(self, &format!("{field}.values"), &terms.values);
        check(self, &format!("{field}.notValues"), &terms.not_values);
    }

    fn namespaces(&mut self, field: &str, patterns: &[StringMatch]) {
        for (k, pattern) in patterns.iter().enumerate() {
            if self.known.has_namespace_like(pattern) {
                continue;
            }
            let message = match pattern {
                StringMatch::Exact(name) => no_namespace(name),
                _ => "no namespace has a name like this".to_owned(),
            };
            self.warning(field, k, (Code::UnknownNamespace, message));
        }
    }

    fn principals(&mut self, field: &str, patterns: &[StringMatch]) {
        for (k, pattern) in patterns.iter().enumerate() {
            if let Err(why) = self.known.principal(pattern) {
                self.warning(field, k, why);
            }
        }
    }

    fn accounts(&mut self, field: &str, names: &[AccountName]) {
        for (k, account) in names.iter().enumerate() {
            let own = &self.policy.namespace;
            let namespace = account.namespace.as_ref().unwrap_or(own);
            if let Err(why) = self.known.account(namespace, &account.name) {
                self.warning(field, k, why);
            }
        }
    }

    fn warning(&mut self, field: &str, k: usize, (code, message): (Code, String)) {
        let field = format!("{field}[{k}]");
        let origin = &self.policy.origin;
        self.findings
            .push(origin.diagnostic(Severity::Warning, code, field, message));
    }
}
