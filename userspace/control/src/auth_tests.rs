use super::*;

#[test]
fn lines_are_nodes_and_tokens() {
    let text = "# comment\n\nn1 one\n  n2\ttwo  \nbroken\nn3 too many words\n";
    let entries = parse(text, std::path::Path::new("tokens"));
    let pairs: Vec<_> = entries
        .iter()
        .map(|e| (&*e.node, e.token.as_str()))
        .collect();
    assert_eq!(pairs, [("n1", "one"), ("n2", "two")]);
}

#[test]
fn only_bearer_tokens_count() {
    assert_eq!(bearer("Bearer x"), Some("x"));
    assert_eq!(bearer("bearer  x "), Some("x"));
    for header in ["", "Bearer", "Bearer ", "Basic x", "x"] {
        assert_eq!(bearer(header), None, "{header:?}");
    }
}

#[test]
fn tokens_survive_their_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "n1 one\n").unwrap();
    let tokens = JoinTokens::open(file.path()).unwrap();
    assert_eq!(tokens.node_of("one").as_deref(), Some("n1"));
    fs::write(file.path(), "n1 two\n").unwrap();
    assert_eq!(tokens.node_of("one"), None);
    assert_eq!(tokens.node_of("two").as_deref(), Some("n1"));
    fs::remove_file(file.path()).unwrap();
    assert_eq!(tokens.node_of("two").as_deref(), Some("n1"));
    assert!(!format!("{tokens:?}").contains("two"));
    assert!(JoinTokens::open("/nonexistent/tokens").is_err());
}
