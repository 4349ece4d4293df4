//! Errors for people.

/// An error and its causes in one line. Many errors show their cause themselves; it is not said
/// twice.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::anyhow;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file: {0}")]
    struct ShowsItsCause(#[source] io::Error);

    #[test]
    fn no_cause_is_said_twice() {
        let error = ShowsItsCause(io::Error::other("it is gone"));
        let error = anyhow!(error).context("start");
        assert_eq!(one_line(&error), "start: cannot read the file: it is gone");
        let error = anyhow!("it is gone").context("read the file");
        assert_eq!(one_line(&error), "read the file: it is gone");
    }
}
