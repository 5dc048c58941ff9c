//! The bench operation for requests that write.
#![no_std]
#![no_main]

mod qcow2;

use instar_guest_ops::{Context, Disk, DiskSet};
use instar_plan_bench::RawWriter;
use instar_shared::bench::BenchResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use instar_storage::Storage;
use op_bench::{Asked, time};
use op_chain::{NO_KEYS, NamedBy, Reported, fail, format_of};
use op_edit::open_written;

instar_guest_ops::entry!(run);

/// Bytes of a sector, the unit of a disk's size.
const SECTOR_BYTES: u64 = 512;

fn run(ctx: &mut Context) {
    op_bench::run(ctx, write);
}

fn write(ctx: &mut Context, asked: &Asked, result: &mut BenchResult) -> Result<Outcome, Reported> {
    let disk = &ctx.disk(0).map_err(|_| Reported)?;
    let format = format_of(ctx, disk, asked.told, NamedBy::User)?;
    result.format.set(format.raw());
    if format == ImageFormat::Qcow2 {
        return write_qcow2(ctx, disk, asked, result);
    }
    let len = disk.len_bytes();
    let mut image = RawWriter {
        file: disk.slot(),
        len_bytes: len.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(len),
    };
    let set = DiskSet::new([disk]).ok_or(Reported)?;
    time(ctx, &set, &mut image, &asked.settings, result)
}

fn write_qcow2(
    ctx: &mut Context,
    disk: &Disk,
    asked: &Asked,
    result: &mut BenchResult,
) -> Result<Outcome, Reported> {
    let (written, below) = open_written(ctx, disk, NO_KEYS)?;
    let files = [Some(disk), written.data.as_ref()];
    let set = DiskSet::new(files.into_iter().flatten()).ok_or(Reported)?;
    let image = written.begin(ctx, below);
    let image = image.map_err(|e| fail(ctx, 0, format_args!("{e}")))?;
    let mut image = qcow2::Writer::new(image, written.slots());
    let sent = time(ctx, &set, &mut image, &asked.settings, result);
    // What is written is in the image whatever came after it.
    let kept = image.finish();
    match (sent, kept) {
        (Ok(_), Err(error)) => {
            let records = ctx.records();
            records.failure(FailureKind::Operation, 0, format_args!("{error}"));
            Err(Reported)
        }
        (sent, _) => sent,
    }
}
