//! The last good version of every object, across reloads.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher as _,
    num::NonZeroU64,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use sluice_model::Name;

use crate::{
    Code, Diagnostic, Kind, LastGood, Memory, ObjectRef, Objects, Severity, diagnostic,
    kinds::{self, Object},
    memory::{self, Remembered, StandIn},
    origin::Origin,
    read::{self, Broken, Contents, Item},
    relations,
    scan::{FileText, Found},
    stand_in::{self, stand_in},
};

/// What is in force, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub objects: Arc<Objects>,
    /// Ordered by file and line.
    pub diagnostics: Arc<[Diagnostic]>,
    /// What to remember; empty when that is not asked for.
    pub last_good: Arc<LastGood>,
}

/// A file as it was read last. Its text is not kept: a mesh may have a great deal of it.
#[derive(Debug)]
struct Known {
    /// The hash of its stamp; absent when it is to be read again.
    stamp: Option<NonZeroU64>,
    said: Said,
    contents: Arc<Contents>,
    /// The reload that is under way has found it.
    seen: bool,
}

/// What a file said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Text with this hash.
    Text(u64),
    Unreadable(String),
}

impl Said {
    fn new(text: &FileText, hasher: &RandomState) -> Self {
        match text {
            FileText::Text(text) => Self::Text(hasher.hash_one(text)),
            FileText::Unreadable(reason) => Self::Unreadable(reason.clone()),
        }
    }
}

/// Keeps the last good version of every object.
///
/// A reload replaces what is good and new, removes what is gone, and keeps what is broken as it
/// was. A policy of which nothing good is known is not applied, but for the first reload of a store
/// whose [`Memory`] is blank: then another stands in for it.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<Arc<Path>, Known>,
    hasher: RandomState,
    /// What most files hold that are read for a node: nothing.
    nothing: Arc<Contents>,
    /// Whose pods are wanted, and nothing else but namespaces; absent when everything is.
    node: Option<Name>,
    good: BTreeMap<ObjectRef, InForce>,
    /// Policies are remembered, and it is told what comes of broken ones.
    remembers: bool,
    /// The next reload is the first of all, as far as anybody knows.
    blank: bool,
    /// Absent before the first reload.
    snapshot: Option<Snapshot>,
}

/// A version of an object that is in force.
#[derive(Debug)]
struct InForce {
    object: Object,
    /// As it was written, of kinds that are remembered.
    text: Option<Arc<Value>>,
    source: Source,
}

/// Where a version comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    File,
    /// It was in force before the restart.
    Memory,
    /// Nowhere: it is there because no good version is known.
    StandIn,
}

impl Store {
    /// A store that knows of policies that were in force before.
    pub fn new(memory: Memory) -> Self {
        let mut store = Self::default();
        match memory {
            Memory::Off => return store,
            Memory::Blank => store.blank = true,
            Memory::Kept(last_good) => store.recall(&last_good),
        }
        store.remembers = true;
        store
    }

    /// Keeps nothing but the pods of a node, and what says whether they are part of the mesh.
    #[must_use]
    pub fn for_node(mut self, node: Name) -> Self {
        self.node = Some(node);
        self
    }

    fn recall(&mut self, last_good: &LastGood) {
        for remembered in &last_good.policies {
            let Some((kind, origin)) = remembered.origin() else {
                continue;
            };
            let text = Some(remembered.object.clone());
            match kinds::parse(kind, &remembered.object, origin.clone()) {
                (Some(object), _) => self.put(object, text, Source::Memory),
                // Another version of this program knew how to read it.
                (None, _) => self.stand_in(kind, &origin, text.as_deref()),
            }
        }
        for remembered in &last_good.stand_ins {
            if let Some((kind, origin)) = remembered.origin() {
                self.stand_in(kind, &origin, None);
            }
        }
    }

    fn put(&mut self, object: Object, text: Option<Arc<Value>>, source: Source) {
        let in_force = InForce {
            object,
            text,
            source,
        };
        let reference = in_force.object.origin().object.clone();
        self.good.insert(reference, in_force);
    }

    /// Has another policy stand in for one, unless that can only be one that refuses nothing.
    fn stand_in(&mut self, kind: Kind, origin: &Origin, text: Option<&Value>) {
        match stand_in(kind, origin, text) {
            Some(object) => self.put(object, None, Source::StandIn),
            None => {
                self.good.remove(&origin.object);
            }
        }
    }

    /// Takes over the files as they are now. Returns the new snapshot, or `None` when no file
    /// changed.
    pub fn reload<P: Into<PathBuf>>(
        &mut self,
        files: impl IntoIterator<Item = (P, Found)>,
    ) -> Option<Snapshot> {
        let mut changed = self.snapshot.is_none();
        for (path, found) in files {
            changed |= self.take(path.into(), found);
        }
        let before = self.files.len();
        self.files
            .retain(|_, known| std::mem::take(&mut known.seen));
        changed |= self.files.len() != before;
        changed.then(|| self.renew())
    }

