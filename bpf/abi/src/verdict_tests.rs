use std::net::{IpAddr, SocketAddr};

use super::*;

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

fn addr(text: &str) -> Addr {
    text.parse::<SocketAddr>().unwrap().into()
}

const POD: u64 = 77;

fn dial(destination: &str) -> Connect {
    Connect {
        netns: POD,
        protocol: TCP,
        enrolled: true,
        proxy: false,
        destination: ip(destination),
        owner: maps::PodIp::default(),
        registry_only: false,
        known: false,
    }
}

#[test]
fn connect_is_redirected_to_the_loopback_of_its_family() {
    let v4 = ConnectVerdict::Redirect(addr("127.0.0.1:15001"));
    let v6 = ConnectVerdict::Redirect(addr("[::1]:15001"));
    assert_eq!(connect(&dial("10.1.2.3")), v4);
    assert_eq!(connect(&dial("::ffff:10.1.2.3")), v4);
    assert_eq!(connect(&dial("fd00::3")), v6);
}

#[test]
fn connect_that_is_not_ours_is_left_alone() {
    let own = maps::PodIp {
        netns: POD,
        slot: 0,
        pad: 0,
    };
    let other = maps::PodIp {
        netns: POD + 1,
        slot: 1,
        pad: 0,
    };
    let cases = [
        (
            Connect {
                enrolled: false,
                ..dial("10.1.2.3")
            },
            Reason::NotEnrolled,
        ),
        (
            Connect {
                protocol: 17,
                ..dial("10.1.2.3")
            },
            Reason::NotTcp,
        ),
        (
            Connect {
                proxy: true,
                ..dial("10.1.2.3")
            },
            Reason::Proxy,
        ),
        (
            Connect {
                owner: own,
                ..dial("10.1.2.3")
            },
            Reason::Local,
        ),
        (dial("127.0.0.1"), Reason::Local),
        (dial("127.1.2.3"), Reason::Local),
        (dial("::ffff:127.0.0.1"), Reason::Local),
        (dial("::1"), Reason::Local),
        (dial("0.0.0.0"), Reason::Local),
        (dial("::"), Reason::Local),
        (dial("fe80::5"), Reason::LinkLocal),
    ];
    for (input, reason) in cases {
        assert_eq!(
            connect(&input),
            ConnectVerdict::NotOurs(reason),
            "{input:?}"
        );
    }
    let neighbour = Connect {
        owner: other,
        ..dial("10.1.2.4")
    };
    assert!(
        matches!(connect(&neighbour), ConnectVerdict::Redirect(_)),
        "another pod's address"
    );
}

#[test]
fn a_pod_that_may_go_only_to_what_the_mesh_knows_is_refused_the_rest() {
    let restricted = |destination| Connect {
        registry_only: true,
        ..dial(destination)
    };
    let refused = ConnectVerdict::Refuse(Reason::NotInRegistry);
    for outside in [
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "fd00::3",
        // The metadata service of clouds, and a neighbour on the link.
        "169.254.169.254",
        "fe80::5",
    ] {
        assert_eq!(connect(&restricted(outside)), refused, "{outside}");
    }
    let known = |destination| Connect {
        known: true,
        ..restricted(destination)
    };
    for inside in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::3"] {
        let verdict = connect(&known(inside));
        assert_eq!(verdict, connect(&dial(inside)), "{inside}");
        assert!(matches!(verdict, ConnectVerdict::Redirect(_)), "{inside}");
    }
    let own = maps::PodIp {
        netns: POD,
        slot: 0,
        pad: 0,
    };
    for (input, reason) in [
        (restricted("127.0.0.1"), Reason::Local),
        (restricted("::1"), Reason::Local),
        (restricted("0.0.0.0"), Reason::Local),
        (
            Connect {
                owner: own,
                ..restricted("10.1.2.3")
            },
            Reason::Local,
        ),
        (
            Connect {
                proxy: true,
                ..restricted("10.1.2.3")
            },
            Reason::Proxy,
        ),
        (
            Connect {
                protocol: 17,
                ..restricted("10.1.2.3")
            },
            Reason::NotTcp,
        ),
    ] {
        let expected = ConnectVerdict::NotOurs(reason);
        assert_eq!(connect(&input), expected, "{input:?}");
    }
}

fn syn(local: &str, remote: &str) -> Lookup {
    Lookup {
        protocol: TCP,
        ingress_ifindex: 2,
        local: addr(local),
        remote: ip(remote),
        known: true,
        same_pod: false,
    }
}

#[test]
fn lookup() {
    let not_ours = LookupVerdict::NotOurs;
    let cases = [
        (syn("10.0.0.5:80", "10.0.0.9"), LookupVerdict::Steer),
        (syn("[fd00::5]:80", "fd00::9"), LookupVerdict::Steer),
        (syn("10.0.0.5:15006", "10.0.0.9"), LookupVerdict::Steer),
        (syn("10.0.0.5:15008", "10.0.0.9"), not_ours(Reason::Tunnel)),
        (syn("10.0.0.5:80", "10.0.0.5"), not_ours(Reason::FromSelf)),
        (syn("[fd00::5]:80", "fd00::5"), not_ours(Reason::FromSelf)),
        (syn("10.0.0.5:80", "127.0.0.1"), not_ours(Reason::FromSelf)),
        (
            Lookup {
                same_pod: true,
                ..syn("10.0.0.6:80", "10.0.0.5")
            },
            not_ours(Reason::FromSelf),
        ),
        (
            Lookup {
                ingress_ifindex: 1,
                ..syn("10.0.0.5:80", "10.0.0.9")
            },
            not_ours(Reason::FromSelf),
        ),
        (
            Lookup {
                protocol: 17,
                ..syn("10.0.0.5:53", "10.0.0.9")
            },
            not_ours(Reason::LookupNotTcp),
        ),
        (
            Lookup {
                known: false,
                ..syn("10.0.0.6:80", "10.0.0.9")
            },
            LookupVerdict::Refuse(Reason::UnknownAddress),
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(super::lookup(&input), expected, "{input:?}");
    }
}

#[test]
fn reasons_are_their_numbers() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, index + 1);
        assert_eq!(Reason::from_u32(*reason as u32), Some(*reason));
    }
    assert_eq!(Reason::from_u32(0), None);
    assert_eq!(Reason::from_u32(REASONS), None);
}
