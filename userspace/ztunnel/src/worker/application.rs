//! The way from a ztunnel to its pods' own applications, however many clients come.
//!
//! Clients have many addresses, and behind a ztunnel all of them come from one: the pod's. That has some
//! 28,000 ports to each of an application's, and the kernel keeps the port of a connection that has ended
//! for a minute. Once half of them are taken, its search for another one takes milliseconds; after the
//! last, it finds none. So a pod that is much in demand is dialled from loopback addresses instead. They
//! are many, and the kernel gives back their ports after a second.
//!
//! Applications are shown neither address, but the client.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};

use super::pods::Pod;
use crate::link::{AsyncLink, Family};

/// For how long the kernel keeps the port of a connection that has ended.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// With more connections than this, under way or of a minute or two, a pod is much in demand. Each of at
/// most four threads counts its own, and together they must not come near half of the ports.
const MANY: usize = 2000;
/// The first of the loopback addresses, which nobody else uses, and how many there are: enough for two
/// million connections, and few enough for what the kernel remembers of each (`tcp_metrics`).
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 83, 0, 0);
const ADDRESSES: u32 = 64;

/// How much a pod is in demand.
#[derive(Debug)]
pub(super) struct Demand {
    /// How many connections there were since, and how many in the time of the same length before.
    begun: Cell<Instant>,
    count: Cell<usize>,
    before: Cell<usize>,
    /// When a port was looked for in vain.
    in_vain: Cell<Option<Instant>>,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            begun: Cell::new(Instant::now()),
            count: Cell::default(),
            before: Cell::default(),
            in_vain: Cell::default(),
        }
    }
}

impl Demand {
    /// Counts another connection beside so many that are under way. Says whether these are many.
    fn is_much(&self, under_way: usize, now: Instant) -> bool {
        let passed = now - self.begun.get();
        if passed >= TIME_WAIT {
            let count = self.count.replace(0);
            self.before
                .set(if passed < 2 * TIME_WAIT { count } else { 0 });
            self.begun.set(now);
        }
        self.count.set(self.count.get() + 1);
        let failed = self.in_vain.get().is_some_and(|at| now - at < TIME_WAIT);
        failed || under_way + self.count.get() + self.before.get() > MANY
    }
}

/// Connects to an application of the pod, as [`Pod::dial`] does.
///
/// # Errors
/// As [`Pod::dial`].
pub(super) async fn dial(
    pod: &Pod,
    link: &AsyncLink,
    destination: SocketAddr,
    prepare: impl Fn(&StdStream) -> io::Result<()>,
) -> io::Result<StdStream> {
    if !pod.demand.is_much(pod.flows.len(), Instant::now()) {
        match pod.dial(link, destination, &prepare).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                pod.demand.in_vain.set(Some(Instant::now()));
                tracing::debug!(pod = %pod.uid, %destination, "no port is left to the application");
            }
            result => return result,
        }
    }
    let prepare = |socket: &StdStream| {
        from_loopback(socket, Family::of(destination.ip()))?;
        prepare(socket)
    };
    pod.dial(link, destination, prepare).await
}

/// Has a connection come from a loopback address; IPv6 has only one.
fn from_loopback(socket: &StdStream, family: Family) -> io::Result<()> {
    let source: IpAddr = match family {
        Family::V4 => {
            Ipv4Addr::from_bits(LOOPBACK.to_bits() + rand::random_range(0..ADDRESSES)).into()
        }
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    // The port is chosen once it is known where to: any will do that is not used for the same.
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    rustix::net::bind(socket, &SocketAddr::new(source, 0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether the last of so many connections, one each `pause`, is one of many.
    fn after(demand: &Demand, now: &mut Instant, count: u32, pause: Duration) -> bool {
        (0..count).fold(false, |_, _| {
            *now += pause;
            demand.is_much(0, *now)
        })
    }

    #[test]
    fn a_pod_is_in_demand_for_its_connections_and_those_of_a_minute() {
        let (demand, mut now) = (Demand::default(), Instant::now());
        assert!(!after(&demand, &mut now, 1000, SECOND / 10));
        assert!(demand.is_much(MANY, now));
        assert!(!demand.is_much(0, now));
        // As many as there are before their ports are free again.
        assert!(!after(&demand, &mut now, 10_000, SECOND / 10));
        assert!(after(&demand, &mut now, 10_000, SECOND / 100));
        assert!(!after(&demand, &mut now, 1000, SECOND));
    }

    #[test]
    fn a_search_in_vain_counts_for_as_long_as_ports_are_kept() {
        let (demand, now) = (Demand::default(), Instant::now());
        demand.in_vain.set(Some(now));
        assert!(demand.is_much(0, now + 59 * SECOND));
        assert!(!demand.is_much(0, now + 61 * SECOND));
    }
}
