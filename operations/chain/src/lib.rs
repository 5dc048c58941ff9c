//! Opens images and the files they name, for every operation.
//!
//! The user's word is trusted: a file named on the command line without a known
//! header is a raw disk. An image's word is not: a file that an image names
//! without a format, and that has no known header, is refused, since whoever
//! wrote that file could make it look like any format.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod keys;
mod layers;
mod stopped;

pub use keys::{Image, Keys, NO_KEYS, NoKeys, OtherEncryption, Unlock, judge_encryption};
pub use layers::{
    Layers, SnapshotName, notice, open_layers, open_layers_of, open_layers_with, snapshot_view,
};
pub use stopped::{Stopped, stopped};

use alloc::vec;
use instar_guest_ops::{Context, Disk, OpenError};
use instar_plan_check::{Cancelled, MessageKind, Reporter};
use instar_qcow2::header::{Lossy, OpenError as HeaderError};
use instar_qcow2::snapshot::Snapshot;
use instar_qcow2::{Header, OpenMode};
use instar_raw::ImageFormat as Probed;
use instar_shared::control::{FileAccess, FileRole};
use instar_shared::device::{
    BELOW_NONE, BELOW_QCOW2, BELOW_RAW, BELOW_TOLD, BELOW_TYPED, DATA_FILE_TOLD,
};
use instar_shared::info::{NO_ICOUNT, SnapshotRecord};
use instar_shared::op::ImageFormat;
use instar_shared::record::{FailureKind, MAX_PAYLOAD, RecordKind};
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
fn stated_format(
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
            format_args!("Unknown driver '{}'", Lossy(other)),
        )),
    }
}

/// Opens the file that the image in `parent` names.
///
/// # Errors
/// The host's refusal, which it words itself, or no slot is left.
fn open_named(
    ctx: &mut Context,
    parent: u16,
    name: &[u8],
    role: FileRole,
    access: FileAccess,
) -> Result<Disk, Reported> {
    let slot = ctx.next_slot();
    match ctx.open_file(parent, name, role, access) {
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

/// Opens the backing file that the image in `parent` names in its `header`, or that the user puts in its place, and
/// says what format it is in; `None` if there is none.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_backing(
    ctx: &mut Context,
    parent: u16,
    header: &Header,
    access: FileAccess,
) -> Result<Option<(Disk, ImageFormat)>, Reported> {
    let said = ctx.said_below(parent);
    let name = match &header.backing_file {
        Some(name) if said & BELOW_NONE == 0 => name.as_slice(),
        // The host knows the file, or says that there is none.
        None if said & (BELOW_NONE | BELOW_TOLD) == BELOW_TOLD => &[],
        _ => return Ok(None),
    };
    let stated = match said & (BELOW_RAW | BELOW_QCOW2) {
        BELOW_RAW => Some(b"raw".as_slice()),
        BELOW_QCOW2 => Some(b"qcow2".as_slice()),
        _ => header.extensions.backing_format.as_deref(),
    };
    let by = if said & BELOW_TYPED == 0 {
        NamedBy::Image
    } else {
        NamedBy::User
    };
    open_backing_as(ctx, parent, (name, stated, by), access).map(Some)
}

/// Opens a backing file by its name, of the format that is stated.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_backing_as(
    ctx: &mut Context,
    parent: u16,
    (name, stated, by): (&[u8], Option<&[u8]>, NamedBy),
    access: FileAccess,
) -> Result<(Disk, ImageFormat), Reported> {
    let disk = open_named(ctx, parent, name, FileRole::Backing, access)?;
    let stated = stated_format(ctx, disk.slot(), stated)?;
    let format = format_of(ctx, &disk, stated, by)?;
    Ok((disk, format))
}

/// Opens a qcow2 image for `mode`: its header, and its external data file if it has one.
///
/// # Errors
/// The image's damage, or the host's refusal of the data file.
pub fn open_qcow2(
    ctx: &mut Context,
    disk: &Disk,
    mode: OpenMode,
    access: FileAccess,
) -> Result<(Header, Option<Disk>), Reported> {
    let header = read_header(ctx, disk, mode)?;
    with_data_file(ctx, disk, header, access)
}

