//! A resident guest: batches of queries go in, answers come out; see [`instar_shared::live`].

use super::{OperationHost, RunError};
use crate::memory::GuestSlot;
use instar_shared::layout::LIVE;
use instar_shared::live::{ANSWERS_AT, ANSWERS_END, LivePage, LiveQuery, MAX_BATCH, WINDOW_BYTES};
use instar_shared::zerocopy::little_endian::U32;
use std::io;
use std::mem::offset_of;

/// Who asks a resident guest.
pub trait Resident {
    /// Takes a piece of the stream of answers, which is untrusted; `end`: the batch is answered.
    ///
    /// # Errors
    /// Nobody takes it: the run ends.
    fn answered(&mut self, bytes: &[u8], end: bool) -> io::Result<()>;

    /// Blocks until there is a batch of queries, 1 to [`MAX_BATCH`]. None, if a signal came before: it is called again
    /// when limits have been looked at.
    ///
    /// # Errors
    /// There will be none: the run ends.
    fn queries(&mut self) -> io::Result<Vec<LiveQuery>>;
}

/// Takes what the guest has answered; true if there is more of it to come before the next batch.
///
/// # Errors
/// The guest broke the contract, or nobody takes its answers.
pub fn take_answers(memory: &GuestSlot, host: &mut dyn OperationHost) -> Result<bool, RunError> {
    let host = resident(host)?;
    let front: [U32; 2] = memory.load(LIVE.start)?;
    let [filled, flags] = front.map(U32::get);
    if filled > WINDOW_BYTES || flags & !ANSWERS_END != 0 {
        let text = format!("it says that {filled:#x} bytes of answers wait, with flags {flags:#x}");
        return Err(RunError::Protocol(text));
    }
    let end = flags & ANSWERS_END != 0;
    if filled == 0 && !end {
        return Err(RunError::Protocol("it answers nothing at all".into()));
    }
    let mut bytes = vec![0; usize::try_from(filled).unwrap_or(0)];
    memory.read(LIVE.start + ANSWERS_AT, &mut bytes)?;
    host.answered(&bytes, end).map_err(gone)?;
    Ok(!end)
}

/// Gives the guest the next batch; false if there is none yet.
///
/// # Errors
/// Nobody asks any more.
pub fn put_queries(memory: &GuestSlot, host: &mut dyn OperationHost) -> Result<bool, RunError> {
    let queries = resident(host)?.queries().map_err(gone)?;
    if queries.is_empty() {
        return Ok(false);
    }
    let count = u32::try_from(queries.len().min(MAX_BATCH)).unwrap_or(0);
    let mut page = LivePage::zeroed();
    page.count = count.into();
    for (to, query) in page.queries.iter_mut().zip(queries) {
        *to = query;
    }
    memory.store(LIVE.start, &page)?;
    Ok(true)
}

fn resident(host: &mut dyn OperationHost) -> Result<&mut dyn Resident, RunError> {
    let unasked = || RunError::Protocol("it waits for queries, which nobody has".into());
    host.resident().ok_or_else(unasked)
}

fn gone(error: io::Error) -> RunError {
    RunError::Protocol(format!("its answers have nowhere to go: {error}"))
}

const _: () = assert!(offset_of!(LivePage, filled) == 0 && offset_of!(LivePage, flags) == 4);
