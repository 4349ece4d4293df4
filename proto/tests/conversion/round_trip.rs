//! Any value of the model survives its encoding.

use std::{net::IpAddr, sync::Arc};

use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message as _;
use sluice_model::{
    Name, NetworkAddress, NetworkRange, Service, ServiceKey, Uid, Update, Workload,
    authz::{
        Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
        Term, Values,
    },
    service::{self, GatewayAddress, GatewayDestination, LoadBalancing, Mode, Port, Visibility},
    workload::{Egress, Health, Locality, OwnerKind, Profile, TunnelProtocol},
};
use sluice_proto::{security, workload as wire};

fn name() -> impl Strategy<Value = Name> {
    "[a-z][a-z0-9.-]{0,12}".prop_map(Into::into)
}

fn maybe_name() -> impl Strategy<Value = Name> {
    "[a-z0-9.-]{0,12}".prop_map(Into::into)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn address() -> impl Strategy<Value = NetworkAddress> {
    (maybe_name(), ip()).prop_map(|(network, ip)| NetworkAddress::new(network, ip))
}

/// A range of more than one address, which is what a range is on the wire.
fn network_range() -> impl Strategy<Value = NetworkRange> {
    (maybe_name(), ip(), any::<u8>()).prop_map(|(network, ip, length)| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let range = ipnet::IpNet::new(ip, length % bits).unwrap();
        NetworkRange::new(network, range)
    })
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (name(), name()).prop_map(|(namespace, hostname)| ServiceKey {
        namespace,
        hostname,
    })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (name(), name()).prop_map(|(namespace, name)| PolicyKey { namespace, name })
}

fn port() -> impl Strategy<Value = Port> {
    (1u16.., any::<u16>()).prop_map(|(service_port, target_port)| Port {
        service_port,
        target_port,
    })
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        address().prop_map(GatewayDestination::Address),
        service_key().prop_map(GatewayDestination::Hostname),
    ];
    (destination, 1u16..).prop_map(|(destination, hbone_port)| GatewayAddress {
        destination,
        hbone_port,
    })
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    use service::Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let modes = vec![
        Mode::Standard,
        Mode::Strict,
        Mode::Failover,
        Mode::Passthrough,
    ];
    let scopes = vec![Region, Zone, Subzone, Node, Cluster, Network];
    (select(modes), vec(select(scopes), 0..4), any::<bool>()).prop_map(
        |(mode, preference, allow_unhealthy)| LoadBalancing {
            mode,
            preference,
            allow_unhealthy,
        },
    )
}

prop_compose! {
    fn service()(
        names in (maybe_name(), name(), name()),
        vips in vec(address(), 0..3),
        ranges in vec(network_range(), 0..3),
        ports in vec(port(), 0..3),
        sans in vec((name(), name()), 0..2),
        waypoint in option::of(gateway()),
        load_balancing in load_balancing(),
        flags in (any::<bool>(), any::<bool>()),
    ) -> Service {
        let san = |(ns, sa)| format!("spiffe://td/ns/{ns}/sa/{sa}").parse().unwrap();
        Service {
            name: names.0,
            namespace: names.1,
            hostname: names.2,
            vips,
            ranges,
            ports,
            subject_alt_names: sans.into_iter().map(san).collect(),
            waypoint,
            load_balancing,
            canonical: flags.0,
            visibility: if flags.1 { Visibility::Public } else { Visibility::Namespace },
        }
    }
}

prop_compose! {
    fn workload()(
        uid in name(),
        identity in (name(), maybe_name(), name()),
        places in (maybe_name(), name(), maybe_name(), maybe_name(), maybe_name(), maybe_name()),
        telemetry in (maybe_name(), maybe_name(), maybe_name(), maybe_name()),
        ips in vec(ip(), 0..3),
        flags in (any::<bool>(), any::<bool>()),
        health in select(vec![Health::Ready, Health::Terminating, Health::NotReady]),
        hostname in option::of(name()),
        owner_kind in select(vec![
            OwnerKind::Deployment, OwnerKind::CronJob, OwnerKind::Pod, OwnerKind::Job,
        ]),
        services in proptest::collection::btree_map(service_key(), vec(port(), 0..3), 0..3),
        waypoint in option::of(gateway()),
        policies in vec(policy_key(), 0..3),
        capacity in any::<u32>(),
        egress in select(vec![Egress::Anywhere, Egress::Registry]),
        domains in vec(name(), 0..3),
    ) -> Workload {
        let (network, cluster, node, region, zone, subzone) = places;
        let (name, canonical_name, canonical_revision, owner_name) = telemetry;
        let (tunnel, host_network) = flags;
        let uid = Uid(uid);
        Workload {
            own_name: uid.unless_last_part(&name),
            uid,
            ips: ips.into(),
            node: (&*node).into(),
            health,
            profile: Arc::new(Profile {
                namespace: identity.1,
                trust_domain: identity.0.parse().unwrap(),
                equivalent_domains: domains.iter().map(|d| d.parse().unwrap()).collect(),
                service_account: identity.2,
                network,
                cluster,
                protocol: if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None },
                host_network,
                hostname,
                canonical_name,
                canonical_revision,
                owner_kind,
                owner_name,
                services: services.into(),
                waypoint,
                policies,
                egress,
                capacity,
                locality: Locality { region, zone, subzone },
            }),
        }
    }
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        maybe_name().prop_map(StringMatch::Exact),
        maybe_name().prop_map(StringMatch::Prefix),
        maybe_name().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> {
    (name(), name()).prop_map(|(namespace, name)| ServiceAccountMatch { namespace, name })
}

