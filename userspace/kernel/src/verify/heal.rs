//! Putting right what is not as it must be.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::maps::{MapData, MapError};
use sluice_abi::{Ip, maps};

use super::{Finding, Pinned, Subject, check::name};
use crate::{EnrolledPod, Error, Kernel, attach, error::removed, verify::Expected};

/// Updates an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// What a broker holds for a pod, to put things right with.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// See [`crate::PodSpec::listener`].
    pub listener: BorrowedFd<'a>,
}

impl Kernel {
    /// What must be so.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Looks for what is not as it must be.
    pub fn drift(&self) -> Vec<Finding> {
        let mut findings = super::check(&self.expected);
        // An earlier broker's pods are let go later.
        let foreign = |finding: &Finding| matches!(finding.subject, Subject::Pod(cookie) if !self.expected.pods.contains_key(&cookie));
        findings.retain(|finding| {
            finding.drift.is_some() && !(self.inherited.is_some() && foreign(finding))
        });
        findings
    }

    /// Puts right what a check has found. `holdings` are those of the pod, where it is about one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn heal(&mut self, subject: &Subject, holdings: Option<Holdings<'_>>) -> Result<(), Error> {
        let pod = subject
            .pod()
            .map(|cookie| (cookie, self.expected.pods.get(&cookie).cloned()));
        match (subject, pod) {
            (Subject::Map(place), _) => {
                let Pinned { path, id } = &self.expected.maps[*place];
                let _ = std::fs::remove_file(path);
                let map = MapData::from_id(*id).map_err(Error::map("a pinned one"))?;
                map.pin(path).map_err(|error| Error::Pin {
                    path: path.clone(),
                    source: Box::new(error),
                })
            }
            (Subject::Program(place), _) => {
                let wanted = name(&self.expected.programs[*place].path).into_owned();
                attach::pin_again(&mut self.ebpf, &self.pins, &wanted)
            }
            (Subject::Hook(place), _) => {
                let hook = self.expected.hooks[*place].clone();
                attach::attach_again(&mut self.ebpf, &self.pins, &hook)
            }
            (Subject::Netns(cookie), Some((_, Some(pod)))) => match holdings {
                Some(holdings) => self.attach_lookup(holdings.netns, *cookie, &pod.link),
                None => Ok(()),
            },
            (Subject::Pod(cookie), Some((_, Some(pod)))) => {
                let value = maps::Pod {
                    slot: pod.slot,
                    flags: pod.flags,
                };
                self.pods
                    .insert(cookie, value, 0)
                    .map_err(Error::map("PODS"))
            }
            // An entry that stands for no pod.
            (Subject::Pod(cookie), _) => removed("PODS", self.pods.remove(cookie)),
            (Subject::Address(cookie, ip), Some((_, Some(pod)))) => {
                let value = maps::PodIp {
                    netns: *cookie,
                    slot: pod.slot,
                    pad: 0,
                };
                let inserted = self.pod_ips.insert(Ip::from(*ip), value, 0);
                inserted.map_err(Error::map("POD_IPS"))
            }
            // The pod has left since.
            (Subject::Netns(_) | Subject::Address(..), _) => Ok(()),
        }
    }

    /// Puts a pod's listener into its place if that is empty; true when it was. Nobody can read who is
    /// in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn refill_slot(
        &mut self,
        pod: &EnrolledPod,
        listener: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        match self
            .listeners
            .set(pod.slot, &listener.as_raw_fd(), BPF_NOEXIST)
        {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(Error::map("LISTENERS")(error)),
        }
    }

    /// Steers what comes for a pod to another listener.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_listener(
        &mut self,
        pod: &EnrolledPod,
        listener: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let set = self.listeners.set(pod.slot, &listener.as_raw_fd(), 0);
        set.map_err(Error::map("LISTENERS"))
    }
}
