use std::{
    os::unix::fs::PermissionsExt as _,
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;
use crate::link::{
    Received,
    memory::{read, write},
};

fn memory(content: &[u8]) -> OwnedFd {
    write("test", |file| file.write_all(content)).unwrap()
}

/// What a worker that starts now would be given.
fn told(memories: &Memories) -> Vec<(Memory, Vec<u8>)> {
    let (broker, worker) = Link::pair().unwrap();
    memories.tell(&broker).unwrap();
    let Some(Received {
        message: ToWorker::Memories(kinds),
        fds,
    }) = worker.recv().unwrap()
    else {
        panic!("another message")
    };
    let content = |fd: OwnedFd| read(&File::from(fd)).unwrap();
    kinds
        .into_iter()
        .zip(fds.into_iter().map(content))
        .collect()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_next_worker_gets_the_latest_of_each_kind() {
    let directory = tempfile::tempdir().unwrap();
    let mut memories = Memories::open(directory.path()).unwrap();
    assert_eq!(told(&memories), []);
    memories.keep(Memory::Mesh, memory(b"old"));
    memories.keep(Memory::Mesh, memory(b"mesh"));
    memories.keep(Memory::Certificates, memory(b"keys"));
    let (pipe, _writer) = std::io::pipe().unwrap();
    memories.keep(Memory::Mesh, pipe.into());
    let expected = [
        (Memory::Mesh, b"mesh".to_vec()),
        (Memory::Certificates, b"keys".to_vec()),
    ];
    for _ in 0..2 {
        assert_eq!(told(&memories), expected);
    }
}

#[test]
fn the_mesh_is_in_the_file_and_the_keys_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut memories = Memories::open(directory.path()).unwrap();
    memories.keep(Memory::Certificates, memory(b"keys"));
    memories.keep(Memory::Mesh, memory(b"mesh"));
    let path = directory.path().join(SNAPSHOT);
    eventually("the file", || fs::read(&path).is_ok_and(|c| c == b"mesh"));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    eventually("saved", || lock(&memories.mesh).saved);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    // The file stands in for the memory.
    assert_eq!(told(&memories)[0], (Memory::Mesh, b"mesh".to_vec()));

    let next = Memories::open(directory.path()).unwrap();
    assert_eq!(told(&next), [(Memory::Mesh, b"mesh".to_vec())]);
}

#[test]
fn without_a_place_on_disk_it_is_kept_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let mut memories = Memories::open(directory.path()).unwrap();
    fs::remove_dir(directory.path()).unwrap();
    memories.keep(Memory::Mesh, memory(b"mesh"));
    assert_eq!(told(&memories), [(Memory::Mesh, b"mesh".to_vec())]);
}

#[test]
fn workers_that_die_young_get_nothing_every_second_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut memories = Memories::open(directory.path()).unwrap();
    memories.keep(Memory::Mesh, memory(b"mesh"));
    let mut given = Vec::new();
    for _ in 0..6 {
        given.push(!told(&memories).is_empty());
        memories.worker_died(true);
    }
    assert_eq!(given, [true, true, true, false, true, false]);
    memories.worker_died(false);
    assert!(!told(&memories).is_empty());
}
