//! Attaching the programs, and pinning what keeps them attached.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramInfo, SockOps, links::FdLink},
};
use nix::sys::statfs;

use crate::{Error, pins::Pins, sys, verify::Hook};

const CAPTURE: [&str; 8] = [
    "sluice_connect4",
    "sluice_connect6",
    "sluice_sendmsg4",
    "sluice_sendmsg6",
    "sluice_recvmsg4",
    "sluice_recvmsg6",
    "sluice_peername4",
    "sluice_peername6",
];
/// On the broker's cgroup: what the worker must know of the queries it receives.
const ASKED: [&str; 2] = ["sluice_asked4", "sluice_asked6"];
const CREATE: &str = "sluice_create";
const SOCKOPS: &str = "sluice_sockops";
pub(crate) const LOOKUP: &str = "sluice_lookup";

/// Attaches all programs but that of the lookup, which is attached to each pod.
pub(crate) fn attach_all(
    ebpf: &mut Ebpf,
    pins: &Pins,
    pods_cgroup: &Path,
    broker_cgroup: &Path,
) -> Result<Vec<Hook>, Error> {
    let mut hooks = Vec::new();
    let pods = Target::open(pods_cgroup, PODS_LABEL)?;
    let broker = Target::open(broker_cgroup, BROKER_LABEL)?;
    // The flag on the ztunnel's sockets comes first, so that capture never meets one without it.
    hooks.push(attach::<CgroupSock>(ebpf, pins, CREATE, &broker)?);
    hooks.push(attach::<SockOps>(ebpf, pins, SOCKOPS, &pods)?);
    // A program runs for each cgroup on the way to the root; once is enough.
    if !broker.path.starts_with(&pods.path) {
        hooks.push(attach::<SockOps>(ebpf, pins, SOCKOPS, &broker)?);
    }
    // Before queries are captured.
    for name in ASKED {
        hooks.push(attach::<CgroupSockAddr>(ebpf, pins, name, &broker)?);
    }
    for name in CAPTURE {
        hooks.push(attach::<CgroupSockAddr>(ebpf, pins, name, &pods)?);
    }
    let lookup: &mut aya::programs::SkLookup = program(ebpf, LOOKUP)?;
    lookup.load().map_err(|e| Error::Program {
        name: LOOKUP,
        source: Box::new(e),
    })?;
    pin_program(ebpf, pins, LOOKUP)?;
    Ok(hooks)
}

/// Attaches the program of a hook once more, in place of what is pinned there.
pub(crate) fn attach_again(ebpf: &mut Ebpf, pins: &Pins, hook: &Hook) -> Result<(), Error> {
    let (name, attach): (_, Attach) = match &*hook.program {
        CREATE => (CREATE, attach::<CgroupSock>),
        SOCKOPS => (SOCKOPS, attach::<SockOps>),
        other => match CAPTURE.into_iter().chain(ASKED).find(|name| *name == other) {
            Some(name) => (name, attach::<CgroupSockAddr>),
            None => return Ok(()),
        },
    };
    let label = if hook.link == link_path(pins, name, PODS_LABEL) {
        PODS_LABEL
    } else {
        BROKER_LABEL
    };
    attach(ebpf, pins, name, &Target::open(&hook.cgroup, label)?).map(drop)
}

