//! Sector bitmaps of differencing files: bit s of a chunk's bitmap block, lowest bit first, says that sector s is here.

use std::collections::BTreeMap;

use super::VhdxError;
use super::format::PAGE;
use super::log::Page;
use crate::bytes_at::{index, put};
use crate::io::RandomAccess;

/// Sectors that one page of a bitmap covers.
const BITS: u64 = PAGE * 8;

/// Pages changed since the last commit, by their offset in the file.
pub(super) type Changed = BTreeMap<u64, Page>;

/// Calls `found(start, len, set)` for each run of equal bits among `count` bits from `first` of the bitmap block at
/// `offset`; `start` counts from `first`.
pub(super) fn runs(
    file: &dyn RandomAccess,
    changed: Option<&Changed>,
    offset: u64,
    first: u64,
    count: u64,
    mut found: impl FnMut(u64, u64, bool),
) -> Result<(), VhdxError> {
    let at = offset + first / 8;
    let mut bytes = vec![0; index((first % 8 + count).div_ceil(8))];
    file.read_at(&mut bytes, at).map_err(|e| VhdxError::short(e, "sector bitmap", at))?;
    let end = at + bytes.len() as u64;
    for (page_at, page) in changed.into_iter().flat_map(|c| c.range(at.saturating_sub(PAGE - 1)..end)) {
        let (from, to) = (at.max(*page_at), end.min(page_at + PAGE));
        put(
            &mut bytes,
            index(from - at),
            page.get(index(from - page_at)..index(to - page_at)).unwrap_or_default(),
        );
    }
    let (mut bit, last) = (first % 8, first % 8 + count);
    let mut run: Option<(u64, bool)> = None;
    while bit < last {
        let byte = bytes.get(index(bit / 8)).copied().unwrap_or(0);
        let set = byte >> (bit % 8) & 1 == 1;
        match run {
            Some((_, now)) if now == set => {}
            Some((start, now)) => {
                found(start - first % 8, bit - start, now);
                run = Some((bit, set));
            }
            None => run = Some((bit, set)),
        }
        // The rest of the byte at once when it is all alike.
        let rest = byte >> (bit % 8);
        let alike = if set { (!rest).trailing_zeros() } else { rest.trailing_zeros() };
        bit += u64::from(alike).clamp(1, 8 - bit % 8);
    }
    if let Some((start, now)) = run {
        found(start - first % 8, last - start, now);
    }
    Ok(())
}

/// Sets or clears `count` bits from `first` of the bitmap block at `offset`, in `changed` only.
pub(super) fn mark(
    file: &dyn RandomAccess,
    changed: &mut Changed,
    offset: u64,
    first: u64,
    count: u64,
    set: bool,
) -> Result<(), VhdxError> {
    let (mut bit, last) = (first, first + count);
    while bit < last {
        let at = offset + bit / BITS * PAGE;
        let upto = last.min((bit / BITS + 1) * BITS);
        let page = match changed.entry(at) {
            std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let mut page = [0; 4096];
                file.read_at(&mut page, at).map_err(|e| VhdxError::short(e, "sector bitmap", at))?;
                vacant.insert(page)
            }
        };
        while bit < upto {
            let (in_page, whole) = (bit % BITS, bit.is_multiple_of(8) && upto - bit >= 8);
            if let Some(byte) = page.get_mut(index(in_page / 8)) {
                let mask = if whole { 0xff } else { 1 << (bit % 8) };
                *byte = if set { *byte | mask } else { *byte & !mask };
            }
            bit += if whole { 8 } else { 1 };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemDisk;
    use proptest::prelude::*;

    fn list(file: &MemDisk, changed: &Changed, first: u64, count: u64) -> Vec<bool> {
        let mut bits = Vec::new();
        runs(file, Some(changed), 4096, first, count, |start, len, set| {
            assert_eq!(start, bits.len() as u64);
            assert!(len > 0 && bits.last() != Some(&set), "runs are not empty and alternate");
            bits.extend(std::iter::repeat_n(set, len as usize));
        })
        .unwrap();
        bits
    }

    proptest! {
        #[test]
        fn marks_and_runs_agree_with_a_list_of_bits(
            marks in prop::collection::vec((0u64..70_000, 1u64..40_000, any::<bool>()), 0..8),
            (first, count) in (0u64..70_000, 1u64..60_000),
        ) {
            let (file, mut changed) = (MemDisk::new(vec![0; 1 << 20]), Changed::new());
            let mut model = vec![false; 200_000];
            for (first, count, set) in marks {
                mark(&file, &mut changed, 4096, first, count, set).unwrap();
                model[first as usize..(first + count) as usize].fill(set);
            }
            prop_assert_eq!(list(&file, &changed, first, count), &model[first as usize..(first + count) as usize]);
            // Written to their places the pages say the same.
            for (at, page) in std::mem::take(&mut changed) {
                file.write_at(&page, at).unwrap();
            }
            prop_assert_eq!(list(&file, &changed, first, count), &model[first as usize..(first + count) as usize]);
        }
    }
}
