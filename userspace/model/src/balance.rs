//! Choosing an endpoint of a service.

use crate::{
    Workload,
    service::{LoadBalancing, Mode, Scope},
    workload::Health,
};

/// Chooses among `endpoints` for a client: locality first, then at random by capacity.
///
/// As with kube-proxy, those that are about to end are for when nothing else may be used. `roll` is
/// a random number below 1; the same roll makes the same choice. `None` when no endpoint may be used.
pub fn choose<'w, E>(
    endpoints: &'w [E],
    workload: impl Fn(&E) -> &Workload,
    policy: &LoadBalancing,
    client: Option<&Workload>,
    roll: f64,
) -> Option<&'w E> {
    let rank = |e: &E| client.map_or(0, |c| shared_scopes(&policy.preference, c, workload(e)));
    let among = |usable: &dyn Fn(Health) -> bool| {
        let usable = |e: &&E| usable(workload(e).health);
        let wanted = match policy.mode {
            Mode::Standard | Mode::Passthrough => 0,
            Mode::Strict => policy.preference.len(),
            Mode::Failover => endpoints.iter().filter(usable).map(&rank).max()?,
        };
        let candidates = || {
            endpoints
                .iter()
                .filter(usable)
                .filter(|e| rank(e) >= wanted)
        };
        by_capacity(candidates, |e| workload(e).capacity, roll)
    };
    if policy.allow_unhealthy {
        return among(&|_| true);
    }
    among(&|health| health == Health::Ready).or_else(|| among(&|h| h == Health::Terminating))
}

fn by_capacity<'w, E: 'w, I: Iterator<Item = &'w E>>(
    candidates: impl Fn() -> I,
    capacity: impl Fn(&E) -> u32,
    roll: f64,
) -> Option<&'w E> {
    let total: u64 = candidates().map(|e| u64::from(capacity(e))).sum();
    let mut point = (roll * total as f64) as u64;
    for endpoint in candidates() {
        let capacity = u64::from(capacity(endpoint));
        if point < capacity {
            return Some(endpoint);
        }
        point -= capacity;
    }
    None
}

/// How many scopes, from the first on, two workloads share without a gap.
fn shared_scopes(preference: &[Scope], a: &Workload, b: &Workload) -> usize {
    let same = |scope: &&Scope| match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster == b.cluster,
        Scope::Network => a.network == b.network,
    };
    preference.iter().take_while(same).count()
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
