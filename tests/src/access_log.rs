//! Reading a ztunnel's access log.

use std::collections::BTreeMap;

/// One line about a connection that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine {
    pub level: String,
    fields: BTreeMap<String, String>,
    text: String,
}

impl AccessLine {
    /// `None` for a line that is not of the access log.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.splitn(5, '\t');
        let (_, level, target) = (columns.next()?, columns.next()?, columns.next()?);
        if target != "access" {
            return None;
        }
        let message = columns.next()?;
        // A message without fields ends in no tab.
        let rest = columns.next().unwrap_or_default();
        let mut fields = fields(rest);
        fields.insert("message".into(), message.to_owned());
        Some(Self {
            level: level.to_owned(),
            fields,
            text: line.to_owned(),
        })
    }

    /// A field's value without its quotes, such as `src.identity`; empty when absent.
    #[must_use]
    pub fn get(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    /// Whether every one of these fields has this value.
    #[must_use]
    pub fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted
            .iter()
            .all(|(field, value)| self.get(field) == *value)
    }

    /// The line as it stands.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// All lines of the access log among those of a process's output.
#[must_use]
pub fn lines(log: &str) -> Vec<AccessLine> {
    log.lines().filter_map(AccessLine::parse).collect()
}

/// `key=value key="quoted value"`, separated by blanks or tabs.
fn fields(mut text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some((key, rest)) = text.trim_start().split_once('=') {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = rest.find([' ', '\t']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.insert(key.to_owned(), value);
        text = after;
    }
    fields
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_quoted_or_not() {
        let line = "2026-11-20T07:00:00Z\terror\taccess\tconnection complete\t\
                    src.addr=10.244.1.10:40000 src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" \
                    dst.addr=[fd44:2::a]:15008 duration=\"3ms\" error=\"policy \\\"a=b\\\" denied\"";
        let line = AccessLine::parse(line).expect("an access log line");
        assert_eq!(line.level, "error");
        assert!(line.has(&[
            ("message", "connection complete"),
            ("src.addr", "10.244.1.10:40000"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/web"),
            ("dst.addr", "[fd44:2::a]:15008"),
            ("duration", "3ms"),
            ("error", "policy \"a=b\" denied"),
            ("dst.service", ""),
        ]));
    }

    #[test]
    fn other_lines_are_left_out() {
        assert_eq!(
            lines("2026-11-20T07:00:00Z\tinfo\txds\tconnected\nnoise\n"),
            []
        );
    }
}
