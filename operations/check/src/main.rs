//! The check operation: a qcow2 image against its own metadata, nothing written.
#![no_std]
#![no_main]

use instar_guest_ops::{Context, Disk};
use instar_plan_check::{Cancelled, CheckError, CheckSummary, MessageKind, Reporter};
use instar_qcow2::{Header, OpenMode};
use instar_shared::check::{CheckConfig, CheckResult};
use instar_shared::control::FileRole;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{FailureKind, RecordKind};
use op_chain::{NamedBy, Reported, fail, format_of, open_named, stated_format};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: CheckConfig = ctx.config();
    let mut result = CheckResult::zeroed();
    let outcome = match ImageFormat::try_from(config.format.get()) {
        Ok(told) => check_image(ctx, told, &mut result).unwrap_or(Outcome::Failed),
        Err(_) => Outcome::Failed,
    };
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn check_image(
    ctx: &mut Context,
    told: ImageFormat,
    result: &mut CheckResult,
) -> Result<Outcome, Reported> {
    let Ok(disk) = ctx.disk(0) else {
        return Ok(Outcome::Failed);
    };
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    result.format.set(format.raw());
    if format != ImageFormat::Qcow2 {
        return Ok(Outcome::Unsupported);
    }
    let header = open_qcow2(ctx, &disk)?;
    open_chain_below(ctx, disk.slot(), &header)?;
    match instar_plan_check::check(&disk, &header, &mut Stream(ctx)) {
        Ok(summary) => {
            fill(result, &summary);
            Ok(Outcome::Done)
        }
        Err(CheckError::Cancelled) => Ok(Outcome::Cancelled),
        Err(CheckError::OutOfMemory) => {
            let text =
                format_args!("The check needs more memory than it was given; raise --memory");
            ctx.records().failure(FailureKind::Memory, 0, text);
            Ok(Outcome::Failed)
        }
        Err(e @ CheckError::Failed { .. }) => {
            ctx.records()
                .failure(FailureKind::Operation, 0, format_args!("{e}"));
            Ok(Outcome::Failed)
        }
    }
}

/// Opens a qcow2 image as `check` does: its metadata is in the clear, so no key is asked for.
fn open_qcow2(ctx: &mut Context, disk: &Disk) -> Result<Header, Reported> {
    let header = Header::read(disk, OpenMode::CheckWithKey);
    let header = header.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))?;
    if let Some(name) = data_file(&header) {
        open_named(ctx, disk.slot(), name, FileRole::Data)?;
    }
    Ok(header)
}

fn data_file(header: &Header) -> Option<&[u8]> {
    header
        .extensions
        .data_file_name
        .as_deref()
        .filter(|_| header.incompatible.external_data_file())
}

/// The whole chain must be there and open, or there is no check; its data is not looked at.
fn open_chain_below(ctx: &mut Context, top: u16, header: &Header) -> Result<(), Reported> {
    let (mut parent, mut above) = (top, header.clone());
    while let Some(name) = above.backing_file.take() {
        let disk = open_named(ctx, parent, &name, FileRole::Backing)?;
        let stated = stated_format(ctx, disk.slot(), above.extensions.backing_format.as_deref())?;
        if format_of(ctx, &disk, stated, NamedBy::Image)? != ImageFormat::Qcow2 {
            break;
        }
        (parent, above) = (disk.slot(), open_qcow2(ctx, &disk)?);
    }
    Ok(())
}

fn fill(result: &mut CheckResult, summary: &CheckSummary) {
    result.corruptions.set(summary.corruptions);
    result.leaks.set(summary.leaks);
    result.check_errors.set(summary.check_errors);
    result.image_end_offset.set(summary.image_end_offset);
    result.total_clusters.set(summary.total_clusters);
    result.allocated_clusters.set(summary.allocated_clusters);
    result.fragmented_clusters.set(summary.fragmented_clusters);
    result.compressed_clusters.set(summary.compressed_clusters);
}

/// Passes the check's findings to the record stream.
struct Stream<'a>(&'a mut Context);

impl Reporter for Stream<'_> {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let kind = match kind {
            MessageKind::Plain => RecordKind::Diagnostic,
            MessageKind::Prefixed => RecordKind::Prefixed,
        };
        // A name of 64 KiB makes a line that no record holds; its start says enough.
        let (start, _) = line.split_at(line.len().min(instar_shared::record::MAX_PAYLOAD));
        let _ = self.0.records().record(kind, &[start]);
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        self.0.records().progress(done, total);
        if self.0.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        self.0.grant(bytes)
    }
}
