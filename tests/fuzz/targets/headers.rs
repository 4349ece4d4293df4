//! Header blocks of one connection: whatever they hold, they unfold to a bounded size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_hbone::inspect::headers;

const MOST: usize = 128 << 10;

fuzz_target!(|blocks: Vec<Vec<u8>>| {
    for fields in headers(&blocks) {
        let size: usize = fields.iter().map(|(n, v)| n.len() + v.len() + 32).sum();
        assert!(size <= MOST, "{size}");
    }
});
