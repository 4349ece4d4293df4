use std::os::unix::fs::symlink;

use super::*;
use crate::Kind;

const PATIENCE: Duration = Duration::from_secs(60);

fn namespace(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n")
}

/// A watched directory, without the rescan that would hide a lost event.
fn watch(path: &Path) -> (Directory, mpsc::Receiver<Snapshot>) {
    let (sender, receiver) = mpsc::channel();
    let config = Config {
        rescan: Duration::from_secs(3600),
        ..Config::new(path)
    };
    let directory = Directory::watch(config, move |snapshot| {
        let _ = sender.send(snapshot);
    });
    (directory.unwrap(), receiver)
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .objects
        .namespaces
        .keys()
        .map(ToString::to_string)
        .collect()
}

/// Waits until the namespaces are `expected`.
fn eventually(snapshots: &mpsc::Receiver<Snapshot>, expected: &[&str]) -> Snapshot {
    let deadline = Instant::now() + PATIENCE;
    let mut last = Vec::new();
    while let Ok(snapshot) =
        snapshots.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        last = names(&snapshot);
        if last == expected {
            return snapshot;
        }
    }
    panic!("expected {expected:?}, last saw {last:?}");
}

#[test]
fn changes_arrive() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
    let (_directory, snapshots) = watch(dir.path());
    eventually(&snapshots, &["a"]);
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/b.yml"), namespace("b")).unwrap();
    eventually(&snapshots, &["a", "b"]);
    fs::write(dir.path().join("sub/.b.tmp"), namespace("c")).unwrap();
    fs::rename(dir.path().join("sub/.b.tmp"), dir.path().join("sub/b.yml")).unwrap();
    eventually(&snapshots, &["a", "c"]);
    fs::write(dir.path().join("d.txt"), namespace("d")).unwrap();
    fs::write(
        dir.path().join("e.json"),
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"e"}}"#,
    )
    .unwrap();
    eventually(&snapshots, &["a", "c", "e"]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    eventually(&snapshots, &["c", "e"]);
}

#[test]
fn a_config_maps_symbolic_links_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, namespace_name: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(
            dir.path().join(name).join("a.yaml"),
            namespace(namespace_name),
        )
        .unwrap();
    };
    version("..1", "one");
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let (_directory, snapshots) = watch(dir.path());
    let first = eventually(&snapshots, &["one"]);
    assert!(
        first.diagnostics.is_empty(),
        "the file counts once: {:?}",
        first.diagnostics
    );
    version("..2", "two");
    symlink("..2", dir.path().join("..tmp")).unwrap();
    fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
    fs::remove_dir_all(dir.path().join("..1")).unwrap();
    eventually(&snapshots, &["two"]);
}

#[test]
fn the_directory_itself_may_be_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("conf");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), namespace("a")).unwrap();
    let (_directory, snapshots) = watch(&dir);
    eventually(&snapshots, &["a"]);
    fs::rename(&dir, parent.path().join("old")).unwrap();
    let gone = snapshots.recv_timeout(PATIENCE).unwrap();
    assert_eq!(names(&gone), ["a"], "what was in force stays");
    assert!(
        gone.diagnostics[0].message.contains("cannot be listed"),
        "{:?}",
        gone.diagnostics
    );
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("b.yaml"), namespace("b")).unwrap();
    eventually(&snapshots, &["b"]);
    // The new directory is watched, not the old one.
    fs::write(dir.join("c.yaml"), namespace("c")).unwrap();
    eventually(&snapshots, &["b", "c"]);
}

#[test]
fn a_rescan_makes_up_for_lost_events() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, snapshots) = mpsc::channel();
    let config = Config {
        rescan: Duration::from_millis(50),
        // A burst that never ends: only the rescan can find anything.
        quiet: Duration::from_secs(3600),
        longest_burst: Duration::from_millis(50),
        ..Config::new(dir.path())
    };
    let _directory = Directory::watch(config, move |snapshot| {
        let _ = sender.send(snapshot);
    });
    fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
    let found = eventually(&snapshots, &["a"]);
    assert_eq!(found.count(Kind::Namespace), 1);
}

#[test]
fn who_has_looked_for_long_rests_before_the_next_look() {
    let (wake, woken) = mpsc::channel();
    let config = Config::new("/");
    for rest in [Duration::from_millis(300), Duration::ZERO] {
        wake.send(Wake::Changed).unwrap();
        let begin = Instant::now();
        assert!(config.wait(&woken, begin + rest).is_continue());
        let waited = begin.elapsed();
        assert!(waited >= rest && waited < PATIENCE, "{waited:?}");
    }
    wake.send(Wake::Changed).unwrap();
    wake.send(Wake::Stop).unwrap();
    let never = Instant::now() + Duration::from_secs(3600);
    assert!(config.wait(&woken, never).is_break());
}

#[test]
fn a_missing_directory_is_an_error() {
    let error = Directory::read(Path::new("/nonexistent/conf")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/conf"), "{error}");
}

#[test]
fn odd_entries_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path(), dir.path().join("loop")).unwrap();
    symlink("nowhere", dir.path().join("dangling.yaml")).unwrap();
    fs::write(dir.path().join("latin.yaml"), b"a: \xe9").unwrap();
    fs::create_dir(dir.path().join("dir.yaml")).unwrap();
    let snapshot = Directory::read(dir.path()).unwrap();
    let text = snapshot.diagnostics[0].to_string();
    assert!(
        text.ends_with("latin.yaml: not UTF-8 text [UnreadableFile]"),
        "{text}"
    );
}
