//! What a test's own thread logs.

use std::{
    io,
    sync::{Arc, Mutex},
};

/// The log of this test's thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
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

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
