//! What is in force after a restart, with what the control plane kept.

use std::os::unix::fs::PermissionsExt as _;

use sluice_model::authz::Action;
use sluice_objects::{Snapshot, Store, scan::FileText};
use tempfile::TempDir;

use super::*;

/// A control plane that can be started again and again.
struct World {
    state: TempDir,
    running: Option<(Keeper, Store)>,
}

impl World {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            running: None,
        }
    }

    fn file(&self) -> PathBuf {
        self.state.path().join(FILE)
    }

    fn restart(&mut self) {
        self.running = None;
    }

    /// The policies in force, as `name: rules` for ALLOW or as what they are, and every diagnostic.
    fn with(&mut self, text: &str) -> (Vec<String>, String) {
        let (keeper, store) = self.running.get_or_insert_with(|| {
            let keeper = Keeper::open(self.state.path()).unwrap();
            let store = Store::new(keeper.memory());
            (keeper, store)
        });
        store.reload([("f.yaml", FileText::Text(text.to_owned()).into())]);
        let snapshot = store.snapshot();
        let mut diagnostics = keeper.keep(&snapshot.last_good);
        diagnostics.extend(snapshot.diagnostics.iter().cloned());
        let lines: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
        (in_force(&snapshot), lines.join("\n"))
    }
}

