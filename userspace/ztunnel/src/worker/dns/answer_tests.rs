use std::sync::Arc;

use hickory_proto::op::Query;
use sluice_model::{
    Service,
    service::{LoadBalancing, Visibility},
};

use super::*;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn host(alias_of: Option<&str>, addresses: impl IntoIterator<Item = IpAddr>) -> Host {
    Host {
        alias_of: alias_of.map(Into::into),
        service: Arc::new(Service {
            name: "catalog".into(),
            namespace: "shop".into(),
            hostname: "catalog.shop.svc.cluster.local".into(),
            vips: vec![],
            ranges: vec![],
            ports: vec![],
            subject_alt_names: vec![],
            waypoint: None,
            load_balancing: LoadBalancing::default(),
            canonical: false,
            visibility: Visibility::Public,
        }),
        addresses: addresses.into_iter().collect(),
    }
}

fn both() -> [IpAddr; 2] {
    ["10.96.0.1".parse().unwrap(), "fd96::1".parse().unwrap()]
}

fn question(message: &Message) -> Option<Question> {
    Question::read(&message.to_vec().unwrap())
}

fn answer(query: &Message, host: Host) -> Message {
    let question = question(query).unwrap();
    let bytes = question.answer(host, question.payload()).unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// `OWNER TYPE DATA` of every record.
fn records(message: &Message) -> Vec<String> {
    let show = |r: &Record| format!("{} {} {}", r.name, r.record_type(), r.data);
    message.answers.iter().map(show).collect()
}

#[test]
fn an_answer_has_the_family_that_was_asked_for() {
    let name = "Catalog.shop.";
    let a = answer(&query(name, RecordType::A), host(None, both()));
    assert_eq!(records(&a), ["Catalog.shop. A 10.96.0.1"]);
    let aaaa = answer(&query(name, RecordType::AAAA), host(None, both()));
    assert_eq!(records(&aaaa), ["Catalog.shop. AAAA fd96::1"]);
    for message in [a, aaaa] {
        let metadata = &message.metadata;
        assert_eq!(metadata.id, 7);
        assert_eq!(metadata.response_code, ResponseCode::NoError);
        assert!(metadata.authoritative && metadata.recursion_desired);
        assert!(!metadata.truncation);
        assert_eq!(message.answers[0].ttl, 30);
        // As it was asked: some clients vary the case and look whether it comes back.
        assert_eq!(message.queries[0].name().to_ascii(), name);
        assert!(message.edns.is_none());
    }
}

#[test]
fn a_host_of_the_other_family_alone_exists_and_has_no_address() {
    let v4_only = || host(None, [both()[0]]);
    let message = answer(&query("catalog.shop.", RecordType::AAAA), v4_only());
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.metadata.authoritative && message.answers.is_empty());
}

#[test]
fn a_search_domain_makes_an_alias() {
    let name = "www.example.com.shop.svc.cluster.local.";
    let aliased = host(Some("www.example.com"), both());
    let message = answer(&query(name, RecordType::A), aliased);
    assert_eq!(
        records(&message),
        [
            format!("{name} CNAME www.example.com."),
            "www.example.com. A 10.96.0.1".to_owned()
        ]
    );
}

#[test]
fn addresses_come_in_any_order() {
    let ips = (1..=8).map(|i| IpAddr::from([10, 0, 0, i]));
    let query = query("db.shop.", RecordType::A);
    let orders: std::collections::HashSet<_> = (0..64)
        .map(|_| records(&answer(&query, host(None, ips.clone()))))
        .collect();
    assert!(orders.len() > 1);
    assert!(orders.iter().all(|order| order.len() == 8));
}

#[test]
fn what_does_not_fit_is_left_out_and_said() {
    let ips = || (0..200).map(|i| IpAddr::from([10, 0, 1, i]));
    let mut query = query("db.shop.", RecordType::A);
    let size = |query: &Message| {
        let question = question(query).unwrap();
        let bytes = question.answer(host(None, ips()), question.payload());
        bytes.unwrap().len()
    };
    let message = answer(&query, host(None, ips()));
    assert!(message.metadata.truncation && size(&query) <= 512);
    let by_tcp = question(&query)
        .unwrap()
        .answer(host(None, ips()), u16::MAX);
    let by_tcp = Message::from_vec(&by_tcp.unwrap()).unwrap();
    assert!(!by_tcp.metadata.truncation && by_tcp.answers.len() == 200);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    let message = answer(&query, host(None, ips()));
    assert!(!message.metadata.truncation && size(&query) <= 4096);
    assert_eq!(message.answers.len(), 200);
    assert!(message.edns.is_some());
}

#[test]
fn questions_are_read_in_lower_case_and_without_the_final_dot() {
    let read = question(&query("Catalog.SHOP.", RecordType::A)).unwrap();
    assert_eq!((read.name.as_str(), read.kind()), ("catalog.shop", "A"));
}

#[test]
fn everything_but_plain_questions_for_addresses_is_for_others() {
    let plain = query("catalog.shop.", RecordType::A);
    assert!(question(&plain).is_some());
    for kind in [
        RecordType::SRV,
        RecordType::TXT,
        RecordType::HTTPS,
        RecordType::ANY,
    ] {
        assert!(question(&query("catalog.shop.", kind)).is_none(), "{kind}");
    }
    let changed = |change: fn(&mut Message)| {
        let mut message = plain.clone();
        change(&mut message);
        question(&message).is_none()
    };
    assert!(changed(|m| m.metadata.op_code = OpCode::Update));
    assert!(changed(|m| m.metadata.op_code = OpCode::Notify));
    assert!(changed(|m| m.metadata.message_type = MessageType::Response));
    assert!(changed(|m| m.queries.clear()));
    assert!(changed(|m| m.queries.extend(m.queries.clone())));
    assert!(changed(|m| {
        m.queries[0].set_query_class(DNSClass::CH);
    }));
    assert!(changed(|m| {
        m.set_edns({
            let mut edns = Edns::new();
            edns.set_version(1);
            edns
        });
    }));
    assert!(question(&query(".", RecordType::A)).is_none());
}

#[test]
fn no_bytes_harm() {
    let whole = query("catalog.shop.svc.cluster.local.", RecordType::A);
    let whole = whole.to_vec().unwrap();
    for end in 0..whole.len() {
        assert!(Question::read(&whole[..end]).is_none());
        assert!(failure(&whole[..end]).is_none());
    }
    for at in 0..whole.len() {
        for value in [0x00, 0x3f, 0x40, 0xc0, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Some(question) = Question::read(&bytes) {
                question.answer(host(Some("a..b"), both()), 512);
                question.answer(host(None, both()), 512);
            }
            failure(&bytes);
        }
    }
}

#[test]
fn a_failure_repeats_the_question() {
    let bytes = failure(&query("example.com.", RecordType::SRV).to_vec().unwrap()).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(!message.metadata.authoritative);
    assert_eq!(message.queries[0].name().to_ascii(), "example.com.");
    // Two that answered each other's failures would never end.
    assert!(failure(&bytes).is_none());
}