    /// Whether something else is at the path than before.
    fn take(&mut self, path: PathBuf, found: Found) -> bool {
        let mut stamp = self.stamp(&found);
        if let Some(known) = self.files.get_mut(&*path)
            && stamp.is_some()
            && known.stamp == stamp
        {
            known.seen = true;
            return false;
        }
        let Some(text) = found.read(&path) else {
            return false;
        };
        if let FileText::Unreadable(_) = text {
            self.keep_below(&path);
            // It may be readable the next time without having changed.
            stamp = None;
        }
        let said = Said::new(&text, &self.hasher);
        if let Some(known) = self.files.get_mut(&*path)
            && known.said == said
        {
            (known.stamp, known.seen) = (stamp, true);
            return false;
        }
        let path: Arc<Path> = path.into();
        let known = Known {
            stamp,
            said,
            contents: self.contents(&path, text),
            seen: true,
        };
        self.files.insert(path, known);
        true
    }

    /// Nothing is gone because the directory that it is in cannot be read.
    fn keep_below(&mut self, directory: &Path) {
        let below = self
            .files
            .range_mut::<Path, _>((Bound::Included(directory), Bound::Unbounded))
            .take_while(|(path, _)| path.starts_with(directory));
        below.for_each(|(_, known)| known.seen = true);
    }

    /// Has the next reload read all files, whatever their stamps say: not every file system keeps
    /// them, and what is written through a mapping of a file may show late.
    pub fn distrust_stamps(&mut self) {
        self.files.values_mut().for_each(|known| known.stamp = None);
    }

    fn stamp(&self, found: &Found) -> Option<NonZeroU64> {
        match found {
            Found::File(stamp) => NonZeroU64::new(self.hasher.hash_one((*stamp)?)),
            Found::Read(_) => None,
        }
    }

    fn contents(&self, path: &Arc<Path>, text: FileText) -> Arc<Contents> {
        let mut contents = match text {
            FileText::Text(text) => read::read(path, &text),
            FileText::Unreadable(reason) => read::unreadable(path, reason),
        };
        if let Some(node) = &self.node {
            contents.items.retain(|item| match &item.object {
                Some(Object::Pod(pod)) => pod.node == *node,
                Some(object) => matches!(object, Object::Namespace(_)),
                // Its last good version may be wanted.
                None => matches!(&*item.origin.object.kind, "Pod" | "Namespace"),
            });
            contents.items.shrink_to_fit();
            if contents.is_empty() {
                return self.nothing.clone();
            }
        }
        Arc::new(contents)
    }

    fn renew(&mut self) -> Snapshot {
        let snapshot = self.settle();
        self.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// Notes that the files cannot be seen at all, for a `reason`. Everything stays as it was.
    pub fn keep(&mut self, root: &Path, reason: String) -> Option<Snapshot> {
        let said = Said::Unreadable(reason.clone());
        let known = self.files.get(root).is_some_and(|known| known.said == said);
        if known && self.snapshot.is_some() {
            return None;
        }
        let root: Arc<Path> = root.into();
        let known = Known {
            stamp: None,
            said,
            contents: Arc::new(read::unreadable(&root, reason)),
            seen: false,
        };
        self.files.insert(root, known);
        Some(self.renew())
    }

    /// What is in force now; nothing before the first reload.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone().unwrap_or_default()
    }

    fn settle(&mut self) -> Snapshot {
        let files = self.files.values();
        let contents: Vec<Arc<Contents>> = files.map(|known| known.contents.clone()).collect();
        let diagnostics = contents.iter().flat_map(|contents| &contents.diagnostics);
        let mut diagnostics: Vec<Diagnostic> = diagnostics.cloned().collect();
        let claims = self.claims(&contents, &mut diagnostics);
        let broken = broken(&contents, &claims);
        self.drop_what_is_gone(&claims, &broken);
        self.take_over(&claims, &mut diagnostics);
        if self.remembers {
            for broken in &broken {
                diagnostics.push(self.settle_broken(broken));
            }
        }
        self.blank = false;
        let in_force = self.good.values().map(|in_force| &in_force.object);
        let objects: Objects = in_force.cloned().collect();
        diagnostics.extend(relations::without_effect(&objects));
        diagnostics.extend(relations::shared_addresses(&objects));
        diagnostic::sort(&mut diagnostics);
        Snapshot {
            objects: Arc::new(objects),
            diagnostics: diagnostics.into(),
            last_good: Arc::new(self.last_good()),
        }
    }

