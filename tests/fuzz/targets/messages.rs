//! Handshake messages after the handshake are the same in one record and in many, but for new keys: they
//! end a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_hbone::inspect::messages;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, cuts) = input;
    let mut records = Vec::new();
    let mut rest = &*bytes;
    for cut in cuts {
        let (record, more) = rest.split_at(rest.len().min(cut.into()));
        records.push(record);
        rest = more;
    }
    records.push(rest);
    // An empty one is an error of its own.
    records.retain(|record| !record.is_empty());
    let (once, broken) = messages(&[&bytes]);
    let (cut, cut_broken) = messages(&records);
    if broken.is_none() {
        assert_eq!((&cut, cut_broken), (&once, None));
    }
    assert!(cut.starts_with(&once), "{once:?}, and cut {cut:?}");
});
