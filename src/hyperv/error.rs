//! What can go wrong on a host. Windows' codes are kept, so that the fault catalogue can class them.

use farshore_core::ids::{DiskId, VmId};
use serde::{Deserialize, Serialize};

use crate::model::{CheckpointId, PowerState};
use crate::win32::{self, CodeClass};

/// A failed call. Travels as JSON between the lab's host and its client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum HyperVError {
    /// This host does not hold the machine.
    #[error("VM {vm} not found")]
    VmNotFound { vm: VmId },
    /// The machine has no such disk, or had none at the checkpoint.
    #[error("VM {vm} has no disk {disk}")]
    DiskNotFound { vm: VmId, disk: DiskId },
    /// The checkpoint is gone.
    #[error("VM {vm} has no checkpoint {checkpoint}")]
    CheckpointNotFound { vm: VmId, checkpoint: CheckpointId },
    /// Change tracking cannot say what changed: a resynchronization is needed.
    #[error("change tracking of disk {disk} lost: {} (0x{code:08X})", win32::name(*code))]
    TrackingLost { disk: DiskId, code: u32 },
    /// A parent of a differencing disk is missing or does not fit.
    #[error("broken chain at {path}: {} (0x{code:08X})", win32::name(*code))]
    BrokenChain { path: String, code: u32 },
    /// A disk file is damaged.
    #[error("corrupt disk {path}: {} (0x{code:08X})", win32::name(*code))]
    CorruptDisk { path: String, code: u32 },
    /// The machine is not in a state that allows it; most often passing.
    #[error("VM {vm} is {state:?}: {reason}")]
    InvalidState { vm: VmId, state: PowerState, reason: String },
    /// The volume is full.
    #[error("volume of {path} is full")]
    DiskFull { path: String },
    /// The host is short of memory.
    #[error("host is short of memory: {} ({code})", win32::name(*code))]
    LowMemory { code: u32 },
    /// Somebody else holds the file.
    #[error("{path} is in use: {} ({code})", win32::name(*code))]
    SharingViolation { path: String, code: u32 },
    /// Checkpoints are switched off for the machine.
    #[error("checkpoints are disabled for VM {vm}")]
    CheckpointsDisabled { vm: VmId },
    /// The guest could not be brought to an application-consistent state.
    #[error("VSS failed in VM {vm} (0x{code:08X}): {reason}")]
    VssFailed { vm: VmId, code: u32, reason: String },
    /// A code without a variant of its own.
    #[error("{operation} failed (0x{code:08X}): {message}")]
    Failed { operation: String, code: u32, message: String },
    /// The host, or its management service, does not answer.
    #[error("host not reachable: {message}")]
    Unreachable { message: String },
    /// The host answered something that cannot be understood.
    #[error("host answered nonsense: {message}")]
    Protocol { message: String },
}

impl HyperVError {
    /// The error of a failed operation on a file, classed by its code.
    #[must_use]
    pub fn of_file(operation: &str, path: &str, disk: DiskId, code: u32) -> Self {
        let path = path.to_owned();
        match win32::lookup(code).map(|found| found.class) {
            Some(CodeClass::TrackingLost) => Self::TrackingLost { disk, code },
            Some(CodeClass::BrokenChain) => Self::BrokenChain { path, code },
            Some(CodeClass::CorruptDisk) => Self::CorruptDisk { path, code },
            Some(CodeClass::DiskFull) => Self::DiskFull { path },
            Some(CodeClass::LowMemory) => Self::LowMemory { code },
            Some(CodeClass::SharingViolation) => Self::SharingViolation { path, code },
            None => Self::Failed { operation: operation.to_owned(), code, message: path },
        }
    }

    /// Windows' code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::TrackingLost { code, .. }
            | Self::BrokenChain { code, .. }
            | Self::CorruptDisk { code, .. }
            | Self::LowMemory { code }
            | Self::SharingViolation { code, .. }
            | Self::VssFailed { code, .. }
            | Self::Failed { code, .. } => Some(*code),
            Self::DiskFull { .. } => Some(win32::DISK_FULL),
            Self::VmNotFound { .. }
            | Self::DiskNotFound { .. }
            | Self::CheckpointNotFound { .. }
            | Self::InvalidState { .. }
            | Self::CheckpointsDisabled { .. }
            | Self::Unreachable { .. }
            | Self::Protocol { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_file_becomes_the_variant_of_its_class() {
        let disk = DiskId(uuid::Uuid::from_u128(7));
        let of = |code| HyperVError::of_file("open", "a.vhdx", disk, code);
        assert_eq!(of(0xC03A_0029), HyperVError::TrackingLost { disk, code: 0xC03A_0029 });
        assert_eq!(of(0xC03A_0018), HyperVError::BrokenChain { path: "a.vhdx".into(), code: 0xC03A_0018 });
        assert_eq!(of(112), HyperVError::DiskFull { path: "a.vhdx".into() });
        assert_eq!(of(5).code(), Some(5));
    }

    #[test]
    fn errors_survive_the_wire() {
        let vm = VmId(uuid::Uuid::from_u128(9));
        let error = HyperVError::VssFailed { vm, code: win32::VSS_MORE_DATA, reason: "writer".into() };
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<HyperVError>(&json).unwrap(), error);
    }
}
