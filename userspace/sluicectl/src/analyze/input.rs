//! Reads what is to be analyzed, once.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use sluice_objects::{
    Code, Diagnostic, Kind, Severity, Snapshot, Store,
    scan::{Found, read, scan},
};

/// How the standard input is named in findings.
const STDIN: &str = "<stdin>";

/// A configuration as it was read.
pub(crate) struct Input {
    pub(crate) snapshot: Snapshot,
    /// How many files it is from.
    pub(super) files: usize,
    /// What the user named first.
    source: Arc<Path>,
}

impl Input {
    /// # Errors
    /// When something that the user named cannot be read. Errors below a directory are findings.
    pub(crate) fn read(dir: Option<&Path>, paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        if let Some(dir) = dir {
            let is_dir = dir.metadata().map(|metadata| metadata.is_dir());
            let is_dir = is_dir.with_context(|| format!("cannot read {}", dir.display()))?;
            ensure!(
                is_dir,
                "{} is not a directory; name single files without --dir",
                dir.display()
            );
            add(dir, &mut files)?;
        }
        for path in paths {
            add(path, &mut files)?;
        }
        let count = files.len();
        let mut store = Store::default();
        store.reload(files);
        let source = dir.or(paths.first().map(PathBuf::as_path));
        Ok(Self {
            snapshot: store.snapshot(),
            files: count,
            source: source.unwrap_or(Path::new(".")).into(),
        })
    }

    /// How many objects are valid.
    pub(super) fn objects(&self) -> usize {
        let kinds = Kind::ALL.into_iter();
        kinds.map(|kind| self.snapshot.count(kind)).sum()
    }

    /// Says that nothing was read, where no other finding does: whoever asked named the wrong place.
    pub(super) fn without_objects(&self, findings: &[Diagnostic]) -> Option<Diagnostic> {
        let message = match self.files {
            0 => "no file below it is named *.yaml, *.yml or *.json",
            _ => "no object in it",
        };
        (self.objects() == 0 && findings.is_empty()).then(|| Diagnostic {
            severity: Severity::Error,
            code: Code::NoObjects,
            file: self.source.clone(),
            line: 0,
            object: None,
            field: String::new(),
            message: message.to_owned(),
        })
    }
}

/// Adds a file, the files of a directory, or the standard input.
fn add(path: &Path, files: &mut BTreeMap<PathBuf, Found>) -> anyhow::Result<()> {
    let cannot_read = || format!("cannot read {}", path.display());
    if path == Path::new("-") {
        let text = read(io::stdin().lock()).with_context(|| format!("cannot read {STDIN}"))?;
        files.insert(STDIN.into(), text.into());
    } else if path.is_dir() {
        files.extend(scan(path).with_context(cannot_read)?);
    } else {
        let text = File::open(path).and_then(read).with_context(cannot_read)?;
        files.insert(path.into(), text.into());
    }
    Ok(())
}
