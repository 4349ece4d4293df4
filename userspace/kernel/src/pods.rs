//! Enrolling pods.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{SkLookup, links::FdLink};
use sluice_abi::{Ip, maps};

use crate::{
    Error, Kernel,
    attach::{self, LOOKUP},
    registry::Outbound,
    sys,
    verify::ExpectedPod,
};

/// A pod to enrol.
#[derive(Clone, Copy, Debug)]
pub struct PodSpec<'a> {
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// The cookie of that namespace.
    pub cookie: u64,
    /// Every address in it.
    pub ips: &'a [IpAddr],
    /// The ztunnel's listener for inbound plaintext in it, a member of its reuseport group.
    pub listener: BorrowedFd<'a>,
    /// Where it may go; a pod that an earlier broker held to the registry stays so.
    pub outbound: Outbound,
    pub dns: Dns,
}

/// What becomes of a pod's DNS queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dns {
    /// They go to the servers that the pod asks.
    #[default]
    Direct,
    /// They are captured: the ztunnel answers or forwards them.
    Captured,
}

impl Dns {
    fn flags(self) -> u32 {
        match self {
            Self::Direct => 0,
            Self::Captured => maps::DNS,
        }
    }
}

/// A pod that was enrolled; give it back to [`Kernel::withdraw`].
#[derive(Debug)]
#[must_use = "the pod stays enrolled until it is withdrawn"]
pub struct EnrolledPod {
    pub(crate) cookie: u64,
    pub(crate) slot: u32,
    ips: Vec<Ip>,
    link: PathBuf,
    outbound: Outbound,
}

impl EnrolledPod {
    /// Where it might go when it was enrolled.
    pub fn outbound(&self) -> Outbound {
        self.outbound
    }

    /// Its addresses, in the order in which they were told.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().map(|ip| IpAddr::from(*ip))
    }

    /// Whether an address is one of its own.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip.into())
    }
}

impl Kernel {
    /// Enrols a pod: from now on its new connections, both ways, are captured.
    ///
    /// Inbound comes first, so that nobody sees a pod that sends through the mesh and receives
    /// around it; and capture of outbound last, when all is ready to serve it.
    ///
    /// # Errors
    /// See [`Error`]; the pod is not enrolled then.
    pub fn enrol(&mut self, pod: &PodSpec<'_>) -> Result<EnrolledPod, Error> {
        let slot = self
            .slots
            .iter()
            .position(|used| !used)
            .ok_or(Error::TooManyPods)?;
        let number = u32::try_from(slot).map_err(|_| Error::TooManyPods)?;
        let inherited = self
            .pods
            .get(&pod.cookie, 0)
            .map(|pod| Outbound::of(pod.flags));
        let enrolled = EnrolledPod {
            cookie: pod.cookie,
            slot: number,
            ips: pod.ips.iter().map(|&ip| ip.into()).collect(),
            link: self.pins.link(&format!("netns-{}", pod.cookie)),
            outbound: match inherited {
                Ok(Outbound::Registry) => Outbound::Registry,
                _ => pod.outbound,
            },
        };
        self.slots[slot] = true;
        match self.enrol_steps(pod, &enrolled) {
            Ok(()) => Ok(enrolled),
            Err(error) => {
                self.withdraw(enrolled);
                Err(error)
            }
        }
    }

    fn enrol_steps(&mut self, pod: &PodSpec<'_>, enrolled: &EnrolledPod) -> Result<(), Error> {
        let EnrolledPod {
            cookie,
            slot,
            ref ips,
            ref link,
            outbound,
        } = *enrolled;
        self.set_listener(enrolled, pod.listener)?;
        for ip in ips {
            self.pod_ips
                .insert(
                    ip,
                    maps::PodIp {
                        netns: cookie,
                        slot,
                        pad: 0,
                    },
                    0,
                )
                .map_err(Error::map("POD_IPS"))?;
        }
        self.attach_lookup(pod.netns, cookie, link)?;
        let flags = outbound.flags() | pod.dns.flags();
        let inode = sys::inode(&pod.netns).map_err(Error::system("look at a network namespace"))?;
        self.pods
            .insert(cookie, maps::Pod { slot, flags }, 0)
            .map_err(Error::map("PODS"))?;
        let pod = ExpectedPod {
            cookie,
            inode,
            link: link.clone(),
            program: self.lookup_program,
            slot,
            flags,
            ips: enrolled.ips().collect(),
        };
        self.expected.pods.insert(cookie, pod);
        Ok(())
    }

