//! The authority's own root, kept in the state directory and replaced without an outage.
//!
//! A rotation is a matter of files, so that a crash at any point loses nothing:
//!
//! 1. `next-ca-key.pem` appears. Its certificate joins `root-cert.pem`, and ztunnels learn of it
//!    with their next certificates, while the old root still signs.
//! 2. When all must have heard, the key becomes `ca-key.pem` and signs; the one before is kept as
//!    `old-ca-key.pem`. It still vouches for the control plane itself, to ztunnels that were given
//!    the old root as a file.
//! 3. When nothing that the old root has signed is valid any more, its certificate leaves
//!    `root-cert.pem`, and the key is removed.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use sluice_model::TrustDomain;

use super::material::{self, Certificate, KEY, Material, ROOTS, Texts};
use crate::{Error, state};

const NEXT_KEY: &str = "next-ca-key.pem";
const OLD_KEY: &str = "old-ca-key.pem";
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root that expires within this time is replaced.
const LAST_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far a peer's clock may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);

/// How a root is replaced.
#[derive(Clone, Copy, Debug, Args)]
pub struct Rotation {
    /// How long a new root is announced before it signs, in seconds: all ztunnels must have asked
    /// for a certificate meanwhile, which they do every 15 minutes.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub root_announcement: u64,
    /// How long the old root is still believed after that, in seconds: longer than certificates are
    /// valid.
    #[arg(long, value_name = "SECONDS", default_value_t = 25 * 3600)]
    pub root_overlap: u64,
}

/// The state directory.
pub(super) struct Own {
    directory: PathBuf,
    trust_domain: TrustDomain,
    rotation: Rotation,
    /// Since when this process announces the next root. A restart begins anew: who could not ask
    /// meanwhile has not heard.
    announced: Option<Instant>,
}

/// What signs.
pub(super) struct Signers {
    pub(super) workloads: Arc<Material>,
    /// For the control plane's own certificate.
    pub(super) server: Arc<Material>,
}

impl Signers {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.workloads.is_same(&other.workloads) && self.server.is_same(&other.server)
    }
}

impl Own {
    /// Takes a state directory over; makes the first root if there is none.
    pub(super) fn open(
        directory: &Path,
        trust_domain: TrustDomain,
        rotation: Rotation,
    ) -> Result<Self, Error> {
        // Anyone may look for the certificate; the key protects itself by its mode.
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        let own = Self {
            directory: directory.to_owned(),
            trust_domain,
            rotation,
            announced: None,
        };
        if own.read(KEY)?.is_none() {
            if own.read(ROOTS)?.is_some() {
                let why = format!("its key, {}, is missing", directory.join(KEY).display());
                return Err(own.unusable(ROOTS, why));
            }
            own.write(KEY, 0o600, &new_key()?)?;
        }
        // A crash may have come between the two files.
        if own.read(ROOTS)?.is_none() {
            let root = own.self_signed(&own.key(KEY)?.1)?;
            own.write(ROOTS, 0o644, &root)?;
            let path = own.directory.join(ROOTS);
            tracing::info!(path = %path.display(), "made a new root certificate");
        }
        Ok(own)
    }

    /// Does what is due of a rotation, and says what signs from now on.
    pub(super) fn advance(&mut self) -> Result<Signers, Error> {
        if let Some(since) = self.modified(OLD_KEY)? {
            // Not begun anew before it is over.
            self.announced = None;
            let overlap = Duration::from_secs(self.rotation.root_overlap);
            let unfinished = self.key(OLD_KEY)?.0 == self.key(KEY)?.0;
            if !unfinished && since.elapsed().unwrap_or_default() >= overlap {
                self.drop_old()?;
            }
            if unfinished {
                self.promote()?;
            }
        } else if self.read(NEXT_KEY)?.is_some() {
            self.announce()?;
        } else if self.expires_soon()? {
            request_rotation(&self.directory)?;
            self.announce()?;
        }
        self.signers()
    }

    /// Makes the next root known; once it is, lets it sign.
    fn announce(&mut self) -> Result<(), Error> {
        let (_, next) = self.key(NEXT_KEY)?;
        let mut roots = self.roots()?;
        if !roots.iter().any(|root| root.belongs_to(&next)) {
            roots.extend(self.certificates(&self.self_signed(&next)?)?);
            self.write_roots(&roots)?;
        }
        let since = *self.announced.get_or_insert_with(|| {
            let seconds = self.rotation.root_announcement;
            tracing::info!(
                seconds,
                "a new root is announced; it will sign after this time"
            );
            Instant::now()
        });
        if since.elapsed() >= Duration::from_secs(self.rotation.root_announcement) {
            self.promote()?;
        }
        Ok(())
    }

    fn promote(&mut self) -> Result<(), Error> {
        if self.read(NEXT_KEY)?.is_none() {
            return self.remove(OLD_KEY);
        }
        let (old, _) = self.key(KEY)?;
        // Its age is that of the overlap.
        self.write(OLD_KEY, 0o600, &old)?;
        let path = |name| self.directory.join(name);
        fs::rename(path(NEXT_KEY), path(KEY)).map_err(Error::file("replace", path(KEY)))?;
        self.announced = None;
        // The one that signs comes first.
        let (_, key) = self.key(KEY)?;
        let mut roots = self.roots()?;
        roots.sort_by_key(|root| !root.belongs_to(&key));
        self.write_roots(&roots)?;
        let seconds = self.rotation.root_overlap;
        tracing::info!(
            seconds,
            "the new root signs; the old one is believed for this time"
        );
        Ok(())
    }

