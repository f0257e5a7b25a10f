//! Which fault of the catalogue each error becomes (R9). The message keeps what was seen.

use std::io;

use farshore_azure::{BlobError, BlobErrorKind};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::FormatError;
use farshore_disk::hrl::HrlError;
use farshore_disk::segment::SegmentError;
use farshore_disk::vhdx::{Class as DiskClass, VhdxError};
use farshore_hyperv::HyperVError;
use farshore_hyperv::win32::LOGON_TYPE_NOT_GRANTED;

use crate::journal::JournalError;

/// What failed, with the fault that it is.
pub type Result<T> = std::result::Result<T, Fault>;

/// Says which fault of the catalogue it is.
pub trait Classify {
    /// The fault.
    fn fault(&self) -> Fault;
}

/// `?` for results whose error has a place in the catalogue.
pub trait OrFault<T> {
    /// The value, or the fault.
    ///
    /// # Errors
    /// The error as a fault.
    fn or_fault(self) -> Result<T>;
}

impl<T, E: Classify> OrFault<T> for std::result::Result<T, E> {
    fn or_fault(self) -> Result<T> {
        self.map_err(|error| error.fault())
    }
}

/// The message with its chain of sources.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl Classify for HyperVError {
    fn fault(&self) -> Fault {
        let code = match self {
            Self::VmNotFound { .. } => Code::VMNotFound,
            Self::DiskNotFound { .. } => Code::DiskMissing,
            Self::CheckpointNotFound { .. } | Self::InvalidState { .. } | Self::VssFailed { .. } => {
                Code::CheckpointFailed
            }
            Self::TrackingLost { .. } => Code::ChangeTrackingLost,
            Self::BrokenChain { .. } => Code::BrokenVHDChain,
            Self::CorruptDisk { .. } => Code::CorruptVirtualDisk,
            Self::DiskFull { .. } => Code::LowDiskSpace,
            Self::LowMemory { .. } => Code::LowMemory,
            Self::SharingViolation { .. } => Code::DiskInUse,
            Self::CheckpointsDisabled { .. } => Code::CheckpointsDisabled,
            Self::Failed { code: LOGON_TYPE_NOT_GRANTED, .. } => Code::ConvertFailed,
            Self::Failed { operation, .. } if operation.to_lowercase().contains("convert") => {
                Code::ConvertFailed
            }
            Self::Failed { operation, .. } if operation.to_lowercase().contains("checkpoint") => {
                Code::CheckpointFailed
            }
            Self::Failed { .. } | Self::Unreachable { .. } | Self::Protocol { .. } => Code::HostFailure,
        };
        Fault::new(code, text(self))
    }
}

impl Classify for BlobError {
    fn fault(&self) -> Fault {
        let (code, wait) = match &self.kind {
            BlobErrorKind::NotFound => (Code::ContainerMissing, None),
            BlobErrorKind::NotAuthorized => (Code::NotAuthorized, None),
            BlobErrorKind::CredentialExpired => (Code::CredentialExpired, None),
            BlobErrorKind::ProxyAuthRequired => (Code::ProxyAuthenticationRequired, None),
            BlobErrorKind::Throttled { retry_after } => (Code::Throttled, *retry_after),
            BlobErrorKind::Server => (Code::StorageUnavailable, None),
            BlobErrorKind::Network(_) => (Code::NetworkError, None),
            BlobErrorKind::ChecksumMismatch => (Code::NetworkError, None),
            BlobErrorKind::ConditionNotMet
            | BlobErrorKind::AlreadyExists
            | BlobErrorKind::LeaseHeld
            | BlobErrorKind::LeaseLost
            | BlobErrorKind::TooLarge
            | BlobErrorKind::Protocol => (Code::Unknown, None),
        };
        Fault { retry_after_seconds: wait.map(|w| w.as_secs().max(1)), ..Fault::new(code, text(self)) }
    }
}

impl Classify for VhdxError {
    fn fault(&self) -> Fault {
        let code = match self.class() {
            DiskClass::BrokenChain => Code::BrokenVHDChain,
            DiskClass::Corrupt => Code::CorruptVirtualDisk,
            DiskClass::Io => Code::LocalIo,
            DiskClass::Usage => Code::Unknown,
        };
        Fault::new(code, text(self))
    }
}

impl Classify for HrlError {
    fn fault(&self) -> Fault {
        match self {
            Self::Io { source, .. } => Fault { message: text(self), ..source.fault() },
            _ => Fault::new(Code::LogCorrupt, text(self)),
        }
    }
}

