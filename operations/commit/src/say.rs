//! What the user is told while it runs and when it fails.

use core::fmt::Arguments;
use instar_guest_ops::{Context, Disk};
use instar_plan_commit::{Cancelled, CommitError, Image, Monitor};
use instar_plan_repair::{MessageKind, Reporter, repair_dirty};
use instar_qcow2::Header;
use instar_shared::record::{FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use op_chain::{Findings, Reported, fail};

/// Fails with a sentence.
pub fn sentence(ctx: &mut Context, text: Arguments<'_>) -> Reported {
    ctx.records().failure(FailureKind::Operation, 0, text);
    Reported
}

/// The commit failed.
pub fn failed(ctx: &mut Context, error: &CommitError) -> Reported {
    if let Some(notice) = error.notice() {
        ctx.records().diagnostic(format_args!("{notice}"));
    }
    let kind = match error {
        CommitError::Cancelled => FailureKind::Cancelled,
        CommitError::OutOfMemory => FailureKind::Memory,
        _ => FailureKind::Operation,
    };
    ctx.records().failure(kind, 0, format_args!("{error}"));
    Reported
}

/// Watches the copy.
pub struct Watch<'a> {
    /// The operation's context.
    pub ctx: &'a mut Context,
    /// There is a rate, and progress is what the host counts.
    pub paced: bool,
}

impl Monitor for Watch<'_> {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        if !self.paced {
            self.ctx.records().progress(done, total);
        }
        if self.ctx.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn pace(&mut self, done: u64, total: u64) {
        if !self.paced {
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

/// Watches a repair. Of the base's QEMU says nothing.
pub struct Repairs<'a> {
    /// The operation's context.
    pub ctx: &'a mut Context,
    /// What is found is said.
    pub told: bool,
}

impl Reporter for Repairs<'_> {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        if self.told {
            Findings(self.ctx).message(kind, line);
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), instar_plan_repair::Cancelled> {
        Findings(self.ctx).progress(done, total)
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        self.ctx.grant(bytes)
    }
}

/// Repairs an image if its refcounts may be out of date: else what is written could go over what is in use. QEMU does so
/// when it opens one for writing.
///
/// # Errors
/// The record that says why has been sent.
pub fn clean(ctx: &mut Context, image: &mut Image<Disk>, told: bool) -> Result<(), Reported> {
    let dirty = |header: &&Header| header.incompatible.dirty();
    let Some(header) = image.header.as_ref().filter(dirty) else {
        return Ok(());
    };
    let repaired = repair_dirty(&image.disk, header, &mut Repairs { ctx, told });
    let repaired = repaired.map_err(|e| {
        let reason = format_args!("Could not repair dirty image: {e}");
        fail(ctx, image.disk.slot(), reason)
    })?;
    image.header = Some(repaired);
    Ok(())
}
