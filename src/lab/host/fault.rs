//! Errors of the host's files in Windows' codes, and the damage that is done on request.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use farshore_core::ids::DiskId;
use farshore_disk::vhdx::{Class, Vhdx, VhdxError};
use farshore_hyperv::{HyperVError, win32};

/// `E_FAIL`: what a host answers when it has nothing better.
const E_FAIL: u32 = 0x8000_4005;

/// The answer to a call that failed on a file of a disk.
pub(super) fn of_disk(operation: &str, path: &Path, disk: DiskId, error: &io::Error) -> HyperVError {
    tracing::warn!(operation, path = %path.display(), disk.id = %disk, error = %chain(error), "failed");
    let found = error.get_ref().and_then(|inner| inner.downcast_ref::<VhdxError>());
    let code = match found {
        _ if error.kind() == io::ErrorKind::StorageFull => win32::DISK_FULL,
        Some(VhdxError::ParentNotFound { .. }) => win32::VHD_PARENT_NOT_FOUND,
        Some(VhdxError::SizeMismatch { .. }) => win32::VHD_CHILD_PARENT_SIZE_MISMATCH,
        Some(VhdxError::Cycle { .. }) => win32::VHD_CHAIN_CYCLE,
        Some(other) => match other.class() {
            Class::BrokenChain => win32::VHD_CHILD_PARENT_ID_MISMATCH,
            Class::Corrupt => win32::VHD_DRIVE_FOOTER_CORRUPT,
            Class::Io | Class::Usage => E_FAIL,
        },
        None => E_FAIL,
    };
    match HyperVError::of_file(operation, &path.to_string_lossy(), disk, code) {
        HyperVError::Failed { operation, code, .. } => {
            HyperVError::Failed { operation, code, message: format!("{}: {}", path.display(), chain(error)) }
        }
        classed => classed,
    }
}

/// The answer to a call that failed otherwise.
pub(super) fn other(operation: &str, error: &io::Error) -> HyperVError {
    if error.kind() == io::ErrorKind::StorageFull {
        return HyperVError::DiskFull { path: operation.to_owned() };
    }
    refused(operation, &chain(error))
}

/// The answer to a call that asks for what cannot be.
pub(super) fn refused(operation: &str, message: &str) -> HyperVError {
    HyperVError::Failed { operation: operation.to_owned(), code: E_FAIL, message: message.to_owned() }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

/// Changes one digit of the parent link in a differencing VHDX; done twice, the file is as before.
pub(super) fn flip_parent_link(path: &Path) -> io::Result<()> {
    /// The metadata region lies within the first MiBs of every file that we write.
    const HEAD: usize = 8 << 20;
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let file = File::options().read(true).write(true).open(path)?;
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(HEAD).min(HEAD);
    let mut head = vec![0; len];
    file.read_exact_at(&mut head, 0)?;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let find = |from: usize, text: &str| {
        let want = utf16(text);
        head.get(from..)?.windows(want.len()).position(|w| w == want.as_slice()).map(|at| from + at)
    };
    // Value of the first key: the only GUID in braces of the locator.
    let at = find(0, "parent_linkage").and_then(|at| find(at, "{")).ok_or_else(|| bad("no parent link"))? + 2;
    let digit = head.get_mut(at).ok_or_else(|| bad("no parent link"))?;
    *digit = match *digit {
        c @ b'0'..=b'9' => b'0' + b'9' - c,
        c @ b'a'..=b'f' => b'a' + b'f' - c,
        c @ b'A'..=b'F' => b'A' + b'F' - c,
        _ => return Err(bad("parent link is not a GUID")),
    };
    file.write_all_at(&[*digit], at as u64)?;
    file.sync_data()
}

/// DataWriteGuid of one file.
pub(super) fn data_write_guid(path: &Path) -> io::Result<uuid::Uuid> {
    let file = farshore_disk::FileDisk::open_read(path)?;
    Vhdx::open(std::sync::Arc::new(file), farshore_disk::vhdx::Access::ReadOnly)
        .map(|file| file.data_write_guid())
        .map_err(super::disk::failed)
}