    /// What a file no longer says is gone, unless part of the file could not be read.
    fn drop_what_is_gone(&mut self, claims: &[&Item], broken: &[Broken]) {
        let origins = claims.iter().map(|item| &item.origin);
        let origins = origins.chain(broken.iter().map(|broken| &broken.origin));
        let named: BTreeSet<&ObjectRef> = origins.map(|origin| &origin.object).collect();
        let files = &self.files;
        self.good.retain(|reference, in_force| {
            let file = files.get(&in_force.object.origin().file);
            named.contains(reference) || file.is_some_and(|known| known.contents.incomplete)
        });
    }

    /// Puts what is good in force.
    fn take_over(&mut self, claims: &[&Item], diagnostics: &mut Vec<Diagnostic>) {
        let good = claims.iter().filter_map(|item| item.object.as_ref());
        let known = self.good.values().map(|in_force| &in_force.object);
        let namespaces: BTreeSet<Name> = known
            .chain(good)
            .filter_map(|object| match object {
                Object::Namespace(namespace) => Some(namespace.name.clone()),
                _ => None,
            })
            .collect();
        for item in claims {
            let Some(object) = &item.object else { continue };
            match relations::dangling(object, &namespaces) {
                Some(diagnostic) => diagnostics.push(diagnostic),
                None => self.put(object.clone(), item.text.clone(), Source::File),
            }
        }
    }

    /// Decides what is in force for a broken policy, and tells.
    fn settle_broken(&mut self, broken: &Broken) -> Diagnostic {
        let Broken { kind, origin, text } = broken;
        let source = |store: &Self| store.good.get(&origin.object).map(|known| known.source);
        match source(self) {
            None if self.blank => self.stand_in(*kind, origin, text.as_deref()),
            // It follows what can be read of the policy now.
            Some(Source::StandIn) => self.stand_in(*kind, origin, text.as_deref()),
            _ => {}
        }
        let message = match self.good.get(&origin.object) {
            Some(in_force) => match in_force.source {
                Source::StandIn => return stand_in::report(&in_force.object, origin),
                Source::File => "its last good version stays in force",
                Source::Memory => "its last good version, from before the restart, stays in force",
            },
            None => "it is not applied; the workloads that it is for keep the policies they have",
        };
        origin.diagnostic(Severity::Warning, Code::NotApplied, "", message)
    }

    fn last_good(&self) -> LastGood {
        let mut last_good = LastGood::default();
        if !self.remembers {
            return last_good;
        }
        for in_force in self.good.values() {
            let origin = in_force.object.origin();
            match (in_force.source, &in_force.text) {
                (Source::StandIn, _) => last_good.stand_ins.push(StandIn::new(origin)),
                (_, Some(text)) => last_good.policies.push(Remembered {
                    file: origin.file.clone(),
                    object: text.clone(),
                }),
                (_, None) => {}
            }
        }
        last_good
    }

    /// The one place that speaks for each object. Where several do, it is the file whose version
    /// is in force, or else the first by path; the others are reported.
    fn claims<'a>(
        &self,
        contents: &'a [Arc<Contents>],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Vec<&'a Item> {
        let mut by_object: BTreeMap<&ObjectRef, Vec<&Item>> = BTreeMap::new();
        for item in contents.iter().flat_map(|contents| &contents.items) {
            by_object.entry(&item.origin.object).or_default().push(item);
        }
        let mut claims = Vec::with_capacity(by_object.len());
        for (reference, items) in by_object {
            let in_force = self.good.get(reference);
            let in_force = in_force.map(|known| &known.object.origin().file);
            let winner = items
                .iter()
                .position(|item| Some(&item.origin.file) == in_force)
                .unwrap_or(0);
            for (i, item) in items.iter().enumerate() {
                if i != winner {
                    diagnostics.push(duplicate(&item.origin, &items[winner].origin));
                }
            }
            claims.push(items[winner]);
        }
        claims
    }
}

/// The policies that cannot be applied as they are written, each once.
fn broken(contents: &[Arc<Contents>], claims: &[&Item]) -> Vec<Broken> {
    let mut broken: BTreeMap<&ObjectRef, Broken> = BTreeMap::new();
    for guess in contents.iter().flat_map(|contents| &contents.guessed) {
        let entry = broken.entry(&guess.origin.object);
        entry.or_insert_with(|| guess.clone());
    }
    for item in claims {
        let object = &item.origin.object;
        match memory::remembered(&object.kind).filter(|_| item.object.is_none()) {
            Some(kind) => {
                let (origin, text) = (item.origin.clone(), item.text.clone());
                broken.insert(object, Broken { kind, origin, text });
            }
            // What has been read need not be guessed.
            None => drop(broken.remove(object)),
        }
    }
    broken.into_values().collect()
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
            Kind::Node => objects.nodes.len(),
            Kind::ServiceEntry => objects.service_entries.len(),
            Kind::WorkloadEntry => objects.workload_entries.len(),
            Kind::Sidecar => objects.sidecars.len(),
            Kind::ConfigMap => objects.mesh_configs.len(),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
