//! Turns decoded frames into as few writes of a page blob as possible.
//!
//! Neighbouring data becomes one Put Page of up to 4 MiB; zeros become Clear Pages, which costs nothing to
//! store. A short run of zeros between data is put as zeros: a request costs more than its bytes.

use bytes::Bytes;
use farshore_core::points::Piece;
use farshore_disk::segment::{Content, Frame};

use crate::halt::Halt;

/// Longest Put Page.
pub(crate) const MAX_PUT: usize = 4 << 20;
/// Shorter runs of zeros between data are put with it.
const SHORT_ZEROS: u64 = 32 << 10;

/// One request to the page blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Put Page.
    Put { offset: u64, bytes: Bytes },
    /// Clear Pages.
    Clear { offset: u64, len: u64 },
}

/// Assembles the writes of one segment: frames come in ascending order, and only what lies inside `live` (the
/// pieces of the plan that this segment wins) gets out.
pub(crate) struct Assembler<'a, S> {
    live: &'a [Piece],
    sink: S,
    /// Data in the making and where it begins.
    data: (u64, Vec<u8>),
    /// Zeros right after it, or on their own.
    zeros: (u64, u64),
}

impl<'a, S: FnMut(Write) -> Result<(), Halt>> Assembler<'a, S> {
    pub(crate) fn new(live: &'a [Piece], sink: S) -> Self {
        Self { live, sink, data: (0, Vec::new()), zeros: (0, 0) }
    }

