//! `cursor.json`: read, and replaced under its tag only.

use farshore_azure::{BlobErrorKind, Condition, ETag};
use farshore_core::fault::{Code, Fault};
use farshore_core::format::cursor::Cursor;
use farshore_core::format::ledger::Ledger;
use farshore_core::format::{Extra, FORMAT_VERSION, FormatError, Record};
use farshore_core::names;
use farshore_core::points::{Claim, claim};

use crate::context::Context;
use crate::halt::{Halt, again};

/// How often a write is tried again because somebody else wrote in between.
const RACES: u32 = 8;

/// The cursor as it was last read or written.
#[derive(Clone, Debug)]
pub(crate) struct CursorFile {
    /// What it says.
    pub(crate) now: Cursor,
    etag: ETag,
}

impl CursorFile {
    pub(crate) async fn read(ctx: &Context) -> Result<Option<Self>, Halt> {
        let fetched = again(|| ctx.store.down.get(names::CURSOR, Cursor::MAX as u64)).await?;
        let Some(fetched) = fetched else { return Ok(None) };
        let now = Cursor::decode(&fetched.bytes).map_err(|e| unreadable(&e))?;
        if now.vm_id != ctx.vm {
            return Err(Halt::unknown(format!("cursor.json is of VM {}", now.vm_id)));
        }
        Ok(Some(Self { now, etag: fetched.etag }))
    }

    /// The first one, following the ledger's writer.
    pub(crate) async fn create(ctx: &Context, ledger: &Ledger) -> Result<Self, Halt> {
        let now = Cursor {
            format_version: FORMAT_VERSION,
            min_reader: 1,
            vm_id: ctx.vm,
            term: ledger.term,
            stream: ledger.stream,
            verified: None,
            applied: None,
            newest_point: None,
            refused: None,
            received: None,
            worker: ctx.worker.clone(),
            written_at: ctx.now(),
            extra: Extra::new(),
        };
        let bytes = now.encode().map_err(|e| unreadable(&e))?;
        match ctx.store.down.put_if(names::CURSOR, bytes.into(), &Condition::IfNoneMatchAny).await {
            Ok(etag) => Ok(Self { now, etag }),
            // Whoever made it: the next step reads it.
            Err(e) if e.kind == BlobErrorKind::ConditionNotMet => Err(Halt::Overtaken("the cursor was made")),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads it again; true if it is what was last seen.
    pub(crate) async fn refresh(&mut self, ctx: &Context) -> Result<bool, Halt> {
        let fresh = Self::read(ctx).await?.ok_or_else(|| Halt::unknown("cursor.json is gone"))?;
        let same = fresh.etag == self.etag;
        *self = fresh;
        Ok(same)
    }

    /// Replaces it by what `edit` makes of it. If somebody else wrote in between, `still` decides from what
    /// stands there now whether the edit is still right.
    ///
    /// After a lost answer it is read again: what we wanted to write stands there, or it does not.
    pub(crate) async fn update(
        &mut self,
        ctx: &Context,
        edit: impl Fn(&mut Cursor),
        still: impl Fn(&Cursor) -> bool,
    ) -> Result<(), Halt> {
        for _ in 0..RACES {
            let mut next = self.now.clone();
            edit(&mut next);
            next.worker.clone_from(&ctx.worker);
            next.written_at = ctx.now();
            if !self.now.may_become(&next) {
                return Err(Halt::Overtaken("the cursor is further already"));
            }
            let bytes = next.encode().map_err(|e| unreadable(&e))?;
            let condition = Condition::IfMatch(self.etag.clone());
            let error = match ctx.store.down.put_if(names::CURSOR, bytes.into(), &condition).await {
                Ok(etag) => {
                    (self.now, self.etag) = (next, etag);
                    return Ok(());
                }
                Err(error) => error,
            };
            let lost = error.outcome_unknown();
            if !lost && error.kind != BlobErrorKind::ConditionNotMet {
                return Err(error.into());
            }
            let same = self.refresh(ctx).await?;
            if self.now == next {
                return Ok(());
            }
            // Unchanged after a lost answer: it did not land. It may still, on its slow way; then the tag of
            // our next attempt does not fit any more, and we come back here.
            if !same && !still(&self.now) {
                return Err(Halt::Overtaken("somebody else wrote the cursor"));
            }
        }
        Err(Halt::Overtaken("the cursor is busy"))
    }

    /// The claim in it.
    pub(crate) fn claim(&self) -> Result<Option<Claim>, Halt> {
        claim(&self.now).map_err(|e| Halt::unknown(format!("the claim in cursor.json cannot be read: {e}")))
    }
}

fn unreadable(error: &FormatError) -> Halt {
    let code = match error {
        FormatError::TooNew { .. } => Code::UnreadableFormat,
        FormatError::TooLarge { .. } | FormatError::Malformed { .. } | FormatError::Inconsistent { .. } => {
            Code::Unknown
        }
    };
    Halt::Fault(Fault::new(code, error.to_string()))
}
