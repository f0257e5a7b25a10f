//! Windows' error codes that the agent has to tell apart (winerror.h), and what class each belongs to.

/// Class of a code, as far as the data is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeClass {
    /// Change tracking cannot answer: resynchronize.
    TrackingLost,
    /// A parent is missing or does not fit.
    BrokenChain,
    /// A file's own structures are damaged.
    CorruptDisk,
    /// The volume is full.
    DiskFull,
    /// The host is short of memory.
    LowMemory,
    /// Somebody else holds the file.
    SharingViolation,
}

/// A code that has a meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The value: an HRESULT or a Win32 code.
    pub value: u32,
    /// Its name in winerror.h.
    pub name: &'static str,
    /// What it means to us.
    pub class: CodeClass,
}

/// `ERROR_CTLOG_TRACKING_NOT_INITIALIZED`
pub const CTLOG_TRACKING_NOT_INITIALIZED: u32 = 0xC03A_0020;
/// `ERROR_CTLOG_INCONSISTENT_TRACKING_FILE`
pub const CTLOG_INCONSISTENT_TRACKING_FILE: u32 = 0xC03A_0024;
/// `ERROR_CTLOG_VHD_CHANGED_OFFLINE`
pub const CTLOG_VHD_CHANGED_OFFLINE: u32 = 0xC03A_0022;
/// `ERROR_VHD_INVALID_CHANGE_TRACKING_ID`
pub const VHD_INVALID_CHANGE_TRACKING_ID: u32 = 0xC03A_0029;
/// `ERROR_VHD_CHANGE_TRACKING_DISABLED`
pub const VHD_CHANGE_TRACKING_DISABLED: u32 = 0xC03A_002A;
/// `ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION`
pub const VHD_MISSING_CHANGE_TRACKING_INFORMATION: u32 = 0xC03A_0030;
/// `ERROR_VHD_DRIVE_FOOTER_CORRUPT`: a file that is not, or no longer, a virtual disk
pub const VHD_DRIVE_FOOTER_CORRUPT: u32 = 0xC03A_0003;
/// `ERROR_VHD_PARENT_VHD_NOT_FOUND`
pub const VHD_PARENT_NOT_FOUND: u32 = 0xC03A_000D;
/// `ERROR_VHD_CHILD_PARENT_ID_MISMATCH`
pub const VHD_CHILD_PARENT_ID_MISMATCH: u32 = 0xC03A_000E;
/// `ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH`
pub const VHD_CHILD_PARENT_SIZE_MISMATCH: u32 = 0xC03A_0017;
/// `ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED`
pub const VHD_CHAIN_CYCLE: u32 = 0xC03A_0018;
/// `ERROR_DISK_FULL`
pub const DISK_FULL: u32 = 112;
/// `ERROR_SHARING_VIOLATION`
pub const SHARING_VIOLATION: u32 = 32;
/// `ERROR_MORE_DATA` as an HRESULT: the usual face of a failed VSS checkpoint
pub const VSS_MORE_DATA: u32 = 0x8007_00EA;
/// `ERROR_LOGON_TYPE_NOT_GRANTED` as an HRESULT: policy took "log on as a service" from `NT VIRTUAL MACHINE\Virtual Machines`
pub const LOGON_TYPE_NOT_GRANTED: u32 = 0x8007_0569;

const fn code(value: u32, name: &'static str, class: CodeClass) -> Code {
    Code { value, name, class }
}

