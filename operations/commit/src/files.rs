//! The chain, taken apart at the base.

use alloc::boxed::Box;
use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::{Chain, DataError, FileOf, Layer, View};
use instar_plan_commit::{Image, Numbers};
use instar_qcow2::header::CryptMethod;
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::{FileAccess, FileRole};
use instar_shared::op::ImageFormat;
use op_chain::{NamedBy, Reported, fail, format_of, open_named, open_qcow2, stated_format};

/// Memory that an image takes at most: its tables, and its requests.
const IMAGE_BYTES: u64 = 512 << 10;
/// Images that need no more memory than every operation has.
const SHORT_CHAIN: usize = 16;
/// What both images that are changed must not be.
const CORRUPT: &str = "qcow2: Image is corrupt; cannot be opened read/write";

/// An image that is open.
pub struct Opened {
    /// The image, its data file, its header.
    pub image: Box<Image<Disk>>,
    /// It may be written.
    pub writable: bool,
}

/// Opens all images of the chain, the top first. The host opens the base for writing.
///
/// # Errors
/// The record that says why has been sent.
pub fn open(ctx: &mut Context, told: ImageFormat) -> Result<Vec<Opened>, Reported> {
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    let mut images: Vec<Opened> = Vec::new();
    let mut next = Some((disk, format));
    while let Some((disk, format)) = next.take() {
        let writable = !disk.is_read_only();
        if format != ImageFormat::Qcow2 {
            let (data, header) = (None, None);
            let image = Box::new(Image { disk, data, header });
            images.push(Opened { image, writable });
            break;
        }
        let slot = disk.slot();
        let (header, data) = open_one(ctx, &disk, writable)?;
        if let Some(name) = &header.backing_file {
            // The first of them that may be written is the base, and the others are only read.
            let access =
                if images.iter().skip(1).any(|image| image.writable) || (writable && slot != 0) {
                    FileAccess::Read
                } else {
                    FileAccess::ReadWrite
                };
            let disk = open_named(ctx, slot, name, FileRole::Backing, access)?;
            let stated = header.extensions.backing_format.as_deref();
            let stated = stated_format(ctx, disk.slot(), stated)?;
            let format = format_of(ctx, &disk, stated, NamedBy::Image)?;
            next = Some((disk, format));
        }
        let header = Some(header);
        let image = Box::new(Image { disk, data, header });
        images.push(Opened { image, writable });
    }
    let more = images.len().saturating_sub(SHORT_CHAIN) as u64;
    if more > 0 {
        // What is not granted is missed where it is needed.
        let _ = ctx.grant(more.saturating_mul(IMAGE_BYTES));
    }
    Ok(images)
}

/// Opens a qcow2 image, with its data file as itself.
fn open_one(
    ctx: &mut Context,
    disk: &Disk,
    writable: bool,
) -> Result<(Header, Option<Disk>), Reported> {
    let access = if writable {
        FileAccess::ReadWrite
    } else {
        FileAccess::Read
    };
    let (header, data) = open_qcow2(ctx, disk, OpenMode::Change, access)?;
    let slot = disk.slot();
    if header.crypt_method != CryptMethod::None {
        return Err(fail(ctx, slot, format_args!("{}", DataError::KeyRequired)));
    }
    if writable && header.incompatible.corrupt() {
        return Err(fail(ctx, slot, format_args!("{CORRUPT}")));
    }
    Ok((header, data))
}

/// Images as a chain.
///
/// # Errors
/// The record that says why has been sent.
pub fn chain(
    ctx: &mut Context,
    images: impl IntoIterator<Item = Opened>,
) -> Result<Chain<Disk>, Reported> {
    let mut layers = Vec::new();
    for Opened { image, .. } in images {
        let Image { disk, data, header } = *image;
        let slot = disk.slot();
        layers.push(match header {
            None => Layer::raw(disk),
            Some(header) => Layer::qcow2(disk, data, header, View::Active)
                .map_err(|e| fail(ctx, slot, format_args!("{e}")))?,
        });
    }
    Ok(Chain::new(layers))
}

/// All files whose requests overlap: those above the base, and its own.
pub fn set<'a>(above: &'a Chain<Disk>, base: &'a Image<Disk>) -> Option<DiskSet<'a>> {
    let layers = above.layers().iter();
    let stores = layers.flat_map(|l| [l.store(FileOf::Image), l.store(FileOf::DataFile)]);
    let own = [Some(&base.disk), base.data.as_ref()];
    let mut disks: Vec<&Disk> = stores.chain(own.into_iter().flatten()).collect();
    disks.sort_by_key(|disk| disk.slot());
    disks.dedup_by_key(|disk| disk.slot());
    DiskSet::new(disks)
}

/// The numbers of the base's files in requests.
pub fn numbers(base: &Image<Disk>) -> Numbers {
    Numbers {
        image: base.disk.slot(),
        data: base.data.as_ref().map_or(0, Disk::slot),
    }
}
