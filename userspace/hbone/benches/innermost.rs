//! What a byte and a request cost in framing, header compression and sealing, without a socket.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_hbone::inspect::{BEHIND, IN_FRONT, Records, frames, headers};

fn data(payload: usize) -> Vec<u8> {
    let length = u32::try_from(payload).expect("a short frame").to_be_bytes();
    let mut frame = [&length[1..], &[0, 0, 0, 0, 0, 1]].concat();
    frame.resize(9 + payload, b'x');
    frame
}

/// Copies what it finds, so this is an upper bound.
fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    for payload in [64, 16 << 10] {
        let input = data(payload).repeat((1 << 20) / payload);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(format!("DATA of {payload} bytes"), |bencher| {
            bencher.iter(|| frames(false, &[black_box(&input)]));
        });
    }
}

fn hpack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hpack");
    let mut literal = vec![2, 7];
    literal.extend(b"CONNECT\x01\x0e10.244.2.7:808");
    literal.extend(b"\x00\x09forwarded\x19for=\"10.244.1.2:40000\"   ");
    let block = [literal];
    group.bench_function("a request in literals", |bencher| {
        bencher.iter(|| headers(black_box(&block)));
    });
    // ":authority: www.example.com" and more, Huffman-coded and remembered (RFC 7541 C.4.1).
    let coded = [
        0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90,
        0xf4, 0xff,
    ];
    let block = [coded.to_vec()];
    group.bench_function("a request in Huffman code", |bencher| {
        bencher.iter(|| headers(black_box(&block)));
    });
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("records");
    for bytes in [64, 16 << 10] {
        let mut record = vec![b'x'; IN_FRONT + bytes + BEHIND];
        let mut records = Records::new().expect("a cipher");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("seal and open {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                records.seal(&mut record).expect("sealed");
                records.open(&mut record).expect("opened")
            });
        });
    }
}

criterion_group!(benches, framing, hpack, records);
criterion_main!(benches);
