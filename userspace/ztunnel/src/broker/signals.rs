//! SIGTERM and SIGINT, as events.

use std::sync::mpsc::Sender;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

use super::Event;

/// Blocks the signals in this thread and all that it starts later, and reports them.
pub(super) fn watch(events: Sender<Event>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while signals.wait().is_ok() {
                if events.send(Event::Stop).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
