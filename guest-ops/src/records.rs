//! The record stream: what the operation tells the host. See [`instar_shared::record`].

use crate::page::{Shared, record_bytes};
use crate::{Machine, Platform};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::RECORDS;
use instar_shared::record::{
    Failure, FailureKind, MAX_PAYLOAD, Progress, RECORD_ALIGN, RecordHeader, RecordKind,
};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::{U32, U64};

/// Shortest time between two progress records.
pub const PROGRESS_INTERVAL_MS: u64 = 100;
/// Ends a text that was cut.
const CUT: &str = " [...]";
const HEADER_BYTES: usize = size_of::<RecordHeader>();
#[allow(clippy::cast_possible_truncation)] // 256 KiB
const WINDOW_BYTES: usize = RECORDS.size as usize;

const _: () = assert!(HEADER_BYTES + MAX_PAYLOAD <= WINDOW_BYTES);

/// A payload longer than [`MAX_PAYLOAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordTooLong;

/// Writes records into the window and has the host take them when it is full.
///
/// How far the window is filled stands in the control page at all times, so the host finds every
/// record when the operation exits or panics.
#[derive(Debug)]
pub struct Records<P: Platform = Machine> {
    platform: P,
    window: NonNull<u8>,
    filled: Shared<U32>,
    ticks_per_interval: u64,
    next_progress: u64,
}

impl<P: Platform> Records<P> {
    /// A writer that goes on where the control page says. `tsc_hz` is the boot page's, 0 if unknown.
    pub(crate) fn new(platform: P, tsc_hz: u64) -> Self {
        let ticks_per_second = if tsc_hz == 0 { 1_000_000_000 } else { tsc_hz };
        let ticks_per_interval = ticks_per_second
            .saturating_mul(PROGRESS_INTERVAL_MS)
            .checked_div(1000)
            .unwrap_or(0);
        Self {
            window: platform.pointer(RECORDS.start, WINDOW_BYTES),
            filled: record_bytes(&platform),
            next_progress: platform.ticks().saturating_add(ticks_per_interval),
            ticks_per_interval,
            platform,
        }
    }

    /// Appends a record whose payload is `parts`, one after the other.
    ///
    /// # Errors
    /// [`RecordTooLong`] if they are longer than [`MAX_PAYLOAD`] together; nothing is written then.
    pub fn record(&mut self, kind: RecordKind, parts: &[&[u8]]) -> Result<(), RecordTooLong> {
        let len = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        if len > MAX_PAYLOAD {
            return Err(RecordTooLong);
        }
        let mut payload = self.begin(len);
        for part in parts {
            payload.put(part);
        }
        payload.end(kind);
        Ok(())
    }

