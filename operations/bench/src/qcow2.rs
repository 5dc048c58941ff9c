//! A qcow2 image that takes writes, with its backing chain.

use alloc::boxed::Box;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk};
use instar_plan_bench::{BenchError, Image, Piece};
use instar_plan_write::{Below, NothingBelow, WriteError, WriteImage};
use instar_qcow2::header::CryptMethod;
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::{FileAccess, FileRole};
use op_chain::{
    NamedBy, Reported, fail, format_of, open_layers, open_named, open_qcow2, stated_format,
};

/// Opens an image for writing, and its data file. One that has to be repaired first is refused.
///
/// # Errors
/// The record that says why has been sent.
pub fn open(ctx: &mut Context, disk: &Disk) -> Result<(Header, Option<Disk>), Reported> {
    let (header, data) = open_qcow2(ctx, disk, OpenMode::Change, FileAccess::ReadWrite)?;
    let refusal = if header.crypt_method != CryptMethod::None {
        "Parameter 'encrypt.key-secret' is required for cipher"
    } else if header.incompatible.corrupt() {
        "qcow2: Image is corrupt; cannot be opened read/write"
    } else if header.incompatible.dirty() {
        "Its refcounts may be out of date; repair it with 'check --repair all' first"
    } else {
        return Ok((header, data));
    };
    Err(fail(ctx, disk.slot(), format_args!("{refusal}")))
}

/// Opens what lies below the image.
///
/// # Errors
/// The record that says why has been sent.
pub fn below(ctx: &mut Context, disk: &Disk, header: &Header) -> Result<Box<dyn Below>, Reported> {
    let Some(name) = &header.backing_file else {
        return Ok(Box::new(NothingBelow));
    };
    let below = open_named(ctx, disk.slot(), name, FileRole::Backing, FileAccess::Read)?;
    let stated = header.extensions.backing_format.as_deref();
    let stated = stated_format(ctx, below.slot(), stated)?;
    let format = format_of(ctx, &below, stated, NamedBy::Image)?;
    let layers = open_layers(ctx, below, format)?;
    Ok(Box::new((layers.chain, Decoder::new())))
}

/// Takes requests: those whose bytes have a place overlap, the others are done here.
pub struct Writer<'a> {
    image: WriteImage<'a, Disk>,
    /// Slots of the image and of its data file.
    slots: (u16, u16),
}

impl<'a> Writer<'a> {
    /// Over an image whose files have these slots.
    pub const fn new(image: WriteImage<'a, Disk>, slots: (u16, u16)) -> Self {
        Self { image, slots }
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// The store's.
    pub fn finish(&mut self) -> Result<(), BenchError> {
        self.image.flush().map_err(failed)
    }
}

fn failed(error: WriteError) -> BenchError {
    BenchError::Request {
        errno: error.errno(),
    }
}

impl Image for Writer<'_> {
    fn len_bytes(&self) -> u64 {
        self.image.len_bytes()
    }

    fn read(&mut self, guest: u64, buf: &mut [u8]) -> Result<Piece, BenchError> {
        self.write(guest, buf)
    }

    fn write(&mut self, guest: u64, data: &[u8]) -> Result<Piece, BenchError> {
        let place = self.image.in_place(guest, data.len() as u64);
        if let Some((in_data_file, offset, len)) = place.map_err(failed)? {
            let file = if in_data_file {
                self.slots.1
            } else {
                self.slots.0
            };
            let len = usize::try_from(len).map_or(data.len(), |len| len.min(data.len()));
            return Ok(Piece {
                len,
                at: Some((file, offset)),
            });
        }
        self.image.write_at(guest, data).map_err(failed)?;
        Ok(Piece {
            len: data.len(),
            at: None,
        })
    }

    fn flush(&mut self) -> Result<Option<u16>, BenchError> {
        self.finish()?;
        Ok(None)
    }
}
