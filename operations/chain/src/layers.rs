//! A whole backing chain, opened for its content.

use crate::keys::{Image, NO_KEYS, Unlock};
use crate::{NamedBy, Reported, fail, format_of, open_backing};
use alloc::boxed::Box;
use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_layers::{Chain, DataError, Layer, View};
use instar_qcow2::Header;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_L1_BYTES};
use instar_qcow2::snapshot::{Snapshot, SnapshotTable};
use instar_shared::control::FileAccess;
use instar_shared::op::ImageFormat;
use instar_shared::record::FailureKind;
use instar_storage::Cipher;

/// Memory that a layer takes at most: its tables, and its requests.
const LAYER_BYTES: u64 = 512 << 10;
/// Layers that need no more memory than every operation has.
const SHORT_CHAIN: u64 = 16;

/// Which snapshot the user means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotName<'a> {
    /// The first with this ID, else the first with this name.
    IdOrName(&'a [u8]),
    /// The first with this ID and this name, as far as they are given.
    Both {
        /// The ID.
        id: Option<&'a [u8]>,
        /// The name.
        name: Option<&'a [u8]>,
    },
}

/// An image with its whole backing chain.
#[derive(Debug)]
pub struct Layers {
    /// The images, each with its files.
    pub chain: Chain<Disk>,
    /// The format of the top one.
    pub format: ImageFormat,
}

/// Opens `disk`, which the user named as `told`, and everything below it for its content. No key is known.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_layers(ctx: &mut Context, disk: Disk, told: ImageFormat) -> Result<Layers, Reported> {
    open_layers_with(ctx, disk, told, NO_KEYS)
}

/// As [`open_layers`], of images that `unlock` may have keys of.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_layers_with(
    ctx: &mut Context,
    disk: Disk,
    told: ImageFormat,
    unlock: Unlock<'_>,
) -> Result<Layers, Reported> {
    open(ctx, disk, told, unlock, &|_, _| Ok(View::Active))
}

/// As [`open_layers_with`], with the top image as it was at a snapshot. A raw image has none.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_layers_of(
    ctx: &mut Context,
    disk: Disk,
    told: ImageFormat,
    snapshot: Option<SnapshotName<'_>>,
    unlock: Unlock<'_>,
) -> Result<Layers, Reported> {
    open(
        ctx,
        disk,
        told,
        unlock,
        &|ctx, image| match (snapshot, image) {
            (None, _) => Ok(View::Active),
            (Some(_), None) => Err(no_snapshot(ctx, NO_SNAPSHOTS)),
            (Some(name), Some((disk, header))) => snapshot_view(ctx, disk, header, name),
        },
    )
}

/// Says which state of the top image is meant; it gets the image if that is qcow2. What an operation does not ask
/// for, snapshots, is so not linked into it.
type TopView<'a> = &'a dyn Fn(&mut Context, Option<(&Disk, &Header)>) -> Result<View, Reported>;

fn open(
    ctx: &mut Context,
    disk: Disk,
    told: ImageFormat,
    mut unlock: Unlock<'_>,
    top: TopView<'_>,
) -> Result<Layers, Reported> {
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    let mut parts = Vec::new();
    let mut next = Some((disk, format));
    while let Some((disk, format)) = next.take() {
        if format != ImageFormat::Qcow2 {
            parts.push(Part::Raw(Box::new(disk)));
            break;
        }
        let slot = disk.slot();
        let (header, data) = unlock.open_qcow2(ctx, &disk, FileAccess::Read)?;
        let image = Image {
            disk: &disk,
            header: &header,
        };
        let cipher = unlock.cipher(ctx, &image)?;
        unlock.descend();
        next = open_backing(ctx, slot, &header, FileAccess::Read)?;
        parts.push(Part::Qcow2(Box::new(Qcow2 {
            disk,
            data,
            header,
            cipher,
        })));
    }
    let more = (parts.len() as u64).saturating_sub(SHORT_CHAIN);
    if more > 0 {
        // What is not granted is missed where it is needed.
        let _ = ctx.grant(more.saturating_mul(LAYER_BYTES));
    }
    let chain = build(ctx, parts, top)?;
    Ok(Layers { chain, format })
}

