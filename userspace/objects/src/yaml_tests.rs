use serde_json::json;

use super::*;

fn values(text: &str) -> Vec<Value> {
    documents(text)
        .into_iter()
        .map(|document| document.unwrap().value)
        .collect()
}

fn error(text: &str) -> SyntaxError {
    documents(text)
        .into_iter()
        .find_map(Result::err)
        .unwrap_or_else(|| panic!("{text:?} parsed"))
}

#[test]
fn scalars_follow_the_core_schema() {
    for (text, expected) in [
        ("a: 1", json!({"a": 1})),
        ("a: '1'", json!({"a": "1"})),
        ("a: -7", json!({"a": -7})),
        ("a: 0x10", json!({"a": 16})),
        ("a: 0o17", json!({"a": 15})),
        ("a: 1.5", json!({"a": 1.5})),
        ("a: 10.0.0.1", json!({"a": "10.0.0.1"})),
        (
            "a: 18446744073709551615",
            json!({"a": 18_446_744_073_709_551_615_u64}),
        ),
        ("a: true", json!({"a": true})),
        ("a: yes", json!({"a": "yes"})),
        ("a:", json!({"a": null})),
        ("a: ~", json!({"a": null})),
        ("a: '~'", json!({"a": "~"})),
        ("a: !!str 5", json!({"a": "5"})),
        (
            "a: 2024-01-01T00:00:00Z",
            json!({"a": "2024-01-01T00:00:00Z"}),
        ),
        ("a: .", json!({"a": "."})),
        ("a: inf", json!({"a": "inf"})),
        ("8080: x", json!({"8080": "x"})),
        (r#"{"a": [1, "b", null]}"#, json!({"a": [1, "b", null]})),
        ("a: &x {b: 1}\nc: *x", json!({"a": {"b": 1}, "c": {"b": 1}})),
        ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
    ] {
        assert_eq!(values(text), [expected], "{text}");
    }
}

#[test]
fn documents_are_separate_and_empty_ones_left_out() {
    assert_eq!(
        values("---\n# nothing\n---\na: 1\n---\n---\na: 2\n").len(),
        2
    );
    assert_eq!(values("%YAML 1.2\n---\na: 1\n").len(), 1);
    assert_eq!(values("\u{feff}a: 1\r\n---\r\nb: 2\r\n").len(), 2);
    assert!(values("").is_empty());
    assert!(values("# only a comment\n").is_empty());
}

#[test]
fn a_syntax_error_spoils_only_its_document() {
    let all = documents("a: 1\n---\nb: [1,\n---\nc: 3\n");
    let good: Vec<bool> = all.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true]);
    assert_eq!(all[2].as_ref().unwrap().lines.of("c"), 5);
}

#[test]
fn every_field_has_its_line() {
    let text = "# comment\nspec:\n  ports:\n  - port: 80\n    name: http\n  - {port: 81}\n";
    let document = documents(text).remove(0).unwrap();
    for (field, line) in [
        ("", 2),
        ("spec", 2),
        ("spec.ports", 3),
        ("spec.ports[0]", 4),
        ("spec.ports[0].name", 5),
        ("spec.ports[1].port", 6),
        // What was not written is found at its nearest parent.
        ("spec.ports[1].protocol", 6),
        ("spec.ports[9]", 3),
        ("status.podIP", 2),
    ] {
        assert_eq!(document.lines.of(field), line, "{field}");
    }
}

#[test]
fn broken_text_names_its_line() {
    for (text, line, words) in [
        ("a: 1\nb: [1\nc: 2\n", 3, "not YAML"),
        ("a: 1\n---\nb: 1\n b: 2\n", 4, "not YAML"),
        ("a: 1\na: 2\n", 2, "given twice"),
        ("a:\n  ? [x]\n  : 1\n", 2, "key must be a string"),
        ("a: &x [*x]\n", 1, ""),
        ("a: !thing 5\n", 1, "tag"),
        ("a: {b: 'x}\n", 1, "not YAML"),
    ] {
        let error = error(text);
        assert_eq!(error.line, line, "{text:?}: {}", error.message);
        assert!(error.message.contains(words), "{text:?}: {}", error.message);
    }
}

#[test]
fn limits_hold() {
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    assert!(error(&deep).message.contains("deeper"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(error(&bomb).message.contains("too many aliases"));
}

#[test]
fn garbage_never_panics() {
    for text in [
        "\0", "---", "--- |", "- - - -", "{", "}", ": :", "&a", "*a", "? ?", "!", "%", "\t", "'",
        "\"\\x", "a: *b", "é: [é", "<<: *a",
    ] {
        let _ = documents(text);
    }
}
