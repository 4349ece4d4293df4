use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    Severity::{Error, Info, Warning},
    stamp::Stamp,
};

/// A store that reads the given files.
fn reload(store: &mut Store, files: &[(&str, &str)]) -> Snapshot {
    let files = files
        .iter()
        .map(|(path, text)| (*path, FileText::Text((*text).to_owned()).into()));
    store.reload(files);
    store.snapshot()
}

fn read(text: &str) -> Snapshot {
    reload(&mut Store::default(), &[("f.yaml", text)])
}

fn lines(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect()
}

const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n";

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{app: {name}}}\nspec:\n  containers:\n  - name: main\nstatus:\n  podIP: {ip}\n"
    )
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - port: 80
    targetPort: 8080
";

/// Every finding is (severity, line, object, field, words of the message).
type Finding<'a> = (Severity, u32, &'a str, &'a str, &'a str);

fn assert_findings(text: &str, expected: &[Finding<'_>]) {
    let snapshot = read(text);
    let shown = format!("{text}\n{:#?}", lines(&snapshot));
    assert_eq!(snapshot.diagnostics.len(), expected.len(), "{shown}");
    for (found, (severity, line, object, field, words)) in snapshot.diagnostics.iter().zip(expected)
    {
        let name = found
            .object
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert_eq!(
            (
                found.severity,
                found.line,
                name.as_str(),
                found.field.as_str()
            ),
            (*severity, *line, *object, *field),
            "{shown}"
        );
        assert!(found.message.contains(words), "{words:?} not in {shown}");
    }
}

#[test]
fn a_broken_object_keeps_its_last_good_version() {
    let mut store = Store::default();
    let good = format!("{SHOP}{}---\n{SERVICE}", pod("web", "10.0.0.1"));
    reload(&mut store, &[("f.yaml", &good)]);
    let broken = good
        .replace("port: 80\n", "port: 0\n")
        .replace("10.0.0.1", "10.0.0.2");
    let after = reload(&mut store, &[("f.yaml", &broken)]);
    assert_eq!(after.diagnostics.len(), 1);
    let service = &after.objects.services[&("shop".into(), "web".into())];
    assert_eq!(
        service.ports[0].port, 80,
        "the broken service stays as it was"
    );
    let pod = &after.objects.pods[&("shop".into(), "web".into())];
    assert_eq!(
        pod.ips[0].to_string(),
        "10.0.0.2",
        "its neighbour is applied"
    );
    let fixed = broken.replace("port: 0\n", "port: 81\n");
    let after = reload(&mut store, &[("f.yaml", &fixed)]);
    assert!(after.diagnostics.is_empty());
    assert_eq!(
        after.objects.services[&("shop".into(), "web".into())].ports[0].port,
        81
    );
}

#[test]
fn a_syntax_error_keeps_what_the_file_held() {
    let mut store = Store::default();
    let shop = ("a.yaml", SHOP);
    let both = format!("{}---\n{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.2"));
    reload(&mut store, &[shop, ("f.yaml", &both)]);
    let broken = format!("{}---\n{}", pod("web", "10.0.0.3"), "kind: [");
    let after = reload(&mut store, &[shop, ("f.yaml", &broken)]);
    let ips: Vec<_> = after
        .objects
        .pods
        .values()
        .map(|p| p.ips[0].to_string())
        .collect();
    assert_eq!(
        ips,
        ["10.0.0.2", "10.0.0.3"],
        "db as it was, web as it is now"
    );
    assert_eq!(after.diagnostics.len(), 1);
    let after = reload(&mut store, &[shop, ("f.yaml", &pod("web", "10.0.0.3"))]);
    assert_eq!(
        after.count(Kind::Pod),
        1,
        "once the file is whole, what is missing is gone"
    );
}

#[test]
fn what_is_removed_is_gone() {
    let mut store = Store::default();
    let pod = pod("web", "10.0.0.1");
    let files = [("a.yaml", SHOP), ("f.yaml", pod.as_str())];
    assert_eq!(reload(&mut store, &files).count(Kind::Pod), 1);
    assert_eq!(reload(&mut store, &files[..1]).count(Kind::Pod), 0);
    reload(&mut store, &files);
    let after = reload(&mut store, &files[1..]);
    assert_eq!(after.count(Kind::Namespace), 0);
    assert_eq!(
        after.count(Kind::Pod),
        1,
        "a pod that lost its namespace stays, and is reported"
    );
    assert!(
        lines(&after)[0].contains("metadata.namespace"),
        "{:?}",
        lines(&after)
    );
}

#[test]
fn files_that_cannot_be_read_change_nothing() {
    let mut store = Store::default();
    reload(&mut store, &[("f.yaml", SHOP)]);
    let unreadable = FileText::Unreadable("cannot be read: why".to_owned());
    let after = store.reload([("f.yaml", unreadable.into())]).unwrap();
    assert_eq!((after.count(Kind::Namespace), lines(&after).len()), (1, 1));
    assert_eq!(
        lines(&after),
        ["f.yaml: cannot be read: why [UnreadableFile]"]
    );
    let after = store
        .keep(Path::new("."), "cannot be listed: why".to_owned())
        .unwrap();
    assert_eq!((after.count(Kind::Namespace), lines(&after).len()), (1, 2));
}

