//! Which namespaces see a service.

use std::collections::BTreeMap;

use sluice_model::Name;

use crate::{Code, report::Report};

/// Which namespaces see a service (`exportTo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExportTo {
    #[default]
    Everybody,
    OwnNamespace,
}

const ANNOTATION: &str = "networking.istio.io/exportTo";

/// From the annotation of a Service: names separated by commas.
pub(super) fn annotated(
    annotations: Option<&BTreeMap<String, String>>,
    report: &mut Report<'_>,
) -> ExportTo {
    let Some(text) = annotations.and_then(|annotations| annotations.get(ANNOTATION)) else {
        return ExportTo::default();
    };
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let field = format!("metadata.annotations[\"{ANNOTATION}\"]");
    export_to(&names, |_| field.clone(), &field, report)
}

/// From the list in a spec.
pub(super) fn listed(names: &[String], report: &mut Report<'_>) -> ExportTo {
    let item = |i| format!("spec.exportTo[{i}]");
    export_to(names, item, "spec.exportTo", report)
}

fn export_to(
    names: &[String],
    item: impl Fn(usize) -> String,
    whole: &str,
    report: &mut Report<'_>,
) -> ExportTo {
    let mut all: Vec<Name> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        all.push(match name.as_str() {
            "." => report.namespace(),
            "*" | "~" => name.as_str().into(),
            _ => report.dns_name(item(i), name),
        });
    }
    let special = |name: &Name| matches!(&**name, "*" | "~");
    if all.len() > 1 && all.iter().any(special) {
        let message = "\"*\" (everybody) and \"~\" (nobody) stand alone";
        report.error(Code::ConflictingFields, whole, message);
        return ExportTo::default();
    }
    let own = report.namespace();
    match all.as_slice() {
        [] => ExportTo::Everybody,
        [name] if **name == *"*" => ExportTo::Everybody,
        [name] if **name == *"~" => {
            let message = "it cannot be hidden from its own namespace: taken as \".\"";
            report.warning(Code::UnsupportedValue, whole, message);
            ExportTo::OwnNamespace
        }
        names if names.iter().all(|name| *name == own) => ExportTo::OwnNamespace,
        _ if report.has_errors() => ExportTo::default(),
        _ => {
            let message = "a list of namespaces is not supported: every namespace sees it";
            report.warning(Code::UnsupportedValue, whole, message);
            ExportTo::Everybody
        }
    }
}
