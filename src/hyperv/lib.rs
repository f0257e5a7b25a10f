//! The hypervisor as the agent sees it: machines, checkpoints, reference points, change tracking.
//!
//! One trait, [`Hypervisor`], in Microsoft's vocabulary: recovery checkpoint, reference point, RCT id,
//! AVHDX. [`sim::SimHost`] speaks to a simulated host of the lab over a unix socket; the Windows
//! implementation (WMI, virtdisk) has the same shape. The trait moves no disk data: a checkpoint names
//! the frozen files and whoever holds it reads them, here with `farshore_disk::vhdx::Chain`.
//!
//! ```text
//! create_checkpoint -> frozen files + an RCT id per disk ──┬─ query_changes(since, checkpoint)
//!                                                          └─ convert_to_reference_point (merges) -> ids to ask from next time
//! ```
#![forbid(unsafe_code)]

pub mod error;
pub mod model;
pub mod sim;
pub mod win32;
pub mod wire;

use std::future::Future;

use farshore_core::ids::{DiskId, VmId};
use farshore_disk::extents::Extents;

pub use error::HyperVError;
pub use model::{
    Checkpoint, CheckpointId, CheckpointInfo, CheckpointKind, Consistency, DiskFormat, DiskInfo, DiskType,
    Firmware, FrozenDisk, HostInfo, NicInfo, PowerState, RctId, ReferencePoint, ReferencePointId,
    TrackedDisk, VmInfo, Volume,
};

/// Result of a call to the hypervisor.
pub type Result<T> = std::result::Result<T, HyperVError>;

/// One Hyper-V host. Every call is complete when it returns: no jobs are handed out.
///
/// All calls may be repeated: destroying what is gone already is `Ok`.
pub trait Hypervisor: Send + Sync {
    /// The host itself: version, cluster, volumes, switches, clock.
    fn host(&self) -> impl Future<Output = Result<HostInfo>> + Send;

    /// All machines, in order of id.
    fn vms(&self) -> impl Future<Output = Result<Vec<VmInfo>>> + Send;

    /// One machine; [`HyperVError::VmNotFound`] if this host does not hold it.
    fn vm(&self, vm: VmId) -> impl Future<Output = Result<VmInfo>> + Send;

    /// Takes a recovery checkpoint (`CreateSnapshot`, type 32768): all disks at one instant.
    ///
    /// With [`Consistency::Application`] VSS runs in the guest; if that fails the call fails with
    /// [`HyperVError::VssFailed`] and nothing is left behind: the caller decides about a crash-consistent one.
    fn create_checkpoint(
        &self,
        vm: VmId,
        name: &str,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Checkpoint>> + Send;

    /// The recovery checkpoints of a machine, oldest first: a restarted agent finds its own by name.
    fn checkpoints(&self, vm: VmId) -> impl Future<Output = Result<Vec<Checkpoint>>> + Send;

    /// One recovery checkpoint; [`HyperVError::CheckpointNotFound`] if it is gone.
    fn checkpoint(&self, vm: VmId, id: &CheckpointId) -> impl Future<Output = Result<Checkpoint>> + Send;

    /// Deletes a checkpoint: its AVHDX files are merged while the machine runs on.
    fn delete_checkpoint(&self, vm: VmId, id: &CheckpointId) -> impl Future<Output = Result<()>> + Send;

    /// Bytes on the volume that the checkpoint costs: what was written since, held in AVHDX files.
    fn avhdx_bytes(&self, vm: VmId, id: &CheckpointId) -> impl Future<Output = Result<u64>> + Send;

    /// Turns a recovery checkpoint into a reference point: files are merged, the ids stay.
    ///
    /// Repeating it after success returns the same reference point.
    fn convert_to_reference_point(
        &self,
        vm: VmId,
        id: &CheckpointId,
    ) -> impl Future<Output = Result<ReferencePoint>> + Send;

    /// All reference points of a machine, also those of other products: destroy only what is yours.
    fn reference_points(&self, vm: VmId) -> impl Future<Output = Result<Vec<ReferencePoint>>> + Send;

    /// Destroys one reference point; `Ok` if there is none.
    fn destroy_reference_point(
        &self,
        vm: VmId,
        id: &ReferencePointId,
    ) -> impl Future<Output = Result<()>> + Send;

    /// What may have changed on a disk from the instant of `since` up to the instant of the checkpoint.
    ///
    /// A superset, in whole tracking blocks, clipped to the disk.
    /// [`HyperVError::TrackingLost`] means that only a resynchronization can tell.
    fn query_changes(
        &self,
        vm: VmId,
        disk: DiskId,
        since: &RctId,
        checkpoint: &CheckpointId,
    ) -> impl Future<Output = Result<Extents>> + Send;

    /// The volume that holds `path`.
    fn volume(&self, path: &str) -> impl Future<Output = Result<Volume>> + Send;

    /// Starts a machine; `Ok` if it runs already.
    fn start(&self, vm: VmId) -> impl Future<Output = Result<()>> + Send;

    /// Turns a machine off as if the plug were pulled; `Ok` if it is off already.
    fn stop(&self, vm: VmId) -> impl Future<Output = Result<()>> + Send;

    /// Asks the guest to shut down and waits until it is off; `Ok` if it is off already.
    fn shutdown(&self, vm: VmId) -> impl Future<Output = Result<()>> + Send;
}
