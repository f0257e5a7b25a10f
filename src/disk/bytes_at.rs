//! Integers and GUIDs at fixed offsets of buffers whose size the caller has already checked.
//!
//! Reading past the end is a bug of this crate, never of a file: it trips the debug assertion and reads as zero.

use uuid::Uuid;

fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let found = b.get(at..).and_then(|rest| rest.first_chunk::<N>());
    debug_assert!(found.is_some(), "field at {at} lies outside a buffer of {} bytes", b.len());
    found.copied().unwrap_or([0; N])
}

/// Copies `v` into `b` at `at`.
pub(crate) fn put(b: &mut [u8], at: usize, v: &[u8]) {
    let found = b.get_mut(at..).and_then(|rest| rest.get_mut(..v.len()));
    debug_assert!(found.is_some(), "field at {at} lies outside the buffer");
    if let Some(to) = found {
        to.copy_from_slice(v);
    }
}

pub(crate) fn u8_at(b: &[u8], at: usize) -> u8 {
    array::<1>(b, at)[0]
}
pub(crate) fn u16_le(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(b, at))
}
pub(crate) fn u32_le(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(b, at))
}
pub(crate) fn u64_le(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(b, at))
}
pub(crate) fn u16_be(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(b, at))
}
pub(crate) fn u32_be(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(b, at))
}
pub(crate) fn u64_be(b: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(b, at))
}
/// A GUID in the mixed-endian form of Microsoft's structures.
pub(crate) fn guid_at(b: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes_le(array(b, at))
}
/// A UUID as sixteen bytes in the order of its text.
pub(crate) fn uuid_at(b: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(array(b, at))
}

pub(crate) fn put_u8(b: &mut [u8], at: usize, v: u8) {
    put(b, at, &[v]);
}
pub(crate) fn put_u16_le(b: &mut [u8], at: usize, v: u16) {
    put(b, at, &v.to_le_bytes());
}
pub(crate) fn put_u32_le(b: &mut [u8], at: usize, v: u32) {
    put(b, at, &v.to_le_bytes());
}
pub(crate) fn put_u64_le(b: &mut [u8], at: usize, v: u64) {
    put(b, at, &v.to_le_bytes());
}
pub(crate) fn put_u16_be(b: &mut [u8], at: usize, v: u16) {
    put(b, at, &v.to_be_bytes());
}
pub(crate) fn put_u32_be(b: &mut [u8], at: usize, v: u32) {
    put(b, at, &v.to_be_bytes());
}
pub(crate) fn put_u64_be(b: &mut [u8], at: usize, v: u64) {
    put(b, at, &v.to_be_bytes());
}
pub(crate) fn put_guid(b: &mut [u8], at: usize, v: Uuid) {
    put(b, at, &v.to_bytes_le());
}
pub(crate) fn put_uuid(b: &mut [u8], at: usize, v: Uuid) {
    put(b, at, v.as_bytes());
}

/// A length as an index. Lossless: this crate is built for 64-bit targets only.
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// True when every byte is zero. Works through 64 bytes at a time, which compiles to vector instructions.
pub(crate) fn is_zero(b: &[u8]) -> bool {
    let (chunks, rest) = b.as_chunks::<64>();
    chunks.iter().all(|c| c.iter().fold(0u8, |a, x| a | x) == 0) && rest.iter().all(|&x| x == 0)
}
