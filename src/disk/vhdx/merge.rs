//! Merging a child into its parent while the child stays in use.
//!
//! What is read through the child does not change by copying the child's bytes into the parent, so a merge may stop
//! and begin again anywhere; the child is removed by the caller after the last range is copied and flushed.

use std::path::Path;
use std::sync::Arc;

use super::VhdxError;
use super::chain::{fits, parent_of};
use super::file::{Access, Vhdx};
use super::format::Guids;
use super::map::Kind;
use crate::bytes_at::index;
use crate::extents::{Extent, Extents};
use crate::io::FileDisk;

/// Bytes copied at a time.
const STEP: u64 = 4 << 20;

/// Copies what `child` holds inside `ranges` into `parent` (opened with [`Access::Merge`]): bytes as bytes, zeros as
/// zeros. Returns the bytes of both. Online: pass [`Vhdx::present`] first, then, with writes held back, the ranges
/// written meanwhile; flush the parent before the child goes.
pub fn merge_ranges(child: &Vhdx, parent: &Vhdx, ranges: &Extents) -> Result<u64, VhdxError> {
    let mut buf = Vec::new();
    let mut moved = 0;
    for Extent { offset, len } in
        ranges.align_out(child.logical_sector().into()).clip(child.size()).split(STEP)
    {
        for piece in child.map(offset, len)? {
            match piece.kind {
                Kind::Absent => continue,
                Kind::Zero => parent.zero(piece.offset, piece.len)?,
                Kind::Data { .. } => {
                    buf.resize(index(piece.len), 0);
                    // Read by disk offset: a writer may have moved the block since it was mapped.
                    child.read_at(&mut buf, piece.offset)?;
                    parent.write_at(&buf, piece.offset)?;
                }
            }
            moved += piece.len;
        }
    }
    Ok(moved)
}

/// Copies all that the file `child` holds into its parent file and makes it durable. The child stays as it is.
pub fn merge_into_parent(child: &Path, guids: Guids) -> Result<u64, VhdxError> {
    let open = |e, path: &Path| VhdxError::Open { path: path.into(), source: e };
    let file = FileDisk::open_read(child).map_err(|e| open(e, child))?;
    let from = Vhdx::open(Arc::new(file), Access::ReadOnly)?;
    let path = parent_of(&from, child)?.ok_or_else(|| VhdxError::NoParent { path: child.into() })?;
    let file = FileDisk::open_rw(&path).map_err(|e| open(e, &path))?;
    let to = Vhdx::open(Arc::new(file), Access::Merge(guids))?;
    fits(&from, child, &to, &path)?;
    let moved = merge_ranges(&from, &to, &from.present()?)?;
    to.close()?;
    Ok(moved)
}
