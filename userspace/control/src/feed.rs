//! From objects to what is served: translates each snapshot and publishes it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Instant,
};

use sluice_model::{SpiffeId, TrustDomain};
use sluice_objects::{Diagnostic, Directory, Objects, Severity, Snapshot, directory, kinds::Phase};
use tokio::sync::watch;

use crate::{
    Error,
    addresses::{Addresses, Given},
    analysis,
    conditions::{self, PolicyStatus},
    memory::Keeper,
    translate::{self, PortMtls, translate},
    xds::Resources,
};

/// What is served at one moment.
#[derive(Debug)]
pub struct Published {
    /// When what it tells of was noticed.
    pub changed: Instant,
    pub resources: Resources,
    /// Everything that is wrong, ordered by file and line.
    pub diagnostics: Arc<[Diagnostic]>,
    /// What became of each policy.
    pub statuses: Arc<[PolicyStatus]>,
    /// The addresses of hosts that had none.
    pub addresses: Arc<[Given]>,
    /// What all of this is made from.
    objects: Arc<Objects>,
    config: Arc<translate::Config>,
    trust_domain_aliases: Vec<TrustDomain>,
    /// Which identities run where, as `(node, namespace, service account)`.
    placements: HashSet<(String, String, String)>,
}

impl Published {
    fn nothing(config: &Arc<translate::Config>) -> Self {
        Self {
            objects: Arc::default(),
            config: config.clone(),
            changed: Instant::now(),
            resources: Resources::default(),
            diagnostics: Arc::default(),
            statuses: Arc::default(),
            addresses: Arc::default(),
            trust_domain_aliases: Vec::new(),
            placements: HashSet::new(),
        }
    }

    /// Whether identities of this trust domain are those of the mesh: it is on its way from one
    /// domain to another, and some nodes still have the other.
    pub fn is_alias(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_aliases.contains(domain)
    }

    /// What a port of a pod accepts, and why; `None` when there is no such pod.
    pub fn mtls(&self, namespace: &str, name: &str, port: u16) -> Option<PortMtls<'_>> {
        let mut pods = self.objects.pods.values();
        let pod = pods.find(|pod| *pod.namespace == *namespace && *pod.name == *name)?;
        Some(translate::mtls(&self.objects, &self.config, pod, port))
    }

    /// Whether a pod with this identity's namespace and service account runs on the node.
    pub fn runs_on(&self, node: &str, identity: &SpiffeId) -> bool {
        let key = (
            node.to_owned(),
            identity.namespace().to_string(),
            identity.service_account().to_string(),
        );
        self.placements.contains(&key)
    }
}

/// Publishes what a directory describes, now and from now on. The keeper remembers the policies
/// among it, and `addresses` what hosts without one are given.
///
/// The first snapshot is published before this returns.
///
/// # Errors
/// When the directory cannot be watched.
pub fn directory(
    mut source: directory::Config,
    config: translate::Config,
    mut keeper: Keeper,
    mut addresses: Addresses,
) -> Result<(Directory, watch::Receiver<Arc<Published>>), Error> {
    let config = Arc::new(config);
    let (sender, receiver) = watch::channel(Arc::new(Published::nothing(&config)));
    let mut log = Log::default();
    source.memory = keeper.memory();
    let directory = Directory::watch(source, move |mut snapshot| {
        let changed = Instant::now();
        // Before it is served, so that nothing is in force that would not be remembered.
        let mut diagnostics = keeper.keep(&snapshot.last_good);
        diagnostics.extend(snapshot.diagnostics.iter().cloned());
        snapshot.diagnostics = diagnostics.into();
        let before = sender.borrow().resources.clone();
        let published = publish(&snapshot, &config, &mut addresses, &before, changed);
        log.update(&published.diagnostics);
        let resources = &published.resources;
        tracing::info!(
            workloads = snapshot.objects.pods.len(),
            services = snapshot.objects.services.len(),
            policies = snapshot.objects.authorization_policies.len(),
            resources = resources.len(),
            "configuration published"
        );
        sender.send_replace(Arc::new(published));
    })?;
    Ok((directory, receiver))
}

/// Translates one snapshot, which was there at `changed`.
fn publish(
    snapshot: &Snapshot,
    config: &Arc<translate::Config>,
    addresses: &mut Addresses,
    before: &Resources,
    changed: Instant,
) -> Published {
    let mut translation = translate(&snapshot.objects, config);
    let problems = addresses.give(&mut translation, &config.network);
    translation.diagnostics.extend(problems);
    let diagnostics = analysis::findings(snapshot, &translation, config);
    let pods = snapshot.objects.pods.values();
    let running = pods.filter(|pod| pod.phase != Phase::Terminated && !pod.node.is_empty());
    let placements = running.map(|pod| {
        (
            pod.node.to_string(),
            pod.namespace.to_string(),
            pod.service_account.to_string(),
        )
    });
    Published {
        objects: snapshot.objects.clone(),
        config: config.clone(),
        placements: placements.collect(),
        addresses: addresses.given().into(),
        trust_domain_aliases: translation.trust_domain_aliases.clone(),
        changed,
        resources: before.next(&translation),
        statuses: conditions::of(&snapshot.objects, &diagnostics).into(),
        diagnostics: diagnostics.into(),
    }
}

/// Logs each problem once when it appears and once when it is gone.
#[derive(Default)]
struct Log {
    known: BTreeSet<(Severity, String)>,
}

impl Log {
    fn update(&mut self, diagnostics: &[Diagnostic]) {
        let current: BTreeSet<_> = diagnostics
            .iter()
            .map(|diagnostic| (diagnostic.severity, diagnostic.to_string()))
            .collect();
        for (severity, text) in current.difference(&self.known) {
            match severity {
                Severity::Error => tracing::error!("{text}"),
                Severity::Warning => tracing::warn!("{text}"),
                Severity::Info => tracing::info!("{text}"),
            }
        }
        for (_, text) in self.known.difference(&current) {
            tracing::info!("resolved: {text}");
        }
        self.known = current;
    }
}
