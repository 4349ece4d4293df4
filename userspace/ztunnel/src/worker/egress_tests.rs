use sluice_model::{
    NetworkAddress, NetworkRange, Service, Update,
    service::{LoadBalancing, Visibility},
};

use super::*;

/// A mesh in which these stand for something.
fn known(nets: impl IntoIterator<Item = IpNet>) -> Known {
    let services = nets.into_iter().map(|net| {
        let network = Name::default();
        let name: Name = net.to_string().as_str().into();
        let single = net.prefix_len() == net.max_prefix_len();
        let vip = single.then(|| NetworkAddress::new(network.clone(), net.addr()));
        let range = (!single).then(|| NetworkRange::new(network, net));
        Update::Service(Service {
            name: name.clone(),
            namespace: "shop".into(),
            hostname: name,
            vips: vip.into_iter().collect(),
            ranges: range.into_iter().collect(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            load_balancing: LoadBalancing::default(),
            canonical: false,
            visibility: Visibility::Public,
        })
    });
    Known {
        mesh: Arc::new(services.collect()),
        network: Name::default(),
    }
}

fn ip(number: u32) -> IpNet {
    let ip = std::net::Ipv4Addr::from(0x0a00_0000 + number);
    std::net::IpAddr::from(ip).into()
}

/// Ranges of two addresses.
fn range(number: u32) -> IpNet {
    IpNet::new(ip(2 * number).addr(), 31).unwrap()
}

fn wanted(pods: &[u32], known: impl IntoIterator<Item = u32>) -> Wanted {
    Wanted {
        restricted: pods.iter().copied().map(PodId).collect(),
        free: [PodId(1)].into(),
        known: (!pods.is_empty()).then(|| self::known(known.into_iter().map(ip))),
    }
}

fn restricted(pods: &[u32]) -> Egress {
    Egress::Outbound {
        listed: !pods.is_empty(),
        restricted: pods.iter().copied().map(PodId).collect(),
        free: vec![PodId(1)],
    }
}

#[test]
fn the_first_word_is_told_even_when_it_is_empty() {
    let mut told = Told::default();
    let nothing = told.catch_up(wanted(&[], []));
    assert_eq!(nothing, [restricted(&[])]);
    assert_eq!(told.catch_up(wanted(&[], [])), []);
    let mut told = Told::default();
    let all = told.catch_up(wanted(&[7], [1]));
    let expected = [Egress::Begin, Egress::Known(vec![ip(1)]), restricted(&[7])];
    assert_eq!(all, expected);
}

#[test]
fn later_only_differences_are_told_with_what_is_known_first_and_forgotten_last() {
    let mut told = Told::default();
    told.catch_up(wanted(&[7], [1, 2]));
    assert_eq!(told.catch_up(wanted(&[7], [1, 2])), []);
    let changed = told.catch_up(wanted(&[7, 8], [2, 3]));
    let expected = [
        Egress::Known(vec![ip(3)]),
        restricted(&[7, 8]),
        Egress::Forgotten(vec![ip(1)]),
    ];
    assert_eq!(changed, expected);
}

#[test]
fn the_last_restriction_takes_the_list_with_it() {
    let mut told = Told::default();
    told.catch_up(wanted(&[7], [1]));
    assert_eq!(told.catch_up(wanted(&[], [])), [restricted(&[])]);
    let again = told.catch_up(wanted(&[7], [1]));
    let expected = [Egress::Begin, Egress::Known(vec![ip(1)]), restricted(&[7])];
    assert_eq!(again, expected, "the broker has forgotten them");
}

#[test]
fn where_the_unknown_is_not_captured_there_is_a_list_without_a_restriction() {
    let known = |ips: &[u32]| Wanted {
        known: Some(self::known(ips.iter().copied().map(ip))),
        ..wanted(&[], [])
    };
    let outbound = |listed| Egress::Outbound {
        listed,
        restricted: vec![],
        free: vec![PodId(1)],
    };
    let mut told = Told::default();
    let all = told.catch_up(known(&[1]));
    let expected = [Egress::Begin, Egress::Known(vec![ip(1)]), outbound(true)];
    assert_eq!(all, expected);
    let changed = told.catch_up(known(&[2]));
    let expected = [Egress::Known(vec![ip(2)]), Egress::Forgotten(vec![ip(1)])];
    assert_eq!(changed, expected);
    assert_eq!(told.catch_up(known(&[2]).lifted()), [outbound(false)]);
    let again = told.catch_up(known(&[2]));
    let expected = [Egress::Begin, Egress::Known(vec![ip(2)]), outbound(true)];
    assert_eq!(again, expected);
}

#[test]
fn lists_are_cut_into_messages_that_fit() {
    let mut told = Told::default();
    let count = MAX_ADDRESSES as u32 * 2 + 1;
    let messages = told.catch_up(wanted(&[7], 0..count));
    let sizes: Vec<usize> = messages
        .iter()
        .filter_map(|message| match message {
            Egress::Known(ips) => Some(ips.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [MAX_ADDRESSES, MAX_ADDRESSES, 1]);
}

#[test]
fn a_pod_that_the_control_plane_has_not_described_is_left_as_it_is() {
    let pods: Pods = [(PodId(7), Uid::pod("c", "shop", "web"))].into();
    let nothing = Wanted::of(Arc::default(), &"".into(), &pods, false);
    assert!(nothing.restricted.is_empty() && nothing.free.is_empty() && nothing.known.is_none());
}

#[test]
fn what_does_not_fit_into_the_kernel_is_lifted_and_not_left_in_part() {
    let fits = wanted(&[7], 0..MAX_REGISTRY);
    assert!(fits.fits());
    let too_many = wanted(&[7], 0..=MAX_REGISTRY);
    let ranges = |count| Wanted {
        known: Some(known((0..count).map(range))),
        ..wanted(&[7], [])
    };
    assert!(ranges(MAX_RANGES).fits());
    for unfit in [too_many, ranges(MAX_RANGES + 1)] {
        assert!(!unfit.fits());
        let lifted = unfit.lifted();
        assert!(lifted.fits());
        assert_eq!(lifted.free, [PodId(1), PodId(7)].into());
        assert!(lifted.restricted.is_empty() && lifted.known.is_none());
    }
}