    pub(crate) fn push(&mut self, frame: &Frame) -> Result<(), Halt> {
        let end = frame.offset.saturating_add(frame.len);
        while let Some((piece, rest)) = self.live.split_first() {
            if piece.end() <= frame.offset {
                self.live = rest;
                continue;
            }
            if piece.offset >= end {
                break;
            }
            let (from, to) = (piece.offset.max(frame.offset), piece.end().min(end));
            match &frame.content {
                Content::Zero => self.zeros(from, to - from)?,
                Content::Data(data) => self.data(from, slice(data, from - frame.offset, to - from))?,
            }
            if piece.end() > end {
                break;
            }
            self.live = rest;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), Halt> {
        self.put()?;
        self.clear()
    }

    fn data(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Halt> {
        self.join_zeros(offset)?;
        while !bytes.is_empty() {
            if self.data.1.is_empty() {
                self.data.0 = offset;
            }
            let (now, later) = bytes.split_at(bytes.len().min(MAX_PUT - self.data.1.len()));
            self.data.1.extend_from_slice(now);
            offset = offset.saturating_add(now.len() as u64);
            bytes = later;
            if self.data.1.len() == MAX_PUT {
                self.put()?;
            }
        }
        Ok(())
    }

    /// Makes data at `offset` continue the data before it, or ends that.
    fn join_zeros(&mut self, offset: u64) -> Result<(), Halt> {
        let (at, len) = self.zeros;
        let end = if len > 0 { at.saturating_add(len) } else { self.data_end() };
        let fill = usize::try_from(len).unwrap_or(usize::MAX);
        let short = len < SHORT_ZEROS && fill < MAX_PUT - self.data.1.len();
        if self.data.1.is_empty() || end != offset || !short {
            self.put()?;
            return self.clear();
        }
        self.data.1.resize(self.data.1.len() + fill, 0);
        self.zeros = (0, 0);
        Ok(())
    }

    fn zeros(&mut self, offset: u64, len: u64) -> Result<(), Halt> {
        let (at, before) = self.zeros;
        if before > 0 && at.saturating_add(before) == offset {
            self.zeros.1 = before.saturating_add(len);
            return Ok(());
        }
        if before > 0 || self.data_end() != offset {
            self.put()?;
            self.clear()?;
        }
        self.zeros = (offset, len);
        Ok(())
    }

    fn data_end(&self) -> u64 {
        self.data.0.saturating_add(self.data.1.len() as u64)
    }

    fn put(&mut self) -> Result<(), Halt> {
        if self.data.1.is_empty() {
            return Ok(());
        }
        let (offset, bytes) = (self.data.0, std::mem::take(&mut self.data.1));
        (self.sink)(Write::Put { offset, bytes: bytes.into() })
    }

    fn clear(&mut self) -> Result<(), Halt> {
        let (offset, len) = std::mem::take(&mut self.zeros);
        if len == 0 {
            return Ok(());
        }
        (self.sink)(Write::Clear { offset, len })
    }
}

fn slice(data: &Bytes, from: u64, len: u64) -> &[u8] {
    let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    data.get(at(from)..at(from.saturating_add(len))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    fn data(offset: u64, len: u64, fill: u8) -> Frame {
        let bytes = vec![fill; usize::try_from(len).unwrap()];
        Frame { offset, len, content: Content::Data(bytes.into()) }
    }

    fn zero(offset: u64, len: u64) -> Frame {
        Frame { offset, len, content: Content::Zero }
    }

    fn writes(live: &[(u64, u64)], frames: &[Frame]) -> Vec<Write> {
        let live: Vec<Piece> = live.iter().map(|&(offset, len)| Piece { source: 0, offset, len }).collect();
        let mut out = Vec::new();
        let mut assembler = Assembler::new(&live, |write| {
            out.push(write);
            Ok(())
        });
        frames.iter().for_each(|frame| assembler.push(frame).unwrap());
        assembler.finish().unwrap();
        out
    }

    fn shape(writes: &[Write]) -> Vec<(&'static str, u64, u64)> {
        writes
            .iter()
            .map(|w| match w {
                Write::Put { offset, bytes } => ("put", *offset, bytes.len() as u64),
                Write::Clear { offset, len } => ("clear", *offset, *len),
            })
            .collect()
    }

    #[test]
    fn neighbours_become_one_put_of_up_to_4_mib() {
        let frames: Vec<_> = (0..9).map(|i| data(i << 20, 1 << 20, 7)).collect();
        let got = writes(&[(0, 9 << 20)], &frames);
        assert_eq!(shape(&got), [("put", 0, 4 << 20), ("put", 4 << 20, 4 << 20), ("put", 8 << 20, 1 << 20)]);
    }

    #[test]
    fn zeros_are_cleared_and_short_ones_between_data_are_put() {
        let all = [(0, 1 << 30)];
        let short = [data(0, KIB, 1), zero(KIB, KIB), data(2 * KIB, KIB, 2)];
        assert_eq!(shape(&writes(&all, &short)), [("put", 0, 3 * KIB)]);
        let long = [data(0, KIB, 1), zero(KIB, 16 * KIB), zero(17 * KIB, 16 * KIB), data(33 * KIB, KIB, 2)];
        let want = [("put", 0, KIB), ("clear", KIB, 32 * KIB), ("put", 33 * KIB, KIB)];
        assert_eq!(shape(&writes(&all, &long)), want);
        let alone = [zero(0, KIB), zero(4 * KIB, KIB), zero(5 * KIB, KIB)];
        assert_eq!(shape(&writes(&all, &alone)), [("clear", 0, KIB), ("clear", 4 * KIB, 2 * KIB)]);
        let after = [data(0, KIB, 1), zero(KIB, KIB)];
        assert_eq!(shape(&writes(&all, &after)), [("put", 0, KIB), ("clear", KIB, KIB)]);
    }

    #[test]
    fn only_what_the_segment_wins_is_written() {
        let got = writes(&[(512, 512), (2048, 512)], &[data(0, 4096, 9), zero(4096, 4096)]);
        assert_eq!(shape(&got), [("put", 512, 512), ("put", 2048, 512)]);
        assert_eq!(writes(&[], &[data(0, 4096, 9)]), []);
    }

    proptest! {
        #[test]
        fn writes_make_exactly_the_live_bytes(
            runs in vec((0_u64..3, 1_u64..100, any::<Option<u8>>()), 1..40),
            live in vec((0_u64..4, 1_u64..60), 0..40),
        ) {
            const UNIT: u64 = 512;
            let (mut at, mut frames) = (0, Vec::new());
            for (gap, len, fill) in runs {
                at += gap * UNIT;
                frames.push(fill.map_or_else(|| zero(at, len * UNIT), |fill| data(at, len * UNIT, fill)));
                at += len * UNIT;
            }
            let (mut from, mut pieces) = (0, Vec::new());
            for (gap, len) in live {
                from += (gap + 1) * UNIT;
                pieces.push((from, len * UNIT));
                from += len * UNIT;
            }
            let size = usize::try_from(at.max(from)).unwrap();
            let index = |n: u64| usize::try_from(n).unwrap();
            let mut want = vec![None; size];
            for frame in &frames {
                for &(offset, len) in &pieces {
                    for b in offset.max(frame.offset)..(offset + len).min(frame.offset + frame.len) {
                        want[index(b)] = Some(match &frame.content {
                            Content::Zero => 0,
                            Content::Data(bytes) => bytes[index(b - frame.offset)],
                        });
                    }
                }
            }
            let mut got = vec![None; size];
            for write in writes(&pieces, &frames) {
                let (offset, bytes) = match write {
                    Write::Put { offset, bytes } => (offset, bytes.to_vec()),
                    Write::Clear { offset, len } => (offset, vec![0; index(len)]),
                };
                prop_assert!(bytes.len() <= MAX_PUT);
                for (i, byte) in bytes.into_iter().enumerate() {
                    prop_assert_eq!(got[index(offset) + i].replace(byte), None, "written twice");
                }
            }
            prop_assert_eq!(got, want);
        }
    }
}