    /// Attaches `sk_lookup` in a pod's network namespace, in place of what is pinned there.
    pub(crate) fn attach_lookup(
        &mut self,
        netns: BorrowedFd<'_>,
        cookie: u64,
        link: &Path,
    ) -> Result<(), Error> {
        let program: &mut SkLookup = attach::program(&mut self.ebpf, LOOKUP)?;
        let attach_error = |source| Error::Attach {
            name: LOOKUP,
            target: format!("the pod's network namespace (cookie {cookie})"),
            source: Box::new(source),
        };
        let id = program.attach(netns.as_fd()).map_err(attach_error)?;
        let attached: FdLink = program.take_link(id).map_err(attach_error)?.into();
        attach::pin_link(attached, link)
    }

    /// Says what becomes of a pod's DNS queries, from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_dns(&mut self, pod: &EnrolledPod, dns: Dns) -> Result<(), Error> {
        self.set_flags(pod, maps::DNS, dns.flags())
    }

    /// Sets those flags of a pod that are in `mask`.
    pub(crate) fn set_flags(
        &mut self,
        pod: &EnrolledPod,
        mask: u32,
        flags: u32,
    ) -> Result<(), Error> {
        // Not what the map says: somebody else may have written there.
        let Some(expected) = self.expected.pods.get_mut(&pod.cookie) else {
            return Ok(());
        };
        let flags = expected.flags & !mask | flags;
        if expected.flags == flags {
            return Ok(());
        }
        let value = maps::Pod {
            slot: pod.slot,
            flags,
        };
        self.pods
            .insert(pod.cookie, value, 0)
            .map_err(Error::map("PODS"))?;
        expected.flags = flags;
        Ok(())
    }

    /// Brings the addresses of an enrolled pod up to date.
    ///
    /// # Errors
    /// The kernel's; the pod keeps the addresses that it had.
    pub fn set_ips(&mut self, pod: &mut EnrolledPod, ips: &[IpAddr]) -> Result<(), Error> {
        let wanted: Vec<Ip> = ips.iter().map(|&ip| ip.into()).collect();
        for ip in wanted.iter().filter(|ip| !pod.ips.contains(ip)) {
            let value = maps::PodIp {
                netns: pod.cookie,
                slot: pod.slot,
                pad: 0,
            };
            self.pod_ips
                .insert(ip, value, 0)
                .map_err(Error::map("POD_IPS"))?;
        }
        let gone: Vec<Ip> = pod
            .ips
            .iter()
            .filter(|ip| !wanted.contains(ip))
            .copied()
            .collect();
        for ip in gone {
            self.remove_ip(&ip, pod.cookie);
        }
        pod.ips = wanted;
        if let Some(expected) = self.expected.pods.get_mut(&pod.cookie) {
            expected.ips = pod.ips().collect();
        }
        Ok(())
    }

    /// Withdraws a pod: its new connections are its own again. Outbound goes first.
    pub fn withdraw(&mut self, pod: EnrolledPod) {
        self.expected.pods.remove(&pod.cookie);
        // Each step is independent, and missing entries are what is wanted.
        let _ = self.pods.remove(&pod.cookie);
        let _ = std::fs::remove_file(&pod.link);
        for ip in &pod.ips {
            self.remove_ip(ip, pod.cookie);
        }
        let _ = self.listeners.clear_index(&pod.slot);
        self.slots[pod.slot as usize] = false;
    }

    /// An address may belong to a newer pod by now.
    fn remove_ip(&mut self, ip: &Ip, cookie: u64) {
        if self
            .pod_ips
            .get(ip, 0)
            .is_ok_and(|owner| owner.netns == cookie)
        {
            let _ = self.pod_ips.remove(ip);
        }
    }
}
