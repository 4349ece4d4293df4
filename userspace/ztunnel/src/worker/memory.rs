//! What the workers before this one left, and what this one leaves to the next: the mesh, and the
//! certificates with their keys.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use sluice_identity::{Manager, SvidParts};
use sluice_xds::Snapshot;
use zeroize::Zeroizing;

use super::Shared;
use crate::{
    link::{AsyncLink, Memory, Settings, ToBroker, memory},
    rest::{REST, Rest},
};

/// How long changes of the mesh are gathered before it is written down.
const GATHER: Duration = Duration::from_secs(1);
/// After that, writing takes one part in so many of the time, whatever the size of the mesh.
const WRITING_SHARE: u32 = 20;
/// A mesh that does not change is written down as often as this while the control plane is there, so
/// that a snapshot's age tells how long it has been away.
const REFRESH: Duration = Duration::from_secs(600);
/// How long changes of certificates are gathered: at a start they come one after the other.
const GATHER_CERTIFICATES: Duration = Duration::from_millis(100);

/// What the workers before this one left.
#[derive(Debug, Default)]
pub(super) struct Memories {
    pub(super) mesh: Option<Snapshot>,
    certificates: Vec<SvidParts>,
}

impl Memories {
    /// Reads what the broker has kept. What cannot be used is as if it were not there.
    pub(super) fn read(settings: &Settings, kinds: &[Memory], fds: Vec<OwnedFd>) -> Self {
        let mut memories = Self::default();
        for (kind, fd) in kinds.iter().zip(fds) {
            let file = File::from(fd);
            match kind {
                Memory::Mesh => match read_mesh(&file, settings) {
                    Ok(snapshot) => memories.mesh = Some(snapshot),
                    Err(reason) => tracing::warn!(reason, "the snapshot is not used"),
                },
                Memory::Certificates => match read_certificates(&file) {
                    Ok(certificates) => memories.certificates = certificates,
                    Err(reason) => tracing::warn!(reason, "the certificates are not taken over"),
                },
            }
        }
        memories
    }

    /// Gives the certificates to a manager that has none yet.
    pub(super) fn restore_certificates(self, manager: &Manager) {
        for parts in self.certificates {
            let identity = parts.identity.clone();
            if let Err(error) = manager.adopt(parts) {
                tracing::warn!(%identity, %error, "a certificate is not taken over");
            }
        }
    }
}

/// Keeps the broker's memory in step, until the broker is gone.
pub(super) async fn keep(shared: &Shared, broker: &AsyncLink) -> io::Result<()> {
    tokio::try_join!(keep_mesh(shared, broker), keep_certificates(shared, broker))?;
    Ok(())
}

/// Gives back what the process needs no more, each time it rests after it was busy.
pub(super) async fn give_back_at_rest() {
    let mut rest = Rest::begin();
    loop {
        tokio::time::sleep(REST).await;
        rest.look();
    }
}

async fn keep_mesh(shared: &Shared, broker: &AsyncLink) -> io::Result<()> {
    // What is from a snapshot, the broker has.
    shared.mesh.live().await;
    loop {
        let seen = shared.mesh.status().version;
        let (mesh, origin) = (shared.mesh.snapshot(), origin(&shared.settings));
        let begin = Instant::now();
        let written = tokio::task::spawn_blocking(move || {
            memory::write("mesh", |file| {
                let mut buffered = BufWriter::with_capacity(64 << 10, file);
                Snapshot::write(&mesh, &origin, SystemTime::now(), &mut buffered)
            })
            // And of what came before, while the mesh was received.
            .inspect(|_| sluice_kernel::heap::give_back())
        });
        match written.await? {
            Ok(fd) => send(broker, Memory::Mesh, &fd).await?,
            Err(error) => tracing::warn!(%error, "the mesh cannot be written down"),
        }
        tokio::time::sleep(begin.elapsed() * WRITING_SHARE).await;
        while tokio::time::timeout(REFRESH, shared.mesh.changed(seen))
            .await
            .is_err()
            && !shared.mesh.status().connected
        {}
        tokio::time::sleep(GATHER).await;
    }
}

async fn keep_certificates(shared: &Shared, broker: &AsyncLink) -> io::Result<()> {
    let mut changes = shared.identities.changes();
    // The manager lives as long as we do.
    while changes.changed().await.is_ok() {
        tokio::time::sleep(GATHER_CERTIFICATES).await;
        changes.borrow_and_update();
        match write_certificates(&shared.identities.export()) {
            Ok(fd) => send(broker, Memory::Certificates, &fd).await?,
            Err(error) => tracing::warn!(%error, "the certificates cannot be handed on"),
        }
    }
    Ok(())
}

async fn send(broker: &AsyncLink, memory: Memory, fd: &OwnedFd) -> io::Result<()> {
    broker
        .send_when_room(&ToBroker::Keep(memory), &[fd.as_fd()])
        .await
}

/// Which mesh it is; the snapshot of another would be nonsense here.
fn origin(settings: &Settings) -> String {
    format!("{}/{}", settings.cluster, settings.trust_domain)
}

fn read_mesh(file: &File, settings: &Settings) -> Result<Snapshot, String> {
    let bytes = memory::read(file).map_err(|error| error.to_string())?;
    Snapshot::parse(bytes, &origin(settings)).map_err(|error| error.to_string())
}

/// A certificate on its way to the next worker.
#[derive(Serialize, Deserialize)]
struct Certificate<'a> {
    identity: &'a str,
    #[serde(borrow)]
    chain: Vec<&'a [u8]>,
    key: &'a [u8],
    #[serde(borrow)]
    roots: Vec<&'a [u8]>,
}

impl Certificate<'_> {
    /// No less than it takes as bytes.
    fn room(&self) -> usize {
        /// The most that tells a length.
        const LENGTH: usize = 10;
        let pieces = self.chain.iter().chain(&self.roots).chain([&self.key]);
        let pieces: usize = pieces.map(|piece| piece.len() + LENGTH).sum();
        pieces + self.identity.len() + 3 * LENGTH
    }
}

fn write_certificates(all: &[SvidParts]) -> io::Result<OwnedFd> {
    let identities: Vec<String> = all.iter().map(|one| one.identity.to_string()).collect();
    let certificates: Vec<_> = all
        .iter()
        .zip(&identities)
        .map(|(parts, identity)| Certificate {
            identity,
            chain: parts.chain.iter().map(AsRef::as_ref).collect(),
            key: parts.key.secret_der(),
            roots: parts.roots.iter().map(AsRef::as_ref).collect(),
        })
        .collect();
    // Of the right size from the beginning: one that grew would leave keys behind in the heap.
    let room = 10 + certificates.iter().map(Certificate::room).sum::<usize>();
    let mut bytes = Zeroizing::new(vec![0; room]);
    let used = postcard::to_slice(&certificates, &mut bytes).map_err(io::Error::other)?;
    memory::write("certificates", |file| file.write_all(used))
}

fn read_certificates(file: &File) -> Result<Vec<SvidParts>, String> {
    let bytes = Zeroizing::new(memory::read(file).map_err(|error| error.to_string())?);
    let certificates: Vec<Certificate<'_>> =
        postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
    let parse = |one: Certificate<'_>| {
        SvidParts::from_der(one.identity.parse().ok()?, &one.chain, one.key, &one.roots)
    };
    let parsed: Option<_> = certificates.into_iter().map(parse).collect();
    parsed.ok_or_else(|| "an identity or a key cannot be read".to_owned())
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
