//! Round trips, damage, and hostile bytes.

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::bytes_at::{put_u8, put_u32_le, put_u64_le, u32_le};
use crate::extents::Extents;

const ID: SegmentId = SegmentId {
    vm: Uuid::from_u128(0x11),
    disk: Uuid::from_u128(0x22),
    term: 3,
    stream: 4,
    cycle: 5,
    index: 6,
};

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn text(len: usize) -> Vec<u8> {
    b"the quick brown fox jumps over the lazy dog; ".iter().copied().cycle().take(len).collect()
}

fn encode(compression: Compression, pushes: &[(u64, Vec<u8>)]) -> Sealed {
    let mut encoder = Encoder::new(ID, compression, u64::MAX).unwrap();
    for (offset, data) in pushes {
        encoder.push(*offset, data).unwrap();
    }
    encoder.finish().unwrap()
}

fn decode(bytes: &Bytes) -> Result<Vec<Frame>, SegmentError> {
    Decoder::open(bytes.clone(), &ID)?.collect()
}

/// Frames as (offset, length, is zero, stored bytes).
fn shape(frames: &[Frame]) -> Vec<(u64, u64, bool)> {
    frames.iter().map(|f| (f.offset, f.len, f.content == Content::Zero)).collect()
}

/// Pieces of zeros, text and noise, with gaps.
fn pushes() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let part = (0u8..3, 1usize..60_000, any::<u64>()).prop_map(|(kind, len, seed)| match kind {
        0 => vec![0; len],
        1 => text(len),
        _ => random(seed, len),
    });
    let piece = (0u64..3, prop::collection::vec(part, 1..4));
    prop::collection::vec(piece, 0..6).prop_map(|pieces| {
        let mut at = 0;
        let place = |(gap, parts): (u64, Vec<Vec<u8>>)| {
            let (offset, data) = (at + gap * 4096, parts.concat());
            at = offset + data.len() as u64;
            (offset, data)
        };
        pieces.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_segment_gives_back_what_was_pushed(pushes in pushes(), level in prop::option::of(-5i32..4)) {
        let sealed = encode(level.map_or(Compression::None, Compression::Zstd), &pushes);
        let end = pushes.last().map_or(0, |(offset, data)| *offset as usize + data.len());
        let (mut want, mut got) = (vec![0xaa; end], vec![0xaa; end]);
        let mut ranges = Extents::new();
        for (offset, data) in &pushes {
            want[*offset as usize..][..data.len()].copy_from_slice(data);
            ranges.insert(*offset, data.len() as u64);
        }
        let (mut covered, mut zeros) = (Extents::new(), 0);
        for frame in decode(&sealed.bytes).unwrap() {
            let to = &mut got[frame.offset as usize..(frame.offset + frame.len) as usize];
            match frame.content {
                Content::Zero => {
                    zeros += frame.len;
                    to.fill(0);
                }
                Content::Data(data) => to.copy_from_slice(&data),
            }
            covered.insert(frame.offset, frame.len);
        }
        prop_assert!(got == want);
        prop_assert_eq!(&covered, &ranges);
        prop_assert_eq!(&sealed.ranges, &ranges);
        prop_assert_eq!(sealed.disk_bytes, ranges.total());
        prop_assert_eq!(sealed.zero_bytes, zeros);
        prop_assert_eq!(sealed.blake3, blake3::hash(&sealed.bytes));
        prop_assert_eq!(sealed.crc64, crate::digest::crc64_nvme(&sealed.bytes));
    }

    #[test]
    fn a_cut_or_mutated_segment_is_refused_and_never_panics(
        cut in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let sealed = encode(Compression::Zstd(1), &[(4096, text(9000)), (1 << 20, vec![0; 40_000]), (2 << 20, random(1, 5000))]);
        prop_assert!(decode(&sealed.bytes.slice(..cut.index(sealed.bytes.len()))).is_err());
        let mut bad = sealed.bytes.to_vec();
        for (at, with) in &edits {
            let at = at.index(bad.len());
            bad[at] = *with;
        }
        prop_assert!(bad == sealed.bytes || decode(&bad.into()).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        let _ = decode(&bytes.clone().into());
        bytes.splice(0..0, *b"FSHSEG\x01\0\x01\0\x60\0");
        let _ = decode(&bytes.into());
    }

    /// What the checksums alone would let through: frames that are whole but say anything.
    #[test]
    fn frames_with_right_checksums_and_wild_fields_never_panic(
        kind in 0u8..4, codec in 0u8..3, len in prop_oneof![0u32..70_000, any::<u32>()],
        offset in prop_oneof![0u64..1 << 40, any::<u64>()], stored in prop::collection::vec(any::<u8>(), 0..300),
        zstd: bool,
    ) {
        let stored = if zstd { zstd::bulk::compress(&text(stored.len() * 200), 1).unwrap() } else { stored };
        let bytes = forge(kind, codec, len, offset, stored.len() as u32, &stored);
        if let Ok(frames) = decode(&bytes) {
            let [frame] = &frames[..] else { panic!("one frame was forged") };
            prop_assert!(frame.offset.checked_add(frame.len).is_some());
            if let Content::Data(data) = &frame.content {
                prop_assert_eq!(data.len() as u64, frame.len);
                prop_assert!(data.len() <= MAX_FRAME);
            }
        }
    }
}

/// A segment of one frame with these fields and right checksums.
fn forge(kind: u8, codec: u8, len: u32, offset: u64, stored_len: u32, stored: &[u8]) -> Bytes {
    let empty = encode(Compression::None, &[]).bytes;
    let mut b = empty[..HEADER].to_vec();
    let mut h = [0; FRAME];
    put_u8(&mut h, 0, kind);
    put_u8(&mut h, 1, codec);
    put_u32_le(&mut h, 4, len);
    put_u64_le(&mut h, 8, offset);
    put_u32_le(&mut h, 16, stored_len);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&h[..20]), stored);
    put_u32_le(&mut h, 20, crc);
    b.extend(h);
    b.extend(stored);
    let chain = crc32c::crc32c(&u32_le(&empty, HEADER - 4).to_le_bytes());
    let mut t = empty[HEADER..].to_vec();
    put_u32_le(&mut t, 8, 1);
    put_u64_le(&mut t, 16, len.into());
    put_u32_le(&mut t, 24, crc32c::crc32c_append(chain, &crc.to_le_bytes()));
    let sum = crc32c::crc32c(&t[..28]);
    put_u32_le(&mut t, 28, sum);
    b.extend(t);
    b.into()
}

