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
pub fn choose<'a, E>(
    endpoints: &'a [E],
    workload: impl Fn(&E) -> &Workload + Copy,
    policy: &LoadBalancing,
    client: Option<&Workload>,
    roll: f64,
) -> Option<&'a E> {
    let candidates = candidates(endpoints, workload, policy, client);
    by_capacity(candidates, |e| workload(e).capacity, roll)
}

/// Those among which [`choose`] chooses: each of them for some roll.
pub fn candidates<'a, E>(
    endpoints: &'a [E],
    workload: impl Fn(&E) -> &Workload + Copy,
    policy: &LoadBalancing,
    client: Option<&Workload>,
) -> impl Iterator<Item = &'a E> + Clone {
    let rank = move |e: &E| client.map_or(0, |c| shared_scopes(&policy.preference, c, workload(e)));
    let among = move |health: Option<Health>| {
        let usable = move |e: &&E| health.is_none_or(|health| workload(e).health == health);
        let usable = endpoints.iter().filter(usable);
        let wanted = match policy.mode {
            Mode::Standard | Mode::Passthrough => 0,
            Mode::Strict => policy.preference.len(),
            Mode::Failover => usable.clone().map(rank).max().unwrap_or(0),
        };
        usable.filter(move |e| workload(e).capacity > 0 && rank(e) >= wanted)
    };
    if policy.allow_unhealthy {
        return among(None);
    }
    let ready = among(Some(Health::Ready));
    match ready.clone().next() {
        Some(_) => ready,
        None => among(Some(Health::Terminating)),
    }
}

fn by_capacity<'a, E>(
    candidates: impl Iterator<Item = &'a E> + Clone,
    capacity: impl Fn(&E) -> u32,
    roll: f64,
) -> Option<&'a E> {
    let total: u64 = candidates.clone().map(|e| u64::from(capacity(e))).sum();
    let mut point = (roll * total as f64) as u64;
    for endpoint in candidates {
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
