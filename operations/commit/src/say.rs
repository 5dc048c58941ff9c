//! What the user is told while it runs and when it fails.

use core::fmt::Arguments;
use instar_guest_ops::Context;
use instar_plan_commit::{Cancelled, CommitError, Monitor};
use instar_shared::record::{FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use op_chain::Reported;

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