#[test]
fn every_bit_flip_is_found() {
    let sealed =
        encode(Compression::Zstd(1), &[(0, text(3000)), (4096, random(7, 300)), (65536, vec![0; 65536])]);
    assert_eq!(decode(&sealed.bytes).unwrap().len(), 3);
    for at in 0..sealed.bytes.len() {
        for bit in 0..8 {
            let mut bad = sealed.bytes.to_vec();
            bad[at] ^= 1 << bit;
            assert!(decode(&bad.into()).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_missing_doubled_or_moved_frame_is_found() {
    let sealed =
        encode(Compression::None, &[(0, random(1, 100)), (4096, random(2, 100)), (8192, random(3, 100))]);
    let b = &sealed.bytes;
    let frame = |i: usize| &b[HEADER + i * (FRAME + 100)..HEADER + (i + 1) * (FRAME + 100)];
    let (head, tail) = (&b[..HEADER], &b[b.len() - TRAILER..]);
    assert_eq!([head, frame(0), frame(1), frame(2), tail].concat(), b[..]);
    for list in [&[0, 1][..], &[1, 2], &[0, 2], &[0, 1, 1, 2], &[1, 0, 2], &[0, 1, 2, 2], &[]] {
        let frames: Vec<u8> = list.iter().flat_map(|i| frame(*i)).copied().collect();
        let made = [head, &frames, tail].concat();
        assert!(decode(&made.into()).is_err(), "{list:?}");
    }
}

#[test]
fn frames_that_lie_about_their_length_are_refused() {
    let packed = zstd::bulk::compress(&text(5000), 1).unwrap();
    let n = packed.len() as u32;
    assert!(decode(&forge(DATA, ZSTD, 5000, 0, n, &packed)).is_ok());
    let big = zstd::bulk::compress(&vec![1; 2 << 20], 1).unwrap();
    for (name, bytes) in [
        ("gives less", forge(DATA, ZSTD, 5001, 0, n, &packed)),
        ("gives more", forge(DATA, ZSTD, 4999, 0, n, &packed)),
        ("longer than a frame may be", forge(DATA, ZSTD, 2 << 20, 0, big.len() as u32, &big)),
        ("raw of other length", forge(DATA, RAW, 10, 0, 11, &[0; 11])),
        ("zero run with bytes", forge(ZERO, RAW, 10, 0, 1, &[0])),
        ("empty", forge(DATA, RAW, 0, 0, 0, &[])),
        ("beyond 2^63", forge(ZERO, RAW, 4096, i64::MAX as u64, 0, &[])),
        ("unknown kind", forge(3, RAW, 1, 0, 1, &[1])),
        ("unknown codec", forge(DATA, 2, 2, 0, 1, &[1])),
        ("longer than the segment", forge(DATA, RAW, 4096, 0, 4096, &[1])),
    ] {
        assert!(matches!(decode(&bytes), Err(SegmentError::Damaged { .. })), "{name}");
    }
}

#[test]
fn another_segment_or_a_later_format_is_refused_by_name() {
    let sealed = encode(Compression::None, &[(0, vec![1; 512])]);
    for other in [
        SegmentId { vm: Uuid::nil(), ..ID },
        SegmentId { disk: Uuid::nil(), ..ID },
        SegmentId { term: 9, ..ID },
        SegmentId { stream: 9, ..ID },
        SegmentId { cycle: 9, ..ID },
        SegmentId { index: 9, ..ID },
    ] {
        assert!(matches!(Decoder::open(sealed.bytes.clone(), &other), Err(SegmentError::Other { .. })));
    }
    let mut later = sealed.bytes.to_vec();
    later[6] = 7;
    later[8] = 5;
    let refused = decode(&later.into()).unwrap_err().to_string();
    assert!(refused.contains("version 7") && refused.contains("at least 5"), "{refused}");
}

#[test]
fn zeros_become_runs_and_noise_stays_as_it_is() {
    let mut data = text(256 << 10);
    data[64 << 10..128 << 10].fill(0);
    // Too short to pay for.
    data[200 << 10..208 << 10].fill(0);
    let sealed = encode(
        Compression::Zstd(1),
        &[(1 << 20, data), (8 << 20, vec![0; 4096]), ((8 << 20) + 4096, vec![0; 4096])],
    );
    let m = 1 << 20;
    let want = [
        (m, 64 << 10, false),
        (m + (64 << 10), 64 << 10, true),
        (m + (128 << 10), 128 << 10, false),
        (8 * m, 8192, true),
    ];
    assert_eq!(shape(&decode(&sealed.bytes).unwrap()), want);
    assert!(sealed.bytes.len() < 2000);
    let noise = encode(Compression::Zstd(3), &[(0, random(5, 4 << 20))]);
    assert_eq!(noise.bytes.len(), HEADER + 4 * FRAME + (4 << 20) + TRAILER);
}

#[test]
fn long_zero_runs_cost_a_frame_for_each_gibibyte() {
    let mut encoder = Encoder::new(ID, Compression::None, 0).unwrap();
    encoder.push_zero(4096, 5 << 30).unwrap();
    let sealed = encoder.finish().unwrap();
    assert_eq!(sealed.bytes.len(), HEADER + 5 * FRAME + TRAILER);
    assert_eq!(decode(&sealed.bytes).unwrap().iter().map(|f| f.len).sum::<u64>(), 5 << 30);
}

#[test]
fn a_full_segment_refuses_more_and_stays_within_its_limit() {
    let mut encoder = Encoder::new(ID, Compression::None, u64::MAX).unwrap();
    let data = random(1, 1 << 20);
    let mut at = 0;
    loop {
        let n = encoder.room().min(1 << 20) as usize;
        if n == 0 {
            break;
        }
        encoder.push(at, &data[..n]).unwrap();
        at += n as u64;
    }
    assert!(matches!(encoder.push(at, &[1]), Err(SegmentError::Full { len: 1, room: 0 })));
    let sealed = encoder.finish().unwrap();
    assert!(sealed.bytes.len() <= MAX_SEGMENT && at > (63 << 20));
    assert_eq!(decode(&sealed.bytes).unwrap().iter().map(|f| f.len).sum::<u64>(), at);

    let mut small = Encoder::new(ID, Compression::None, 1000).unwrap();
    assert!(matches!(small.push(0, &[1; 1001]), Err(SegmentError::Full { room: 1000, .. })));
    small.push(0, &[1; 1000]).unwrap();
}

#[test]
fn ranges_out_of_order_are_refused() {
    let mut encoder = Encoder::new(ID, Compression::None, 1 << 20).unwrap();
    encoder.push(4096, &[1; 4096]).unwrap();
    for (offset, len) in [(0, 512), (8191, 1), (u64::MAX, 2), (i64::MAX as u64, 1)] {
        let refused = encoder.push(offset, &vec![1; len]);
        assert!(matches!(refused, Err(SegmentError::Order { .. })), "{offset}");
    }
    encoder.push(8192, &[1; 1]).unwrap();
}
