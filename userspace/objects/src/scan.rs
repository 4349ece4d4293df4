//! Finds the files of a directory, and reads them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{stamp::Stamp, yaml::MAX_FILE};

/// How deep directories may nest; a symbolic link can make them nest without end.
const MAX_DEPTH: usize = 16;

/// What was found at a path.
#[derive(Clone, Debug)]
pub enum Found {
    /// A file that is read unless it is known with the same stamp.
    File(Option<Stamp>),
    Read(FileText),
}

impl Found {
    /// `None` when it is gone.
    pub(crate) fn read(self, path: &Path) -> Option<FileText> {
        match self {
            Self::File(_) => read_at(path),
            Self::Read(text) => Some(text),
        }
    }
}

impl From<FileText> for Found {
    fn from(text: FileText) -> Self {
        Self::Read(text)
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileText {
    Text(String),
    /// It is there, but cannot be read; the reason.
    Unreadable(String),
}

/// Finds every `*.yaml`, `*.yml` and `*.json` below `root`.
///
/// Names that begin with a dot are left out: editors' temporary files, and the `..data` of a
/// mounted ConfigMap, whose files appear under their own names too.
///
/// # Errors
/// When `root` itself cannot be listed. What is wrong below it is noted as that path's text.
pub fn scan(root: &Path) -> io::Result<Scan> {
    let mut scan = Scan {
        began: SystemTime::now(),
        pending: Vec::new(),
    };
    scan.list(root, 0)?;
    Ok(scan)
}

/// What is found below a directory, in no order.
#[derive(Debug)]
pub struct Scan {
    began: SystemTime,
    /// What has not been looked at yet, and how many directories it is below the first.
    pending: Vec<(PathBuf, usize)>,
}

impl Iterator for Scan {
    type Item = (PathBuf, Found);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((path, depth)) = self.pending.pop() {
            let found = self
                .look(&path, depth)
                .unwrap_or_else(|error| unreadable(&error).map(Found::Read));
            if let Some(found) = found {
                return Some((path, found));
            }
        }
        None
    }
}

impl Scan {
    fn list(&mut self, directory: &Path, depth: usize) -> io::Result<()> {
        let known = self.pending.len();
        for entry in fs::read_dir(directory)? {
            match entry {
                Ok(entry) if entry.file_name().as_encoded_bytes().starts_with(b".") => {}
                Ok(entry) => self.pending.push((entry.path(), depth)),
                Err(error) => {
                    // A part of it would look as if the rest were gone.
                    self.pending.truncate(known);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// `None` for what is no object's file.
    fn look(&mut self, path: &Path, depth: usize) -> io::Result<Option<Found>> {
        // Follows links.
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            if depth < MAX_DEPTH {
                self.list(path, depth + 1)?;
            }
            return Ok(None);
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        // A pipe or a device would block or never end.
        let is_wanted = metadata.is_file() && matches!(extension, Some("yaml" | "yml" | "json"));
        Ok(is_wanted.then(|| Found::File(Stamp::new(&metadata, self.began))))
    }
}

/// Reads one file, or what stands for it, to its end.
///
/// # Errors
/// When it cannot be read. What is wrong with its contents is noted as its text.
pub fn read(file: impl io::Read) -> io::Result<FileText> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        let reason = format!("larger than {} MiB", MAX_FILE >> 20);
        return Ok(FileText::Unreadable(reason));
    }
    Ok(String::from_utf8(bytes).map_or_else(
        |_| FileText::Unreadable("not UTF-8 text".to_owned()),
        FileText::Text,
    ))
}

/// Reads the file at a path. `None` when it is gone.
fn read_at(path: &Path) -> Option<FileText> {
    match fs::File::open(path).and_then(read) {
        Ok(text) => Some(text),
        Err(error) => unreadable(&error),
    }
}

/// `None` when it is gone: what has just been removed is no mistake.
fn unreadable(error: &io::Error) -> Option<FileText> {
    let gone = error.kind() == io::ErrorKind::NotFound;
    (!gone).then(|| FileText::Unreadable(format!("cannot be read: {error}")))
}
