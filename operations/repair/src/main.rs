//! The repair operation: a qcow2 image checked, repaired, and checked again.
#![no_std]
#![no_main]

use core::fmt::Display;
use instar_guest_ops::{Context, Disk};
use instar_plan_repair::{CheckError, Mode, Repaired, repair, repair_dirty};
use instar_qcow2::{Header, OpenMode};
use instar_shared::check::{CheckConfig, CheckResult, RepairMode};
use instar_shared::control::FileAccess;
use instar_shared::op::{ImageFormat, Outcome};
use op_chain::{
    Findings, NamedBy, Reported, Stopped, fail, format_of, open_chain_below, open_qcow2, stopped,
};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: CheckConfig = ctx.config();
    let mut result = CheckResult::zeroed();
    let told = ImageFormat::try_from(config.format.get());
    let mode = RepairMode::try_from(config.repair.get());
    let outcome = match (told, mode) {
        (Ok(told), Ok(mode)) => {
            repair_image(ctx, told, mode, &mut result).unwrap_or(Outcome::Failed)
        }
        _ => Outcome::Failed,
    };
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn repair_image(
    ctx: &mut Context,
    told: ImageFormat,
    mode: RepairMode,
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
    let mode = match mode {
        RepairMode::Leaks => Mode::Leaks,
        RepairMode::All => Mode::All,
        RepairMode::Dirty => return clean(ctx, &disk),
    };
    // Its metadata is in the clear, so no key is asked for. What is in a data file is not changed, but
    // QEMU opens it for writing, so that nobody else has it.
    let (header, _data) = open_qcow2(ctx, &disk, OpenMode::CheckWithKey, FileAccess::ReadWrite)?;
    open_chain_below(ctx, disk.slot(), &header)?;
    match repair(&disk, &header, mode, &mut Findings(ctx)) {
        Ok(repaired) => {
            fill(result, &repaired);
            Ok(Outcome::Done)
        }
        Err(e) => {
            let why = match &e {
                CheckError::Cancelled => Stopped::Cancelled,
                CheckError::OutOfMemory => Stopped::OutOfMemory,
                CheckError::Failed { .. } => Stopped::Failed(&e),
            };
            Ok(stopped(ctx, "repair", &why))
        }
    }
}

/// Repairs an image before another operation changes it, if it is marked dirty. That operation has opened the files that
/// the image names, and shows the failure.
fn clean(ctx: &mut Context, disk: &Disk) -> Result<Outcome, Reported> {
    let failed = |ctx: &mut Context, e: &dyn Display| fail(ctx, disk.slot(), format_args!("{e}"));
    let header = Header::read(disk, OpenMode::Change).map_err(|e| failed(ctx, &e))?;
    if !header.incompatible.dirty() {
        return Ok(Outcome::Done);
    }
    match repair_dirty(disk, &header, &mut Findings(ctx)) {
        Ok(_) => Ok(Outcome::Done),
        Err(CheckError::Cancelled) => Ok(Outcome::Cancelled),
        Err(e) => Err(failed(ctx, &e)),
    }
}

fn fill(result: &mut CheckResult, repaired: &Repaired) {
    let left = &repaired.summary;
    result.corruptions.set(left.corruptions);
    result.leaks.set(left.leaks);
    result.check_errors.set(left.check_errors);
    result.image_end_offset.set(left.image_end_offset);
    result.total_clusters.set(left.total_clusters);
    result.allocated_clusters.set(left.allocated_clusters);
    result.fragmented_clusters.set(left.fragmented_clusters);
    result.compressed_clusters.set(left.compressed_clusters);
    result.corruptions_fixed.set(repaired.corruptions_fixed);
    result.leaks_fixed.set(repaired.leaks_fixed);
}
