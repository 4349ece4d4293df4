use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message as _;
use prost_types::Any;
use sluice_proto::discovery::{DeltaDiscoveryResponse, Resource};

use super::{Decoder, Envelope, KEPT_BUFFER, MAX_RESOURCE, Malformed, Part};

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame
}

/// What comes out when bytes arrive in pieces of these lengths, over and over.
fn parts(bytes: &[u8], lengths: &[usize]) -> Result<Vec<Part>, Malformed> {
    let mut decoder = Decoder::default();
    let (mut parts, mut rest) = (Vec::new(), bytes);
    for length in lengths.iter().cycle() {
        let (piece, later) = rest.split_at((*length).min(rest.len()));
        decoder.push(piece);
        while let Some(part) = decoder.next()? {
            parts.push(part);
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    decoder.finish()?;
    Ok(parts)
}

fn expected(response: &DeltaDiscoveryResponse) -> Vec<Part> {
    let resources = response.resources.iter();
    let resources = resources.map(|one| Part::Resource(one.encode_to_vec().into()));
    let end = Part::End(Envelope {
        type_url: response.type_url.clone(),
        nonce: response.nonce.clone(),
        removed: response.removed_resources.clone(),
    });
    resources.chain([end]).collect()
}

prop_compose! {
    fn resource()(
        name in ".{0,20}",
        version in "[a-z0-9]{0,20}",
        value in prop::collection::vec(any::<u8>(), 0..300),
    ) -> Resource {
        let resource = Some(Any { type_url: "type.googleapis.com/a.B".to_owned(), value });
        Resource { name, version, resource, ..Default::default() }
    }
}

prop_compose! {
    fn response()(
        system_version_info in ".{0,10}",
        resources in prop::collection::vec(resource(), 0..8),
        type_url in "[a-z./]{0,40}",
        nonce in "[a-z0-9]{0,20}",
        removed_resources in prop::collection::vec(".{0,30}", 0..5),
    ) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info,
            resources,
            type_url,
            removed_resources,
            nonce,
        }
    }
}

proptest! {
    #[test]
    fn responses_come_out_whatever_pieces_they_arrive_in(
        responses in prop::collection::vec(response(), 1..4),
        lengths in prop::collection::vec(1_usize..500, 1..10),
    ) {
        let bytes: Vec<u8> = responses
            .iter()
            .flat_map(|response| framed(&response.encode_to_vec()))
            .collect();
        let all: Vec<Part> = responses.iter().flat_map(expected).collect();
        prop_assert_eq!(parts(&bytes, &lengths), Ok(all.clone()));
        prop_assert_eq!(parts(&bytes, &[1]), Ok(all));
    }

    /// Whatever prost takes for a response, this does, and says the same of it.
    #[test]
    fn nonsense_is_judged_as_by_a_codec_that_waits(
        message in prop::collection::vec(any::<u8>(), 0..60),
        lengths in prop::collection::vec(1_usize..20, 1..5),
    ) {
        let frame = framed(&message);
        let (found, other) = (parts(&frame, &lengths), parts(&frame, &[frame.len()]));
        prop_assert_eq!(&found, &other, "it depends on the pieces");
        if let (Ok(whole), Ok(found)) = (DeltaDiscoveryResponse::decode(&*message), found) {
            let expected = expected(&whole);
            prop_assert_eq!(found.last(), expected.last());
        }
    }

    #[test]
    fn a_stream_may_end_between_messages_only(response in response(), cut in 1_usize..1000) {
        let frame = framed(&response.encode_to_vec());
        prop_assume!(cut < frame.len());
        prop_assert_eq!(parts(&frame[..cut], &[7]), Err(Malformed::Incomplete));
    }
}