    fn drop_old(&self) -> Result<(), Error> {
        let (_, old) = self.key(OLD_KEY)?;
        let mut roots = self.roots()?;
        roots.retain(|root| !root.belongs_to(&old));
        self.write_roots(&roots)?;
        self.remove(OLD_KEY)?;
        tracing::info!("the old root is believed no more");
        Ok(())
    }

    fn signers(&self) -> Result<Signers, Error> {
        let workloads = Arc::new(self.material(KEY)?);
        let server = match self.read(OLD_KEY)? {
            Some(_) => Arc::new(self.material(OLD_KEY)?),
            None => workloads.clone(),
        };
        Ok(Signers { workloads, server })
    }

    fn material(&self, key: &'static str) -> Result<Material, Error> {
        let texts = Texts {
            key: self.key(key)?.0,
            roots: self.read(ROOTS)?.unwrap_or_default(),
            signer: None,
            chain: None,
        };
        Material::new(&texts).map_err(|problem| self.unusable(problem.file, problem.why))
    }

    fn expires_soon(&self) -> Result<bool, Error> {
        let left = self
            .material(KEY)?
            .not_after
            .duration_since(SystemTime::now());
        Ok(left.unwrap_or_default() < LAST_YEAR)
    }

    fn self_signed(&self, key: &KeyPair) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LIFETIME).into();
        params.serial_number = Some(super::authority::serial());
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, self.trust_domain.as_str());
        // Roots that follow each other are told apart by their names.
        name.push(
            DnType::CommonName,
            format!("Sluice root {:08x}", rand::random::<u32>()),
        );
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key);
        let certificate = certificate.map_err(crypto("sign the root certificate"))?;
        Ok(certificate.pem())
    }

    /// A key, as text and decoded.
    fn key(&self, name: &'static str) -> Result<(String, KeyPair), Error> {
        let text = self.read(name)?.unwrap_or_default();
        let key = material::key(&text).map_err(|why| self.unusable(name, why))?;
        Ok((text, key))
    }

    fn roots(&self) -> Result<Vec<Certificate>, Error> {
        self.certificates(&self.read(ROOTS)?.unwrap_or_default())
    }

    fn certificates(&self, text: &str) -> Result<Vec<Certificate>, Error> {
        material::certificates(text).map_err(|why| self.unusable(ROOTS, why))
    }

    fn write_roots(&self, roots: &[Certificate]) -> Result<(), Error> {
        let pems: Vec<&str> = roots.iter().map(|root| &*root.pem).collect();
        self.write(ROOTS, 0o644, &pems.concat())
    }

    fn unusable(&self, name: &str, why: String) -> Error {
        let path = self.directory.join(name);
        Error::Root { path, why }
    }

    fn modified(&self, name: &str) -> Result<Option<SystemTime>, Error> {
        let path = self.directory.join(name);
        match fs::metadata(&path).and_then(|data| data.modified()) {
            Ok(time) => Ok(Some(time)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        read(&self.directory.join(name))
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> Result<(), Error> {
        write(&self.directory, name, mode, text)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        fs::remove_file(&path).map_err(Error::file("remove", path))
    }
}

/// Begins a rotation; the control plane that runs with this directory, or the next one, does the
/// rest.
///
/// # Errors
/// When there is no root to replace, or it is being replaced.
pub fn request_rotation(directory: &Path) -> Result<(), Error> {
    let path = |name| directory.join(name);
    if read(&path(KEY))?.is_none() {
        let why = "there is no root yet".to_owned();
        return Err(Error::Rotation {
            path: path(KEY),
            why,
        });
    }
    for name in [NEXT_KEY, OLD_KEY] {
        if read(&path(name))?.is_some() {
            let why = "a rotation is under way; it ends when this file is gone".to_owned();
            return Err(Error::Rotation {
                path: path(name),
                why,
            });
        }
    }
    write(directory, NEXT_KEY, 0o600, &new_key()?)?;
    // Whoever asks for it may be root, and the control plane is not.
    let owner = fs::metadata(path(KEY)).map_err(Error::file("read", path(KEY)))?;
    chown(path(NEXT_KEY), Some(owner.uid()), Some(owner.gid()))
        .map_err(Error::file("change the owner of", path(NEXT_KEY)))
}

fn new_key() -> Result<String, Error> {
    let key = KeyPair::generate().map_err(crypto("make the root key"))?;
    Ok(key.serialize_pem())
}

fn crypto(action: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::crypto(action)(error.into())
}

pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    state::read(path).map_err(Error::file("read", path))
}

fn write(directory: &Path, name: &str, mode: u32, text: &str) -> Result<(), Error> {
    state::write(directory, name, mode, text).map_err(Error::file("write", directory.join(name)))
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
