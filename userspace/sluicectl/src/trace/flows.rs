//! `sluicectl trace flows` and `sluicectl trace kernel`

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum;
use sluice_telemetry::trace::{Kind, Step};

use super::{admin, lines};

/// Follows connections live: a line for each step of each one's way.
///
/// Tells whether it is captured and why, its destination, the service and endpoint that were chosen, who is
/// at both ends, which rule decided, the tunnel and how it is sealed, and how it ended. The steps of one
/// connection have a number in common.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Begin with what ended within this time, such as 90s, 5m or 1h, as far as the worker remembers it.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// End after what --since has brought.
    #[arg(long, requires = "since")]
    no_follow: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Shows the events of the eBPF programs as they are: each verdict, each socket that is opened or closed.
#[derive(Debug, clap::Args)]
pub(super) struct KernelArguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Args)]
struct Source {
    /// The ztunnel's endpoint for operators.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// End after this time.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    limit: Option<Duration>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Whether lines are coloured: `auto` for a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    fn is_on(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !refused && io::stdout().is_terminal()
            }
        }
    }
}

/// Which connections are shown. Those of which one step matches all of them are shown whole.
#[derive(Debug, Default, clap::Args)]
struct Filter {
    /// Those of this pod, NAME or NAMESPACE/NAME, at either end.
    #[arg(long)]
    pod: Option<String>,
    /// Those with a pod of this namespace at either end.
    #[arg(long)]
    namespace: Option<String>,
    /// Those to this service, by its host name or the beginning of it.
    #[arg(long)]
    service: Option<String>,
    /// Those to this port.
    #[arg(long)]
    port: Option<u16>,
    /// Those with this verdict at any step: allowed, denied, ok, failed, or the kernel's, such as captured,
    /// direct, outside, not_in_registry.
    #[arg(long)]
    verdict: Option<String>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self {
            pod,
            namespace,
            service,
            port,
            verdict,
        } = self;
        pod.is_none()
            && namespace.is_none()
            && service.is_none()
            && port.is_none()
            && verdict.is_none()
    }

    /// What a step says for it, of each condition.
    fn matches(&self, step: &Step) -> [bool; 5] {
        let pods = || [&step.pod, &step.peer].into_iter().flatten();
        let named = |wanted: &String| {
            pods().any(|pod| {
                pod == wanted || pod.split_once('/').is_some_and(|(_, name)| name == wanted)
            })
        };
        let within = |wanted: &String| {
            pods().any(|pod| {
                pod.split_once('/')
                    .is_some_and(|(namespace, _)| namespace == wanted)
            })
        };
        let served = |wanted: &String| {
            let full = step.service.as_deref().unwrap_or_default();
            let rest = full.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let ports = || {
            let asked = step
                .authority
                .as_deref()
                .and_then(|authority| authority.rsplit_once(':'));
            let asked = asked.and_then(|(_, port)| port.parse().ok());
            step.destination
                .map(|to| to.port())
                .into_iter()
                .chain(asked)
        };
        [
            self.pod.as_ref().is_none_or(named),
            self.namespace.as_ref().is_none_or(within),
            self.service.as_ref().is_none_or(served),
            self.port
                .is_none_or(|wanted| ports().any(|port: u16| port == wanted)),
            self.verdict
                .as_ref()
                .is_none_or(|wanted| step.verdict.as_ref() == Some(wanted)),
        ]
    }
}

/// Connections of which it is not known yet whether they are to be shown.
#[derive(Default)]
struct Pending {
    connections: HashMap<u64, Connection>,
    /// In the order in which they were first heard of.
    order: VecDeque<u64>,
}

#[derive(Default)]
struct Connection {
    matched: [bool; 5],
    /// Steps that wait until all conditions are met.
    steps: Vec<Step>,
    /// Whose it is, which not all steps tell.
    pod: Option<String>,
}

impl Pending {
    /// How many connections are remembered.
    const MOST: usize = 4096;