/// A field of a newer contract, in each layout.
fn unknown() -> Vec<u8> {
    let mut bytes = vec![0x78, 0xac, 0x02];
    bytes.extend([0x79, 1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend([0x7d, 1, 2, 3, 4]);
    bytes.extend([0x7a, 3, 0xff, 0xff, 0xff]);
    bytes
}

#[test]
fn fields_come_in_any_order_and_among_unknown_ones() {
    let nonce = [&[0x2a, 2][..], b"n1"].concat();
    let resource = [&[0x12, 4][..], &[0x1a, 2, b'a', b'b']].concat();
    let type_url = [&[0x22, 1][..], b"t"].concat();
    let removed = [&[0x32, 1][..], b"r"].concat();
    let message = [
        nonce.clone(),
        unknown(),
        removed,
        resource.clone(),
        unknown(),
        type_url,
        resource,
        unknown(),
    ]
    .concat();
    let found = parts(&framed(&message), &[3]).unwrap();
    let resource = Part::Resource(Bytes::from_static(&[0x1a, 2, b'a', b'b']));
    let end = Part::End(Envelope {
        type_url: "t".to_owned(),
        nonce: "n1".to_owned(),
        removed: vec!["r".to_owned()],
    });
    assert_eq!(found, [resource.clone(), resource, end]);
}

#[test]
fn what_breaks_the_rules_is_refused_with_words() {
    let rows: [(&str, Vec<u8>, Malformed); 7] = [
        ("compressed", vec![1, 0, 0, 0, 1, 0], Malformed::Compressed),
        ("a flag", vec![7, 0, 0, 0, 1, 0], Malformed::Flag(7)),
        (
            "too large",
            vec![0, 0xff, 0xff, 0xff, 0xff],
            Malformed::MessageTooLarge(u32::MAX as usize),
        ),
        (
            "a nonce of 1 MiB",
            framed(&[&[0x2a, 0x80, 0x80, 0x40][..], &vec![b'n'; 1 << 20]].concat()).to_vec(),
            Malformed::FieldTooLarge {
                field: 5,
                length: 1 << 20,
            },
        ),
        (
            "longer than the message",
            framed(&[0x12, 9, 0]).to_vec(),
            Malformed::CutOff(2),
        ),
        (
            "a number as a nonce",
            framed(&[0x28, 1]).to_vec(),
            Malformed::Protobuf,
        ),
        (
            "no end of a number",
            framed(&[0xff; 64]).to_vec(),
            Malformed::Protobuf,
        ),
    ];
    for (what, bytes, malformed) in rows {
        assert_eq!(parts(&bytes, &[5]), Err(malformed), "{what}");
        assert!(malformed.to_string().len() > 20, "{what}: {malformed}");
    }
}

#[test]
fn a_resource_that_is_too_large_is_passed_over_without_being_kept() {
    let length = MAX_RESOURCE + 1;
    let mut message = vec![0x12];
    prost::encoding::encode_varint(length as u64, &mut message);
    let frame = framed(&[message, vec![0; length], vec![0x12, 2, 0x1a, 0]].concat());
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in frame.chunks(16 << 10) {
        decoder.push(piece);
        while let Some(part) = decoder.next().unwrap() {
            found.push(part);
        }
        assert!(decoder.buffer.capacity() <= KEPT_BUFFER);
    }
    assert_eq!(found[0], Part::TooLarge(length));
    assert_eq!(found[1], Part::Resource(Bytes::from_static(&[0x1a, 0])));
    assert_eq!(found.len(), 3);
}

/// The buffer of a large resource is given back with the message's end.
#[test]
fn a_buffer_that_has_grown_is_given_back() {
    let response = DeltaDiscoveryResponse {
        resources: vec![Resource {
            name: "x".repeat(4 << 20),
            ..Default::default()
        }],
        ..Default::default()
    };
    let frame = framed(&response.encode_to_vec());
    let mut decoder = Decoder::default();
    for piece in frame.chunks(16 << 10) {
        decoder.push(piece);
        while decoder.next().unwrap().is_some() {}
    }
    decoder.push(&[0]);
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.buffer.capacity() <= KEPT_BUFFER);
}
