//! The last good version of every object, across reloads.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use crate::{
    Code, Diagnostic, Kind, ObjectRef, Objects, Severity, diagnostic,
    kinds::Object,
    origin::Origin,
    read::{self, Contents},
    relations,
};

/// What is in force, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub objects: Arc<Objects>,
    /// Ordered by file and line.
    pub diagnostics: Arc<[Diagnostic]>,
}

/// What was found at a file's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileText {
    Text(String),
    /// It is there, but cannot be read; the reason.
    Unreadable(String),
}

/// Keeps the last good version of every object.
///
/// A reload replaces what is good and new, removes what is gone, and keeps what is broken as it
/// was.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<Arc<Path>, (FileText, Arc<Contents>)>,
    good: BTreeMap<ObjectRef, Object>,
    /// Absent before the first reload.
    snapshot: Option<Snapshot>,
}

impl Store {
    /// Takes over the files as they are now. Returns the new snapshot, or `None` when no file
    /// changed.
    pub fn reload(&mut self, files: BTreeMap<Arc<Path>, FileText>) -> Option<Snapshot> {
        let unchanged = self.files.len() == files.len()
            && self
                .files
                .iter()
                .zip(&files)
                .all(|(old, new)| (old.0, &old.1.0) == new);
        if unchanged && self.snapshot.is_some() {
            return None;
        }
        let mut old = std::mem::take(&mut self.files);
        for (path, text) in files {
            let contents = match old.remove(&path) {
                Some((before, contents)) if before == text => contents,
                _ => Arc::new(match &text {
                    FileText::Text(text) => read::read(&path, text),
                    FileText::Unreadable(reason) => read::unreadable(&path, reason.clone()),
                }),
            };
            self.files.insert(path, (text, contents));
        }
        let snapshot = self.settle();
        self.snapshot = Some(snapshot.clone());
        Some(snapshot)
    }

    /// Notes that the files cannot be seen at all, for a `reason`. Everything stays as it was.
    pub fn keep(&mut self, root: &Path, reason: String) -> Option<Snapshot> {
        let known = self.files.iter();
        let mut files: BTreeMap<_, _> = known.map(|(p, (t, _))| (p.clone(), t.clone())).collect();
        files.insert(root.into(), FileText::Unreadable(reason));
        self.reload(files)
    }

    /// What is in force now; nothing before the first reload.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone().unwrap_or_default()
    }

    fn settle(&mut self) -> Snapshot {
        let mut diagnostics: Vec<Diagnostic> = Vec::new();
        for (_, contents) in self.files.values() {
            diagnostics.extend(contents.diagnostics.iter().cloned());
        }
        let claims = self.claims(&mut diagnostics);
        let claimed: BTreeSet<ObjectRef> = claims.iter().map(|(o, _)| o.object.clone()).collect();
        self.good.retain(|reference, object| {
            let file = self.files.get(&object.origin().file);
            // What a file no longer says is gone, unless part of the file could not be read.
            claimed.contains(reference) || file.is_some_and(|(_, contents)| contents.incomplete)
        });
        let candidates: Vec<Object> = claims
            .into_iter()
            .filter_map(|(_, object)| object)
            .collect();
        let namespaces = self
            .good
            .values()
            .chain(&candidates)
            .filter_map(|object| match object {
                Object::Namespace(namespace) => Some(namespace.name.clone()),
                _ => None,
            })
            .collect();
        for object in candidates {
            match relations::dangling(&object, &namespaces) {
                Some(diagnostic) => diagnostics.push(diagnostic),
                None => {
                    self.good.insert(object.origin().object.clone(), object);
                }
            }
        }
        let objects: Objects = self.good.values().cloned().collect();
        diagnostics.extend(relations::without_effect(&objects));
        diagnostics.extend(relations::shared_addresses(&objects));
        diagnostic::sort(&mut diagnostics);
        Snapshot {
            objects: Arc::new(objects),
            diagnostics: diagnostics.into(),
        }
    }

    /// The one place that speaks for each object. Where several do, it is the file whose version
    /// is in force, or else the first by path; the others are reported.
    fn claims(&self, diagnostics: &mut Vec<Diagnostic>) -> Vec<(Origin, Option<Object>)> {
        let mut by_object: BTreeMap<&ObjectRef, Vec<&read::Item>> = BTreeMap::new();
        for (_, contents) in self.files.values() {
            for item in &contents.items {
                by_object.entry(&item.origin.object).or_default().push(item);
            }
        }
        let mut claims = Vec::with_capacity(by_object.len());
        for (reference, items) in by_object {
            let in_force = self.good.get(reference).map(|object| &object.origin().file);
            let winner = items
                .iter()
                .position(|item| Some(&item.origin.file) == in_force)
                .unwrap_or(0);
            for (i, item) in items.iter().enumerate() {
                if i != winner {
                    diagnostics.push(duplicate(&item.origin, &items[winner].origin));
                }
            }
            claims.push((items[winner].origin.clone(), items[winner].object.clone()));
        }
        claims
    }
}

fn duplicate(origin: &Origin, winner: &Origin) -> Diagnostic {
    let message = format!(
        "given twice: {}:{} counts, this one does not",
        winner.file.display(),
        winner.line()
    );
    origin.diagnostic(
        Severity::Error,
        Code::DuplicateObject,
        "metadata.name",
        message,
    )
}

impl Snapshot {
    /// How many objects of a kind are in force.
    pub fn count(&self, kind: Kind) -> usize {
        let objects = &self.objects;
        match kind {
            Kind::Namespace => objects.namespaces.len(),
            Kind::ServiceAccount => objects.service_accounts.len(),
            Kind::Pod => objects.pods.len(),
            Kind::Service => objects.services.len(),
            Kind::EndpointSlice => objects.endpoint_slices.len(),
            Kind::AuthorizationPolicy => objects.authorization_policies.len(),
            Kind::PeerAuthentication => objects.peer_authentications.len(),
            Kind::Sidecar => objects.sidecars.len(),
            Kind::ConfigMap => objects.mesh_configs.len(),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
