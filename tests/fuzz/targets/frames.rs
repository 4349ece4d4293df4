//! Frames are the same in one piece and in many.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_hbone::inspect::frames;

fuzz_target!(|input: (bool, Vec<u8>, Vec<u8>)| {
    let (preface, bytes, cuts) = input;
    let mut pieces = Vec::new();
    let mut rest = &*bytes;
    for cut in cuts {
        let (piece, more) = rest.split_at(rest.len().min(cut.into()));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    assert_eq!(frames(preface, &[&bytes]), frames(preface, &pieces));
});
