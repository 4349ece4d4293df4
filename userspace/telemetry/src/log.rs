//! The form of log lines.

use std::fmt;

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::levels::Levels;

/// Why logging could not be set up. Whoever started the process is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log filter {filter:?} is not understood (example: info,access=off,sluice_xds=debug)")]
    Filter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("logging was set up before in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what `filter` lets through to standard output, a line per event.
///
/// # Errors
/// When the filter does not parse, or this process logs already.
pub fn init_logging(filter: &str, json: bool) -> Result<Levels, Error> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let filter = EnvFilter::try_new(filter).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let initial = filter.to_string();
    let log = tracing_subscriber::fmt()
        .event_format(LineFormat { json })
        .with_env_filter(filter)
        .with_filter_reloading();
    let handle = log.reload_handle();
    log.finish().try_init().map_err(Error::AlreadySet)?;
    let replace = move |filter| handle.reload(filter);
    Ok(Levels::new(initial, Box::new(replace)))
}

/// Formats an event as one line: `TIME\tLEVEL\tTARGET\tMESSAGE\tFIELDS`, or as JSON with the keys
/// `level`, `time`, `scope` and `message` before the event's own.
///
/// Text recorded as a string is quoted; what is recorded by its `Display` is not, unless it holds
/// blanks. Control characters are escaped, so a peer's text cannot forge a line.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineFormat {
    pub json: bool,
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let head = Head {
            // Microseconds: enough to order events, and what readers of such lines expect.
            time: format!("{:.6}", jiff::Timestamp::now()),
            level: level(*metadata.level()),
            target: metadata.target(),
        };
        if self.json {
            writeln!(writer, "{}", json(&head, fields))
        } else {
            text(&mut writer, &head, &fields)
        }
    }
}

struct Head<'a> {
    time: String,
    level: &'static str,
    target: &'a str,
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn text(writer: &mut Writer<'_>, head: &Head<'_>, fields: &Fields) -> fmt::Result {
    write!(writer, "{}\t{}\t{}\t", head.time, head.level, head.target)?;
    escaped(writer, &fields.message)?;
    for (i, (name, value)) in fields.rest.iter().enumerate() {
        write!(writer, "{}{name}=", if i == 0 { '\t' } else { ' ' })?;
        match value {
            Value::Text(text) => write!(writer, "{text:?}")?,
            Value::Shown(shown) if shown.starts_with('"') => escaped(writer, shown)?,
            Value::Shown(shown) if shown.contains(char::is_whitespace) => {
                write!(writer, "{shown:?}")?;
            }
            Value::Shown(shown) => escaped(writer, shown)?,
            Value::Json(value) => write!(writer, "{value}")?,
        }
    }
    writeln!(writer)
}

fn escaped(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if c.is_control() {
            write!(writer, "{}", c.escape_default())
        } else {
            writer.write_char(c)
        }
    })
}

fn json(head: &Head<'_>, fields: Fields) -> serde_json::Value {
    let mut line = serde_json::Map::new();
    line.insert("level".into(), head.level.into());
    line.insert("time".into(), head.time.as_str().into());
    line.insert("scope".into(), head.target.into());
    line.insert("message".into(), fields.message.into());
    for (name, value) in fields.rest {
        let value = match value {
            Value::Text(text) | Value::Shown(text) => text.into(),
            Value::Json(value) => value,
        };
        line.insert(name.into(), value);
    }
    line.into()
}

/// An event's fields in the order in which they were given, the message apart.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

enum Value {
    /// Recorded as a string.
    Text(String),
    /// Recorded by its `Display` or `Debug`.
    Shown(String),
    /// A number or a boolean.
    Json(serde_json::Value),
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.rest.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let shown = format!("{value:?}");
        if field.name() == "message" {
            self.message = shown;
        } else {
            self.add(field, Value::Shown(shown));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, Value::Text(value.to_owned()));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, Value::Text(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Json(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Json(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Json(value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Json(value.into()));
    }
}
