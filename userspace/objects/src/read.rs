//! A file's text into objects.

use std::{path::Path, sync::Arc};

use serde_json::Value;
use sluice_model::Name;

use crate::{
    Code, Diagnostic, Kind, ObjectRef, Origin, Severity,
    kinds::{self, Object},
    memory,
    origin::{Children, Lines},
    yaml::{self, SyntaxError},
};

/// The namespace of an object that names none; every cluster has it.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Every object whose name could be read, in the order of the file.
    pub(crate) items: Vec<Item>,
    /// Some text did not even say which object it is.
    pub(crate) incomplete: bool,
    /// Policies that such text seems to be.
    pub(crate) guessed: Vec<Broken>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Contents {
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            items,
            incomplete,
            guessed,
            diagnostics,
        } = self;
        items.is_empty() && !incomplete && guessed.is_empty() && diagnostics.is_empty()
    }
}

/// An object of a file.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) origin: Origin,
    /// `None` when it cannot be applied as it is written.
    pub(crate) object: Option<Object>,
    /// As it is written, of kinds that are remembered.
    pub(crate) text: Option<Arc<Value>>,
}

/// A policy that cannot be applied as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    /// Absent when the text is not even YAML.
    pub(crate) text: Option<Arc<Value>>,
}

/// Reads a file's text.
pub(crate) fn read(file: &Arc<Path>, text: &str) -> Contents {
    let mut reader = Reader {
        file,
        contents: Contents::default(),
    };
    for document in yaml::documents(text) {
        match document {
            Ok(document) => reader.document(&document.value, document.lines),
            Err(error) => reader.broken(error),
        }
    }
    reader.contents
}

/// A file that could not be read at all: whatever it held before still counts.
pub(crate) fn unreadable(file: &Arc<Path>, message: String) -> Contents {
    let mut reader = Reader {
        file,
        contents: Contents::default(),
    };
    reader.nameless(Code::UnreadableFile, 0, "", message);
    reader.contents
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    contents: Contents,
}

impl Reader<'_> {
    fn document(&mut self, value: &Value, lines: Lines) {
        let Some(map) = value.as_object() else {
            return self.nameless(
                Code::NotAnObject,
                lines.line,
                "",
                "not an object: it has no fields",
            );
        };
        let text = |field: &str| map.get(field).and_then(Value::as_str);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let missing = ["apiVersion", "kind"]
                .into_iter()
                .find(|f| text(f).is_none());
            let missing = missing.unwrap_or_default();
            return self.nameless(
                Code::NotAnObject,
                lines.of(missing),
                missing,
                "an object needs it, as a string",
            );
        };
        if (api_version, kind) == ("v1", "List") {
            return self.list(value, lines);
        }
        let reference = reference(kind, value);
        match classify(api_version, kind) {
            // All others are applications' own.
            Class::Read(Kind::ConfigMap) if !kinds::is_mesh_config(&reference) => {
                let message = "a ConfigMap but that of the mesh, istio, is not read";
                self.about(
                    (Severity::Info, Code::UnusedKind),
                    &lines,
                    reference,
                    "",
                    message.into(),
                );
            }
            Class::Read(kind) => self.object(kind, reference, value, lines),
            Class::Known => {
                let message = format!("{api_version} {kind} is not a kind that Sluice reads");
                self.about(
                    (Severity::Info, Code::UnusedKind),
                    &lines,
                    reference,
                    "",
                    message,
                );
            }
            Class::Unsupported => {
                let message = format!("{api_version} {kind} is not supported: it has no effect");
                self.about(
                    (Severity::Warning, Code::UnsupportedKind),
                    &lines,
                    reference,
                    "",
                    message,
                );
            }
            Class::WrongVersion(versions) => {
                let message = format!("{api_version:?} has no {kind}; use {versions}");
                self.guess(reference.clone(), lines.clone(), Some(value));
                self.about(
                    (Severity::Error, Code::UnknownVersion),
                    &lines,
                    reference,
                    "apiVersion",
                    message,
                );
                self.contents.incomplete = true;
            }
            Class::Unknown => {
                let message = format!("{kind:?} is not a kind of {api_version}");
                self.about(
                    (Severity::Error, Code::UnknownKind),
                    &lines,
                    reference,
                    "kind",
                    message,
                );
                self.contents.incomplete = true;
            }
        }
    }

    fn list(&mut self, value: &Value, lines: Lines) {
        let items = value.get("items").and_then(Value::as_array);
        let children = match lines.children {
            Children::Map(entries) => entries.into_iter().find(|(key, _)| **key == *"items"),
            Children::List(_) | Children::Block | Children::None => None,
        };
        match (items, children.map(|(_, lines)| lines.children)) {
            (Some(items), Some(Children::List(lines))) => {
                for (item, lines) in items.iter().zip(lines) {
                    self.document(item, lines);
                }
            }
            _ => self.nameless(Code::NotAnObject, lines.line, "items", "a List needs items"),
        }
    }

    fn object(&mut self, kind: Kind, reference: ObjectRef, value: &Value, lines: Lines) {
        if reference.name.is_empty() {
            let message = format!("a {kind} needs a name");
            return self.nameless(
                Code::NotAnObject,
                lines.of("metadata.name"),
                "metadata.name",
                message,
            );
        }
        let origin = Origin::new(reference, self.file.clone(), lines);
        let (object, diagnostics) = kinds::parse(kind, value, origin.clone());
        self.contents.diagnostics.extend(diagnostics);
        let text = memory::remembered(kind.name()).map(|_| Arc::new(value.clone()));
        self.contents.items.push(Item {
            origin,
            object,
            text,
        });
    }

    /// Reports text that is not YAML.
    fn broken(&mut self, error: SyntaxError) {
        self.nameless(Code::InvalidYaml, error.line, "", error.message);
        if let Some(diagnostic) = self.contents.diagnostics.last_mut() {
            diagnostic.object = error.object.clone();
        }
        if let Some(object) = error.object {
            let lines = Lines {
                line: error.line,
                ..Lines::default()
            };
            self.guess(object, lines, None);
        }
    }

    fn guess(&mut self, mut object: ObjectRef, lines: Lines, value: Option<&Value>) {
        let Some(kind) = memory::remembered(&object.kind).filter(|_| !object.name.is_empty())
        else {
            return;
        };
        if object.namespace.is_empty() {
            object.namespace = DEFAULT_NAMESPACE.into();
        }
        self.contents.guessed.push(Broken {
            kind,
            origin: Origin::new(object, self.file.clone(), lines),
            text: value.cloned().map(Arc::new),
        });
    }

    /// Reports text that does not say which object it is.
    fn nameless(&mut self, code: Code, line: u32, field: &str, message: impl Into<String>) {
        self.contents.incomplete = true;
        self.contents.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            code,
            file: self.file.clone(),
            line,
            object: None,
            field: field.to_owned(),
            message: message.into(),
        });
    }

    fn about(
        &mut self,
        (severity, code): (Severity, Code),
        lines: &Lines,
        object: ObjectRef,
        field: &str,
        message: String,
    ) {
        self.contents.diagnostics.push(Diagnostic {
            severity,
            code,
            file: self.file.clone(),
            line: lines.of(field),
            object: Some(object),
            field: field.to_owned(),
            message,
        });
    }
}

