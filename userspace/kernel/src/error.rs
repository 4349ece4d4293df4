use std::{io, path::PathBuf};

use aya::maps::MapError;

/// What can go wrong between userspace and the kernel half.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this binary was built without the eBPF programs; build it with `cargo xtask build`")]
    NoPrograms,
    #[error(
        "{0} is not a BPF file system; mount it with `mount -t bpf bpf {0}` or name another with --bpffs"
    )]
    NoBpffs(PathBuf),
    #[error("the instance name {0:?} may only have letters, digits, - and _")]
    InstanceName(String),
    #[error("another ztunnel runs as this instance: its pins in {0} are in use; see --instance")]
    InstanceInUse(PathBuf),
    #[error("cannot open the cgroup of the {label} {path}: {source}")]
    Cgroup {
        label: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{0} cannot be the cgroup of the pods: it is none of version 2; `mount -t cgroup2` shows \
         where they are"
    )]
    NoCgroup(PathBuf),
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("the kernel refuses program {name}: {source}")]
    Program {
        name: &'static str,
        source: Box<aya::programs::ProgramError>,
    },
    #[error(
        "cannot attach {name} to {target}: {source}; EPERM here means that another program is \
         attached exclusively to this cgroup or one above it (`bpftool cgroup tree` shows it)"
    )]
    Attach {
        name: &'static str,
        target: String,
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the eBPF object has no {kind} {name}; it does not belong to this binary")]
    Missing {
        kind: &'static str,
        name: &'static str,
    },
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: Box<aya::maps::MapError>,
    },
    #[error("cannot pin {path}: {source}")]
    Pin {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "no free slot: {} pods are enrolled on this node already",
        sluice_abi::maps::MAX_PODS
    )]
    TooManyPods,
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
}

impl Error {
    pub(crate) fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map {
            name,
            source: Box::new(source),
        }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System {
            what: what.into(),
            source,
        }
    }
}

/// That there was nothing to remove is what was wanted.
pub(crate) fn removed(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    found(name, result).map(drop)
}

/// Whether there was something.
pub(crate) fn found<T>(name: &'static str, result: Result<T, MapError>) -> Result<bool, Error> {
    match result {
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|_| true).map_err(Error::map(name)),
    }
}
