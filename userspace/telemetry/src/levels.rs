//! The log filter, changed while the process runs.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, reload};

/// Puts another filter in the place of the one in force.
type Replace = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The filter of this process's log.
pub struct Levels {
    /// What the process was started with.
    initial: String,
    current: Mutex<String>,
    replace: Replace,
}

/// Why a filter is not put in force.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "{0:?} is not of the form LEVEL, TARGET=LEVEL or TARGET:LEVEL, where LEVEL is one of off, \
         error, warn, info, debug and trace"
    )]
    Directive(String),
    #[error("{0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("the log is gone")]
    Gone(#[from] reload::Error),
}

impl Levels {
    pub(crate) fn new(initial: String, replace: Replace) -> Self {
        Self {
            current: Mutex::new(initial.clone()),
            initial,
            replace,
        }
    }

    /// Adds directives to the filter in force, or to the one at the start; without any, only the
    /// latter is restored, or nothing done. Returns the filter that is in force then.
    ///
    /// # Errors
    /// When a directive is not understood; nothing is changed then.
    pub fn change(&self, reset: bool, directives: &str) -> Result<String, Refused> {
        let added = directives
            .split(',')
            .filter(|directive| !directive.is_empty());
        let added = added.map(directive).collect::<Result<Vec<_>, _>>()?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !reset && added.is_empty() {
            return Ok(current.clone());
        }
        let base = if reset { &self.initial } else { &*current };
        let all = std::iter::once(base.clone()).chain(added);
        let filter = EnvFilter::try_new(all.collect::<Vec<_>>().join(","))?;
        let now = filter.to_string();
        (self.replace)(filter)?;
        current.clone_from(&now);
        Ok(now)
    }
}

/// A directive as the filter takes it. `TARGET:LEVEL` is what Istio's tools send.
fn directive(text: &str) -> Result<String, Refused> {
    let text = text.trim();
    let refused = || Refused::Directive(text.to_owned());
    let (target, level) = match text.rsplit_once(['=', ':']) {
        Some((target, level)) => (Some(target), level),
        None => (None, text),
    };
    let level = match level.to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        "none" => "off".to_owned(),
        known @ ("off" | "error" | "warn" | "info" | "debug" | "trace") => known.to_owned(),
        _ => return Err(refused()),
    };
    match target {
        None => Ok(level),
        Some(target) => {
            let named = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '-');
            let whole = !target.is_empty() && !target.ends_with(':') && target.chars().all(named);
            whole
                .then(|| format!("{target}={level}"))
                .ok_or_else(refused)
        }
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_tuple("Levels").field(&*current).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn filters_are_added_to_and_begun_anew() {
        let in_force = Arc::new(Mutex::new(String::new()));
        let seen = in_force.clone();
        let replace: Replace = Box::new(move |filter| {
            *seen.lock().unwrap() = filter.to_string();
            Ok(())
        });
        let levels = Levels::new("flow=off,info".to_owned(), replace);
        let now = levels.change(false, "").unwrap();
        assert_eq!(now, "flow=off,info");
        assert_eq!(*in_force.lock().unwrap(), "", "to ask changes nothing");
        for (reset, directives, expected) in [
            (false, "access=debug", "access=debug,flow=off,info"),
            (false, "access:warning", "access=warn,flow=off,info"),
            (
                false,
                "sluice_xds::client:trace,error",
                "sluice_xds::client=trace,access=warn,flow=off,error",
            ),
            (true, "", "flow=off,info"),
            (true, "debug", "flow=off,debug"),
        ] {
            let mut now: Vec<_> = levels
                .change(reset, directives)
                .unwrap()
                .split(',')
                .map(str::to_owned)
                .collect();
            now.sort();
            let mut wanted: Vec<_> = expected.split(',').map(str::to_owned).collect();
            wanted.sort();
            assert_eq!(now, wanted, "{directives}");
        }
        for bad in [
            "loud",
            "access=loud",
            "=debug",
            "a b=info",
            "access::=info",
            "{x}",
        ] {
            let refused = levels.change(false, bad).unwrap_err();
            assert!(
                refused.to_string().contains("TARGET=LEVEL"),
                "{bad}: {refused}"
            );
        }
        assert!(
            in_force.lock().unwrap().contains("debug"),
            "the last good one stays"
        );
    }
}
