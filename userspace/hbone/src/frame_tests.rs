use proptest::{collection::vec, prelude::*};

use super::*;

/// What a stream of bytes says, however it is cut into pieces.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Data {
        stream: u32,
        credit: usize,
        padding: usize,
        bytes: Vec<u8>,
        end: bool,
    },
    Frame(Head, Vec<u8>),
}

/// Parses input in pieces, and joins what belongs to one DATA frame.
fn parse(preface: bool, pieces: &[&[u8]]) -> Result<Vec<Said>, Violation> {
    let (mut parser, mut said) = (Parser::new(preface), Vec::new());
    let mut within = false;
    for piece in pieces {
        let mut at = 0;
        while let Some(event) = parser.next(piece, &mut at)? {
            match event {
                Event::Data {
                    stream,
                    credit,
                    padding,
                    bytes,
                    end,
                } => {
                    let more = &piece[bytes];
                    match said.last_mut() {
                        Some(Said::Data {
                            credit: all,
                            padding,
                            bytes,
                            end: ended,
                            ..
                        }) if within => {
                            assert_eq!(credit, 0, "the credit of a frame is told once");
                            bytes.extend(more);
                            *ended = end;
                            within = bytes.len() + *padding < *all;
                        }
                        _ => {
                            within = more.len() + padding < credit;
                            said.push(Said::Data {
                                stream,
                                credit,
                                padding,
                                bytes: more.into(),
                                end,
                            });
                        }
                    }
                }
                Event::Frame(head, payload) => {
                    let payload = match payload {
                        Payload::Given(place) => piece[place].into(),
                        Payload::Held => parser.take_held(),
                    };
                    said.push(Said::Frame(head, payload));
                }
            }
        }
        assert_eq!(at, piece.len(), "everything is taken");
    }
    Ok(said)
}

fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Head::new(kind, flags, stream, payload.len())
        .encode()
        .to_vec();
    bytes.extend(payload);
    bytes
}

fn arbitrary_frame() -> impl Strategy<Value = (Vec<u8>, Said)> {
    let payload = prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..3000)];
    let data = (
        any::<bool>(),
        any::<Option<u8>>(),
        1..=MAX_STREAM,
        payload.clone(),
    );
    let data = data.prop_map(|(end, padding, stream, bytes)| {
        let mut flags = if end { flag::END_STREAM } else { 0 };
        let (mut payload, mut padded) = (Vec::new(), 0);
        if let Some(padding) = padding {
            flags |= flag::PADDED;
            payload.push(padding);
            padded = usize::from(padding) + 1;
        }
        payload.extend(&bytes);
        payload.extend(vec![0; padded.saturating_sub(1)]);
        let said = Said::Data {
            stream,
            credit: payload.len(),
            padding: padded,
            bytes,
            end,
        };
        (encode(kind::DATA, flags, stream, &payload), said)
    });
    let other = (1..=u8::MAX, any::<u8>(), 0..=MAX_STREAM, payload);
    let other = other.prop_map(|(kind, flags, stream, payload)| {
        let head = Head::new(kind, flags, stream, payload.len());
        (
            encode(kind, flags, stream, &payload),
            Said::Frame(head, payload),
        )
    });
    prop_oneof![data, other]
}

/// Cuts bytes at any places.
fn cut<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    pieces
}

proptest! {
    #[test]
    fn frames_are_found_however_they_are_cut(
        preface: bool,
        frames in vec(arbitrary_frame(), 1..12),
        lengths in vec(prop_oneof![1..12_usize, 1..4000_usize], 1..20),
    ) {
        let mut bytes = if preface { PREFACE.to_vec() } else { Vec::new() };
        let mut expected = Vec::new();
        for (frame, said) in frames {
            bytes.extend(frame);
            expected.push(said);
        }
        prop_assert_eq!(parse(preface, &cut(&bytes, &lengths)).unwrap(), expected);
    }

    #[test]
    fn noise_is_parsed_or_refused(bytes in vec(any::<u8>(), 0..400), lengths in vec(1..50_usize, 1..5)) {
        let whole = parse(false, &[&bytes]);
        let pieces = parse(false, &cut(&bytes, &lengths));
        prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        prop_assert_eq!(whole.err(), pieces.err());
    }
}

#[test]
fn what_breaks_the_rules() {
    let cases = [
        (encode(kind::DATA, 0, 0, b"x"), ErrorCode::PROTOCOL_ERROR),
        (
            encode(kind::DATA, flag::PADDED, 1, &[1]),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            encode(kind::DATA, flag::PADDED, 1, &[]),
            ErrorCode::FRAME_SIZE_ERROR,
        ),
        (
            encode(kind::DATA, 0, 1, &[0; MAX_PAYLOAD + 1]),
            ErrorCode::FRAME_SIZE_ERROR,
        ),
        (
            encode(99, 0, 1, &[0; MAX_PAYLOAD + 1]),
            ErrorCode::FRAME_SIZE_ERROR,
        ),
    ];
    for (bytes, code) in cases {
        assert_eq!(parse(false, &[&bytes]).unwrap_err().code, code);
    }
    let refused = parse(true, &[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"]).unwrap_err();
    assert_eq!(refused.code, ErrorCode::PROTOCOL_ERROR);
}