/// How a program opens a qcow2 image for a mode: by [`open_qcow2`] or by [`open_unencrypted`].
pub type Open =
    fn(&mut Context, &Disk, OpenMode, FileAccess) -> Result<(Header, Option<Disk>), Reported>;

/// As [`open_qcow2`], in a program without the code for encrypted images: for one of them its fuller program runs.
///
/// # Errors
/// As there; the image is encrypted, and the host knows.
pub fn open_unencrypted(
    ctx: &mut Context,
    disk: &Disk,
    mode: OpenMode,
    access: FileAccess,
) -> Result<(Header, Option<Disk>), Reported> {
    let header = match Header::read_unencrypted(disk, mode) {
        Ok(header) => header,
        Err(HeaderError::KeyRequired) => return Err(ask_for_fuller(ctx)),
        Err(e) => return Err(fail(ctx, disk.slot(), format_args!("{e}"))),
    };
    with_data_file(ctx, disk, header, access)
}

/// Ends the operation, which must not have written anything: the host runs its fuller program in its place.
pub fn ask_for_fuller(ctx: &mut Context) -> Reported {
    let _ = ctx.records().record(RecordKind::NeedsFuller, &[]);
    Reported
}

/// Reads the header of a qcow2 image for `mode`.
///
/// # Errors
/// The image cannot be opened: the record that says so has been sent.
pub fn read_header(ctx: &mut Context, disk: &Disk, mode: OpenMode) -> Result<Header, Reported> {
    Header::read(disk, mode).map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))
}

/// A header that was read, with the external data file that it names or the host knows.
fn with_data_file(
    ctx: &mut Context,
    disk: &Disk,
    header: Header,
    access: FileAccess,
) -> Result<(Header, Option<Disk>), Reported> {
    if let Some(warning) = &header.extensions.bitmaps_ignored {
        ctx.records().prefixed(format_args!("warning: {warning}"));
    }
    let slot = disk.slot();
    let name = header.extensions.data_file_name.as_deref();
    let name = name.filter(|_| header.incompatible.external_data_file());
    // The host says that there is none.
    let told = disk.said_below() & DATA_FILE_TOLD != 0;
    let data = match name.or(told.then_some(&[])) {
        Some(name) => Some(open_named(ctx, slot, name, FileRole::Data, access)?),
        None => None,
    };
    Ok((header, data))
}

/// Opens every image below the one in slot `top`, and closes it again: QEMU does nothing to an image whose
/// chain is not whole.
///
/// # Errors
/// One of them cannot be opened.
pub fn open_chain_below(ctx: &mut Context, top: u16, header: &Header) -> Result<(), Reported> {
    let (mut parent, mut above) = (top, header.clone());
    while let Some((disk, format)) = open_backing(ctx, parent, &above, FileAccess::Read)? {
        if format != ImageFormat::Qcow2 {
            break;
        }
        let opened = open_qcow2(ctx, &disk, OpenMode::CheckWithKey, FileAccess::Read)?;
        (parent, above) = (disk.slot(), opened.0);
    }
    Ok(())
}

/// The fixed part of the record of an internal snapshot; its ID and name follow.
#[must_use]
pub fn snapshot_record(snapshot: &Snapshot) -> SnapshotRecord {
    let len = |name: &[u8]| u32::try_from(name.len()).unwrap_or(u32::MAX);
    SnapshotRecord {
        vm_state_size: snapshot.vm_state_size.into(),
        date_sec: snapshot.date_sec.into(),
        date_nsec: snapshot.date_nsec.into(),
        vm_clock_nsec: snapshot.vm_clock_nsec.into(),
        icount: snapshot.icount.unwrap_or(NO_ICOUNT).into(),
        disk_size: snapshot.disk_size.unwrap_or(0).into(),
        id_len: len(snapshot.shown_id()).into(),
        name_len: len(snapshot.shown_name()).into(),
    }
}

/// Passes what a check or a repair finds to the record stream.
#[derive(Debug)]
pub struct Findings<'a>(pub &'a mut Context);

impl Reporter for Findings<'_> {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let kind = match kind {
            MessageKind::Plain => RecordKind::Diagnostic,
            MessageKind::Prefixed => RecordKind::Prefixed,
        };
        // A name of 64 KiB makes a line that no record holds; its start says enough.
        let (start, _) = line.split_at(line.len().min(MAX_PAYLOAD));
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
