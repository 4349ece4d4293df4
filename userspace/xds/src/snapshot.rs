//! The mesh as bytes, for a time without a control plane.
//!
//! It holds what a control plane would have sent, so that one conversion serves both. Versions are
//! left out on purpose: whoever begins with a snapshot has everything sent once more, and is never
//! told less because of what an older program, or one that was broken into, has written down.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use sluice_model::{Mesh, Service, Workload, authz::Policy};
use sluice_proto::{discovery::Resource, security, workload};

use crate::store::Kind;

const MAGIC: [u8; 8] = *b"sluiceMS";
/// Of the format; another is not read at all.
const FORMAT: u32 = 1;
/// Of the checksum, which comes last.
const CHECKSUM: usize = size_of::<u32>();

/// A mesh that was in step with a control plane once.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) taken: SystemTime,
    /// Each a `Resource`.
    pub(crate) addresses: Vec<Bytes>,
    pub(crate) policies: Vec<Bytes>,
}

/// Why bytes are of no use as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("it is no snapshot of a mesh")]
    Foreign,
    #[error("it has format {0}, and this program reads format {FORMAT}")]
    Format(u32),
    #[error("it is damaged or cut off")]
    Damaged,
    #[error("it is of the mesh {found}, and this one is {own}")]
    OtherMesh { found: String, own: String },
}

impl Snapshot {
    /// Writes a mesh. `origin` says which one it is: a snapshot of another is refused.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(mesh: &Mesh, origin: &str, taken: SystemTime, to: impl Write) -> io::Result<()> {
        let mut to = Checked {
            to,
            checksum: crc32fast::Hasher::new(),
        };
        let taken = taken
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        to.write_all(&MAGIC)?;
        to.write_all(&FORMAT.to_le_bytes())?;
        to.write_all(&taken.as_secs().to_le_bytes())?;
        write_piece(&mut to, origin.as_bytes())?;
        for policy in mesh.policies() {
            let message = security::Authorization::from(&**policy as &Policy);
            let name = policy.key.to_string();
            write_resource(&mut to, Kind::Authorization, name, message.encode_to_vec())?;
        }
        for service in mesh.services() {
            let message = workload::Service::from(&**service as &Service);
            let message = workload::Address::from(message).encode_to_vec();
            write_resource(&mut to, Kind::Address, service.key().to_string(), message)?;
        }
        for workload in mesh.workloads() {
            let message = workload::Workload::from(&**workload as &Workload);
            let message = workload::Address::from(message).encode_to_vec();
            write_resource(&mut to, Kind::Address, workload.uid.to_string(), message)?;
        }
        let checksum = to.checksum.finalize();
        to.to.write_all(&checksum.to_le_bytes())?;
        to.to.flush()
    }

    /// Reads what [`Snapshot::write`] has written; the resources are looked into when the snapshot
    /// is used.
    ///
    /// # Errors
    /// When it is anything else, or of another mesh than `origin`.
    pub fn parse(bytes: impl Into<Bytes>, origin: &str) -> Result<Self, SnapshotError> {
        let mut rest: Bytes = bytes.into();
        if !rest.starts_with(&MAGIC) {
            return Err(SnapshotError::Foreign);
        }
        let damaged = |_| SnapshotError::Damaged;
        let end = rest.len().checked_sub(CHECKSUM);
        let end = end.filter(|end| *end >= MAGIC.len());
        let mut checksum = rest.split_off(end.ok_or(SnapshotError::Damaged)?);
        let computed = crc32fast::hash(&rest);
        rest.advance(MAGIC.len());
        let format = rest.try_get_u32_le().map_err(damaged)?;
        if format != FORMAT {
            return Err(SnapshotError::Format(format));
        }
        if checksum.try_get_u32_le() != Ok(computed) {
            return Err(SnapshotError::Damaged);
        }
        let taken = Duration::from_secs(rest.try_get_u64_le().map_err(damaged)?);
        let taken = SystemTime::UNIX_EPOCH.checked_add(taken);
        let found = read_piece(&mut rest)?;
        if found != origin.as_bytes() {
            return Err(SnapshotError::OtherMesh {
                found: String::from_utf8_lossy(&found).into_owned(),
                own: origin.to_owned(),
            });
        }
        let mut snapshot = Self {
            taken: taken.ok_or(SnapshotError::Damaged)?,
            addresses: Vec::new(),
            policies: Vec::new(),
        };
        while let Ok(tag) = rest.try_get_u8() {
            let resource = read_piece(&mut rest)?;
            match untag(tag).ok_or(SnapshotError::Damaged)? {
                Kind::Address => snapshot.addresses.push(resource),
                Kind::Authorization => snapshot.policies.push(resource),
            }
        }
        Ok(snapshot)
    }

    /// When it was taken.
    pub fn taken(&self) -> SystemTime {
        self.taken
    }
}

fn tag(kind: Kind) -> u8 {
    match kind {
        Kind::Address => 1,
        Kind::Authorization => 2,
    }
}

fn untag(value: u8) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| tag(*kind) == value)
}

fn write_resource(to: &mut impl Write, kind: Kind, name: String, value: Vec<u8>) -> io::Result<()> {
    let resource = Resource {
        name,
        resource: Some(prost_types::Any {
            type_url: kind.type_url().to_owned(),
            value,
        }),
        ..Default::default()
    };
    to.write_all(&[tag(kind)])?;
    write_piece(to, &resource.encode_to_vec())
}

/// Bytes, after their number.
fn write_piece(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

fn read_piece(from: &mut Bytes) -> Result<Bytes, SnapshotError> {
    let length = from.try_get_u32_le().map_err(|_| SnapshotError::Damaged)?;
    match usize::try_from(length) {
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        _ => Err(SnapshotError::Damaged),
    }
}

/// Sums up what is written through it.
struct Checked<W> {
    to: W,
    checksum: crc32fast::Hasher,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.checksum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
