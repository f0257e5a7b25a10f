//! How fast one core turns a disk image into segments: reading, zero scan, zstd, BLAKE3, CRC-64. And back.
//!
//! `cargo run --release -p farshore-disk --example segment_speed -- IMAGE [MIB]`
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measuring program"
)]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a measuring program")]

use std::path::Path;
use std::time::Instant;

use farshore_disk::segment::{Compression, Content, Decoder, Encoder, Sealed, SegmentId};
use farshore_disk::{FileDisk, RandomAccess};
use uuid::Uuid;

const STEP: usize = 1 << 20;
const MAX: u64 = 32 << 20;

fn id(index: u32) -> SegmentId {
    SegmentId { vm: Uuid::nil(), disk: Uuid::nil(), term: 1, stream: 1, cycle: 1, index }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: segment_speed IMAGE [MIB]");
    let file = FileDisk::open_read(Path::new(&path)).unwrap();
    let limit = args.next().map_or(u64::MAX, |n| n.parse::<u64>().unwrap() << 20);
    let len = file.len().unwrap().min(limit);
    let mut buf = vec![0; STEP];
    let started = Instant::now();
    for at in (0..len).step_by(STEP) {
        let n = (len - at).min(STEP as u64) as usize;
        file.read_at(&mut buf[..n], at).unwrap();
    }
    let mb = len as f64 / 1e6;
    println!("{path}: {mb:.0} MB; reading alone {:.0} MB/s", mb / started.elapsed().as_secs_f64());
    println!("{:>8} {:>12} {:>8} {:>10} {:>12}", "zstd", "encode MB/s", "ratio", "segments", "decode MB/s");
    let levels = [None, Some(-7), Some(-5), Some(-3), Some(-1), Some(1), Some(2), Some(3)];
    for level in levels {
        let started = Instant::now();
        let (mut stored, mut segments, mut decode) = (0, 0, 0.0);
        let mut at = 0;
        let mut lost = 0.0;
        while at < len {
            let mut encoder =
                Encoder::new(id(segments), level.map_or(Compression::None, Compression::Zstd), MAX).unwrap();
            while at < len && encoder.room() >= STEP as u64 {
                let n = (len - at).min(STEP as u64) as usize;
                file.read_at(&mut buf[..n], at).unwrap();
                encoder.push(at, &buf[..n]).unwrap();
                at += n as u64;
            }
            let sealed = encoder.finish().unwrap();
            stored += sealed.bytes.len();
            let aside = Instant::now();
            unpack(&sealed, segments);
            decode += aside.elapsed().as_secs_f64();
            lost += aside.elapsed().as_secs_f64();
            segments += 1;
        }
        let took = started.elapsed().as_secs_f64() - lost;
        let name = level.map_or("raw".into(), |l: i32| l.to_string());
        println!(
            "{name:>8} {:>12.0} {:>8.3} {segments:>10} {:>12.0}",
            mb / took,
            stored as f64 / len as f64,
            mb / decode
        );
    }
}

fn unpack(sealed: &Sealed, index: u32) {
    let mut bytes = 0;
    for frame in Decoder::open(sealed.bytes.clone(), &id(index)).unwrap() {
        if let Content::Data(data) = frame.unwrap().content {
            bytes += data.len() as u64;
        }
    }
    assert_eq!(bytes, sealed.disk_bytes - sealed.zero_bytes);
}