type Attach = fn(&mut Ebpf, &Pins, &'static str, &Target) -> Result<Hook, Error>;

const PODS_LABEL: &str = "pods";
const BROKER_LABEL: &str = "broker";

fn link_path(pins: &Pins, program: &str, label: &str) -> PathBuf {
    pins.link(&format!("{program}-{label}"))
}

/// A cgroup to attach to.
struct Target {
    path: PathBuf,
    label: &'static str,
    dir: File,
}

impl Target {
    fn open(path: &Path, label: &'static str) -> Result<Self, Error> {
        let failed = |source| Error::Cgroup {
            label,
            path: path.to_owned(),
            source,
        };
        let path = fs::canonicalize(path).map_err(failed)?;
        let dir = File::open(&path).map_err(failed)?;
        let is_cgroup = statfs::fstatfs(&dir)
            .is_ok_and(|fs| fs.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC);
        if !is_cgroup {
            return Err(Error::NoCgroup(path));
        }
        Ok(Self { path, label, dir })
    }
}

/// A kind of program that attaches to a cgroup.
trait CgroupProgram: Sized {
    fn of(program: &mut aya::programs::Program) -> Option<&mut Self>;
    fn load_once(&mut self) -> Result<(), aya::programs::ProgramError>;
    fn attach_link(&mut self, cgroup: &File) -> Result<FdLink, aya::programs::ProgramError>;
}

macro_rules! cgroup_program {
    ($type:ty) => {
        impl CgroupProgram for $type {
            fn of(program: &mut aya::programs::Program) -> Option<&mut Self> {
                program.try_into().ok()
            }

            fn load_once(&mut self) -> Result<(), aya::programs::ProgramError> {
                match self.load() {
                    Err(aya::programs::ProgramError::AlreadyLoaded) => Ok(()),
                    other => other,
                }
            }

            fn attach_link(
                &mut self,
                cgroup: &File,
            ) -> Result<FdLink, aya::programs::ProgramError> {
                // For links the kernel takes this for "beside others", the only mode there is.
                let id = self.attach(cgroup, CgroupAttachMode::Single)?;
                let link = self.take_link(id)?;
                link.try_into()
                    .map_err(|_| aya::programs::ProgramError::NotAttached)
            }
        }
    };
}
cgroup_program!(CgroupSock);
cgroup_program!(CgroupSockAddr);
cgroup_program!(SockOps);

fn attach<P: CgroupProgram>(
    ebpf: &mut Ebpf,
    pins: &Pins,
    name: &'static str,
    target: &Target,
) -> Result<Hook, Error> {
    let missing = || Error::Missing {
        kind: "program",
        name,
    };
    let program = P::of(ebpf.program_mut(name).ok_or_else(missing)?).ok_or_else(missing)?;
    program.load_once().map_err(|e| Error::Program {
        name,
        source: Box::new(e),
    })?;
    let link = program
        .attach_link(&target.dir)
        .map_err(|source| Error::Attach {
            name,
            target: target.path.display().to_string(),
            source: Box::new(source),
        })?;
    let path = link_path(pins, name, target.label);
    pin_link(link, &path)?;
    pin_program(ebpf, pins, name)?;
    Ok(Hook {
        link: path,
        program: name.to_owned(),
        program_id: program_id(pins, name)?,
        cgroup: target.path.clone(),
        cgroup_id: sys::inode(&target.dir).map_err(Error::system("look at a cgroup"))?,
    })
}

/// Pins a link; from here on its file is what keeps it attached. What was pinned there is detached
/// only then, so that there is no gap.
pub(crate) fn pin_link(link: FdLink, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Pin {
        path: path.to_owned(),
        source,
    };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = PathBuf::from(fresh);
    // Left by one that failed half-way.
    let _ = fs::remove_file(&fresh);
    link.pin(&fresh).map_err(|e| failed(Box::new(e)))?;
    fs::rename(&fresh, path).map_err(|e| failed(Box::new(e)))
}

/// Pins a program once more, by its name.
pub(crate) fn pin_again(ebpf: &mut Ebpf, pins: &Pins, wanted: &str) -> Result<(), Error> {
    let mut all = CAPTURE
        .into_iter()
        .chain(ASKED)
        .chain([CREATE, SOCKOPS, LOOKUP]);
    match all.find(|name| *name == wanted) {
        Some(name) => pin_program(ebpf, pins, name),
        None => Ok(()),
    }
}

fn pin_program(ebpf: &mut Ebpf, pins: &Pins, name: &'static str) -> Result<(), Error> {
    let path = pins.programs().join(name);
    // An earlier broker's program, or the same one attached twice.
    let _ = fs::remove_file(&path);
    let program = ebpf.program_mut(name).ok_or(Error::Missing {
        kind: "program",
        name,
    })?;
    program.pin(&path).map_err(|e| Error::Pin {
        path,
        source: Box::new(e),
    })
}

pub(crate) fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, Error>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program>,
{
    let missing = || Error::Missing {
        kind: "program",
        name,
    };
    ebpf.program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|_| missing())
}

/// The id of a program that is pinned.
pub(crate) fn program_id(pins: &Pins, name: &str) -> Result<u32, Error> {
    let path = pins.programs().join(name);
    match ProgramInfo::from_pin(&path) {
        Ok(info) => Ok(info.id()),
        Err(error) => Err(Error::Pin {
            path,
            source: Box::new(error),
        }),
    }
}