    /// The steps that are to be shown now.
    fn add(&mut self, mut step: Step, filter: &Filter) -> Vec<Step> {
        if step.connection == 0 {
            let shown = step.step == Kind::Lost || filter.matches(&step).iter().all(|met| *met);
            return if shown { vec![step] } else { Vec::new() };
        }
        let connection = self.connections.entry(step.connection).or_insert_with(|| {
            self.order.push_back(step.connection);
            Connection::default()
        });
        match &step.pod {
            Some(pod) => connection.pod = Some(pod.clone()),
            None => step.pod.clone_from(&connection.pod),
        }
        for (met, now) in connection.matched.iter_mut().zip(filter.matches(&step)) {
            *met |= now;
        }
        connection.steps.push(step);
        let shown = if connection.matched.iter().all(|met| *met) {
            std::mem::take(&mut connection.steps)
        } else {
            Vec::new()
        };
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.connections.remove(&oldest);
        }
        shown
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut path = "/trace?".to_owned();
    if let Some(since) = arguments.since {
        path += &format!("since={}&", since.as_secs());
    }
    path += &format!("follow={}", !arguments.no_follow);
    show(
        &arguments.source,
        &arguments.filter,
        &path,
        !arguments.no_follow,
    )
}

pub(super) fn run_kernel(arguments: &KernelArguments) -> anyhow::Result<ExitCode> {
    show(
        &arguments.source,
        &arguments.filter,
        "/trace?kernel=true",
        true,
    )
}

fn show(source: &Source, filter: &Filter, path: &str, follows: bool) -> anyhow::Result<ExitCode> {
    let color = source.color.is_on();
    let end = source.limit.map(|limit| Instant::now() + limit);
    let mut pending = Pending::default();
    let mut out = io::stdout().lock();
    let mut begun = false;
    let followed = admin::lines(source.admin, path, |line| {
        if !std::mem::replace(&mut begun, true) && follows {
            eprintln!("following connections at {}; Ctrl-C ends", source.admin);
        }
        if let Some(line) = line.filter(|line| !line.is_empty()) {
            let step: Step = serde_json::from_slice(line)
                .context("the answer is not understood; is the ztunnel another version?")?;
            let shown = if filter.is_empty() && step.connection == 0 {
                vec![step]
            } else {
                pending.add(step, filter)
            };
            for step in shown {
                if source.json {
                    serde_json::to_writer(&mut out, &step)?;
                    writeln!(out)?;
                } else {
                    writeln!(out, "{}", lines::line(&step, color))?;
                }
            }
            out.flush()?;
        }
        Ok(end.is_none_or(|end| Instant::now() < end))
    });
    match followed {
        // Whoever read the lines has had enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let of_json = |error: &serde_json::Error| error.io_error_kind();
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let kind = kind.or_else(|| error.downcast_ref().and_then(of_json));
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// `90s`, `5m`, `1h`, or seconds.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "not a time such as 90s, 5m or 1h";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| FORM)?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(FORM),
    };
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .ok_or(FORM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(connection: u64, kind: Kind) -> Step {
        Step {
            connection,
            step: kind,
            ..Step::default()
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("5 days").is_err() && duration("m").is_err() && duration("").is_err());
    }

    #[test]
    fn a_connection_is_shown_whole_once_its_steps_together_match() {
        let filter = Filter {
            pod: Some("web".to_owned()),
            verdict: Some("denied".to_owned()),
            ..Filter::default()
        };
        let mut pending = Pending::default();
        let first = Step {
            pod: Some("shop/web".to_owned()),
            ..step(1, Kind::Connect)
        };
        assert!(pending.add(first, &filter).is_empty());
        let other = Step {
            verdict: Some("denied".to_owned()),
            pod: Some("shop/cart".to_owned()),
            ..step(2, Kind::End)
        };
        assert!(pending.add(other, &filter).is_empty());
        let last = Step {
            verdict: Some("denied".to_owned()),
            ..step(1, Kind::End)
        };
        let shown = pending.add(last, &filter);
        let kinds: Vec<Kind> = shown.iter().map(|step| step.step).collect();
        assert_eq!(kinds, [Kind::Connect, Kind::End]);
        assert_eq!(shown[1].pod.as_deref(), Some("shop/web"));
    }

    #[test]
    fn services_are_named_by_the_beginning_of_their_host() {
        let of = |service: &str| {
            let filter = Filter {
                service: Some(service.to_owned()),
                ..Filter::default()
            };
            let step = Step {
                service: Some("catalog.shop.svc.cluster.local".to_owned()),
                ..Step::default()
            };
            filter.matches(&step).iter().all(|met| *met)
        };
        assert!(of("catalog") && of("catalog.shop") && !of("cat") && !of("shop"));
    }
}