impl Classify for SegmentError {
    fn fault(&self) -> Fault {
        Fault::new(Code::Unknown, text(self))
    }
}

impl Classify for FormatError {
    fn fault(&self) -> Fault {
        match self {
            Self::TooNew { .. } => Fault::new(Code::UnreadableFormat, text(self)),
            Self::TooLarge { .. } | Self::Malformed { .. } | Self::Inconsistent { .. } => {
                Fault::new(Code::CorruptCommit, text(self))
            }
        }
    }
}

impl Classify for JournalError {
    fn fault(&self) -> Fault {
        match self {
            Self::Io { source, .. } => Fault { message: text(self), ..source.fault() },
            Self::Damaged { .. } => Fault::new(Code::JournalLost, text(self)),
            Self::Format { source, .. } => Fault { message: text(self), ..source.fault() },
        }
    }
}

impl Classify for io::Error {
    fn fault(&self) -> Fault {
        let code = match self.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::LowDiskSpace,
            io::ErrorKind::OutOfMemory => Code::LowMemory,
            io::ErrorKind::ResourceBusy => Code::DiskInUse,
            _ => Code::LocalIo,
        };
        Fault::new(code, text(self))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use farshore_azure::NetworkFault;
    use farshore_core::fault::Class;
    use farshore_core::ids::{DiskId, VmId};
    use farshore_hyperv::win32;
    use uuid::Uuid;

    use super::*;

    // R9.1, R9.2, HYPERV 2.4
    #[test]
    fn errors_of_the_host_have_their_class() {
        let disk = DiskId(Uuid::from_u128(1));
        let vm = VmId(Uuid::from_u128(2));
        for (error, want) in [
            (HyperVError::of_file("open", "a", disk, 0xC03A_000D), Class::Unrecoverable),
            (HyperVError::of_file("open", "a", disk, 0xC03A_0001), Class::Unrecoverable),
            (
                HyperVError::of_file("changes", "a", disk, win32::VHD_INVALID_CHANGE_TRACKING_ID),
                Class::NeedsResync,
            ),
            (HyperVError::of_file("write", "a", disk, 112), Class::Recoverable),
            (HyperVError::of_file("open", "a", disk, 1450), Class::Recoverable),
            (HyperVError::of_file("open", "a", disk, 32), Class::Recoverable),
            (HyperVError::VmNotFound { vm }, Class::Unrecoverable),
            (HyperVError::CheckpointsDisabled { vm }, Class::Unrecoverable),
            (HyperVError::Unreachable { message: "x".into() }, Class::Recoverable),
        ] {
            assert_eq!(error.fault().class(), want, "{error}");
        }
        let refused =
            HyperVError::Failed { operation: "x".into(), code: LOGON_TYPE_NOT_GRANTED, message: "y".into() };
        assert_eq!(refused.fault().code, Code::ConvertFailed);
    }

    // R9.1, R9.2, R3.3
    #[test]
    fn errors_of_storage_have_their_class_and_keep_the_wish_to_wait() {
        use BlobErrorKind as K;
        for (kind, code, class) in [
            (K::NotAuthorized, Code::NotAuthorized, Class::Unrecoverable),
            (K::CredentialExpired, Code::CredentialExpired, Class::Recoverable),
            (K::ProxyAuthRequired, Code::ProxyAuthenticationRequired, Class::Unrecoverable),
            (K::Network(NetworkFault::Connect), Code::NetworkError, Class::Recoverable),
            (K::Server, Code::StorageUnavailable, Class::Recoverable),
            (K::NotFound, Code::ContainerMissing, Class::Unrecoverable),
            (K::Throttled { retry_after: Some(Duration::from_secs(7)) }, Code::Throttled, Class::Recoverable),
        ] {
            let error = crate::store::tests::blob_error(kind);
            assert_eq!((error.fault().code, error.fault().class()), (code, class), "{error}");
        }
        let slow =
            crate::store::tests::blob_error(K::Throttled { retry_after: Some(Duration::from_secs(7)) });
        assert_eq!(slow.fault().retry_after_seconds, Some(7));
    }

    #[test]
    fn a_full_volume_is_low_disk_space_wherever_it_is_met() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(full().fault().code, Code::LowDiskSpace);
        let log = HrlError::Io { offset: 0, source: full() };
        assert_eq!(log.fault().code, Code::LowDiskSpace);
        assert_eq!(HrlError::Unsealed.fault().code, Code::LogCorrupt);
    }
}