/// Which object a value says it is.
pub(crate) fn reference(kind: &str, value: &Value) -> ObjectRef {
    let metadata = |field: &str| -> Option<Name> {
        let text = value.get("metadata")?.get(field)?.as_str()?;
        Some(text.into())
    };
    let namespaced = is_namespaced(kind);
    ObjectRef {
        kind: kind.into(),
        namespace: match metadata("namespace") {
            Some(namespace) if namespaced => namespace,
            None if namespaced => DEFAULT_NAMESPACE.into(),
            _ => "".into(),
        },
        name: metadata("name").unwrap_or_default(),
    }
}

/// Whether objects of a kind live in a namespace, as most kinds that are not known do.
pub(crate) fn is_namespaced(kind: &str) -> bool {
    by_name(kind).is_none_or(Kind::is_namespaced)
}

fn by_name(kind: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|known| known.name() == kind)
}

/// What is done with objects of an API version and kind.
enum Class {
    Read(Kind),
    /// A well-known kind that is none of the mesh's business.
    Known,
    /// A kind that should change what the mesh does, but cannot yet.
    Unsupported,
    /// A kind that is read, in a version that does not exist. Holds those that do.
    WrongVersion(String),
    Unknown,
}

/// Kinds of the core group besides those that are read.
const CORE: &[&str] = &[
    "Binding",
    "ComponentStatus",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
];

/// Groups whose objects say what a mesh does with traffic.
const MESH_GROUPS: &[&str] = &[
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "telemetry.istio.io",
];

fn classify(api_version: &str, kind: &str) -> Class {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    if let Some(known) = by_name(kind) {
        if known.api_versions().contains(&api_version) {
            return Class::Read(known);
        }
        let own_group = known.api_versions()[0]
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        // Other groups have a Service too, but nobody else has Istio's kinds.
        if group == own_group || !group.contains('.') || own_group.ends_with(".istio.io") {
            return Class::WrongVersion(known.api_versions().join(" or "));
        }
        return Class::Known;
    }
    match group {
        "" if api_version == "v1" && CORE.contains(&kind) => Class::Known,
        "" => Class::Unknown,
        "security.istio.io" if kind == "RequestAuthentication" => Class::Unsupported,
        "security.istio.io" | "discovery.k8s.io" => Class::Unknown,
        group if MESH_GROUPS.contains(&group) => Class::Unsupported,
        _ => Class::Known,
    }
}
