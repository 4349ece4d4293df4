use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

use super::*;

/// The stamp of a file, seen when it has not changed for long.
fn settled(path: &Path) -> Stamp {
    let later = SystemTime::now() + Duration::from_secs(60);
    Stamp::new(&fs::metadata(path).unwrap(), later).unwrap()
}

/// Waits until what is changed now gets another time than what was changed before.
fn until_the_clock_has_ticked(directory: &Path) {
    let probe = directory.join("probe");
    let time = || {
        fs::write(&probe, "").unwrap();
        let metadata = fs::metadata(&probe).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = time();
    while time() == before {}
}

#[test]
fn what_has_just_changed_has_no_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    fs::write(&file, "a").unwrap();
    let seen = |now| Stamp::new(&fs::metadata(&file).unwrap(), now);
    let now = SystemTime::now();
    assert_eq!(seen(now), None);
    assert_eq!(seen(now + Duration::from_secs(1)), None);
    assert_eq!(seen(now + Duration::from_secs(5)), Some(settled(&file)));
    let future = now + Duration::from_secs(3600);
    File::open(&file).unwrap().set_modified(future).unwrap();
    assert_eq!(seen(now + Duration::from_secs(5)), None);
}

#[test]
fn a_change_that_hides_its_size_and_time_has_another_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&file, "one").unwrap();
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let set_back = |path: &Path| {
        File::options()
            .write(true)
            .open(path)?
            .set_modified(modified)
    };

    let before = settled(&file);
    assert_eq!(settled(&file), before);
    until_the_clock_has_ticked(dir.path());
    fs::write(&file, "two").unwrap();
    set_back(&file).unwrap();
    assert_ne!(settled(&file), before, "written in place");

    let before = settled(&file);
    fs::write(&other, "six").unwrap();
    set_back(&other).unwrap();
    fs::rename(&other, &file).unwrap();
    assert_ne!(settled(&file), before, "another file in its place");
}

#[test]
fn a_link_that_leads_elsewhere_has_another_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("..data");
    let lead_to = |version: &str| {
        let target = dir.path().join(version);
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a.yaml"), version).unwrap();
        symlink(version, dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), &link).unwrap();
        settled(&link.join("a.yaml"))
    };
    assert_ne!(lead_to("..1"), lead_to("..2"));
}
