//! Metrics as a scraper reads them.

use std::collections::BTreeMap;

/// One line of the Prometheus text format.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// The samples in a text; comments, and what cannot be read, are left out.
#[must_use]
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (name, labels, value) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = rest.rsplit_once('}')?;
            (name, labels, value)
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            (name, "", value)
        }
    };
    // A sample may be followed by a timestamp.
    let value = value.split_whitespace().next()?.parse().ok()?;
    // No value of ours holds a quote or a comma.
    let pair = |pair: &str| {
        let (label, value) = pair.split_once('=')?;
        Some((label.to_owned(), value.trim_matches('"').to_owned()))
    };
    Some(Sample {
        name: name.to_owned(),
        labels: labels.split(',').filter_map(pair).collect(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let text = "# TYPE opened counter\nopened_total{reporter=\"source\",flags=\"-\"} 3\nup 1\n";
        let [opened, up] = &parse(text)[..] else {
            panic!("two samples")
        };
        assert_eq!((opened.name.as_str(), opened.value), ("opened_total", 3.0));
        assert_eq!(opened.labels["reporter"], "source");
        assert_eq!(opened.labels["flags"], "-");
        assert_eq!((up.name.as_str(), up.labels.len()), ("up", 0));
    }
}