fn in_force(snapshot: &Snapshot) -> Vec<String> {
    let config = crate::translate::tests::config();
    let translation = crate::translate::translate(&snapshot.objects, &config);
    let mut policies: Vec<_> = translation
        .policies
        .iter()
        .filter(|policy| !policy.key.is_peer_authentication())
        .map(|policy| {
            let (name, rules) = (&policy.key.name, policy.rules.len());
            assert_ne!(policy.action, Action::Audit);
            format!("{name} {:?} {:?} {rules}", policy.scope, policy.action)
        })
        .collect();
    let peers = snapshot.objects.peer_authentications.values();
    policies.extend(peers.map(|peer| format!("{} {:?}", peer.name, peer.mode)));
    policies
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn peer(name: &str, spec: &str) -> String {
    policy(name, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

const GOOD: &str = "action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}, {}]";
const BROKEN: &str = "action: DENY, rules: [{to: [{operation: {ports: ['0']}}]}]";
const SELECTOR: &str = "selector: {matchLabels: {app: web}}";

#[test]
fn a_broken_policy_is_in_force_as_it_was_before_the_restart() {
    let mut world = World::new();
    let good = ["p Namespace Deny 2"];
    assert_eq!(world.with(&policy("p", GOOD)).0, good);
    let mode = world.file().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (policies, told) = world.with(&policy("p", BROKEN));
    assert_eq!(policies, good, "while it runs");
    assert!(told.contains("last good version stays in force"), "{told}");
    for _ in 0..2 {
        world.restart();
        let (policies, told) = world.with(&policy("p", BROKEN));
        assert_eq!(policies, good, "{told}");
        assert!(told.contains("from before the restart"), "{told}");
        assert!(told.contains("is not a port"), "{told}");
    }
    world.restart();
    let unreadable = policy("p", "rules: [");
    let (policies, told) = world.with(&unreadable);
    assert_eq!(policies, good, "not even YAML: {told}");
    let (policies, told) = world.with(&policy("p", "rules: []"));
    assert_eq!(policies, ["p Namespace Allow 0"]);
    assert_eq!(told, "");
    assert!(world.with("").0.is_empty());
    world.restart();
    let (policies, told) = world.with(&policy("p", BROKEN));
    assert!(policies.is_empty(), "what was removed is forgotten: {told}");
}

#[test]
fn a_new_policy_that_is_broken_is_not_applied_before_and_after_a_restart() {
    let mut world = World::new();
    let old = policy("old", GOOD);
    world.with(&old);
    let both = format!(
        "{old}{}{}",
        policy("new", BROKEN),
        peer("q", "mtls: {mode: X}")
    );
    for _ in 0..2 {
        let (policies, told) = world.with(&both);
        assert_eq!(policies, ["old Namespace Deny 2"], "{told}");
        assert_eq!(told.matches("it is not applied").count(), 2, "{told}");
        world.restart();
    }
}

#[test]
fn at_a_first_start_another_stands_in_for_a_broken_policy() {
    let selected = format!("{SELECTOR}, {BROKEN}");
    let unsure = "selector: {matchLabels: {app: web}, matchExpressions: []}";
    for (text, expected, words) in [
        (policy("p", BROKEN), "p Namespace Allow 0", "its namespace"),
        (policy("p", &selected), "p Workload Allow 0", "(app=web)"),
        (policy("p", unsure), "p Namespace Allow 0", "its namespace"),
        (
            policy("p", "rules: ["),
            "p Namespace Allow 0",
            "its namespace",
        ),
        (
            policy("p", GOOD).replace("io/v1", "io/v7"),
            "p Namespace Allow 0",
            "its namespace",
        ),
        (
            policy("p", "action: Deny").replace("shop", "istio-system"),
            "p Global Allow 0",
            "the whole mesh",
        ),
        (
            policy(
                "p",
                &format!("{SELECTOR}, targetRefs: [{{kind: Service, name: x}}]"),
            ),
            "p Workload Allow 0",
            "(app=web)",
        ),
        (
            peer("p", "mtls: {mode: X}"),
            "p Strict",
            "plaintext is refused",
        ),
    ] {
        let mut world = World::new();
        let (policies, told) = world.with(&text);
        assert_eq!(policies, [expected], "{text}: {told}");
        assert!(told.contains("until it is mended"), "{told}");
        assert!(told.contains(words), "{told}");
        world.restart();
        let (policies, told) = world.with(&text);
        assert_eq!(policies, [expected], "after a restart, {text}: {told}");
        assert!(world.with("").0.is_empty(), "it goes with the object");
    }
}

#[test]
fn a_stand_in_follows_the_policy_until_that_is_mended() {
    let mut world = World::new();
    assert_eq!(world.with(&policy("p", BROKEN)).0, ["p Namespace Allow 0"]);
    let narrower = policy("p", &format!("{SELECTOR}, {BROKEN}"));
    assert_eq!(world.with(&narrower).0, ["p Workload Allow 0"]);
    let (policies, told) = world.with(&policy("p", GOOD));
    assert_eq!(
        (&*policies, &*told),
        (&["p Namespace Deny 2".to_owned()][..], "")
    );
    assert_eq!(world.with(&policy("p", BROKEN)).0, ["p Namespace Deny 2"]);
}

#[test]
fn nothing_stands_in_for_what_cannot_refuse() {
    let dry = policy("p", BROKEN).replace(
        "name: p",
        "name: p, annotations: {istio.io/dry-run: 'true'}",
    );
    for text in [
        policy("p", "action: AUDIT, rules: [{form: []}]"),
        policy("p", "action: CUSTOM"),
        policy("p", "targetRefs: [{kind: Servise, name: x}]"),
        dry,
    ] {
        let (policies, told) = World::new().with(&text);
        assert!(policies.is_empty(), "{text}: {told}");
        assert!(told.contains("it is not applied"), "{told}");
    }
}

#[test]
fn a_memory_that_cannot_be_used_is_reported_and_counts_as_none() {
    let mut world = World::new();
    world.with(&policy("p", GOOD));
    for garbage in ["", "{", "[]", "{\"policies\": 1}"] {
        world.restart();
        fs::write(world.file(), garbage).unwrap();
        let (policies, told) = world.with(&policy("p", BROKEN));
        assert_eq!(policies, ["p Namespace Allow 0"], "{told}");
        assert!(told.contains("last-good.json: cannot be used"), "{told}");
    }
    // What was written since is good again.
    world.restart();
    let (policies, told) = world.with(&policy("p", BROKEN));
    assert_eq!(policies, ["p Namespace Allow 0"]);
    assert!(!told.contains("last-good.json"), "{told}");
}

#[test]
fn a_memory_that_cannot_be_written_is_reported() {
    let mut world = World::new();
    world.with("");
    fs::remove_file(world.file()).unwrap();
    fs::create_dir(world.file()).unwrap();
    let (policies, told) = world.with(&policy("p", GOOD));
    assert_eq!(
        policies,
        ["p Namespace Deny 2"],
        "it is applied all the same"
    );
    assert!(told.contains("last-good.json: cannot be written"), "{told}");
    fs::remove_dir(world.file()).unwrap();
    let (_, told) = world.with(&policy("p", &format!("{SELECTOR}, {GOOD}")));
    assert_eq!(told, "");
}

#[test]
fn what_a_later_version_of_this_program_cannot_read_is_not_open() {
    let mut world = World::new();
    world.with(&policy("p", GOOD));
    world.restart();
    let kept = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), kept.replace("\"80\"", "\"eighty\"")).unwrap();
    let (policies, told) = world.with(&policy("p", BROKEN));
    assert_eq!(policies, ["p Namespace Allow 0"], "{told}");
}
