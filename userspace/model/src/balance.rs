//! Choosing an endpoint of a service.

use crate::{
    Workload,
    service::{LoadBalancing, Mode, Scope},
};

/// Chooses among `endpoints` for a client: locality first, then at random by capacity.
///
/// `roll` is a random number below 1; the same roll makes the same choice. `None` when no endpoint
/// may be used.
pub fn choose<'w, E>(
    endpoints: &'w [E],
    workload: impl Fn(&E) -> &Workload,
    policy: &LoadBalancing,
    client: Option<&Workload>,
    roll: f64,
) -> Option<&'w E> {
    let usable = |e: &E| policy.allow_unhealthy || workload(e).healthy;
    let rank = |e: &E| client.map_or(0, |c| shared_scopes(&policy.preference, c, workload(e)));
    let wanted = match policy.mode {
        Mode::Standard | Mode::Passthrough => 0,
        Mode::Strict => policy.preference.len(),
        Mode::Failover => endpoints.iter().filter(|e| usable(e)).map(&rank).max()?,
    };
    let candidates = || endpoints.iter().filter(|e| usable(e) && rank(e) >= wanted);
    let total: u64 = candidates().map(|e| u64::from(workload(e).capacity)).sum();
    let mut point = (roll * total as f64) as u64;
    for endpoint in candidates() {
        let capacity = u64::from(workload(endpoint).capacity);
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
