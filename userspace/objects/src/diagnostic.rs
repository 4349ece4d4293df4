//! What is wrong with a configuration, and where.

use std::{fmt, path::Path, sync::Arc};

use serde::{Serialize, Serializer};
use sluice_model::Name;

use crate::Code;

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is not applied; its last good version stays.
    Error,
    /// The object is applied, but surely not as its author meant.
    Warning,
    /// Nothing is wrong; something was left out on purpose.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// Names an object: `KIND NAMESPACE/NAME`, or `KIND NAME` for one without a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    pub kind: Name,
    /// Empty for an object that lives in no namespace.
    pub namespace: Name,
    pub name: Name,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        if namespace.is_empty() {
            write!(f, "{kind} {name}")
        } else {
            write!(f, "{kind} {namespace}/{name}")
        }
    }
}

impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that is wrong, displayed as `FILE:LINE: KIND NAMESPACE/NAME: FIELD: MESSAGE [CODE]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// What kind of mistake it is.
    pub code: Code,
    #[serde(serialize_with = "serialize_path")]
    pub file: Arc<Path>,
    /// Counted from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// Absent when the text does not even say which object it is.
    pub object: Option<ObjectRef>,
    /// The path within the object, `spec.ports[0].port`; empty when the object as a whole is meant.
    pub field: String,
    pub message: String,
}

impl Diagnostic {
    /// Where it is: `FILE:LINE`.
    pub fn place(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            write!(f, "{}", self.file.display())?;
            match self.line {
                0 => Ok(()),
                line => write!(f, ":{line}"),
            }
        })
    }

    /// What it is: `KIND NAMESPACE/NAME: FIELD: MESSAGE [CODE]`.
    pub fn statement(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            if let Some(object) = &self.object {
                write!(f, "{object}: ")?;
            }
            if !self.field.is_empty() {
                write!(f, "{}: ", self.field)?;
            }
            write!(f, "{} [{}]", self.message, self.code)
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.statement())
    }
}

/// Writes a path as it is displayed: one that is not UTF-8 must not hide what is said about it.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Orders diagnostics as a reader meets them: by file, then by line.
pub fn sort(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
}
