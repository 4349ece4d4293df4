//! What a test's own thread logs.
//!
//! One subscriber serves the whole process and gives each thread its own log. A subscriber for each
//! thread would lose lines: a call site that is first reached on a thread without one, while there
//! is just one other, is switched off for all threads.

use std::{
    cell::RefCell,
    io,
    sync::{Arc, Mutex, Once},
};

thread_local! {
    static OF_THIS_THREAD: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// The log of this test's thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects what this thread logs from now on; a test has a thread of its own.
    pub(crate) fn begin() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(|| Writer)
                .init();
            // A call site may have been reached while the subscriber was made.
            tracing::callsite::rebuild_interest_cache();
        });
        let log = Self::default();
        OF_THIS_THREAD.set(Some(log.clone()));
        log
    }

    /// What has been logged since the last call.
    pub(crate) fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
    }

    /// The one line about a refused call since the last look, which names the caller, and no token.
    pub(crate) fn refusal(&self, what: &str) -> String {
        let told = self.take();
        let lines: Vec<&str> = told.lines().filter(|l| l.contains("refused")).collect();
        let [line] = lines[..] else {
            panic!("{what}: {told}")
        };
        assert!(line.contains("WARN") && line.contains("peer=\""), "{line}");
        assert!(!told.contains("token-of-"), "{what}: {told}");
        line.to_owned()
    }
}

/// Writes to the log of the thread that logs; what a thread without one logs is nobody's.
struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        OF_THIS_THREAD.with_borrow(|log| match log {
            Some(log) => log.0.lock().unwrap().write(bytes),
            None => Ok(bytes.len()),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
