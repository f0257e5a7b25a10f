//! Digests of disks and of what travels: BLAKE3 for identity, CRC-64/NVME for what the storage service checks itself.

use std::io;

use crate::bytes_at::index;
use crate::io::RandomAccess;

pub use blake3::Hash;

/// Bytes read at a time: large enough for one read to keep a disk and BLAKE3's vector units busy, small against the
/// 256 MiB that agent and replica server may use.
const STEP: u64 = 1 << 20;

/// BLAKE3 of `len` bytes from `offset`.
pub fn range(disk: &dyn RandomAccess, offset: u64, len: u64) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; index(len.min(STEP))];
    let mut done = 0;
    while done < len {
        let n = STEP.min(len - done);
        let part = buf.get_mut(..index(n)).ok_or(io::ErrorKind::InvalidInput)?;
        disk.read_at(part, offset + done)?;
        hasher.update(part);
        done += n;
    }
    Ok(hasher.finalize())
}

/// BLAKE3 of the whole disk or file.
pub fn whole(disk: &dyn RandomAccess) -> io::Result<Hash> {
    range(disk, 0, disk.len()?)
}

/// BLAKE3 of bytes in memory.
pub fn bytes(data: &[u8]) -> Hash {
    blake3::hash(data)
}

/// CRC-64/NVME, the `x-ms-content-crc64` of Azure Storage (there base64 of the little-endian bytes).
pub fn crc64_nvme(data: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemDisk;

    #[test]
    fn crc64_is_the_nvme_polynomial() {
        // The check value of the CRC catalogue for CRC-64/NVME.
        assert_eq!(crc64_nvme(b"123456789"), 0xAE8B_1486_0A79_9888);
    }

    #[test]
    fn streaming_gives_the_hash_of_the_whole() {
        let data: Vec<u8> = (0..3_000_001u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        let disk = MemDisk::new(data.clone());
        assert_eq!(whole(&disk).unwrap(), blake3::hash(&data));
        assert_eq!(range(&disk, 5, 2_000_000).unwrap(), blake3::hash(&data[5..2_000_005]));
        assert!(range(&disk, 5, 3_000_000).is_err());
    }
}
