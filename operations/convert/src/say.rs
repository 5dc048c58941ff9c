//! What the user is told while it runs and when it fails.

use crate::request::Request;
use alloc::string::String;
use core::fmt::Arguments;
use instar_guest_ops::{AnnounceError, Context};
use instar_plan_convert::{Cancelled, ConvertError, Monitor, Salvaged};
use instar_plan_create::CreateError;
use instar_shared::convert::{CONVERT_DD, CONVERT_QUIET};
use instar_shared::op::ImageFormat;
use instar_shared::record::{FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use instar_storage::Errno;
use op_chain::Reported;

/// Fails with a sentence.
pub fn sentence(ctx: &mut Context, text: Arguments<'_>) -> Reported {
    ctx.records().failure(FailureKind::Operation, 0, text);
    Reported
}

/// The copy failed.
pub fn copy_failed(ctx: &mut Context, request: &Request<'_>, error: &ConvertError) -> Reported {
    if let Some(notice) = error.notice() {
        ctx.records().diagnostic(format_args!("{notice}"));
    }
    let kind = match error {
        ConvertError::Cancelled => FailureKind::Cancelled,
        ConvertError::OutOfMemory => FailureKind::Memory,
        _ => FailureKind::Operation,
    };
    let records = ctx.records();
    match error {
        ConvertError::Read { reason, .. } if request.has(CONVERT_DD) => {
            let text = format_args!("error while reading from input image file: {reason}");
            records.failure(kind, 0, text);
        }
        ConvertError::Write { reason, .. } if request.has(CONVERT_DD) => {
            let text = format_args!("error while writing to output image file: {reason}");
            records.failure(kind, 0, text);
        }
        _ => records.failure(kind, 0, format_args!("{error}")),
    }
    Reported
}

/// The part that is to be copied begins past the source's end.
pub fn cannot_skip(ctx: &mut Context, request: &Request<'_>) {
    let name = String::from_utf8_lossy(request.source_name);
    let text = format_args!("{name}: cannot skip to specified offset");
    ctx.records().prefixed(text);
}

/// The target cannot be made.
pub fn not_created(ctx: &mut Context, request: &Request<'_>, error: &CreateError) -> Reported {
    if matches!(error, CreateError::Cancelled) {
        return copy_failed(ctx, request, &ConvertError::Cancelled);
    }
    let name = String::from_utf8_lossy(request.target_name);
    let format = match request.target_format {
        ImageFormat::Qcow2 => "qcow2",
        _ => "raw",
    };
    let error = error.of_a_copy();
    if request.has(CONVERT_DD) {
        let text = format_args!("{name}: error while creating output image: {error}");
        return sentence(ctx, text);
    }
    let text = format_args!("{name}: error while converting {format}: {error}");
    sentence(ctx, text)
}

/// The target cannot be completed.
pub fn not_finished(ctx: &mut Context, error: &CreateError) -> Reported {
    sentence(
        ctx,
        format_args!("error while writing the target's tables: {error}"),
    )
}

/// The target's first byte cannot be written.
pub fn not_begun(ctx: &mut Context, errno: u32) -> Reported {
    let reason = Errno(errno);
    sentence(ctx, format_args!("error while writing at byte 0: {reason}"))
}

/// Asks for leave to fill a file that is made: everything that is read is open.
pub fn announce(ctx: &mut Context, slot: u16, bytes: u64) -> Result<(), Reported> {
    ctx.announce_size(slot, bytes).map_err(|error| match error {
        AnnounceError::Host(errno) => not_begun(ctx, errno),
        AnnounceError::Invalid => sentence(ctx, format_args!("The target cannot be written")),
    })
}

/// What watches a copy.
#[derive(Debug)]
pub struct Watch<'a, 'r> {
    ctx: &'a mut Context,
    request: &'a Request<'r>,
}

impl<'a, 'r> Watch<'a, 'r> {
    /// Over the operation's context.
    pub const fn new(ctx: &'a mut Context, request: &'a Request<'r>) -> Self {
        Self { ctx, request }
    }
}

impl Monitor for Watch<'_, '_> {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        // With a rate, progress is what the host counts.
        if self.request.config.rate.get() == 0 {
            self.ctx.records().progress(done, total);
        }
        if self.ctx.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn salvaged(&mut self, what: Salvaged) {
        if !self.request.has(CONVERT_QUIET) {
            self.ctx.records().prefixed(format_args!("{what}"));
        }
    }

    fn pace(&mut self, done: u64, total: u64) {
        if self.request.config.rate.get() == 0 {
            return;
        }
        // The host lets the guest go on when it may.
        let progress = Progress {
            done: U64::new(done),
            total: U64::new(total),
        };
        let records = self.ctx.records();
        let _ = records.record(RecordKind::Progress, &[progress.as_bytes()]);
        records.drain();
    }
}

impl instar_plan_txn::Monitor for Watch<'_, '_> {
    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), instar_plan_txn::Cancelled> {
        if self.ctx.cancelled() {
            Err(instar_plan_txn::Cancelled)
        } else {
            Ok(())
        }
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        self.ctx.grant(bytes)
    }
}
