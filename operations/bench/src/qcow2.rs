//! A qcow2 image that takes writes.

use instar_guest_ops::Disk;
use instar_plan_bench::{BenchError, Image, Piece};
use instar_plan_write::{WriteError, WriteImage};

/// Takes requests: all of them overlap, as each is told its place before.
#[derive(Debug)]
pub struct Writer<'a> {
    image: WriteImage<'a, Disk>,
    /// Slots of the image and of its data file.
    slots: (u16, u16),
    /// Something that was given a place was not written.
    spoilt: bool,
}

impl<'a> Writer<'a> {
    /// Over an image whose files have these slots.
    pub const fn new(image: WriteImage<'a, Disk>, slots: (u16, u16)) -> Self {
        Self {
            image,
            slots,
            spoilt: false,
        }
    }

    /// Makes everything that was written durable, and has bitmaps record it. After a failed write what was there
    /// before stays.
    ///
    /// # Errors
    /// The store's.
    pub fn finish(&mut self) -> Result<(), BenchError> {
        let ended = if self.spoilt {
            self.image.abandon()
        } else {
            self.image.finish()
        };
        ended.map_err(failed)
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
        let placed = self.image.place(guest, data.len() as u64);
        let placed = placed.map_err(failed)?;
        let file = if placed.in_data_file {
            self.slots.1
        } else {
            self.slots.0
        };
        let len = usize::try_from(placed.len).map_or(data.len(), |len| len.min(data.len()));
        Ok(Piece {
            len,
            at: Some((file, placed.offset)),
        })
    }

    fn flush(&mut self) -> Result<Option<u16>, BenchError> {
        self.image.flush().map_err(failed)?;
        Ok(None)
    }

    fn is_full(&self) -> bool {
        self.image.is_full()
    }

    fn rests_for_flush(&self) -> bool {
        self.image.is_dirty()
    }

    fn write_failed(&mut self) {
        self.spoilt = true;
    }
}
