//! YAML text into values, with the line of each.
//!
//! A file is cut at its document markers first, so that a syntax error in one document leaves its
//! neighbours alone. Scalars follow the YAML 1.2 core schema, of which JSON is a part.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Number, Value};

use crate::{
    ObjectRef,
    origin::{Children, Lines},
    outline,
};

/// The largest file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 64 << 20;
/// How deep values may nest; Kubernetes' own objects stay below 20.
const MAX_DEPTH: usize = 64;
/// How many values one document may have once its aliases are expanded.
const MAX_VALUES: usize = 1_000_000;

/// A document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) lines: Lines,
}

/// A document that is not YAML, or that breaks a limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// The line in the file, counted from 1.
    pub(crate) line: u32,
    /// The object that the document seems to be.
    pub(crate) object: Option<ObjectRef>,
    pub(crate) message: String,
}

/// Reads every document of a file, each on its own. Empty documents are left out.
pub(crate) fn documents(text: &str) -> Vec<Result<Document, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    split(text)
        .filter_map(|(first_line, part)| {
            let loaded = Loader::new(first_line).load(part).transpose()?;
            Some(loaded.map_err(|error| SyntaxError {
                object: outline::object(part),
                ..error
            }))
        })
        .collect()
}

/// Cuts a file before each line that begins with `---`; in YAML that is a document marker
/// wherever it stands (§9.1.2). Yields each part with the number of lines before it.
fn split(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let is_marker = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let mut cuts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // Directives (`%YAML`) stand before the marker of the document that they are for.
        let directives_only = |from: usize| {
            text[from..offset]
                .lines()
                .all(|l| l.starts_with(['%', '#']) || l.trim().is_empty())
        };
        if is_marker(line) && !cuts.last().is_some_and(|(_, from)| directives_only(*from)) {
            cuts.push((u32::try_from(number).unwrap_or(u32::MAX), offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = cuts
        .iter()
        .skip(1)
        .map(|c| c.1)
        .chain([text.len()])
        .collect();
    cuts.into_iter()
        .zip(ends)
        .map(|((line, from), to)| (line, &text[from..to]))
}

/// A value as built from events.
#[derive(Clone, Debug)]
struct Node {
    value: Value,
    lines: Lines,
    /// How many values it holds, itself included.
    size: usize,
}

/// A collection that is still open.
enum Open {
    List {
        line: u32,
        anchor: usize,
        items: Vec<Node>,
    },
    Map {
        line: u32,
        anchor: usize,
        values: Map<String, Value>,
        lines: Vec<(Box<str>, Lines)>,
        size: usize,
        /// The key that waits for its value, and its line.
        key: Option<(Box<str>, u32)>,
    },
}

struct Loader {
    first_line: u32,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    expanded: usize,
    root: Option<Node>,
}

impl Loader {
    fn new(first_line: u32) -> Self {
        Self {
            first_line,
            open: Vec::new(),
            anchors: HashMap::new(),
            expanded: 0,
            root: None,
        }
    }

    fn load(mut self, text: &str) -> Result<Option<Document>, SyntaxError> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.scan_error(&error))?;
            if matches!(event, Event::DocumentStart(_)) && self.root.is_some() {
                let message = "a second document without a '---' line before it";
                return Err(self.error(self.line(&span), message));
            }
            self.event(event, &span)?;
        }
        Ok(self
            .root
            .filter(|node| !node.value.is_null())
            .map(|node| Document {
                value: node.value,
                lines: node.lines,
            }))
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), SyntaxError> {
        let line = self.line(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(text.as_ref(), style, tag.as_deref())
                    .map_err(|message| self.error(line, message))?;
                self.add(leaf(value, style, line), anchor, Some(&text))
            }
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.error(line, "an alias of something that contains it"));
                };
                node.lines.line = line;
                self.add(node, 0, None)
            }
            Event::SequenceStart(anchor, _) => self.enter(Open::List {
                line,
                anchor,
                items: Vec::new(),
            }),
            Event::MappingStart(anchor, _) => self.enter(Open::Map {
                line,
                anchor,
                values: Map::new(),
                lines: Vec::new(),
                size: 1,
                key: None,
            }),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let (node, anchor) = close(open);
                    self.add(node, anchor, None)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn enter(&mut self, open: Open) -> Result<(), SyntaxError> {
        let (Open::List { line, .. } | Open::Map { line, .. }) = open;
        if self.open.len() >= MAX_DEPTH {
            let message = format!("values nest deeper than {MAX_DEPTH} levels");
            return Err(self.error(line, message));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a finished value where it belongs. `text` is a scalar's own text, for use as a key.
    fn add(
        &mut self,
        mut node: Node,
        anchor: usize,
        text: Option<&str>,
    ) -> Result<(), SyntaxError> {
        self.expanded += node.size;
        if self.expanded > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values; too many aliases?");
            return Err(self.error(node.lines.line, message));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map {
                values,
                lines,
                size,
                key,
                ..
            }) => match key.take() {
                None => {
                    let line = node.lines.line;
                    let Some(text) = text.or(node.value.as_str()) else {
                        return Err(self.error(line, "a key must be a string"));
                    };
                    if values.contains_key(text) {
                        let message = format!("the key {text:?} is given twice");
                        return Err(self.error(line, message));
                    }
                    *key = Some((text.into(), line));
                }
                Some((key, line)) => {
                    // A reader looks for a field at its key, not where a nested value begins.
                    node.lines.line = line;
                    *size += node.size;
                    values.insert(key.to_string(), node.value);
                    lines.push((key, node.lines));
                }
            },
        }
        Ok(())
    }

    fn line(&self, span: &Span) -> u32 {
        u32::try_from(span.start.line()).map_or(u32::MAX, |line| self.first_line + line)
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        let line = u32::try_from(error.marker().line()).unwrap_or(u32::MAX);
        let message = format!("not YAML: {}", error.info());
        self.error(self.first_line + line, message)
    }

    fn error(&self, line: u32, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            line,
            message: message.into(),
            object: None,
        }
    }
}

