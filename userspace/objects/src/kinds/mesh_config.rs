//! Istio's settings of the whole mesh: YAML in a string of the ConfigMap `istio`.

use k8s_openapi::api::core::v1 as raw;
use serde_json::{Map, Value};
use sluice_model::{Name, TrustDomain};

use super::outbound::{self, OutboundPolicy};
use crate::{Code, ObjectRef, Origin, origin::Lines, report::Report, yaml};

/// The key of the ConfigMap that holds the settings.
const KEY: &str = "mesh";
/// The field that they are in.
const FIELD: &str = "data.mesh";

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    pub namespace: Name,
    pub outbound: Option<OutboundPolicy>,
    /// Trust domains that are one with the mesh's own.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Both are set where the control plane is started; here they can only be contradicted.
    pub trust_domain: Option<Name>,
    pub root_namespace: Option<Name>,
}

/// Whether a ConfigMap is the one with the settings.
pub(crate) fn is_mesh_config(object: &ObjectRef) -> bool {
    &*object.name == "istio"
}

/// The settings, taken out of their string.
pub(super) enum Text {
    Settings(Map<String, Value>),
    Broken(String),
}

/// Reads the text within the object, and makes the lines of its fields known to the origin.
pub(super) fn open(value: &Value, origin: Origin) -> (Text, Origin) {
    let text = value.get("data").and_then(|data| data.get(KEY));
    let text = text.and_then(Value::as_str).unwrap_or_default();
    let before = origin.text_begins_after(FIELD);
    let mut documents = yaml::documents(text).into_iter();
    let (settings, lines) = match (documents.next(), documents.next()) {
        (None, _) => return (Text::Settings(Map::new()), origin),
        (Some(Err(error)), _) => (Text::Broken(error.message), Lines::at(error.line)),
        (Some(Ok(document)), Some(_)) => (
            Text::Broken("more than one document".into()),
            document.lines,
        ),
        (Some(Ok(document)), None) => match document.value {
            Value::Object(settings) => (Text::Settings(settings), document.lines),
            _ => (Text::Broken("it has no fields".into()), document.lines),
        },
    };
    (settings, origin.with_text(FIELD, lines.moved(before)))
}

pub(super) fn mesh_config(raw: raw::ConfigMap, text: Text, report: &mut Report<'_>) -> MeshConfig {
    if !raw.data.is_some_and(|data| data.contains_key(KEY)) {
        let message = "the ConfigMap istio needs this key, with the settings of the mesh";
        report.error(Code::MissingField, FIELD, message);
    }
    let mut settings = match text {
        Text::Settings(settings) => Settings(settings),
        Text::Broken(message) => {
            report.error(Code::InvalidYaml, FIELD, message);
            Settings(Map::new())
        }
    };
    let config = MeshConfig {
        namespace: report.namespace(),
        outbound: settings.outbound(report),
        trust_domain_aliases: settings.aliases(report),
        trust_domain: settings.name("trustDomain", report),
        root_namespace: settings.name("rootNamespace", report),
    };
    let rest: Vec<&str> = settings.0.keys().map(String::as_str).collect();
    if !rest.is_empty() {
        report.info(
            Code::UnusedSetting,
            FIELD,
            format!("not read: {}", rest.join(", ")),
        );
    }
    config
}

/// The settings that have not been read yet.
struct Settings(Map<String, Value>);

impl Settings {
    /// Takes a setting, with its field; one that is null is not there.
    fn take(&mut self, name: &str) -> Option<(String, Value)> {
        let value = self.0.remove(name).filter(|value| !value.is_null())?;
        Some((format!("{FIELD}.{name}"), value))
    }

    fn name(&mut self, name: &str, report: &mut Report<'_>) -> Option<Name> {
        let (field, value) = self.take(name)?;
        if value.as_str().is_none() {
            report.error(Code::InvalidValue, field, "not a string");
        }
        value.as_str().map(Name::from)
    }

    fn outbound(&mut self, report: &mut Report<'_>) -> Option<OutboundPolicy> {
        let (field, value) = self.take("outboundTrafficPolicy")?;
        let Value::Object(policy) = value else {
            report.error(
                Code::InvalidValue,
                field,
                "not an object; it has the field mode",
            );
            return None;
        };
        for unknown in policy.keys().filter(|key| *key != "mode") {
            report.error(
                Code::UnknownField,
                format!("{field}.{unknown}"),
                "unknown field",
            );
        }
        let field = format!("{field}.mode");
        match policy.get("mode")? {
            Value::String(text) => outbound::mode(&field, text, report),
            other => outbound::mode(&field, &other.to_string(), report),
        }
    }

    fn aliases(&mut self, report: &mut Report<'_>) -> Vec<TrustDomain> {
        let Some((field, value)) = self.take("trustDomainAliases") else {
            return Vec::new();
        };
        let Value::Array(items) = value else {
            report.error(Code::InvalidValue, field, "not a list of trust domains");
            return Vec::new();
        };
        let mut aliases = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let alias = item.as_str().and_then(|text| text.parse().ok());
            if alias.is_none() {
                let message = format!("{item} is not a trust domain, such as cluster.local");
                report.error(Code::InvalidValue, format!("{field}[{i}]"), message);
            }
            aliases.extend(alias);
        }
        aliases
    }
}