fn range() -> impl Strategy<Value = ipnet::IpNet> {
    (ip(), any::<u8>()).prop_map(|(ip, length)| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        ipnet::IpNet::new(ip, length % (bits + 1)).unwrap()
    })
}

prop_compose! {
    fn a_match()(
        strings in [vec(string_match(), 0..2), vec(string_match(), 0..2),
            vec(string_match(), 0..2), vec(string_match(), 0..2)],
        accounts in [vec(account(), 0..2), vec(account(), 0..2)],
        ranges in [vec(range(), 0..2), vec(range(), 0..2), vec(range(), 0..2),
            vec(range(), 0..2)],
        ports in [vec(any::<u16>(), 0..2), vec(any::<u16>(), 0..2)],
    ) -> Match {
        let [namespaces, not_namespaces, principals, not_principals] = strings;
        let [service_accounts, not_service_accounts] = accounts;
        let [source_ips, not_source_ips, destination_ips, not_destination_ips] = ranges;
        let [destination_ports, not_destination_ports] = ports;
        let both = |values: fn(Vec<_>) -> Values, is, is_not| {
            [Term::any_of(values(is)), Term::none_of(values(is_not))]
        };
        let strings = [
            both(|list| Values::Namespaces(list.into()), namespaces, not_namespaces),
            both(|list| Values::Principals(list.into()), principals, not_principals),
        ];
        let nets = [
            Term::any_of(Values::SourceIps(source_ips.into())),
            Term::none_of(Values::SourceIps(not_source_ips.into())),
            Term::any_of(Values::DestinationIps(destination_ips.into())),
            Term::none_of(Values::DestinationIps(not_destination_ips.into())),
            Term::any_of(Values::DestinationPorts(destination_ports.into())),
            Term::none_of(Values::DestinationPorts(not_destination_ports.into())),
            Term::any_of(Values::ServiceAccounts(service_accounts.into())),
            Term::none_of(Values::ServiceAccounts(not_service_accounts.into())),
        ];
        strings.into_iter().flatten().chain(nets).collect()
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    let clause = vec(a_match(), 0..3).prop_map(Clause::from_iter);
    let rule = vec(clause, 0..3).prop_map(Rule::from_iter);
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::Workload]);
    let action = select(vec![Action::Allow, Action::Deny, Action::Audit]);
    (policy_key(), scope, action, vec(rule, 0..3), any::<bool>()).prop_map(
        |(key, scope, action, rules, dry_run)| Policy {
            key,
            scope,
            action,
            rules: rules.into(),
            // To audit is no less in dry run.
            dry_run: dry_run && action != Action::Audit,
        },
    )
}

/// Encodes and decodes.
fn sent<M: prost::Message + Default>(message: M) -> M {
    M::decode(&*message.encode_to_vec()).unwrap()
}

proptest! {
    #[test]
    fn workloads(workload in workload()) {
        let message = sent(wire::Address::from(wire::Workload::from(&workload)));
        prop_assert_eq!(Update::try_from(message), Ok(Update::from(workload)));
    }

    #[test]
    fn services(service in service()) {
        let message = sent(wire::Address::from(wire::Service::from(&service)));
        prop_assert_eq!(Update::try_from(message), Ok(Update::Service(service)));
    }

    #[test]
    fn policies(policy in policy()) {
        let message = sent(security::Authorization::from(&policy));
        prop_assert_eq!(Policy::try_from(message), Ok(policy));
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..256)) {
        if let Ok(address) = wire::Address::decode(&*bytes) {
            let _ = Update::try_from(address);
        }
        if let Ok(policy) = security::Authorization::decode(&*bytes) {
            let _ = Policy::try_from(policy);
        }
    }
}
