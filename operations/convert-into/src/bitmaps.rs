//! The source's bitmaps, added to the target's.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use instar_guest_ops::{Context, Disk};
use instar_layers::FileOf;
use instar_plan_bitmap::{Action, Reason, Request, SourceImage, change};
use instar_plan_convert::bitmaps_of;
use instar_qcow2::bitmaps::Bitmap;
use instar_qcow2::{Header, OpenMode};
use op_chain::{Reported, fail};
use op_copy::{Job, Sources, say};
use op_edit::Progress;

/// Adds the bitmaps of a copy to the image in `disk`, which holds the copy.
///
/// # Errors
/// The record that says why has been sent. Those behind the one that cannot be added have been.
pub fn add(ctx: &mut Context, job: &Job<'_, Sources<'_>>, disk: &Disk) -> Result<(), Reported> {
    let top = job
        .sources
        .first()
        .and_then(|source| source.chain.layers().first());
    let Some((layer, from)) = top.and_then(|layer| Some((layer, layer.header()?))) else {
        return Ok(());
    };
    let header = read(ctx, disk)?;
    let there = bitmaps_of(disk, &header);
    let there = there.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))?;
    let judged = |bitmap: &Bitmap| judge(bitmap, &there, from, &header);
    // QEMU walks from the last one to the first, and ends at one that it cannot add.
    let wrong = job.bitmaps.iter().enumerate().rev();
    let wrong = wrong.map(|(index, bitmap)| (index, judged(bitmap)));
    let wrong = wrong.filter_map(|(index, why)| Some((index, why?))).next();
    let first = wrong
        .as_ref()
        .map_or(0, |(index, _)| index.saturating_add(1));
    for bitmap in job.bitmaps.get(first..).unwrap_or_default() {
        let header = read(ctx, disk)?;
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
            storage: layer.store(FileOf::Image),
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
    match wrong.and_then(|(index, why)| Some((job.bitmaps.get(index)?, why))) {
        None => Ok(()),
        Some((bitmap, why @ Reason::Exists { .. })) => Err(create_failed(ctx, &bitmap.name, &why)),
        Some((bitmap, why)) => Err(populate_failed(ctx, &bitmap.name, &why)),
    }
}

fn read(ctx: &mut Context, disk: &Disk) -> Result<Header, Reported> {
    let header = Header::read(disk, OpenMode::Change);
    header.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))
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
