//! The chain, taken apart at the base.

use alloc::boxed::Box;
use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::{Chain, FileOf, Layer, View};
use instar_plan_commit::{Image, Numbers};
use instar_qcow2::Header;
use instar_shared::control::FileAccess;
use instar_shared::op::ImageFormat;
use instar_storage::Cipher;
use op_chain::{Image as Opening, NamedBy, Reported, Unlock, fail, format_of, open_backing};

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
    /// The cipher of its data, if that is encrypted.
    pub cipher: Option<&'static dyn Cipher>,
}

/// Opens all images of the chain, the top first, with the keys that `unlock` has. The host opens the base for writing.
///
/// # Errors
/// The record that says why has been sent.
pub fn open(
    ctx: &mut Context,
    told: ImageFormat,
    mut unlock: Unlock<'_>,
) -> Result<Vec<Opened>, Reported> {
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    let mut images: Vec<Opened> = Vec::new();
    let mut next = Some((disk, format));
    while let Some((disk, format)) = next.take() {
        let writable = !disk.is_read_only();
        if format != ImageFormat::Qcow2 {
            let (data, header) = (None, None);
            let image = Box::new(Image { disk, data, header });
            let cipher = None;
            images.push(Opened {
                image,
                writable,
                cipher,
            });
            break;
        }
        let slot = disk.slot();
        let (header, data, cipher) = open_one(ctx, &disk, writable, &unlock)?;
        unlock.descend();
        // The first of them that may be written is the base, and the others are only read.
        let is_below_base =
            images.iter().skip(1).any(|image| image.writable) || (writable && slot != 0);
        let access = if is_below_base {
            FileAccess::Read
        } else {
            FileAccess::ReadWrite
        };
        next = open_backing(ctx, slot, &header, access)?;
        let header = Some(header);
        let image = Box::new(Image { disk, data, header });
        images.push(Opened {
            image,
            writable,
            cipher,
        });
    }
    let more = images.len().saturating_sub(SHORT_CHAIN) as u64;
    if more > 0 {
        // What is not granted is missed where it is needed.
        let _ = ctx.grant(more.saturating_mul(IMAGE_BYTES));
    }
    Ok(images)
}

/// What a qcow2 image is opened to: its header, its data file, the cipher of its data.
type Parts = (Header, Option<Disk>, Option<&'static dyn Cipher>);

/// Opens a qcow2 image, with its data file as itself.
fn open_one(
    ctx: &mut Context,
    disk: &Disk,
    writable: bool,
    unlock: &Unlock<'_>,
) -> Result<Parts, Reported> {
    let access = if writable {
        FileAccess::ReadWrite
    } else {
        FileAccess::Read
    };
    let (header, data) = unlock.open_qcow2(ctx, disk, access)?;
    let slot = disk.slot();
    let cipher = unlock.cipher(
        ctx,
        &Opening {
            disk,
            header: &header,
        },
    )?;
    if writable && header.incompatible.corrupt() {
        return Err(fail(ctx, slot, format_args!("{CORRUPT}")));
    }
    Ok((header, data, cipher))
}

/// Images as a chain.
pub fn chain(images: impl IntoIterator<Item = Opened>) -> Chain<Disk> {
    let mut layers = Vec::new();
    for Opened { image, cipher, .. } in images {
        let Image { disk, data, header } = *image;
        layers.push(match header {
            None => Layer::raw(disk),
            Some(header) => Layer::qcow2_with(disk, data, header, View::Active, cipher),
        });
    }
    Chain::new(layers)
}

/// All files whose requests overlap: those above the base, and its own.
pub fn set<'a>(above: &'a Chain<Disk>, base: &'a Image<Disk>) -> Option<DiskSet<'a>> {
    let layers = above.layers().iter();
    let stores = layers.flat_map(|l| [l.store(FileOf::Image), l.store(FileOf::DataFile)]);
    let own = [Some(&base.disk), base.data.as_ref()];
    DiskSet::new(stores.chain(own.into_iter().flatten()))
}

/// The numbers of the base's files in requests.
pub fn numbers(base: &Image<Disk>) -> Numbers {
    Numbers {
        image: base.disk.slot(),
        data: base.data.as_ref().map_or(0, Disk::slot),
    }
}
