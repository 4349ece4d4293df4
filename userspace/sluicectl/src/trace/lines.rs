//! Steps of connections as lines for people.

use std::fmt::Write as _;

use sluice_telemetry::trace::{Kind, Step};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// From here on numbers of connections are the worker's own, and not cookies of sockets.
const OWN_NUMBERS: u64 = 1 << 52;

/// `TIME NUMBER POD STEP what`
pub(super) fn line(step: &Step, color: bool) -> String {
    let (tint, reset) = if color { (tint(step), RESET) } else { ("", "") };
    let (dim, plain) = if color { (DIM, RESET) } else { ("", "") };
    let pod = step.pod.as_deref().unwrap_or("-");
    let number = match step.connection {
        0 => "-".to_owned(),
        number if number >= OWN_NUMBERS => format!("w{}", number - OWN_NUMBERS),
        number => number.to_string(),
    };
    let mut text = String::new();
    let _ = write!(
        text,
        "{dim}{}{plain} {number:>7} {pod:20} {tint}{:11}{reset} ",
        time_of_day(step.time),
        step.step.name(),
    );
    text.push_str(&what(step));
    text
}

fn tint(step: &Step) -> &'static str {
    match (step.verdict.as_deref(), step.step) {
        (
            Some(
                "denied" | "failed" | "no_storage" | "not_in_registry" | "unknown_address"
                | "no_listener",
            ),
            _,
        ) => RED,
        (Some("ok" | "allowed"), _) => GREEN,
        (_, Kind::Lost) => YELLOW,
        _ => "",
    }
}

/// What a step tells, beside whose it is.
fn what(step: &Step) -> String {
    let mut words = Vec::new();
    let mut say = |text: String| words.push(text);
    if let Some(verdict) = &step.verdict {
        say(verdict.clone());
    }
    match step.step {
        Kind::Lost => say(format!("{} events lost", step.lost.unwrap_or_default())),
        Kind::Tunnel => {
            say(format!("{} tunnel", step.tunnel.as_deref().unwrap_or("a")));
        }
        _ => {}
    }
    let sealed = [&step.tls, &step.cipher, &step.group];
    let sealed: Vec<&str> = sealed.into_iter().flatten().map(String::as_str).collect();
    if !sealed.is_empty() {
        say(sealed.join(" "));
    }
    match (step.client, step.destination) {
        (Some(client), Some(to)) => say(format!("{client} → {to}")),
        (None, Some(to)) => say(format!("→ {to}")),
        _ => {}
    }
    if matches!(step.step, Kind::Accept | Kind::Destination | Kind::End) {
        if let Some(authority) = &step.authority {
            say(format!("for {authority}"));
        }
        if let Some(service) = &step.service {
            say(format!("service {service}"));
        }
        if let Some(peer) = &step.peer {
            say(format!("peer {peer}"));
        }
    }
    if matches!(
        step.step,
        Kind::Accept | Kind::Tunnel | Kind::Policy | Kind::End
    ) {
        match (&step.source_identity, &step.destination_identity) {
            (Some(source), Some(destination)) => say(format!("{source} → {destination}")),
            (Some(one), None) | (None, Some(one)) => say(one.clone()),
            (None, None) => {}
        }
    }
    if let Some(policy) = &step.policy {
        say(format!(
            "by policy {policy} rule {}",
            step.rule.unwrap_or_default()
        ));
    }
    if let Some(sent) = step.bytes_sent {
        say(format!("sent {sent} B"));
    }
    if let Some(acked) = step.bytes_acked {
        say(format!("acknowledged {acked} B"));
    }
    if let Some(received) = step.bytes_received {
        say(format!("received {received} B"));
    }
    if let Some(rtt) = step.rtt_us {
        say(format!("rtt {}", milliseconds(rtt.into())));
    }
    if let Some(retransmits) = step.retransmits {
        say(format!("{retransmits} retransmits"));
    }
    if let Some(duration) = step.duration_us {
        say(format!("after {}", milliseconds(duration)));
    }
    if let Some(reason) = &step.reason {
        say(reason.clone());
    }
    words.join(", ")
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}

/// UTC, to the millisecond.
fn time_of_day(nanos: u64) -> String {
    let millis = nanos / 1_000_000;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_the_step_does_and_has_colour_only_on_demand() {
        let step = Step {
            time: 3_723_004_000_000,
            connection: 0x2a,
            step: Kind::Policy,
            pod: Some("shop/catalog".to_owned()),
            verdict: Some("denied".to_owned()),
            policy: Some("shop/test".to_owned()),
            rule: Some(1),
            ..Step::default()
        };
        let plain = line(&step, false);
        assert_eq!(
            plain,
            "01:02:03.004      42 shop/catalog         policy      denied, by policy shop/test rule 1"
        );
        let coloured = line(&step, true);
        assert!(coloured.contains(RED) && coloured.contains(RESET));
    }
}
