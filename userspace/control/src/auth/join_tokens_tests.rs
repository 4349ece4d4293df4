use super::*;

fn node(tokens: &JoinTokens, token: &str) -> Option<Name> {
    tokens
        .node_of(token)
        .unwrap_or_else(|Refusal(why)| panic!("{why}"))
}

#[test]
fn lines_are_nodes_and_tokens() {
    let text = "# comment\n\nn1 one\n  n2\ttwo  \nbroken\nn3 three tomorrow\nn3 too many words\n\
                n4 four 2030-01-31T12:00:00Z\n";
    let entries = parse(text, Path::new("tokens"));
    let all: Vec<_> = entries
        .iter()
        .map(|e| (&*e.node, e.token.as_str(), e.expires.map(|t| t.to_string())))
        .collect();
    let time = Some("2030-01-31T12:00:00Z".to_owned());
    assert_eq!(
        all,
        [
            ("n1", "one", None),
            ("n2", "two", None),
            ("n4", "four", time)
        ]
    );
}

#[test]
fn a_token_counts_until_it_expires() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "n1 one 2030-01-31T12:00:00+01:00\n").unwrap();
    let tokens = JoinTokens::open(file.path()).unwrap();
    let at = |time: &str| tokens.at("one", time.parse().unwrap());
    assert_eq!(
        at("2030-01-31T10:59:59Z").ok().flatten().as_deref(),
        Some("n1")
    );
    let Err(Refusal(why)) = at("2030-01-31T11:00:00Z") else {
        panic!("still counts")
    };
    assert_eq!(
        why,
        "its join token, of node n1, expired at 2030-01-31T11:00:00Z"
    );
    // Prolonged by another line.
    fs::write(
        file.path(),
        "n1 one 2030-01-31T11:00:00Z\nn1 one 2031-01-01T00:00:00Z\n",
    )
    .unwrap();
    assert_eq!(
        at("2030-06-01T00:00:00Z").ok().flatten().as_deref(),
        Some("n1")
    );
}

#[test]
fn tokens_survive_their_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "n1 one\n").unwrap();
    let tokens = JoinTokens::open(file.path()).unwrap();
    assert_eq!(node(&tokens, "one").as_deref(), Some("n1"));
    fs::write(file.path(), "n1 two\n").unwrap();
    assert_eq!(node(&tokens, "one"), None);
    assert_eq!(node(&tokens, "two").as_deref(), Some("n1"));
    fs::remove_file(file.path()).unwrap();
    assert_eq!(node(&tokens, "two").as_deref(), Some("n1"));
    assert!(!format!("{tokens:?}").contains("two"));
    assert!(JoinTokens::open("/nonexistent/tokens").is_err());
}
