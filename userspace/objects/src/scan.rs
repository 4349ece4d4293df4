//! Reads the files of a directory.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{store::FileText, yaml::MAX_FILE};

/// How deep directories may nest; a symbolic link can make them nest without end.
const MAX_DEPTH: usize = 16;

/// Reads every `*.yaml`, `*.yml` and `*.json` below `root`.
///
/// Names that begin with a dot are left out: editors' temporary files, and the `..data` of a
/// mounted ConfigMap, whose files appear under their own names too.
///
/// # Errors
/// When `root` itself cannot be listed. What is wrong below it is noted as that path's text.
pub fn scan(root: &Path) -> io::Result<BTreeMap<Arc<Path>, FileText>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = pending.pop() {
        match list(&directory) {
            Ok(entries) => {
                for path in entries {
                    visit(path, depth, &mut pending, &mut files);
                }
            }
            Err(error) if depth == 0 => return Err(error),
            Err(error) => note(&mut files, &directory, &error),
        }
    }
    Ok(files)
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn visit(
    path: PathBuf,
    depth: usize,
    pending: &mut Vec<(PathBuf, usize)>,
    files: &mut BTreeMap<Arc<Path>, FileText>,
) {
    // Follows links; what has just been removed is simply gone.
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) => return note(files, &path, &error),
    };
    if metadata.is_dir() {
        if depth < MAX_DEPTH {
            pending.push((path, depth + 1));
        }
        return;
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    // A pipe or a device would block or never end.
    if !metadata.is_file() || !matches!(extension, Some("yaml" | "yml" | "json")) {
        return;
    }
    match fs::File::open(&path).and_then(read) {
        Ok(text) => {
            files.insert(path.into(), text);
        }
        Err(error) => note(files, &path, &error),
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

fn note(files: &mut BTreeMap<Arc<Path>, FileText>, path: &Path, error: &io::Error) {
    if error.kind() != io::ErrorKind::NotFound {
        let reason = format!("cannot be read: {error}");
        files.insert(path.into(), FileText::Unreadable(reason));
    }
}
