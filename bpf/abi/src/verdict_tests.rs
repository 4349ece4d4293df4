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
        destination: Addr {
            ip: ip(destination),
            port: 8080,
        },
        owner: maps::PodIp::default(),
        registry_only: false,
        bypass: false,
        known: false,
        dns: false,
        allowed: false,
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

/// A DNS query of a pod whose queries are captured.
fn query(server: &str) -> Connect {
    let mut query = Connect {
        protocol: UDP,
        dns: true,
        ..dial(server)
    };
    query.destination.port = 53;
    query
}

#[test]
fn queries_are_redirected_to_the_loopback_of_their_family() {
    let v4 = ConnectVerdict::Redirect(addr("127.0.0.1:15053"));
    let v6 = ConnectVerdict::Redirect(addr("[::1]:15053"));
    assert_eq!(connect(&query("10.96.0.10")), v4);
    assert_eq!(connect(&query("::ffff:10.96.0.10")), v4);
    assert_eq!(connect(&query("fd96::10")), v6);
    // What may be asked is no question of where connections may go.
    let restricted = Connect {
        registry_only: true,
        ..query("10.96.0.10")
    };
    assert_eq!(connect(&restricted), v4);
}

#[test]
fn only_what_is_known_to_nobody_goes_straight_out() {
    let stranger = Connect {
        bypass: true,
        dns: true,
        ..dial("10.1.2.3")
    };
    assert_eq!(connect(&stranger), ConnectVerdict::Outside);
    let known = Connect {
        known: true,
        ..stranger
    };
    let neighbour = Connect {
        owner: maps::PodIp {
            netns: POD + 1,
            ..Default::default()
        },
        ..stranger
    };
    let mut query = stranger;
    query.destination.port = 53;
    let captured = Connect {
        bypass: false,
        ..stranger
    };
    for c in [known, neighbour, query, captured] {
        assert!(matches!(connect(&c), ConnectVerdict::Redirect(_)), "{c:?}");
    }
    let restricted = Connect {
        registry_only: true,
        ..stranger
    };
    let refused = ConnectVerdict::Refuse(Reason::NotInRegistry);
    assert_eq!(connect(&restricted), refused);
    let local = connect(&Connect {
        destination: addr("127.0.0.1:80"),
        ..stranger
    });
    assert_eq!(local, ConnectVerdict::NotOurs(Reason::Local));
}

#[test]
fn what_is_sent_to_the_ztunnel_is_recognized() {
    for ours in ["127.0.0.1:15001", "[::1]:15053", "127.0.0.1:15055"] {
        assert!(is_captured(&addr(ours)), "{ours}");
    }
    for other in ["127.0.0.1:80", "10.0.0.1:15001", "127.0.0.1:15056"] {
        assert!(!is_captured(&addr(other)), "{other}");
    }
}

#[test]
fn queries_that_are_not_ours_are_left_alone() {
    let left = |reason, c: Connect| assert_eq!(connect(&c), ConnectVerdict::NotOurs(reason));
    let captured = query("10.96.0.10");
    left(
        Reason::NotTcp,
        Connect {
            dns: false,
            ..captured
        },
    );
    left(
        Reason::Proxy,
        Connect {
            proxy: true,
            ..captured
        },
    );
    left(
        Reason::NotEnrolled,
        Connect {
            enrolled: false,
            ..captured
        },
    );
    left(Reason::Local, query("127.0.0.53"));
    left(Reason::Local, query("::1"));
    left(Reason::LinkLocal, query("fe80::1"));
    let mut other = captured;
    other.destination.port = 5353;
    left(Reason::NotTcp, other);
}

#[test]
fn dns_by_tcp_is_a_connection_to_a_listener_of_its_own() {
    let tcp = Connect {
        protocol: TCP,
        ..query("10.96.0.10")
    };
    let to = |c: Connect, port| {
        let expected = ConnectVerdict::Redirect(addr(&format!("127.0.0.1:{port}")));
        assert_eq!(connect(&c), expected);
    };
    to(tcp, 15053);
    to(Connect { dns: false, ..tcp }, 15001);
    // And so it is restricted like one.
    let restricted = Connect {
        registry_only: true,
        ..tcp
    };
    let refused = ConnectVerdict::Refuse(Reason::NotInRegistry);
    assert_eq!(connect(&restricted), refused);
}

#[test]
fn answers_are_told_from_other_datagrams() {
    assert_eq!(answered(&addr("127.0.0.1:15053")), Some(0));
    assert_eq!(answered(&addr("[::1]:15055")), Some(2));
    assert_eq!(answered(&addr("[::ffff:127.0.0.1]:15054")), Some(1));
    for other in [
        "127.0.0.1:15052",
        "127.0.0.1:15056",
        "10.0.0.1:15053",
        "[fd00::1]:15053",
    ] {
        assert_eq!(answered(&addr(other)), None, "{other}");
    }
}

#[test]
fn a_socket_keeps_its_last_servers_apart() {
    let server = |n: u8| addr(&format!("10.0.0.{n}:53"));
    let mut servers = maps::Servers::default();
    assert_eq!(servers.get(0), None);
    for (n, number) in [
        (1, 0),
        (2, 1),
        (1, 0),
        (3, 2),
        (2, 1),
        (4, 0),
        (3, 2),
        (1, 1),
    ] {
        assert_eq!(servers.number(&server(n)), number, "{n}");
        assert_eq!(servers.get(number), Some(server(n)));
    }
    assert_eq!(servers.get(3), None);
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

#[test]
fn what_policy_allows_goes_straight_to_a_pod_of_the_node() {
    let allowed = |destination| Connect {
        allowed: true,
        ..dial(destination)
    };
    for to in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::3"] {
        assert_eq!(connect(&allowed(to)), ConnectVerdict::Direct, "{to}");
    }
    let never = [
        allowed("127.0.0.1"),
        Connect {
            enrolled: false,
            ..allowed("10.1.2.3")
        },
        Connect {
            proxy: true,
            ..allowed("10.1.2.3")
        },
        Connect {
            registry_only: true,
            ..allowed("10.1.2.3")
        },
        Connect {
            allowed: true,
            ..query("10.1.2.3")
        },
        Connect {
            allowed: true,
            protocol: TCP,
            ..query("10.1.2.3")
        },
    ];
    for input in never {
        assert_ne!(connect(&input), ConnectVerdict::Direct, "{input:?}");
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
        allowed: false,
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
                allowed: true,
                ..syn("10.0.0.5:80", "10.0.0.9")
            },
            not_ours(Reason::FromNeighbour),
        ),
        (
            Lookup {
                allowed: true,
                known: false,
                ..syn("10.0.0.5:80", "10.0.0.9")
            },
            LookupVerdict::Refuse(Reason::UnknownAddress),
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
