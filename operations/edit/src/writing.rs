//! An image whose guest data is written to, with everything below it.

use crate::refuse_dirty;
use alloc::boxed::Box;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk};
use instar_plan_write::{Below, CACHE_BYTES, NothingBelow, WriteError, WriteImage};
use instar_qcow2::Header;
use instar_shared::control::FileAccess;
use instar_storage::Cipher;
use op_chain::{Image, Reported, Unlock, fail, open_backing, open_layers_with};

/// The files of an image that is written to.
#[derive(Debug)]
pub struct Written<'d> {
    /// The image.
    pub disk: &'d Disk,
    /// Its header; it is neither dirty nor corrupt.
    pub header: Header,
    /// Its external data file, open for writing.
    pub data: Option<Disk>,
    /// The cipher of its data, if that is encrypted.
    pub cipher: Option<&'static dyn Cipher>,
}

/// Opens the qcow2 image in `disk` for writes of guest data, as QEMU does: a corrupt image is refused, and a dirty one is
/// repaired first. Also opens what lies below it. `unlock` may have the keys of all of them.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_written<'d>(
    ctx: &mut Context,
    disk: &'d Disk,
    mut unlock: Unlock<'_>,
) -> Result<(Written<'d>, Box<dyn Below>), Reported> {
    let written = open_image(ctx, disk, &mut unlock)?;
    unlock.descend();
    let below = below(ctx, disk.slot(), &written.header, unlock)?;
    written.refuse_dirty(ctx)?;
    Ok((written, below))
}

/// The image of [`open_written`], without what lies below it. It may yet be marked dirty: see
/// [`Written::refuse_dirty`].
///
/// # Errors
/// The record that says why has been sent.
pub fn open_image<'d>(
    ctx: &mut Context,
    disk: &'d Disk,
    unlock: &mut Unlock<'_>,
) -> Result<Written<'d>, Reported> {
    let (header, data) = unlock.open_qcow2(ctx, disk, FileAccess::ReadWrite)?;
    let cipher = unlock.cipher(
        ctx,
        &Image {
            disk,
            header: &header,
        },
    )?;
    if header.incompatible.corrupt() {
        let refusal = "qcow2: Image is corrupt; cannot be opened read/write";
        return Err(fail(ctx, disk.slot(), format_args!("{refusal}")));
    }
    Ok(Written {
        disk,
        header,
        data,
        cipher,
    })
}

/// Opens what lies below the image in `slot`.
fn below(
    ctx: &mut Context,
    slot: u16,
    header: &Header,
    unlock: Unlock<'_>,
) -> Result<Box<dyn Below>, Reported> {
    let Some((below, format)) = open_backing(ctx, slot, header, FileAccess::Read)? else {
        return Ok(Box::new(NothingBelow));
    };
    let layers = open_layers_with(ctx, below, format, unlock)?;
    Ok(Box::new((layers.chain, Decoder::new())))
}

impl Written<'_> {
    /// Numbers of the image's file and of its data file; 0 if it has none.
    #[must_use]
    pub fn slots(&self) -> (u16, u16) {
        (self.disk.slot(), self.data.as_ref().map_or(0, Disk::slot))
    }

    /// Begins to write, over `below`. Asks for the memory that this takes.
    ///
    /// # Errors
    /// The image's tables cannot be used.
    pub fn begin<'a>(
        &'a self,
        ctx: &mut Context,
        below: Box<dyn Below + 'a>,
    ) -> Result<WriteImage<'a, Disk>, WriteError> {
        let tables = self.header.table_bytes();
        // What is not granted is missed where it is needed.
        let _ = ctx.grant(tables.saturating_add(CACHE_BYTES.saturating_mul(4)));
        self.open_over(below)
    }

    /// Begins to write, over `below`.
    ///
    /// # Errors
    /// The image's tables cannot be used.
    pub fn open_over<'a>(
        &'a self,
        below: Box<dyn Below + 'a>,
    ) -> Result<WriteImage<'a, Disk>, WriteError> {
        let codec = Box::new(Decoder::new());
        let (data, cipher) = (self.data.as_ref(), self.cipher);
        WriteImage::open_with(self.disk, data, &self.header, below, codec, cipher)
    }

    /// Ends the operation if the image is marked dirty: the host has it repaired.
    ///
    /// # Errors
    /// It is, and the host knows.
    pub fn refuse_dirty(&self, ctx: &mut Context) -> Result<(), Reported> {
        refuse_dirty(ctx, self.disk.slot(), &self.header, true)
    }
}
