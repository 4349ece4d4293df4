//! Whether a file may have changed, without reading it.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What the file system says of a file's contents, beside them.
///
/// It differs when they do: the kernel notes the time of each change (ctime), which no program can
/// set, and another file in the place of this one, also behind a symbolic link, has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// In seconds since the epoch, and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How far apart two changes may be and bear the same time: the clocks of file systems are coarse.
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

impl Stamp {
    /// The stamp of a file that is looked at after `now`. There is none when the file has changed so
    /// lately that it may change again and bear the same times.
    pub(crate) fn new(metadata: &Metadata, now: SystemTime) -> Option<Self> {
        let stamp = Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let settled = now.duration_since(UNIX_EPOCH).ok()?;
        let settled = settled.checked_sub(COARSEST_CLOCK)?.as_secs();
        let (last, _) = stamp.modified.max(stamp.changed);
        u64::try_from(last)
            .is_ok_and(|last| last < settled)
            .then_some(stamp)
    }
}

#[cfg(test)]
#[path = "stamp_tests.rs"]
mod tests;