/// An image that is open.
enum Part {
    Raw(Box<Disk>),
    Qcow2(Box<Qcow2>),
}

/// A qcow2 image that is open.
struct Qcow2 {
    disk: Disk,
    data: Option<Disk>,
    header: Header,
    cipher: Option<&'static dyn Cipher>,
}

/// The chain of all that is open.
fn build(ctx: &mut Context, parts: Vec<Part>, top: TopView<'_>) -> Result<Chain<Disk>, Reported> {
    let mut layers = Vec::with_capacity(parts.len());
    let mut top = Some(top);
    for part in parts {
        let mut view = |ctx: &mut Context, image| match top.take() {
            Some(top) => top(ctx, image),
            None => Ok(View::Active),
        };
        layers.push(match part {
            Part::Raw(disk) => {
                view(ctx, None)?;
                Layer::raw(*disk)
            }
            Part::Qcow2(image) => {
                let Qcow2 {
                    disk,
                    data,
                    header,
                    cipher,
                } = *image;
                let view = view(ctx, Some((&disk, &header)))?;
                Layer::qcow2_with(disk, data, header, view, cipher)
            }
        });
    }
    Ok(Chain::new(layers))
}

/// The state of the image at a snapshot.
///
/// # Errors
/// There is none of this name, or the table cannot be read: the record that says so has been sent.
pub fn snapshot_view(
    ctx: &mut Context,
    disk: &Disk,
    header: &Header,
    name: SnapshotName<'_>,
) -> Result<View, Reported> {
    let mut named = None;
    for entry in SnapshotTable::new(disk, header) {
        let entry = entry.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))?;
        match name {
            SnapshotName::IdOrName(text) if entry.id == text => {
                return view_of(ctx, &entry, header);
            }
            SnapshotName::IdOrName(text) if named.is_none() && entry.name == text => {
                named = Some(entry);
            }
            SnapshotName::Both { id, name }
                if id.is_none_or(|id| entry.id == id)
                    && name.is_none_or(|name| entry.name == name) =>
            {
                return view_of(ctx, &entry, header);
            }
            _ => {}
        }
    }
    match named {
        Some(entry) => view_of(ctx, &entry, header),
        None => Err(no_snapshot(ctx, NOT_FOUND)),
    }
}

/// The state at `snapshot`. Its virtual size is the image's, whatever it was then.
fn view_of(ctx: &mut Context, snapshot: &Snapshot, header: &Header) -> Result<View, Reported> {
    let offset = snapshot.l1_table_offset.get();
    let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
    let end = offset.saturating_add(bytes);
    let refusal = if bytes > MAX_L1_BYTES {
        "Snapshot L1 table too large"
    } else if !header.cluster_bits.is_aligned(offset) || end > i64::MAX.unsigned_abs() {
        "Snapshot L1 table offset invalid"
    } else if bytes > 0 && end > MAX_FILE_BYTES {
        "Failed to read l1 table for snapshot"
    } else {
        return Ok(View::Snapshot {
            l1_offset: offset,
            l1_entries: snapshot.l1_size,
            size: header.virtual_size,
        });
    };
    Err(no_snapshot(ctx, refusal))
}

const NO_SNAPSHOTS: &str = "Block format 'raw' used by device '' does not support temporarily loading internal \
                            snapshots";
const NOT_FOUND: &str = "Can't find snapshot";

fn no_snapshot(ctx: &mut Context, reason: &str) -> Reported {
    let text = format_args!("Failed to load snapshot: {reason}");
    ctx.records().failure(FailureKind::Operation, 0, text);
    Reported
}

/// Prints what `qemu-img` prints on standard error as soon as it meets this damage, if it prints anything.
pub fn notice(ctx: &mut Context, error: &DataError) {
    if let Some(notice) = error.notice() {
        ctx.records().diagnostic(format_args!("{notice}"));
    }
}
