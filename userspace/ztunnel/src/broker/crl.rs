//! The file of revocation lists, followed for the worker.
//!
//! The last good lists are kept on disk as well: they are public, and a broker that starts while the
//! file cannot be used must not let in those whom they name.

use std::{
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sluice_identity::{Due, RevocationLists};

use super::durable;
use crate::{
    link::{Link, ToWorker},
    one_line,
};

/// The name of the file with the last good lists.
const KEPT: &str = "crl";

/// What the file held when it could be used last.
pub(super) struct RevocationFile {
    path: PathBuf,
    /// Where the last good lists are kept.
    kept: PathBuf,
    good: Option<Good>,
    /// Whether the worker that runs has them.
    passed_on: bool,
    /// What was complained of last, so that it is said once.
    complaint: Option<String>,
}

struct Good {
    content: Vec<u8>,
    due: Option<Due>,
}

impl Good {
    fn parse(content: Vec<u8>) -> Result<Self> {
        let due = RevocationLists::parse(&content)?.due().cloned();
        Ok(Self { content, due })
    }

    /// What a broker before has kept, if anything.
    fn kept(path: &Path) -> Option<Self> {
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, %path, "the revocation lists that were kept cannot be read");
                return None;
            }
        };
        let parsed = Self::parse(content);
        if let Err(error) = &parsed {
            let (path, error) = (path.display(), one_line(error));
            tracing::warn!(error, %path, "the revocation lists that were kept are damaged");
        }
        parsed.ok()
    }
}

impl RevocationFile {
    /// Reads the file for the first time. Lists that cannot be used do not keep the node out of the
    /// mesh: what no list tells about counts as not revoked.
    pub(super) fn open(path: PathBuf, state_dir: &Path) -> Result<Self> {
        fs::metadata(&path).with_context(|| format!("read {} (--crl)", path.display()))?;
        let kept = state_dir.join(KEPT);
        let mut file = Self {
            good: Good::kept(&kept),
            path,
            kept,
            passed_on: false,
            complaint: None,
        };
        file.refresh();
        Ok(file)
    }

    /// Reads the file again.
    pub(super) fn refresh(&mut self) {
        let complaint = match self.read() {
            Ok(()) => self.overdue(),
            Err(error) => Some(one_line(&error)),
        };
        if let Some(error) = complaint
            .as_ref()
            .filter(|new| Some(*new) != self.complaint.as_ref())
        {
            let path = self.path.display();
            match &self.good {
                Some(_) => {
                    tracing::error!(%path, error, "revocation lists: the last good ones stay")
                }
                None => tracing::error!(%path, error, "no revocation lists: nothing is revoked"),
            }
        }
        self.complaint = complaint;
    }

    fn read(&mut self) -> Result<()> {
        let content = fs::read(&self.path).context("read")?;
        if self
            .good
            .as_ref()
            .is_some_and(|good| good.content == content)
        {
            return Ok(());
        }
        let new = Good::parse(content)?;
        // Who brings an old list back would bring revoked certificates back.
        if let (Some(due), Some(_)) = (&new.due, &self.good)
            && due.at <= SystemTime::now()
        {
            bail!("the list of {} has expired", due.issuer);
        }
        if let Err(error) = durable::replace(&self.kept, |file| file.write_all(&new.content)) {
            tracing::warn!(
                error = one_line(&error),
                "the revocation lists are not kept: a start without the file finds older ones, or none"
            );
        }
        self.good = Some(new);
        self.passed_on = false;
        Ok(())
    }

    /// Lists in force whose successors are late. What they name stays revoked.
    fn overdue(&self) -> Option<String> {
        let due = self.good.as_ref()?.due.as_ref()?;
        (due.at <= SystemTime::now()).then(|| format!("the list of {} has expired", due.issuer))
    }

    /// Passes the lists on, unless the worker has them.
    pub(super) fn pass_on(&mut self, link: &Link) {
        if !self.passed_on
            && let Err(error) = self.send(link)
        {
            tracing::error!(%error, "the worker has not taken the revocation lists yet");
        }
    }

    /// Sends the lists to a worker. They may be larger than a message.
    pub(super) fn send(&mut self, link: &Link) -> io::Result<()> {
        let Some(good) = &self.good else {
            return Ok(());
        };
        let mut memory = File::from(memfd_create("crl", MFdFlags::MFD_CLOEXEC)?);
        memory.write_all(&good.content)?;
        memory.rewind()?;
        link.send(&ToWorker::Revocations, &[memory.as_fd()])?;
        self.passed_on = true;
        Ok(())
    }
}
