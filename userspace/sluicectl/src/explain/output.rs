//! An explanation for people.

use std::fmt::Write as _;

use sluice_explain::{End, Explanation, Outcome, PolicyView, RuleView};

/// As many ends of which the same is to be said are shown one by one. Of more, it is said of the first.
const EACH: usize = 3;
/// And so many of the others are named.
const NAMED: usize = 5;
/// What begins a line, so that what follows is below each other.
const MARGIN: usize = 12;

pub(super) fn text(said: &Explanation) -> String {
    let mut text = String::new();
    let Explanation {
        source,
        destination,
        outcome,
        reason,
        steps,
        ends,
    } = said;
    let _ = writeln!(text, "{source} -> {destination}\n");
    for step in steps {
        line(&mut text, &step.step.to_string(), &step.says);
    }
    for group in alike(ends) {
        let shown = if group.len() > EACH { 1 } else { group.len() };
        let (shown, others) = group.split_at(shown);
        text.extend(shown.iter().map(|end| arrival(end)));
        if !others.is_empty() {
            line(&mut text, "likewise", &likewise(others));
        }
    }
    let _ = writeln!(text, "\n{}: {reason}", verdict(*outcome));
    text
}

fn verdict(outcome: Outcome) -> String {
    outcome.to_string().to_uppercase()
}

fn line(text: &mut String, head: &str, says: &str) {
    let _ = writeln!(text, "  {head:MARGIN$} {says}");
}

/// Ends of which the same is to be said, together, in the order of the first of each.
fn alike(ends: &[End]) -> Vec<Vec<&End>> {
    let mut groups: Vec<Vec<&End>> = Vec::new();
    for end in ends {
        let like = |other: &End| {
            (other.outcome, &other.reason) == (end.outcome, &end.reason)
                && (&other.mtls, &other.policies) == (&end.mtls, &end.policies)
        };
        match groups.iter_mut().find(|group| like(group[0])) {
            Some(group) => group.push(end),
            None => groups.push(vec![end]),
        }
    }
    groups
}

fn likewise(others: &[&End]) -> String {
    let mut names: Vec<&str> = others.iter().map(|end| &*end.workload).collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let mut says = format!("{} others: {}", others.len(), names.join(", "));
    if more > 0 {
        let _ = write!(says, ", and {more} more (-o json has all)");
    }
    says
}

fn arrival(end: &End) -> String {
    let mut text = String::new();
    let End {
        workload,
        address,
        outcome,
        reason,
        steps,
        mtls,
        policies,
    } = end;
    let at = address.map_or_else(String::new, |address| format!(" at {address}"));
    let _ = writeln!(text, "\nto {workload}{at}");
    for step in steps {
        line(&mut text, &step.step.to_string(), &step.says);
    }
    if let Some(mtls) = mtls {
        let says = format!("{} on port {}, from {}", mtls.mode, mtls.port, mtls.from);
        line(&mut text, "mutual TLS", &says);
    }
    for policy in policies {
        text += &of_policy(policy);
    }
    // Some reasons say it themselves.
    let outcome = Some(outcome.to_string()).filter(|outcome| !reason.starts_with(outcome));
    let verdict = [outcome.as_deref(), Some(reason)];
    let verdict: Vec<&str> = verdict.into_iter().flatten().collect();
    line(&mut text, "verdict", &verdict.join(": "));
    text
}

fn of_policy(policy: &PolicyView) -> String {
    let mut text = String::new();
    let PolicyView {
        policy: name,
        action,
        scope,
        dry_run,
        decides,
        rules,
    } = policy;
    let marks = [(*dry_run, ", in dry run"), (*decides, " <- decides")];
    let marks = marks
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, mark)| mark);
    let marks: String = marks.collect();
    line(
        &mut text,
        "policy",
        &format!("{action} {name}, for the {scope}{marks}"),
    );
    if rules.is_empty() {
        line(&mut text, "", "  it has no rules, and never matches");
    }
    for RuleView {
        rule,
        matches,
        misses,
    } in rules
    {
        let says = match matches {
            true => "matches".to_owned(),
            false => misses.join(", and "),
        };
        line(&mut text, "", &format!("  rule {rule}: {says}"));
    }
    text
}