    /// A line for the user's standard output. Text past [`MAX_PAYLOAD`] is cut, visibly.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        self.text(RecordKind::Line, &[], text);
    }

    /// A line for the user's standard error that begins with the program's name, which the host adds.
    pub fn prefixed(&mut self, text: fmt::Arguments<'_>) {
        self.text(RecordKind::Prefixed, &[], text);
    }

    /// A line for the user's standard error; cut as [`Self::line`].
    pub fn diagnostic(&mut self, text: fmt::Arguments<'_>) {
        self.text(RecordKind::Diagnostic, &[], text);
    }

    /// Why the operation fails; cut as [`Self::line`].
    pub fn failure(&mut self, kind: FailureKind, slot: u16, text: fmt::Arguments<'_>) {
        let head = Failure {
            kind: U32::new(kind.raw()),
            slot: U32::new(u32::from(slot)),
        };
        self.text(RecordKind::Failure, head.as_bytes(), text);
    }

    /// Says how far the operation is, at most every [`PROGRESS_INTERVAL_MS`]; calls between cost a few
    /// instructions. The host sees it at once.
    pub fn progress(&mut self, done: u64, total: u64) {
        let now = self.platform.ticks();
        if now < self.next_progress {
            return;
        }
        self.next_progress = now.saturating_add(self.ticks_per_interval);
        let progress = Progress {
            done: U64::new(done),
            total: U64::new(total),
        };
        let mut payload = self.begin(size_of::<Progress>());
        payload.put(progress.as_bytes());
        payload.end(RecordKind::Progress);
        self.drain();
    }

    /// Has the host take what is written. Nothing written, no exit.
    pub fn drain(&mut self) {
        if self.filled.read().get() == 0 {
            return;
        }
        self.platform.kick(Kick::Control(Control::Drain).encode());
        self.filled.write(U32::new(0));
    }

    /// A record of text after `head`.
    pub(crate) fn text(&mut self, kind: RecordKind, head: &[u8], text: fmt::Arguments<'_>) {
        let mut payload = self.begin(MAX_PAYLOAD);
        payload.put(head);
        let room = MAX_PAYLOAD
            .saturating_sub(head.len())
            .saturating_sub(CUT.len());
        let mut writer = TextWriter {
            payload: &mut payload,
            room,
        };
        if writer.write_fmt(text).is_err() {
            payload.put(CUT.as_bytes());
        }
        payload.end(kind);
    }

    /// Makes room for a record of at most `len` payload bytes.
    fn begin(&mut self, len: usize) -> Payload<'_, P> {
        let need = HEADER_BYTES.saturating_add(len.next_multiple_of(RECORD_ALIGN));
        if self.position().saturating_add(need) > WINDOW_BYTES {
            self.drain();
        }
        let start = self.position();
        Payload {
            records: self,
            start,
            len: 0,
        }
    }

    fn position(&self) -> usize {
        (self.filled.read().get() as usize).min(WINDOW_BYTES)
    }

    /// Copies `bytes` to `offset` of the window, as far as it goes.
    fn poke(&mut self, offset: usize, bytes: &[u8]) {
        let room = WINDOW_BYTES.saturating_sub(offset);
        let len = bytes.len().min(room);
        if len == 0 {
            return;
        }
        // SAFETY: the platform gave a pointer to the whole window, `offset + len` is inside it, and no
        // slice refers to it; the host reads it only while a doorbell rings.
        unsafe {
            self.window
                .add(offset)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), len);
        }
    }
}

/// A record being written; it counts once it has ended.
struct Payload<'a, P: Platform> {
    records: &'a mut Records<P>,
    start: usize,
    len: usize,
}

impl<P: Platform> Payload<'_, P> {
    fn put(&mut self, bytes: &[u8]) {
        let at = self
            .start
            .saturating_add(HEADER_BYTES)
            .saturating_add(self.len);
        self.records.poke(at, bytes);
        self.len = self.len.saturating_add(bytes.len());
    }

    fn end(mut self, kind: RecordKind) {
        let len = self.len;
        let padding = len.next_multiple_of(RECORD_ALIGN).saturating_sub(len);
        self.put([0; RECORD_ALIGN].get(..padding).unwrap_or_default());
        let header = RecordHeader {
            kind: U32::new(kind.raw()),
            len: U32::new(u32::try_from(len).unwrap_or(0)),
        };
        self.records.poke(self.start, header.as_bytes());
        let end = self
            .start
            .saturating_add(HEADER_BYTES)
            .saturating_add(self.len);
        self.records
            .filled
            .write(U32::new(u32::try_from(end).unwrap_or(0)));
    }
}

/// Takes formatted text up to `room` bytes, then fails.
struct TextWriter<'a, 'b, P: Platform> {
    payload: &'a mut Payload<'b, P>,
    room: usize,
}

impl<P: Platform> Write for TextWriter<'_, '_, P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(self.room);
        let now = text.get(..fits).unwrap_or_default();
        self.payload.put(now.as_bytes());
        self.room = self.room.saturating_sub(fits);
        if fits < text.len() {
            self.room = 0;
            return Err(fmt::Error);
        }
        Ok(())
    }
}