#[test]
fn duplicates_are_reported_and_the_version_in_force_stays() {
    let (first, second) = (pod("web", "10.0.0.1"), pod("web", "10.0.0.2"));
    let ip =
        |snapshot: &Snapshot| snapshot.objects.pods.values().next().unwrap().ips[0].to_string();
    // From the start, the first path wins.
    let files = [("a.yaml", SHOP), ("b.yaml", &first), ("c.yaml", &second)];
    let fresh = reload(&mut Store::default(), &files);
    assert_eq!(ip(&fresh), "10.0.0.1");
    assert_eq!(
        lines(&fresh),
        [
            "c.yaml:4: Pod shop/web: metadata.name: given twice: b.yaml:1 counts, this one does not [DuplicateObject]"
        ]
    );
    // What is in force is not displaced, and goes on following its own file.
    let mut store = Store::default();
    reload(&mut store, &[files[0], files[2]]);
    let both = reload(&mut store, &files);
    assert_eq!(ip(&both), "10.0.0.2");
    assert!(
        lines(&both)[0].starts_with("b.yaml:4: Pod shop/web"),
        "{:?}",
        lines(&both)
    );
    let edited = pod("web", "10.0.0.3");
    let both = reload(&mut store, &[files[0], files[1], ("c.yaml", &edited)]);
    assert_eq!(ip(&both), "10.0.0.3");
    let one = reload(&mut store, &files[..2]);
    assert_eq!(ip(&one), "10.0.0.1");
    assert!(one.diagnostics.is_empty());
}

#[test]
fn nothing_is_delivered_when_nothing_changed() {
    let mut store = Store::default();
    let files = || [("f.yaml", FileText::Text(SHOP.to_owned()).into())];
    assert!(store.reload(files()).is_some());
    assert!(store.reload(files()).is_none());
}

#[test]
fn for_a_node_only_its_pods_and_namespaces_are_kept() {
    let on = |node: &str, name: &str| {
        pod(name, "10.0.0.1").replace("spec:\n", &format!("spec:\n  nodeName: {node}\n"))
    };
    let text = [
        SHOP,
        &on("a", "here"),
        "---\n",
        &on("b", "there"),
        "---\n",
        SERVICE,
    ]
    .concat();
    let mut store = Store::default().for_node("a".into());
    let names = |snapshot: &Snapshot| -> Vec<String> {
        let pods = snapshot.objects.pods.values();
        pods.map(|pod| pod.name.to_string()).collect()
    };
    let snapshot = reload(&mut store, &[("f.yaml", &text)]);
    assert_eq!(names(&snapshot), ["here"]);
    assert_eq!(
        (
            snapshot.count(Kind::Namespace),
            snapshot.count(Kind::Service)
        ),
        (1, 0)
    );
    // Broken, it is as it was; gone to another node, it is gone.
    let broken = text.replacen("10.0.0.1", "nonsense", 1);
    assert_eq!(names(&reload(&mut store, &[("f.yaml", &broken)])), ["here"]);
    let moved = text.replace("nodeName: a", "nodeName: c");
    assert!(names(&reload(&mut store, &[("f.yaml", &moved)])).is_empty());
}

#[test]
fn an_empty_directory_is_delivered_once() {
    let mut store = Store::default();
    let nothing = || None::<(&str, Found)>;
    assert!(store.reload(nothing()).is_some());
    assert!(store.reload(nothing()).is_none());
}

#[path = "validation_tests.rs"]
mod validation;

#[path = "code_tests.rs"]
mod codes;

#[path = "entry_tests.rs"]
mod entries;

#[path = "policy_tests.rs"]
mod policies;

#[path = "outbound_tests.rs"]
mod outbound;

#[test]
fn a_file_is_read_when_its_stamp_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.yaml");
    let write = |name: &str| {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n");
        std::fs::write(&path, text).unwrap();
    };
    write("one");
    let later = SystemTime::now() + Duration::from_secs(60);
    let stamp = Stamp::new(&path.metadata().unwrap(), later);
    assert!(stamp.is_some());
    let mut store = Store::default();
    let reload = |store: &mut Store, stamp| {
        let snapshot = store.reload([(&*path, Found::File(stamp))])?;
        let names = snapshot.objects.namespaces.keys();
        Some(names.map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(reload(&mut store, stamp), Some(vec!["one".to_owned()]));
    write("two");
    assert_eq!(reload(&mut store, stamp), None, "it is not read");
    assert_eq!(reload(&mut store, None), Some(vec!["two".to_owned()]));
    assert_eq!(reload(&mut store, stamp), None, "it says the same");
    write("six");
    store.distrust_stamps();
    assert_eq!(reload(&mut store, stamp), Some(vec!["six".to_owned()]));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    store.distrust_stamps();
    let unreadable = reload(&mut store, stamp);
    assert_eq!(unreadable, Some(vec!["six".to_owned()]));
    std::fs::remove_dir(&path).unwrap();
    write("ten");
    assert_eq!(reload(&mut store, stamp), Some(vec!["ten".to_owned()]));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(reload(&mut store, None), Some(vec![]), "it has just gone");
}

#[test]
fn what_is_below_an_unreadable_directory_stays() {
    let mut store = Store::default();
    let namespace = |name: &str| {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        Found::from(FileText::Text(text))
    };
    let names = |snapshot: Snapshot| -> Vec<String> {
        let names = snapshot.objects.namespaces.keys();
        names.map(ToString::to_string).collect()
    };
    let files = || [("sub/a.yaml", namespace("a")), ("sub.yaml", namespace("b"))];
    store.reload(files());
    let unreadable = || Found::from(FileText::Unreadable("cannot be read: why".to_owned()));
    let after = store.reload([("sub", unreadable())]).unwrap();
    assert_eq!(lines(&after).len(), 1);
    assert_eq!(names(after), ["a"]);
    assert!(store.reload([("sub", unreadable())]).is_none());
    assert_eq!(names(store.reload(files()).unwrap()), ["a", "b"]);
}
