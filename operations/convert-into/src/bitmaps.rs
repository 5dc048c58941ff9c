//! The source's bitmaps, added to the target's, which holds the copy.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use instar_guest_ops::{Context, Disk};
use instar_plan_bitmap::{Action, Reason, Request, SourceImage, change};
use instar_plan_convert::bitmaps_of;
use instar_qcow2::bitmaps::Bitmap;
use instar_qcow2::{Header, OpenMode};
use instar_shared::convert::{ConvertConfig, ConvertResult};
use instar_shared::op::{ImageFormat, Outcome};
use op_chain::{Reported, fail, read_header};
use op_copy::say;
use op_edit::Progress;

/// Adds the bitmaps of the first source to the target that it has been copied to, both as the host's [`ConvertConfig`]
/// says, and tells the host how it went. What the images are and that their bitmaps can be copied, the copy has seen.
pub fn run(ctx: &mut Context) {
    let config: ConvertConfig = ctx.config();
    let mut result = ConvertResult::zeroed();
    let outcome = add(ctx, &config, &mut result);
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    let outcome = outcome.map_or(failed, |()| Outcome::Done);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

/// Adds the bitmaps. Those behind the one that cannot be added are there after a failure.
fn add(
    ctx: &mut Context,
    config: &ConvertConfig,
    result: &mut ConvertResult,
) -> Result<(), Reported> {
    let source = ctx.disk(0).map_err(|_| Reported)?;
    let slot = u16::try_from(config.target_slot.get()).map_err(|_| Reported)?;
    let disk = &ctx.disk(slot).map_err(|_| Reported)?;
    let from = &read_header(ctx, &source, OpenMode::Change)?;
    result.source_format.set(ImageFormat::Qcow2.raw());
    result.size.set(from.whole_sectors_size());
    let bitmaps = bitmaps_in(ctx, &source, from)?;
    let bitmaps: Vec<&Bitmap> = bitmaps.iter().filter(|one| !one.in_use()).collect();
    let header = read_header(ctx, disk, OpenMode::Change)?;
    let there = bitmaps_in(ctx, disk, &header)?;
    let judged = |bitmap: &Bitmap| judge(bitmap, &there, from, &header);
    // QEMU walks from the last one to the first, and ends at one that it cannot add.
    let wrong = bitmaps.iter().enumerate().rev();
    let wrong = wrong.map(|(index, bitmap)| (index, judged(bitmap)));
    let wrong = wrong.filter_map(|(index, why)| Some((index, why?))).next();
    let first = wrong
        .as_ref()
        .map_or(0, |(index, _)| index.saturating_add(1));
    for bitmap in bitmaps.get(first..).unwrap_or_default() {
        let header = read_header(ctx, disk, OpenMode::Change)?;
        let granularity = bitmap.granularity_bytes();
        let name = bitmap.name.as_slice();
        let mut actions = Vec::from([Action::Add { granularity }]);
        if !bitmap.auto() {
            actions.push(Action::Disable);
        }
        actions.push(Action::Merge { source: name });
        let request = Request {
            name,
            actions: &actions,
        };
        let source = SourceImage::Other {
            storage: &source,
            header: from,
        };
        let added = change(disk, &header, &source, &request, &mut Progress(ctx));
        let report = added.map_err(|error| populate_failed(ctx, name, &error))?;
        if let Some(failed) = report.failed {
            return Err(match failed.verb {
                "merge" => populate_failed(ctx, name, &failed.reason),
                _ => create_failed(ctx, name, &failed.reason),
            });
        }
        if let Some(line) = report.sentences().first() {
            return Err(say::sentence(ctx, format_args!("{line}")));
        }
    }
    match wrong.and_then(|(index, why)| Some((bitmaps.get(index)?, why))) {
        None => Ok(()),
        Some((bitmap, why @ Reason::Exists { .. })) => Err(create_failed(ctx, &bitmap.name, &why)),
        Some((bitmap, why)) => Err(populate_failed(ctx, &bitmap.name, &why)),
    }
}

fn bitmaps_in(ctx: &mut Context, disk: &Disk, header: &Header) -> Result<Vec<Bitmap>, Reported> {
    let found = bitmaps_of(disk, header);
    found.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))
}

/// Why a bitmap cannot be added to those that are there.
fn judge(bitmap: &Bitmap, there: &[Bitmap], from: &Header, to: &Header) -> Option<Reason> {
    if there.iter().any(|other| other.name == bitmap.name) {
        let name = bitmap.name.clone();
        return Some(Reason::Exists { name });
    }
    let (destination, origin) = (to.whole_sectors_size(), from.whole_sectors_size());
    (destination != origin).then_some(Reason::Sizes {
        destination,
        origin,
    })
}

fn create_failed(ctx: &mut Context, name: &[u8], why: &dyn Display) -> Reported {
    let name = String::from_utf8_lossy(name);
    say::sentence(ctx, format_args!("Failed to create bitmap {name}: {why}"))
}

fn populate_failed(ctx: &mut Context, name: &[u8], why: &dyn Display) -> Reported {
    let name = String::from_utf8_lossy(name);
    say::sentence(ctx, format_args!("Failed to populate bitmap {name}: {why}"))
}
