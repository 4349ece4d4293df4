use http::StatusCode;
use proptest::prelude::*;

use super::*;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, usize::MAX, |name, value| {
        fields.push((name.to_vec(), value.to_vec()));
    })?;
    Ok(fields)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter_map(|digit| (digit as char).to_digit(16).map(|digit| digit as u8))
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn fields(expected: &[(&str, &str)]) -> Fields {
    expected
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect()
}

/// RFC 7541 C.4: Huffman strings, and fields that later blocks refer to.
#[test]
fn the_requests_of_the_rfc() {
    let mut decoder = Decoder::new();
    let get = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ];
    let block = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
    assert_eq!(decode(&mut decoder, &block), Ok(fields(&get)));
    let block = hex("8286 84be 5886 a8eb 1064 9cbf");
    let second = [&get[..], &[("cache-control", "no-cache")]].concat();
    assert_eq!(decode(&mut decoder, &block), Ok(fields(&second)));
    let block = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    assert_eq!(decode(&mut decoder, &block), Ok(fields(&third)));
}

#[test]
fn what_breaks_the_rules() {
    let cases = [
        ("80", HpackError::Index),
        ("be", HpackError::Index),
        ("7e 01 61", HpackError::Index),
        ("00", HpackError::Truncated),
        ("00 05 61", HpackError::Truncated),
        ("ff", HpackError::Truncated),
        ("ff ff ff ff ff ff", HpackError::Number),
        // The end of a string within one; padding of a whole byte; padding with zeros.
        ("00 84 ff ff ff ff 00", HpackError::Huffman),
        ("00 81 ff 00", HpackError::Huffman),
        ("00 81 00 00", HpackError::Huffman),
        // 4097 bytes of table; a change of it after a field.
        ("3f e2 1f", HpackError::TableSize),
        ("82 20", HpackError::TableSize),
    ];
    for (block, error) in cases {
        assert_eq!(
            decode(&mut Decoder::new(), &hex(block)),
            Err(error),
            "{block}"
        );
    }
}

#[test]
fn a_table_that_shrinks_forgets() {
    let mut decoder = Decoder::new();
    // Two fields of 34 bytes each; then room for one.
    decode(&mut decoder, &hex("40 01 61 01 31 40 01 62 01 32")).unwrap();
    let newest = decode(&mut decoder, &hex("3f 03 be")).unwrap();
    assert_eq!(newest, fields(&[("b", "2")]));
    assert_eq!(decode(&mut decoder, &hex("bf")), Err(HpackError::Index));
}

#[test]
fn statuses() {
    for status in [200, 204, 206, 304, 400, 401, 404, 500, 503] {
        let mut block = Vec::new();
        encode_status(&mut block, StatusCode::from_u16(status).unwrap());
        let decoded = decode(&mut Decoder::new(), &block).unwrap();
        assert_eq!(decoded, fields(&[(":status", &status.to_string())]));
    }
}

/// A connection of another implementation's encoder, which uses all of the compression.
#[test]
fn another_encoder_is_understood() {
    let mut runner = proptest::test_runner::TestRunner::default();
    let name = prop_oneof![
        Just("baggage".to_owned()),
        Just(":authority".to_owned()),
        "[a-z-]{1,200}"
    ];
    let field = (name, prop::collection::vec(any::<u8>(), 0..300));
    let blocks = prop::collection::vec(prop::collection::vec(field, 0..8), 0..20);
    runner
        .run(&blocks, |blocks| {
            let (mut theirs, mut ours) = (loona_hpack::Encoder::new(), Decoder::new());
            for block in blocks {
                let pairs = block
                    .iter()
                    .map(|(name, value)| (name.as_bytes(), &**value));
                let decoded = decode(&mut ours, &theirs.encode(pairs)).unwrap();
                let sent: Fields = block.into_iter().map(|(n, v)| (n.into(), v)).collect();
                prop_assert_eq!(decoded, sent);
            }
            Ok(())
        })
        .unwrap();
}

proptest! {
    /// Both decoders say the same of anything, and neither of them falls over.
    #[test]
    fn another_decoder_agrees(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..4)) {
        let (mut theirs, mut ours) = (loona_hpack::Decoder::new(), Decoder::new());
        theirs.set_max_allowed_table_size(TABLE_SIZE);
        for block in blocks {
            let expected = theirs.decode(&block);
            let decoded = decode(&mut ours, &block);
            match (expected, &decoded) {
                (Ok(expected), Ok(decoded)) => prop_assert_eq!(&expected, decoded),
                // It takes a change of the table in the middle of a block, but not at its end.
                (Ok(_), Err(HpackError::TableSize)) | (Err(_), _) => break,
                (Ok(expected), Err(error)) => {
                    return Err(TestCaseError::fail(format!("{error}, but {expected:?}")));
                }
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(value in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let mut block = Vec::new();
        encode(&mut block, Name::METHOD, b"CONNECT");
        encode(&mut block, Name::Text("baggage"), &value);
        let decoded = decode(&mut Decoder::new(), &block).unwrap();
        prop_assert_eq!(&decoded[0], &(b":method".to_vec(), b"CONNECT".to_vec()));
        prop_assert_eq!(&decoded[1], &(b"baggage".to_vec(), value));
    }
}
