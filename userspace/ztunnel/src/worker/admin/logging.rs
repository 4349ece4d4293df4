//! `POST /logging`: the log filter of a worker that runs.

use http::StatusCode;
use sluice_telemetry::{
    Levels,
    serve::{Reply, TEXT, parameter},
};

/// Changes the filter as `?level=` and `?reset` say, and tells what it is then.
pub(super) fn change(levels: &Levels, query: &str) -> Reply {
    let reset = parameter(query, "reset").is_some_and(|value| value != "false");
    let level = parameter(query, "level").unwrap_or_default();
    match levels.change(reset, &level) {
        Ok(now) => {
            if reset || !level.is_empty() {
                // At a level that shows wherever there is a log at all.
                tracing::error!(filter = now, "an operator has changed the log filter");
            }
            Reply::ok(TEXT, format!("current log level is {now}\n"))
        }
        Err(error) => Reply::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
