//! AuthorizationPolicy: who may talk to whom.

use ipnet::IpNet;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use serde::Deserialize;
use sluice_model::{Name, authz::StringMatch};

use super::patterns::{
    AccountName, IpBlock, Parsed, Pattern, Port, PrincipalPattern, TrustDomainPattern, list, parsed,
};
use super::resource::Resource;
use super::selector::{self, RawSelector, RawTargetRef, Target};
use crate::{Code, report::Report};

/// The annotation that makes a policy report and never decide.
const DRY_RUN: &str = "istio.io/dry-run";

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub namespace: Name,
    pub name: Name,
    pub created: Option<Timestamp>,
    pub target: Target,
    pub action: Action,
    /// Without rules it never matches: an ALLOW policy then lets nothing through.
    pub rules: Vec<Rule>,
    pub dry_run: bool,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// Matches when any source, any operation and every condition does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// Who a request comes from. Every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    #[serde(deserialize_with = "parsed::<_, PrincipalPattern>")]
    pub principals: Vec<StringMatch>,
    #[serde(deserialize_with = "parsed::<_, PrincipalPattern>")]
    pub not_principals: Vec<StringMatch>,
    #[serde(deserialize_with = "list")]
    pub request_principals: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub not_request_principals: Vec<String>,
    #[serde(deserialize_with = "parsed::<_, Pattern>")]
    pub namespaces: Vec<StringMatch>,
    #[serde(deserialize_with = "parsed::<_, Pattern>")]
    pub not_namespaces: Vec<StringMatch>,
    #[serde(deserialize_with = "parsed::<_, AccountName>")]
    pub service_accounts: Vec<AccountName>,
    #[serde(deserialize_with = "parsed::<_, AccountName>")]
    pub not_service_accounts: Vec<AccountName>,
    #[serde(deserialize_with = "parsed::<_, TrustDomainPattern>")]
    pub trust_domains: Vec<StringMatch>,
    #[serde(deserialize_with = "parsed::<_, TrustDomainPattern>")]
    pub not_trust_domains: Vec<StringMatch>,
    #[serde(deserialize_with = "parsed::<_, IpBlock>")]
    pub ip_blocks: Vec<IpNet>,
    #[serde(deserialize_with = "parsed::<_, IpBlock>")]
    pub not_ip_blocks: Vec<IpNet>,
    #[serde(deserialize_with = "parsed::<_, IpBlock>")]
    pub remote_ip_blocks: Vec<IpNet>,
    #[serde(deserialize_with = "parsed::<_, IpBlock>")]
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// What a request asks for. Every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    #[serde(deserialize_with = "list")]
    pub hosts: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub not_hosts: Vec<String>,
    #[serde(deserialize_with = "parsed::<_, Port>")]
    pub ports: Vec<u16>,
    #[serde(deserialize_with = "parsed::<_, Port>")]
    pub not_ports: Vec<u16>,
    #[serde(deserialize_with = "list")]
    pub methods: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub not_methods: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub not_paths: Vec<String>,
}

/// A further condition on an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The attribute's name, as written.
    pub key: Name,
    pub attribute: Attribute,
}

/// An attribute and the values it must and must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    SourceIp(Terms<IpNet>),
    SourceNamespace(Terms<StringMatch>),
    SourcePrincipal(Terms<StringMatch>),
    SourceServiceAccount(Terms<AccountName>),
    DestinationIp(Terms<IpNet>),
    DestinationPort(Terms<u16>),
    /// One that only a proxy of L7 knows.
    L7(Terms<String>),
}

/// A list that must contain a value, if it is not empty, and one that must not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms<T> {
    pub values: Vec<T>,
    pub not_values: Vec<T>,
}

pub(super) type RawAuthorizationPolicy = Resource<RawSpec>;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSpec {
    #[serde(default)]
    selector: Option<RawSelector>,
    #[serde(default)]
    target_ref: Option<RawTargetRef>,
    #[serde(default)]
    target_refs: Option<Vec<RawTargetRef>>,
    #[serde(default)]
    rules: Option<Vec<RawRule>>,
    #[serde(default)]
    action: Option<Action>,
    #[serde(default)]
    provider: Option<RawProvider>,
}

