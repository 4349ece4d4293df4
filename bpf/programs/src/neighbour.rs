//! Connections that go straight from one pod of the node to another, since policy allows it.
//!
//! `ALLOW` is looked up at every step again, so that what is taken from it ends what is under way:
//! by whoever connects, before the SYN is sent, and when it arrives.

use sluice_abi::{
    Addr,
    maps::{AUTH_AGE, Authorized, CONFIG_ALLOW_UNTIL, Dial, Pair},
};

use crate::maps::{ALLOW, AUTH, POD_IPS, ROUTES, in_force, now};

/// The pod that this one may reach at an address, if it is still the address's owner.
#[inline(always)]
fn allowed(netns: u64, to: &Addr) -> Option<u64> {
    // SAFETY, for both maps: values are only copied.
    let server = unsafe { ALLOW.get(&Dial::new(netns, *to)) }.copied()?;
    let owner = unsafe { POD_IPS.get(&to.ip) }.map(|owner| owner.netns)?;
    (owner == server && in_force(CONFIG_ALLOW_UNTIL)).then_some(server)
}

/// Where what a pod dials leads without the ztunnel, if it may.
#[inline(always)]
pub fn route(netns: u64, dialled: &Addr) -> Option<Addr> {
    // SAFETY: the value is only copied.
    let to = unsafe { ROUTES.get(&Dial::new(netns, *dialled)) }.copied();
    let to = to.unwrap_or(*dialled);
    allowed(netns, &to).map(|_| to)
}

/// Before the SYN: tells the other end who comes, if he may.
#[inline(always)]
pub fn announce(netns: u64, client: &Addr, server: &Addr) {
    let Some(cookie) = allowed(netns, server) else {
        return;
    };
    let value = Authorized {
        client: netns,
        server: cookie,
        since: now(),
    };
    // Without the entry, the other end takes it for plaintext from anybody.
    let _ = AUTH.insert(&pair(client, server), &value, 0);
}

/// Whether a SYN is of a connection that was announced, and may still be.
#[inline(always)]
pub fn expected(client: &Addr, client_owner: u64, server: &Addr) -> bool {
    // SAFETY: the value is only copied.
    let Some(auth) = unsafe { AUTH.get(&pair(client, server)) }.copied() else {
        return false;
    };
    auth.client == client_owner
        && now() - auth.since < AUTH_AGE
        && allowed(auth.client, server) == Some(auth.server)
}

/// The connection stands, or will not: the entry has served.
#[inline(always)]
pub fn forget(client: &Addr, server: &Addr) {
    let _ = AUTH.remove(&pair(client, server));
}

#[inline(always)]
fn pair(client: &Addr, server: &Addr) -> Pair {
    Pair {
        client: *client,
        server: *server,
    }
}
