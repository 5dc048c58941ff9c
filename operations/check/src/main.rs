//! The check operation: a qcow2 image against its own metadata, nothing written.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use instar_plan_check::{CheckError, CheckSummary};
use instar_qcow2::OpenMode;
use instar_shared::check::{CheckConfig, CheckResult};
use instar_shared::control::FileAccess;
use instar_shared::op::{ImageFormat, Outcome};
use op_chain::{
    Findings, NamedBy, Reported, Stopped, format_of, open_chain_below, open_qcow2, stopped,
};

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
    // Its metadata is in the clear, so no key is asked for.
    let (header, _data) = open_qcow2(ctx, &disk, OpenMode::CheckWithKey, FileAccess::Read)?;
    open_chain_below(ctx, disk.slot(), &header)?;
    match instar_plan_check::check(&disk, &header, &mut Findings(ctx)) {
        Ok(summary) => {
            fill(result, &summary);
            Ok(Outcome::Done)
        }
        Err(e) => {
            let why = match &e {
                CheckError::Cancelled => Stopped::Cancelled,
                CheckError::OutOfMemory => Stopped::OutOfMemory,
                CheckError::Failed { .. } => Stopped::Failed(&e),
            };
            Ok(stopped(ctx, "check", &why))
        }
    }
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