#[derive(Deserialize)]
struct RawProvider {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct RawRule {
    #[serde(default, deserialize_with = "list")]
    from: Vec<RawFrom>,
    #[serde(default, deserialize_with = "list")]
    to: Vec<RawTo>,
    #[serde(default, deserialize_with = "list")]
    when: Vec<RawCondition>,
}

#[derive(Deserialize)]
struct RawFrom {
    #[serde(default)]
    source: Option<Source>,
}

#[derive(Deserialize)]
struct RawTo {
    #[serde(default)]
    operation: Option<Operation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    #[serde(default)]
    key: String,
    #[serde(default)]
    values: Option<Vec<String>>,
    #[serde(default)]
    not_values: Option<Vec<String>>,
}

pub(super) fn authorization_policy(
    raw: RawAuthorizationPolicy,
    report: &mut Report<'_>,
) -> AuthorizationPolicy {
    let spec = raw.spec.unwrap_or_default();
    let action = spec.action.unwrap_or_default();
    match (&spec.provider, action) {
        (None, Action::Custom) => {
            report.error(
                Code::MissingField,
                "spec.provider",
                "the action CUSTOM needs a provider",
            );
        }
        (Some(provider), Action::Custom) if provider.name.is_empty() => {
            report.error(
                Code::MissingField,
                "spec.provider.name",
                "a provider needs a name",
            );
        }
        (Some(_), Action::Allow | Action::Deny | Action::Audit) => {
            report.error(
                Code::ConflictingFields,
                "spec.provider",
                "only the action CUSTOM has a provider",
            );
        }
        _ => {}
    }
    let rules = spec.rules.unwrap_or_default().into_iter().enumerate();
    AuthorizationPolicy {
        namespace: report.namespace(),
        name: report.name(),
        created: raw.metadata.creation_timestamp.as_ref().map(|time| time.0),
        target: selector::target(spec.selector, spec.target_ref, spec.target_refs, report),
        action,
        rules: rules.map(|(i, raw)| rule(i, raw, report)).collect(),
        dry_run: dry_run(&raw.metadata, report),
    }
}

fn dry_run(metadata: &ObjectMeta, report: &mut Report<'_>) -> bool {
    let annotation = metadata.annotations.as_ref().and_then(|a| a.get(DRY_RUN));
    let Some(text) = annotation else {
        return false;
    };
    parse_dry_run(text).unwrap_or_else(|| {
        report.error(
            Code::InvalidValue,
            format!("metadata.annotations[\"{DRY_RUN}\"]"),
            format!("{text:?} is neither \"true\" nor \"false\""),
        );
        false
    })
}

/// Every way to write a boolean that Istio takes for one.
pub(crate) fn parse_dry_run(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn rule(i: usize, raw: RawRule, report: &mut Report<'_>) -> Rule {
    let mut rule = Rule::default();
    for (j, from) in raw.from.into_iter().enumerate() {
        let field = format!("spec.rules[{i}].from[{j}].source");
        match from.source {
            Some(source) if source != Source::default() => {
                check_source(&field, &source, report);
                rule.from.push(source);
            }
            _ => report.error(
                Code::InvalidValue,
                field,
                "an empty source; leave it out to mean any",
            ),
        }
    }
    for (j, to) in raw.to.into_iter().enumerate() {
        match to.operation {
            Some(operation) if operation != Operation::default() => rule.to.push(operation),
            _ => report.error(
                Code::InvalidValue,
                format!("spec.rules[{i}].to[{j}].operation"),
                "an empty operation; leave it out to mean any",
            ),
        }
    }
    for (j, when) in raw.when.into_iter().enumerate() {
        let field = format!("spec.rules[{i}].when[{j}]");
        rule.when.extend(condition(&field, &when, report));
    }
    rule
}

fn check_source(field: &str, source: &Source, report: &mut Report<'_>) {
    let others = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ];
    if others.iter().all(|list| list.is_empty()) {
        return;
    }
    for (name, accounts) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ] {
        if !accounts.is_empty() {
            report.error(
                Code::ConflictingFields,
                format!("{field}.{name}"),
                "service accounts cannot be combined with principals or namespaces in one source",
            );
        }
    }
}

fn condition(field: &str, raw: &RawCondition, report: &mut Report<'_>) -> Option<Condition> {
    let attribute = match raw.key.as_str() {
        "source.ip" => Attribute::SourceIp(terms::<IpBlock>(field, raw, report)),
        "source.namespace" => Attribute::SourceNamespace(terms::<Pattern>(field, raw, report)),
        "source.principal" => {
            Attribute::SourcePrincipal(terms::<PrincipalPattern>(field, raw, report))
        }
        "source.serviceAccount" => {
            Attribute::SourceServiceAccount(terms::<AccountName>(field, raw, report))
        }
        "destination.ip" => Attribute::DestinationIp(terms::<IpBlock>(field, raw, report)),
        "destination.port" => Attribute::DestinationPort(terms::<Port>(field, raw, report)),
        key if is_l7(key) => Attribute::L7(terms::<Text>(field, raw, report)),
        key => {
            report.error(
                Code::InvalidValue,
                format!("{field}.key"),
                format!("{key:?} is not a known attribute"),
            );
            return None;
        }
    };
    if raw.values.iter().chain(&raw.not_values).all(Vec::is_empty) {
        report.error(
            Code::MissingField,
            field,
            "a condition needs values or notValues",
        );
    }
    Some(Condition {
        key: raw.key.as_str().into(),
        attribute,
    })
}

fn is_l7(key: &str) -> bool {
    let indexed = |name: &str| {
        key.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
    };
    const PLAIN: [&str; 5] = [
        "connection.sni",
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
    ];
    PLAIN.contains(&key)
        || indexed("request.headers")
        || key.starts_with("request.auth.claims[") && key.ends_with(']')
        || key.starts_with("experimental.envoy.filters.")
}

/// A value that is kept as it is.
struct Text;

impl Parsed for Text {
    type Value = String;

    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

fn terms<P: Parsed>(field: &str, raw: &RawCondition, report: &mut Report<'_>) -> Terms<P::Value> {
    let mut side = |name: &str, list: &Option<Vec<String>>| {
        let mut parsed = Vec::new();
        for (i, text) in list.iter().flatten().enumerate() {
            match P::parse(text) {
                Ok(value) => parsed.push(value),
                Err(message) => {
                    report.error(Code::InvalidValue, format!("{field}.{name}[{i}]"), message)
                }
            }
        }
        parsed
    };
    Terms {
        values: side("values", &raw.values),
        not_values: side("notValues", &raw.not_values),
    }
}
