//! What the operations that change an image in place have in common: opening it, and what a planner asks for.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod below;
mod writing;

pub use below::{Below, layers, open_below};
pub use writing::{Written, open_image, open_written};

use core::fmt::Display;
use instar_guest_ops::{Context, Disk};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::FileAccess;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{NeedsRepair, REPAIR_SILENT, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U32;
use op_chain::{
    NamedBy, Open, Reported, Stopped, fail, format_of, open_chain_below, open_qcow2, stopped,
};

/// Whether the images below must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// All of them, as for everything that looks at guest data.
    Whole,
    /// They do not matter.
    Ignored,
}

/// An image that is open for a change.
#[derive(Debug)]
pub struct Opened {
    /// The image.
    pub disk: Disk,
    /// Its format.
    pub format: ImageFormat,
    /// Its header, if it is qcow2.
    pub header: Option<Header>,
    /// Its external data file, open for writing.
    pub data: Option<Disk>,
}

/// Opens the image in `slot` for a change, as QEMU does: a corrupt image is refused, and a dirty one is repaired
/// first.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_for_change(
    ctx: &mut Context,
    slot: u16,
    told: u32,
    chain: Chain,
) -> Result<Opened, Reported> {
    open_for_change_by(open_qcow2, ctx, slot, told, chain)
}

/// As [`open_for_change`], in a program that opens qcow2 images by `open`.
///
/// # Errors
/// As there.
pub fn open_for_change_by(
    open: Open,
    ctx: &mut Context,
    slot: u16,
    told: u32,
    chain: Chain,
) -> Result<Opened, Reported> {
    let disk = ctx.disk(slot).map_err(|_| Reported)?;
    let told = ImageFormat::try_from(told).map_err(|_| Reported)?;
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    if format != ImageFormat::Qcow2 {
        return Ok(Opened {
            disk,
            format,
            header: None,
            data: None,
        });
    }
    let (header, data) = open(ctx, &disk, OpenMode::Change, FileAccess::ReadWrite)?;
    if header.incompatible.corrupt() {
        let reason = "qcow2: Image is corrupt; cannot be opened read/write";
        return Err(fail(ctx, slot, format_args!("{reason}")));
    }
    if chain == Chain::Whole {
        open_chain_below(ctx, slot, &header)?;
    }
    refuse_dirty(ctx, slot, &header, true)?;
    Ok(Opened {
        disk,
        format,
        header: Some(header),
        data,
    })
}

/// Ends the operation if the image in `slot` is marked dirty: its refcounts may be out of date, so that what is written
/// could go over what is in use. The host has it repaired, telling the user if `told`, and begins anew.
///
/// # Errors
/// The image is dirty, and the host knows.
pub fn refuse_dirty(
    ctx: &mut Context,
    slot: u16,
    header: &Header,
    told: bool,
) -> Result<(), Reported> {
    if !header.incompatible.dirty() {
        return Ok(());
    }
    let needs = NeedsRepair {
        slot: U32::new(slot.into()),
        flags: U32::new(if told { 0 } else { REPAIR_SILENT }),
    };
    let _ = ctx
        .records()
        .record(RecordKind::NeedsRepair, &[needs.as_bytes()]);
    Err(Reported)
}

/// Tells the user why the operation failed: `sentence` stands after the program's name.
pub fn failed(ctx: &mut Context, sentence: &dyn Display) -> Outcome {
    stopped(ctx, "change", &Stopped::Failed(sentence))
}

/// A planner's [`Monitor`] over the operation's context.
#[derive(Debug)]
pub struct Progress<'a>(pub &'a mut Context);

impl Monitor for Progress<'_> {
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
