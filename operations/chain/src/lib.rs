//! Opens images and the files they name, for every operation.
//!
//! The user's word is trusted: a file named on the command line without a known
//! header is a raw disk. An image's word is not: a file that an image names
//! without a format, and that has no known header, is refused, since whoever
//! wrote that file could make it look like any format.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::vec;
use instar_guest_ops::{Context, Disk, OpenError};
use instar_raw::ImageFormat as Probed;
use instar_shared::control::FileRole;
use instar_shared::op::ImageFormat;
use instar_shared::record::FailureKind;
use instar_storage::Storage;

/// The operation cannot go on; the record that says why has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported;

/// Who said what an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The user, on the command line.
    User,
    /// Another image.
    Image,
}

/// Sends the failure of the image in `slot`.
pub fn fail(ctx: &mut Context, slot: u16, reason: core::fmt::Arguments<'_>) -> Reported {
    ctx.records().failure(FailureKind::OpenImage, slot, reason);
    Reported
}

/// The format of `disk`: as told, or by its first bytes.
///
/// # Errors
/// It is a format that cannot be read here, or an image names it without a format.
pub fn format_of(
    ctx: &mut Context,
    disk: &Disk,
    told: ImageFormat,
    by: NamedBy,
) -> Result<ImageFormat, Reported> {
    if told != ImageFormat::Probe {
        return Ok(told);
    }
    let len = usize::try_from(disk.len_bytes())
        .unwrap_or(usize::MAX)
        .min(instar_raw::PROBE_BYTES);
    let mut head = vec![0; len];
    if let Err(e) = disk.read_at(0, &mut head) {
        return Err(fail(
            ctx,
            disk.slot(),
            format_args!("Could not read its first bytes: {e}"),
        ));
    }
    match (instar_raw::probe(&head, disk.len_bytes()), by) {
        (Probed::Qcow2, _) => Ok(ImageFormat::Qcow2),
        (Probed::Raw, NamedBy::User) => Ok(ImageFormat::Raw),
        (Probed::Raw, NamedBy::Image) => Err(fail(
            ctx,
            disk.slot(),
            format_args!(
                "The image names this file without a format, and it has no known header; state its format with \
                 qemu-img rebase -u -F raw"
            ),
        )),
        (other, _) => Err(fail(
            ctx,
            disk.slot(),
            format_args!(
                "It is in the format {}, which instar does not read yet",
                other.name()
            ),
        )),
    }
}

/// The format that an image states for the file it names.
///
/// # Errors
/// The name is no format that can be read here.
pub fn stated_format(
    ctx: &mut Context,
    slot: u16,
    name: Option<&[u8]>,
) -> Result<ImageFormat, Reported> {
    match name {
        None => Ok(ImageFormat::Probe),
        Some(b"raw") => Ok(ImageFormat::Raw),
        Some(b"qcow2") => Ok(ImageFormat::Qcow2),
        Some(other) => Err(fail(
            ctx,
            slot,
            format_args!(
                "Unknown driver '{}'",
                alloc::string::String::from_utf8_lossy(other)
            ),
        )),
    }
}

/// Opens the file that the image in `parent` names.
///
/// # Errors
/// The host's refusal, which it words itself, or no slot is left.
pub fn open_named(
    ctx: &mut Context,
    parent: u16,
    name: &[u8],
    role: FileRole,
) -> Result<Disk, Reported> {
    let slot = ctx.next_slot();
    match ctx.open_backing(parent, name, role) {
        Ok(disk) => Ok(disk),
        // The host knows why, by the slot that stays empty.
        Err(OpenError::Host(..)) => Err(fail(
            ctx,
            slot.unwrap_or(parent),
            format_args!("it could not be opened"),
        )),
        Err(e) => Err(fail(ctx, parent, format_args!("{e}"))),
    }
}
