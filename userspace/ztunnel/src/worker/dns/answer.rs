//! Reading questions, and writing answers from what the mesh knows.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::{BinEncodable as _, BinEncoder},
};
use rand::seq::SliceRandom as _;
use sluice_model::hosts::Host;

/// How long answers may be kept, in seconds (wire contract §16).
const TTL: u32 = 30;
/// What a client takes that does not say more (RFC 1035, 4.2.1).
const MIN_PAYLOAD: u16 = 512;

/// A question for the addresses of a name.
#[derive(Debug)]
pub(super) struct Question {
    /// In lower case, without a final dot.
    pub(super) name: String,
    query: Message,
    family: RecordType,
}

impl Question {
    /// Reads a message; `None` for everything that the mesh leaves to others: other types of
    /// records, updates, what is signed, and what cannot be read at all.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let query = Message::from_vec(bytes).ok()?;
        let plain = query.metadata.message_type == MessageType::Query
            && query.metadata.op_code == OpCode::Query
            && query.answers.is_empty()
            && query.authorities.is_empty()
            && query.signature.is_none()
            && query.edns.as_ref().is_none_or(|edns| edns.version() == 0);
        let [question] = &query.queries[..] else {
            return None;
        };
        let family = question.query_type();
        let known = matches!(family, RecordType::A | RecordType::AAAA)
            && question.query_class() == DNSClass::IN;
        let name = question.name().to_ascii().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
        (plain && known && !name.is_empty()).then_some(Self {
            name,
            query,
            family,
        })
    }

    /// The type of record, for metrics.
    pub(super) fn kind(&self) -> &'static str {
        if self.family == RecordType::A {
            "A"
        } else {
            "AAAA"
        }
    }

    /// The addresses of the family that was asked for, in random order: none when the host has only
    /// others, which is no error.
    pub(super) fn answer(&self, mut host: Host, limit: u16) -> Option<Vec<u8>> {
        let mut owner = self.query.queries.first()?.name().clone();
        let mut message = response(&self.query, ResponseCode::NoError);
        message.metadata.authoritative = true;
        if let Some(name) = &host.alias_of {
            let target = Name::from_ascii(format!("{name}.")).ok()?;
            let alias = RData::CNAME(CNAME(target.clone()));
            message.add_answer(Record::from_rdata(owner, TTL, alias));
            owner = target;
        }
        host.addresses.shuffle(&mut rand::rng());
        let data = host
            .addresses
            .iter()
            .filter_map(|ip| match (ip, self.family) {
                (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
                (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
                _ => None,
            });
        for data in data {
            message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        encode(&message, limit)
    }

    /// The largest answer that the client takes by UDP.
    pub(super) fn payload(&self) -> u16 {
        self.query.max_payload().max(MIN_PAYLOAD)
    }
}

/// Says that a query failed; `None` for what is not a message, which gets no answer.
pub(super) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    encode(&response(&query, ResponseCode::ServFail), MIN_PAYLOAD)
}

fn response(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        message.set_edns(Edns::new());
    }
    message
}

/// What does not fit is left out, and the message says so: the client asks again by TCP.
fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
