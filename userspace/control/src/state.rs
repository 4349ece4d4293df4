//! Files of the state directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use sluice_objects::{Code, Diagnostic, Severity};

/// Reads a file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file so that it is there as a whole or not at all.
pub(crate) fn write(directory: &Path, name: &str, mode: u32, text: &str) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.new"));
    // Left over from a crash, maybe with other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// What is wrong with a file of the state directory.
pub(crate) fn problem(path: &Path, message: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        code: Code::LostMemory,
        file: path.into(),
        line: 0,
        object: None,
        field: String::new(),
        message,
    }
}
