//! Which object a text is about that is no YAML.

use crate::{
    ObjectRef,
    read::{self, DEFAULT_NAMESPACE},
};

/// Guesses from lines alone, so that whoever reads the error knows what to mend, and that nothing
/// is let in for the lack of a policy. `None` when the text does not look like an object.
pub(crate) fn object(text: &str) -> Option<ObjectRef> {
    let (mut kind, mut namespace, mut name) = (None, None, None);
    // How far the fields of `metadata` are indented, while its lines last.
    let mut metadata = None;
    for line in text.lines() {
        let field = line.trim_start();
        if field.is_empty() || field.starts_with(['#', '-']) {
            continue;
        }
        let indent = line.len() - field.len();
        if indent == 0 {
            metadata = field.starts_with("metadata:").then_some(None);
            let named = value(field, "kind");
            if kind.is_some() && named.is_some() {
                // Here another object begins, without a document marker before it.
                break;
            }
            kind = kind.or(named);
            // All on one line: `metadata: {name: web, namespace: shop}`.
            for entry in field
                .strip_prefix("metadata:")
                .iter()
                .flat_map(|rest| flow(rest))
            {
                namespace = namespace.or_else(|| value(entry, "namespace"));
                name = name.or_else(|| value(entry, "name"));
            }
        } else if let Some(children) = &mut metadata
            && *children.get_or_insert(indent) == indent
        {
            namespace = namespace.or_else(|| value(field, "namespace"));
            name = name.or_else(|| value(field, "name"));
        }
    }
    let kind = kind?;
    let namespace = match namespace {
        Some(namespace) => namespace,
        None if read::is_namespaced(kind) => DEFAULT_NAMESPACE,
        None => "",
    };
    Some(ObjectRef {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name?.into(),
    })
}

/// The entries of a flow mapping.
fn flow(text: &str) -> impl Iterator<Item = &str> {
    let entries = text.trim_start().strip_prefix('{').unwrap_or_default();
    entries.split([',', '}']).map(str::trim)
}

fn value<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    let value = line.strip_prefix(field)?.strip_prefix(':')?;
    let value = value.split(" #").next()?.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &str) -> Option<String> {
        object(text).map(|object| object.to_string())
    }

    #[test]
    fn the_object_is_named_wherever_the_text_breaks() {
        let text = "apiVersion: v1\nkind: Service # of the shop\nmetadata:\n  labels:\n    name: x\n  \
                    name: \"web\"\n  namespace: shop\nspec: [\n";
        assert_eq!(guess(text).as_deref(), Some("Service shop/web"));
        let text =
            "kind: Pod\nmetadata: {labels: {app: a}, name: web, namespace: shop}\nspec: {[\n";
        assert_eq!(guess(text).as_deref(), Some("Pod shop/web"));
        let text = "metadata:\n- broken\n  name: web\nkind: Namespace\nspec: }\n";
        assert_eq!(guess(text).as_deref(), Some("Namespace web"));
        let text = "kind: Service\nmetadata:\n  name: web\nspec: [\n";
        assert_eq!(guess(text).as_deref(), Some("Service default/web"));
        let text = "kind: Service\nmetadata: {name: a}\nkind: Pod\nmetadata:\n  name: x\n";
        assert_eq!(guess(text).as_deref(), Some("Service default/a"));
    }

    #[test]
    fn what_names_nothing_is_not_guessed() {
        for text in [
            "",
            "\t{",
            "kind: Service\n",
            "metadata:\n  name: x\n",
            "spec:\n  name: x\n",
        ] {
            assert_eq!(guess(text), None, "{text:?}");
        }
    }
}
