//! The addresses of hosts that only have a name.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use sluice_model::Name;

/// How long one nameserver may take, twice.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks for addresses, and remembers the answers for as long as they may be. Each thread has its
/// own.
pub(super) struct Resolver(Option<TokioResolver>);

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no nameserver is known; name one with --nameserver")]
    NoNameserver,
    #[error(transparent)]
    Lookup(#[from] NetError),
    #[error("the only addresses of this name are those of the machine that asks")]
    OnlyLocal,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    pub(super) fn new(nameservers: &[SocketAddr]) -> Self {
        if nameservers.is_empty() {
            return Self(None);
        }
        let servers = nameservers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // A worker opens no files.
        options.use_hosts_file = ResolveHosts::Never;
        match builder.build() {
            Ok(resolver) => Self(Some(resolver)),
            Err(error) => {
                tracing::error!(%error, "host names cannot be resolved");
                Self(None)
            }
        }
    }

    /// The addresses of a host, at least one.
    ///
    /// # Errors
    /// When nobody knows any that can be dialled.
    pub(super) async fn addresses(&self, host: &Name) -> Result<Vec<IpAddr>, Error> {
        let resolver = self.0.as_ref().ok_or(Error::NoNameserver)?;
        // With its dot a name is complete.
        let found = resolver.lookup_ip(format!("{host}.")).await?;
        let addresses: Vec<IpAddr> = found
            .iter()
            .map(|ip| ip.to_canonical())
            .filter(is_elsewhere)
            .collect();
        if addresses.is_empty() {
            return Err(Error::OnlyLocal);
        }
        Ok(addresses)
    }
}

/// Whoever answers must not lead us to the pod's own loopback, where the proxy listens.
fn is_elsewhere(ip: &IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