fn leaf(value: Value, style: ScalarStyle, line: u32) -> Node {
    let children = match style {
        ScalarStyle::Literal => Children::Block,
        _ => Children::None,
    };
    Node {
        value,
        lines: Lines { line, children },
        size: 1,
    }
}

fn close(open: Open) -> (Node, usize) {
    match open {
        Open::List {
            line,
            anchor,
            items,
        } => {
            let size = 1 + items.iter().map(|node| node.size).sum::<usize>();
            let (values, lines) = items.into_iter().map(|n| (n.value, n.lines)).unzip();
            let lines = Lines {
                line,
                children: Children::List(lines),
            };
            let value = Value::Array(values);
            (Node { value, lines, size }, anchor)
        }
        Open::Map {
            line,
            anchor,
            values,
            lines,
            size,
            ..
        } => {
            let lines = Lines {
                line,
                children: Children::Map(lines),
            };
            let value = Value::Object(values);
            (Node { value, lines, size }, anchor)
        }
    }
}

/// A scalar by the core schema (YAML 1.2.2 §10.3.2).
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
            return Ok(Value::String(text.to_owned()));
        }
        Some(tag) if !tag.is_yaml_core_schema() => {
            return Err(format!(
                "the tag {}{} means nothing here",
                tag.handle, tag.suffix
            ));
        }
        _ => {}
    }
    if style != ScalarStyle::Plain {
        return Ok(Value::String(text.to_owned()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    })
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().map(Number::from);
    }
    if let Ok(integer) = text.parse::<i64>() {
        return Some(integer.into());
    }
    if let Ok(integer) = text.parse::<u64>() {
        return Some(integer.into());
    }
    let float_chars = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    if !digits.chars().all(float_chars) || digits == "." {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