/// Every code with a meaning, in order of value.
pub const CODES: &[Code] = &[
    code(8, "ERROR_NOT_ENOUGH_MEMORY", CodeClass::LowMemory),
    code(14, "ERROR_OUTOFMEMORY", CodeClass::LowMemory),
    code(SHARING_VIOLATION, "ERROR_SHARING_VIOLATION", CodeClass::SharingViolation),
    code(33, "ERROR_LOCK_VIOLATION", CodeClass::SharingViolation),
    code(DISK_FULL, "ERROR_DISK_FULL", CodeClass::DiskFull),
    code(1450, "ERROR_NO_SYSTEM_RESOURCES", CodeClass::LowMemory),
    code(0xC03A_0001, "ERROR_VHD_DRIVE_FOOTER_MISSING", CodeClass::CorruptDisk),
    code(0xC03A_0002, "ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH", CodeClass::CorruptDisk),
    code(VHD_DRIVE_FOOTER_CORRUPT, "ERROR_VHD_DRIVE_FOOTER_CORRUPT", CodeClass::CorruptDisk),
    code(0xC03A_0004, "ERROR_VHD_FORMAT_UNKNOWN", CodeClass::CorruptDisk),
    code(0xC03A_0005, "ERROR_VHD_FORMAT_UNSUPPORTED_VERSION", CodeClass::CorruptDisk),
    code(0xC03A_0006, "ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH", CodeClass::CorruptDisk),
    code(0xC03A_0008, "ERROR_VHD_SPARSE_HEADER_CORRUPT", CodeClass::CorruptDisk),
    code(0xC03A_0009, "ERROR_VHD_BLOCK_ALLOCATION_FAILURE", CodeClass::CorruptDisk),
    code(0xC03A_000A, "ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT", CodeClass::CorruptDisk),
    code(0xC03A_000B, "ERROR_VHD_INVALID_BLOCK_SIZE", CodeClass::CorruptDisk),
    code(0xC03A_000C, "ERROR_VHD_BITMAP_MISMATCH", CodeClass::CorruptDisk),
    code(VHD_PARENT_NOT_FOUND, "ERROR_VHD_PARENT_VHD_NOT_FOUND", CodeClass::BrokenChain),
    code(VHD_CHILD_PARENT_ID_MISMATCH, "ERROR_VHD_CHILD_PARENT_ID_MISMATCH", CodeClass::BrokenChain),
    code(0xC03A_000F, "ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH", CodeClass::BrokenChain),
    code(0xC03A_0016, "ERROR_VHD_PARENT_VHD_ACCESS_DENIED", CodeClass::BrokenChain),
    code(VHD_CHILD_PARENT_SIZE_MISMATCH, "ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH", CodeClass::BrokenChain),
    code(VHD_CHAIN_CYCLE, "ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED", CodeClass::BrokenChain),
    code(0xC03A_0019, "ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT", CodeClass::BrokenChain),
    code(CTLOG_TRACKING_NOT_INITIALIZED, "ERROR_CTLOG_TRACKING_NOT_INITIALIZED", CodeClass::TrackingLost),
    code(0xC03A_0021, "ERROR_CTLOG_LOGFILE_SIZE_EXCEEDED_MAXSIZE", CodeClass::TrackingLost),
    code(CTLOG_VHD_CHANGED_OFFLINE, "ERROR_CTLOG_VHD_CHANGED_OFFLINE", CodeClass::TrackingLost),
    code(0xC03A_0023, "ERROR_CTLOG_INVALID_TRACKING_STATE", CodeClass::TrackingLost),
    code(CTLOG_INCONSISTENT_TRACKING_FILE, "ERROR_CTLOG_INCONSISTENT_TRACKING_FILE", CodeClass::TrackingLost),
    code(VHD_INVALID_CHANGE_TRACKING_ID, "ERROR_VHD_INVALID_CHANGE_TRACKING_ID", CodeClass::TrackingLost),
    code(VHD_CHANGE_TRACKING_DISABLED, "ERROR_VHD_CHANGE_TRACKING_DISABLED", CodeClass::TrackingLost),
    code(
        VHD_MISSING_CHANGE_TRACKING_INFORMATION,
        "ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION",
        CodeClass::TrackingLost,
    ),
];

/// Looks up a code.
#[must_use]
pub fn lookup(value: u32) -> Option<&'static Code> {
    CODES.iter().find(|code| code.value == value)
}

/// Name of a code, for messages.
#[must_use]
pub fn name(value: u32) -> &'static str {
    lookup(value).map_or("unknown code", |code| code.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_none_is_listed_twice() {
        assert!(CODES.windows(2).all(|pair| pair[0].value < pair[1].value));
    }
}
