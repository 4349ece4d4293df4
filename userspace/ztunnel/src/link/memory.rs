//! Bytes that pass between broker and worker beside their messages, in memory that nobody can change
//! any more.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// The most bytes of one memory: a mesh of half a million workloads.
pub const MAX_MEMORY: u64 = 256 << 20;

/// Makes a memory of what is written to the file.
///
/// # Errors
/// The kernel's and the writer's; `FileTooLarge` for more than [`MAX_MEMORY`].
pub fn write(name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    write(&mut file)?;
    file.flush()?;
    check_size(&file)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL),
    )?;
    Ok(file.into())
}

/// Takes a memory from somebody who is not trusted.
///
/// # Errors
/// `InvalidData` for anything but memory that nobody can change any more, as a pipe that would block
/// its reader; `FileTooLarge` for more than [`MAX_MEMORY`].
pub fn accept(fd: OwnedFd) -> io::Result<File> {
    let held = fcntl(&fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    if !held.is_ok_and(|held| held.contains(seals())) {
        let text = "it is not sealed memory";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let file = File::from(fd);
    check_size(&file)?;
    Ok(file)
}

/// Reads all of a memory, or of a file, into a buffer that is made for it once. Where others stand
/// in the file does not matter.
///
/// # Errors
/// The kernel's; `FileTooLarge` for more than [`MAX_MEMORY`].
pub fn read(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(check_size(file)?).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The size, if it is within the limit.
///
/// # Errors
/// The kernel's; `FileTooLarge`.
pub fn check_size(file: &File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    if size > MAX_MEMORY {
        let text = format!("{size} bytes are more than {MAX_MEMORY}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(size)
}

/// Nobody can write it, make it larger or cut it off.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_as_often_as_wanted_and_never_changed() {
        let fd = write("test", |file| file.write_all(b"remember")).unwrap();
        let mut other = File::from(fd.try_clone().unwrap());
        assert!(other.write_all(b"forget").is_err());
        assert!(other.set_len(0).is_err());
        let file = accept(fd).unwrap();
        for _ in 0..2 {
            assert_eq!(read(&file).unwrap(), b"remember");
        }
    }

    #[test]
    fn nothing_else_is_accepted() {
        let kind = |fd: OwnedFd| accept(fd).unwrap_err().kind();
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(kind(pipe.into()), io::ErrorKind::InvalidData);
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(kind(file.into()), io::ErrorKind::InvalidData);
        let open = memfd_create("open", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert_eq!(kind(open), io::ErrorKind::InvalidData);
        // Without any content, so that it takes no memory.
        let large = memfd_create("large", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let large = File::from(large);
        large.set_len(MAX_MEMORY + 1).unwrap();
        fcntl(&large, FcntlArg::F_ADD_SEALS(seals())).unwrap();
        assert_eq!(kind(large.into()), io::ErrorKind::FileTooLarge);
    }
}
