//! Where an object and each of its fields was written.

use std::{ops::Deref, path::Path, sync::Arc};

use crate::{Code, Diagnostic, ObjectRef, Severity};

/// Where an object was read: its file and the line of each of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub object: ObjectRef,
    pub file: Arc<Path>,
    lines: Lines,
}

impl Origin {
    pub(crate) fn new(object: ObjectRef, file: Arc<Path>, lines: Lines) -> Self {
        Self {
            object,
            file,
            lines,
        }
    }

    /// The line on which the object begins, counted from 1.
    pub fn line(&self) -> u32 {
        self.lines.line
    }

    /// The line of a field such as `spec.ports[0].port`, or of its nearest parent that was written.
    pub fn line_of(&self, field: &str) -> u32 {
        self.lines.of(field)
    }

    /// The line after which the text of a field begins: that of the field for a block, whose text
    /// is below it, and else the one before.
    pub(crate) fn text_begins_after(&self, field: &str) -> u32 {
        let lines = self.lines.find(field);
        match lines.children {
            Children::Block => lines.line,
            _ => lines.line.saturating_sub(1),
        }
    }

    /// With the lines of what was read from the text of a field.
    pub(crate) fn with_text(mut self, field: &str, lines: Lines) -> Self {
        if let Some(at) = self.lines.find_mut(field) {
            *at = lines;
        }
        self
    }

    /// A diagnostic about a field of this object.
    pub fn diagnostic(
        &self,
        severity: Severity,
        code: Code,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Diagnostic {
        let field = field.into();
        Diagnostic {
            severity,
            code,
            file: self.file.clone(),
            line: self.line_of(&field),
            object: Some(self.object.clone()),
            field,
            message: message.into(),
        }
    }
}

/// An object together with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The line of a value and of everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) line: u32,
    pub(crate) children: Children,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Children {
    #[default]
    None,
    /// A text that begins on the line below its key.
    Block,
    Map(Vec<(Box<str>, Lines)>),
    List(Vec<Lines>),
}

impl Lines {
    /// Of something without parts.
    pub(crate) fn at(line: u32) -> Self {
        Self {
            line,
            children: Children::None,
        }
    }

    pub(crate) fn of(&self, field: &str) -> u32 {
        self.find(field).line
    }

    /// Those of a field, or of its nearest parent that was written.
    fn find(&self, field: &str) -> &Self {
        let mut at = self;
        for step in steps(field) {
            let next = match (&at.children, step) {
                (Children::Map(entries), step) => {
                    entries.iter().find(|(key, _)| **key == *step).map(|e| &e.1)
                }
                (Children::List(items), step) => {
                    step.parse().ok().and_then(|index: usize| items.get(index))
                }
                (Children::None | Children::Block, _) => None,
            };
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        at
    }

    /// Those of a field of objects in objects.
    fn find_mut(&mut self, field: &str) -> Option<&mut Self> {
        steps(field).try_fold(self, |at, step| match &mut at.children {
            Children::Map(entries) => {
                let mut entries = entries.iter_mut();
                entries.find(|(key, _)| **key == *step).map(|e| &mut e.1)
            }
            _ => None,
        })
    }

    /// The same so many lines further down.
    pub(crate) fn moved(mut self, by: u32) -> Self {
        self.line += by;
        self.children = match self.children {
            Children::Map(entries) => {
                let entries = entries.into_iter();
                Children::Map(entries.map(|(key, at)| (key, at.moved(by))).collect())
            }
            Children::List(items) => {
                Children::List(items.into_iter().map(|at| at.moved(by)).collect())
            }
            other => other,
        };
        self
    }
}

/// Splits `a.b[0]["c.d"]` into `a`, `b`, `0`, `c.d`.
fn steps(field: &str) -> impl Iterator<Item = &str> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some((key, after)) = rest.strip_prefix("[\"").and_then(|r| r.split_once("\"]")) {
            rest = after;
            return Some(key);
        }
        if let Some((index, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            rest = after;
            return Some(index);
        }
        let mut chars = rest.char_indices().skip(1);
        let end = chars
            .find(|(_, c)| matches!(c, '.' | '['))
            .map_or(rest.len(), |(i, _)| i);
        let (key, after) = rest.split_at(end);
        rest = after;
        Some(key)
    })
}

/// Appends a key to a field path: `.key`, or `["key"]` when it has dots of its own.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
    if !plain {
        path.push_str(&format!("[\"{key}\"]"));
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_are_taken_apart() {
        let all = |field| steps(field).collect::<Vec<_>>();
        assert_eq!(all("spec.ports[0].port"), ["spec", "ports", "0", "port"]);
        assert_eq!(
            all("m.annotations[\"a.b/c\"]"),
            ["m", "annotations", "a.b/c"]
        );
        assert_eq!(all("a[1][2]"), ["a", "1", "2"]);
        assert!(all("").is_empty());
        // Odd input ends, and never splits inside a character.
        for odd in ["[", "[\"", "é.é", "..", "[é", "]"] {
            assert!((1..=2).contains(&steps(odd).count()), "{odd:?}");
        }
    }
}
