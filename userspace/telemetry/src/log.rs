//! The log: the form of its lines, and their way out.

mod queue;

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
};

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
pub use queue::Log;

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
    #[error("standard output cannot be used for the log")]
    Output(#[source] std::io::Error),
}

/// Sends what `filter` lets through to standard output, a line per event, some milliseconds later. The
/// log has to be dropped before the process ends.
///
/// # Errors
/// When the filter does not parse, or this process logs already.
pub fn init_logging(filter: &str, json: bool) -> Result<(Log, Levels), Error> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let filter = EnvFilter::try_new(filter).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let initial = filter.to_string();
    let (queue, log) = queue::to_stdout().map_err(Error::Output)?;
    let lines = tracing_subscriber::fmt()
        .event_format(LineFormat { json })
        .with_writer(queue)
        .with_env_filter(filter)
        .with_filter_reloading();
    let handle = lines.reload_handle();
    lines.finish().try_init().map_err(Error::AlreadySet)?;
    let replace = move |filter| handle.reload(filter);
    Ok((log, Levels::new(initial, Box::new(replace))))
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
        let head = Head {
            // Microseconds: enough to order events, and what readers of such lines expect.
            time: jiff::Timestamp::now(),
            level: level(*metadata.level()),
            target: metadata.target(),
        };
        if self.json {
            let mut fields = JsonFields::default();
            event.record(&mut fields);
            return writeln!(writer, "{}", json(&head, fields));
        }
        // Lines are many: they are put together where the ones before were.
        let mut fields = SCRATCH.take();
        fields.clear();
        event.record(&mut fields);
        let Head {
            time,
            level,
            target,
        } = head;
        let (message, rest) = (&fields.message, &fields.rest);
        let written = writeln!(writer, "{time:.6}\t{level}\t{target}\t{message}{rest}");
        SCRATCH.set(fields);
        written
    }
}

thread_local! {
    static SCRATCH: RefCell<TextFields> = RefCell::default();
}

struct Head<'a> {
    time: jiff::Timestamp,
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

fn escaped(text: &mut String, from: &str) {
    if from.bytes().all(is_plain) {
        return text.push_str(from);
    }
    for c in from.chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
}

/// Whether a byte means itself in a line, inside of quotes and outside. Almost all text is of such.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// An event's fields as text, the message apart. Writing to a `String` cannot fail.
#[derive(Default)]
struct TextFields {
    message: String,
    rest: String,
    /// What a value looks like, before it is known how to write it.
    shown: String,
}

impl TextFields {
    fn clear(&mut self) {
        self.message.clear();
        self.rest.clear();
    }

    fn name(&mut self, field: &Field) {
        self.rest
            .push(if self.rest.is_empty() { '\t' } else { ' ' });
        self.rest.push_str(field.name());
        self.rest.push('=');
    }

    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field);
        let _ = write!(self.rest, "{value}");
    }

    fn quoted(&mut self, field: &Field, value: &str) {
        self.name(field);
        if value.bytes().all(is_plain) {
            self.rest.push('"');
            self.rest.push_str(value);
            self.rest.push('"');
        } else {
            let _ = write!(self.rest, "{value:?}");
        }
    }
}

impl Visit for TextFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut shown = std::mem::take(&mut self.shown);
        shown.clear();
        let _ = write!(shown, "{value:?}");
        if field.name() == "message" {
            escaped(&mut self.message, &shown);
        } else if !shown.starts_with('"') && shown.contains(char::is_whitespace) {
            self.quoted(field, &shown);
        } else {
            self.name(field);
            escaped(&mut self.rest, &shown);
        }
        self.shown = shown;
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            escaped(&mut self.message, value);
        } else {
            self.quoted(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.quoted(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }
}

fn json(head: &Head<'_>, fields: JsonFields) -> serde_json::Value {
    let mut line = serde_json::Map::new();
    line.insert("level".into(), head.level.into());
    line.insert("time".into(), format!("{:.6}", head.time).into());
    line.insert("scope".into(), head.target.into());
    line.insert("message".into(), fields.message.into());
    line.extend(fields.rest);
    line.into()
}

/// An event's fields as JSON, the message apart.
#[derive(Default)]
struct JsonFields {
    message: String,
    rest: Vec<(String, serde_json::Value)>,
}

impl JsonFields {
    fn add(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.rest.push((field.name().to_owned(), value.into()));
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let shown = format!("{value:?}");
        if field.name() == "message" {
            self.message = shown;
        } else {
            self.add(field, shown);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}
