//! The system calls without a safe wrapper.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `bpf(2)` command.
const BPF_OBJ_GET: libc::c_long = 7;
/// `bpf(2)` command.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `BPF_OBJ_GET` flag: the descriptor can only read the map.
const BPF_F_RDONLY: u32 = 1 << 3;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned map; with `read_only`, the descriptor cannot change it, whoever holds it.
pub(crate) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet {
        pathname: path.as_ptr() as u64,
        file_flags: if read_only { BPF_F_RDONLY } else { 0 },
        ..ObjGet::default()
    };
    // SAFETY: `attr` and `path` live across the call; the kernel reads `size_of::<ObjGet>()` bytes.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &attr, mem::size_of::<ObjGet>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, with the part of its union that links of cgroups and of
/// network namespaces have. aya shows none of it.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    target: [u32; 4],
}

/// `enum bpf_link_type`
const LINK_CGROUP: u32 = 3;
/// `enum bpf_link_type`
const LINK_NETNS: u32 = 5;

/// What a link attaches, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) program: u32,
    /// The id of the cgroup, or the inode of the network namespace; 0 when it is detached, or a link of
    /// another kind.
    pub(crate) target: u64,
}

/// Looks at a pinned link.
pub(crate) fn link_info(path: &Path) -> io::Result<LinkInfo> {
    let link = open_pin(path, false)?;
    let mut info = RawLinkInfo::default();
    let attr = GetInfo {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: mem::size_of::<RawLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `attr` and `info` live across the call; the kernel writes at most `info_len` bytes.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &attr,
            mem::size_of::<GetInfo>(),
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high, ..] = info.target;
    let target = match info.kind {
        LINK_CGROUP => u64::from(low) | u64::from(high) << 32,
        LINK_NETNS => u64::from(low),
        _ => 0,
    };
    Ok(LinkInfo {
        program: info.prog_id,
        target,
    })
}

/// The inode behind a descriptor; a network namespace is known to its links by it.
pub(crate) fn inode(fd: &impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// The cookie of the network namespace that a socket belongs to: unique since boot.
///
/// # Errors
/// The kernel's, for a descriptor that is not a socket.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` is `len` bytes of writable memory.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    if rc == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
